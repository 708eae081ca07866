"""Fixed pairs in a given order: a preference data set (offline), or an online arm's recorded stream (replay,
shuffled).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from aligngap.models.policy import Policy
from aligngap.sources.base import Ingredients, SourceCost, SourceSpec, State, require
from aligngap.sources.order import Order, Walk, in_sequence, prompt_schedule, uniform, windowed
from aligngap.types import PairBatch


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
    within windows of `window` batches; `uniform`: shuffled over the whole recording.
    """

    needs_pairs = True

    kind: Literal["recorded"] = "recorded"
    order: Literal["schedule", "sequence", "window", "uniform"] = "schedule"
    window: int = Field(1, ge=1)

    def build(self, given: Ingredients) -> Recorded:
        orders: dict[str, Order] = {
            "schedule": prompt_schedule(given.seed),
            "sequence": in_sequence,
            "window": windowed(self.window * given.batch, "order", given.seed),
            "uniform": uniform("order", given.seed),
        }
        return Recorded(require(given.pairs, "recorded pairs", self.kind), orders[self.order])
