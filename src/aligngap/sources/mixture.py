"""Several sources in stated shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from aligngap.models.policy import Policy
from aligngap.seeds import numpy_stream
from aligngap.sources.base import Ingredients, PairSource, SourceCost, SourceSpec, State
from aligngap.sources.recorded import RecordedSpec
from aligngap.sources.sampled import SampledSpec
from aligngap.types import PairBatch, concatenate


class Mixture:
    """Each pair comes from source k with probability shares[k], drawn from a named stream; places in the batch are
    mixed too.
    """

    def __init__(self, sources: Sequence[PairSource], shares: Sequence[float], seed: int) -> None:
        if len(sources) != len(shares) or not sources or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(
                f"{len(sources)} sources need as many shares that are not negative and sum to 1, not {list(shares)}"
            )
        self._sources, self._shares, self._seed, self._batch = list(sources), list(shares), seed, 0

    @property
    def cost(self) -> SourceCost:
        """Sum over the sources."""
        costs = [source.cost for source in self._sources]
        spent: Counter[str] = Counter()
        for cost in costs:
            spent.update(cost.judge_spent)
        return SourceCost(sum(c.tokens_sampled for c in costs), sum(c.judge_calls for c in costs), dict(spent))

    def next_batch(self, n: int) -> PairBatch:
        rng = numpy_stream("mixture", self._seed, self._batch)
        self._batch += 1
        origin = torch.from_numpy(rng.choice(len(self._sources), size=n, p=self._shares))
        counts = [int((origin == k).sum()) for k in range(len(self._sources))]
        parts = [source.next_batch(count) for source, count in zip(self._sources, counts, strict=True) if count]
        # `concatenate` lists source 0's pairs, then source 1's ...; give each its drawn place.
        place = torch.argsort(origin, stable=True)
        return concatenate(parts).take(torch.argsort(place))

    def observe(self, step: int, policy: Policy) -> None:
        for source in self._sources:
            source.observe(step, policy)

    def state_dict(self) -> State:
        state = {
            f"{k}.{name}": value
            for k, source in enumerate(self._sources)
            for name, value in source.state_dict().items()
        }
        return {"batch": torch.tensor(self._batch), **state}

    def load_state_dict(self, state: State) -> None:
        self._batch = int(state["batch"])
        for k, source in enumerate(self._sources):
            source.load_state_dict(
                {name.removeprefix(f"{k}."): v for name, v in state.items() if name.startswith(f"{k}.")}
            )


class MixtureSpec(SourceSpec):
    """On-policy pairs with probability `on_policy`, recorded pairs otherwise."""

    needs_judge = True
    needs_pairs = True

    kind: Literal["mixture"] = "mixture"
    on_policy: float = Field(0.5, ge=0, le=1)
    sampled: SampledSpec = SampledSpec()
    recorded: RecordedSpec = RecordedSpec()

    def build(self, given: Ingredients) -> Mixture:
        parts: list[PairSource] = [self.sampled.build(given), self.recorded.build(given)]
        return Mixture(parts, [self.on_policy, 1 - self.on_policy], given.seed)
