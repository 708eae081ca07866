"""The contract of every pair source. The training loop knows this file and no other of this folder."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from pydantic import ConfigDict

from aligngap.judges.base import Judge
from aligngap.models.policy import Policy
from aligngap.plugins import Pluggable
from aligngap.types import PairBatch, Prompt

T = TypeVar("T")

State = dict[str, torch.Tensor]
"""What a source needs to go on where it stopped: named tensors, so that it is saved without pickle."""


@dataclass
class SourceCost:
    """What a source has cost so far: tokens sampled from policies, pairs a judge was asked about, and what else the
    judge's answers cost (`Judge.spent`).
    """

    tokens_sampled: int = 0
    judge_calls: int = 0
    judge_spent: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class PairSource(Protocol):
    """Supplies labelled pairs, batch by batch."""

    @property
    def cost(self) -> SourceCost:
        """What it has cost so far."""
        ...

    def next_batch(self, n: int) -> PairBatch:
        """The next n pairs. A pure function of the source's specification, its state and, for live sources, the
        observed policy.
        """
        ...

    def observe(self, step: int, policy: Policy) -> None:
        """Called once before the first step (step 0) and after every optimiser step with the policy in training.
        Recorded sources ignore it.
        """
        ...

    def state_dict(self) -> State:
        """All that `load_state_dict` needs to continue bit for bit."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Continue from a saved state."""
        ...


@dataclass(frozen=True)
class Ingredients:
    """What a study can hand to a source when it is built; each source takes what it needs.

    prompts: training prompts; judge: labels sampled pairs; pairs: recorded pairs; batch: pairs a step (shuffle windows
    are counted in batches); ends: what ends a response.
    """

    seed: int
    batch: int
    prompts: list[Prompt]
    judge: Judge | None = None
    pairs: PairBatch | None = None
    ends: tuple[int, ...] | None = None


class SourceSpec(Pluggable):
    """Names a source and its settings in a study. Each source's file defines one; `sources.registry` lists them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str
    needs_judge: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False

    @abstractmethod
    def build(self, given: Ingredients) -> PairSource:
        """The source itself. Raises ValueError when an ingredient is missing."""


def require(value: T | None, what: str, source: str) -> T:
    """The ingredient, or a ValueError that says which source misses what."""
    if value is None:
        raise ValueError(f"the {source} source needs {what}")
    return value
