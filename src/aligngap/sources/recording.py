"""Writes down what a source supplies, so that it can be replayed."""

from __future__ import annotations

from aligngap.models.policy import Policy
from aligngap.sources.base import PairSource, SourceCost, State
from aligngap.tasks.pairs import pack_pairs, unpack_pairs
from aligngap.types import PairBatch, concatenate


class Recording:
    """Wraps any source. `stream()` is everything supplied so far, in order."""

    def __init__(self, source: PairSource) -> None:
        self._source, self._batches = source, list[PairBatch]()

    @property
    def cost(self) -> SourceCost:
        """The wrapped source's cost."""
        return self._source.cost

    def next_batch(self, n: int) -> PairBatch:
        batch = self._source.next_batch(n)
        self._batches.append(batch)
        return batch

    def observe(self, step: int, policy: Policy) -> None:
        self._source.observe(step, policy)

    def stream(self) -> PairBatch:
        """All pairs so far, in the order supplied. Raises ValueError when there are none."""
        if not self._batches:
            raise ValueError("nothing has been recorded yet")
        self._batches = [concatenate(self._batches)]
        return self._batches[0]

    def state_dict(self) -> State:
        state = {f"source.{name}": value for name, value in self._source.state_dict().items()}
        if self._batches:
            state |= {f"stream.{name}": value for name, value in pack_pairs(self.stream()).items()}
        return state

    def load_state_dict(self, state: State) -> None:
        self._source.load_state_dict(
            {k.removeprefix("source."): v for k, v in state.items() if k.startswith("source.")}
        )
        stream = {k.removeprefix("stream."): v for k, v in state.items() if k.startswith("stream.")}
        self._batches = [unpack_pairs(stream)] if stream else []
