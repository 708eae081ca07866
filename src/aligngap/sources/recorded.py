"""Fixed pairs in a given order: a preference data set (offline), or an online arm's recorded stream (replay,
shuffled).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field

from aligngap.models.policy import Policy
from aligngap.sources.base import Ingredients, SourceCost, SourceSpec, State, require
from aligngap.sources.order import Order, Walk, in_sequence, prompt_schedule, uniform, windowed
from aligngap.types import PairBatch, Tokens


class Recorded:
    """Pairs x order. Goes round again when the pairs are used up."""

    def __init__(self, pairs: PairBatch, order: Order) -> None:
        self.cost = SourceCost()
        self._pairs, self._walk = pairs, Walk(len(pairs), order)

    def next_batch(self, n: int) -> PairBatch:
        return self._pairs.take(self._walk.take(n))

    def observe(self, step: int, policy: Policy) -> None:
        """Recorded pairs do not depend on the policy."""

    def state_dict(self) -> State:
        return {"position": torch.tensor(self._walk.position)}

    def load_state_dict(self, state: State) -> None:
        self._walk.position = int(state["position"])


class RecordedSpec(SourceSpec):
    """`schedule`: in the prompt order that all arms of a seed share; `sequence`: as recorded; `window`: shuffled
    within windows of `window` batches; `uniform`: shuffled over the whole recording. ends: `dropped` takes the
    end-of-sequence token off every response, which is what a trip through text does to a stream.
    """

    needs_pairs = True

    kind: Literal["recorded"] = "recorded"
    order: Literal["schedule", "sequence", "window", "uniform"] = "schedule"
    window: int = Field(1, ge=1)
    ends: Literal["kept", "dropped"] = "kept"

    def build(self, given: Ingredients) -> Recorded:
        orders: dict[str, Order] = {
            "schedule": prompt_schedule(given.seed),
            "sequence": in_sequence,
            "window": windowed(self.window * given.batch, "order", given.seed),
            "uniform": uniform("order", given.seed),
        }
        pairs = require(given.pairs, "recorded pairs", self.kind)
        if self.ends == "dropped":
            ends = require(given.ends, "the end tokens", self.kind)
            first, second = (without_end(tokens, ends) for tokens in (pairs.first, pairs.second))
            pairs = replace(pairs, first=first, second=second, reference=None)
        return Recorded(pairs, orders[self.order])


def without_end(tokens: Tokens, ends: Sequence[int]) -> Tokens:
    """The same rows without the token that ends them, where there is one; at least one token stays."""
    last = tokens.ids.gather(1, (tokens.lengths - 1).clamp(min=0)[:, None])[:, 0]
    ended = torch.isin(last, torch.tensor(ends, device=last.device))
    return Tokens(tokens.ids, (tokens.lengths - ended.long()).clamp(min=1))
