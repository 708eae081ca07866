"""The one loop that trains every arm: next batch, loss, step, observe. It does not know where pairs come from."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)
from safetensors.torch import load_file, save_file

from aligngap.losses import LOSSES, LogProbs, Reduction, pair_loss
from aligngap.models.policy import Policy
from aligngap.plugins import with_code
from aligngap.sources.base import PairSource
from aligngap.train.step import Optimiser, OptimSpec
from aligngap.types import PairBatch


class LossSpec(BaseModel):
    """Which loss, at which strength; the reduction over response tokens is explicit and one for all arms. sft: weight
    of an added negative log-likelihood of the winner.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "ipo"
    beta: float = Field(0.1, gt=0)
    reduction: Reduction = "sum"
    sft: float = Field(0.0, ge=0)

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in LOSSES:
            raise ValueError(LOSSES.hint(value))
        return value

    @model_serializer(mode="wrap")
    def _with_code(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return with_code(handler(self), LOSSES.code(self.name), info)


def batch_loss(policy: Policy, reference: Policy, batch: PairBatch, spec: LossSpec) -> torch.Tensor:
    """Loss of a batch of pairs, both responses packed behind their prompt; a scalar with a gradient. Reads ids and
    preference, nothing else.
    """
    responses = [batch.first, batch.second]
    with torch.no_grad():
        fixed = reference.log_probs(batch.prompts, responses)
    live = policy.log_probs(batch.prompts, responses)
    first, second = (LogProbs(a, b, tokens.lengths) for a, b, tokens in zip(live, fixed, responses, strict=True))
    return pair_loss(spec.name, first, second, batch.preference, spec.beta, spec.reduction, spec.sft)


class Checkpointer:
    """Step checkpoints in a folder: what a kill may cost is bounded by `every` seconds.

    Weights, optimiser, source (position, behaviour weights, stream so far) and steps done, in one file that is
    replaced atomically.
    """

    def __init__(self, folder: Path, every: float) -> None:
        self._path, self._every, self._last = folder / "state.safetensors", every, time.monotonic()

    def maybe_save(self, policy: Policy, optimiser: Optimiser, source: PairSource) -> None:
        """Save if the last save is longer ago than `every` seconds."""
        if time.monotonic() - self._last >= self._every:
            self.save(policy, optimiser, source)

    def save(self, policy: Policy, optimiser: Optimiser, source: PairSource) -> None:
        """Save now."""
        parts = {
            "policy": policy.model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "source": source.state_dict(),
        }
        # Tied weights are one storage under two names, which safetensors refuses; each name gets a copy.
        tensors = {
            f"{part}/{name}": value.detach().clone().contiguous()
            for part, values in parts.items()
            for name, value in values.items()
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        save_file(tensors, str(fresh))
        fresh.replace(self._path)
        self._last = time.monotonic()

    def restore(self, policy: Policy, optimiser: Optimiser, source: PairSource) -> bool:
        """Continue from the last save, if there is one."""
        if not self._path.is_file():
            return False
        parts: dict[str, dict[str, torch.Tensor]] = {"policy": {}, "optimiser": {}, "source": {}}
        for key, value in load_file(str(self._path)).items():
            part, name = key.split("/", 1)
            parts[part][name] = value
        policy.model.load_state_dict(parts["policy"])
        optimiser.load_state_dict(parts["optimiser"])
        source.load_state_dict(parts["source"])
        return True


def train(
    policy: Policy,
    reference: Policy,
    source: PairSource,
    loss: LossSpec,
    optim: OptimSpec,
    *,
    keep: Collection[int],
    save_policy: Callable[[int, Policy], None],
    checkpointer: Checkpointer | None = None,
    progress: Callable[[int, int, Mapping[str, float]], None] = lambda done, total, metrics: None,
) -> None:
    """Train `policy` in place on what `source` supplies.

    keep: steps (0 = before training) at which `save_policy` is called. Raises Diverged when the loss stops being
    finite; what was saved before stays.
    """
    optimiser = Optimiser(policy.model.parameters(), optim)
    source.observe(0, policy)
    if not (checkpointer and checkpointer.restore(policy, optimiser, source)) and 0 in keep:
        save_policy(0, policy)
    while optimiser.step_count < optim.steps:
        batch = source.next_batch(optim.batch).to(policy.device)
        value = batch_loss(policy, reference, batch, loss)
        norm = optimiser.step(value)
        step = optimiser.step_count
        source.observe(step, policy)
        if step in keep:
            save_policy(step, policy)
        if checkpointer:
            checkpointer.maybe_save(policy, optimiser, source)
        progress(step, optim.steps, {"loss": float(value.detach()), "grad_norm": norm})
