"""What every judge offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from aligngap import ranks
from aligngap.timings import spending
from aligngap.types import Tokens


def decision(margin: torch.Tensor) -> torch.Tensor:
    """1 where the first response is preferred, 0 where the second is, 0.5 for a tie; float32."""
    return (margin.sign().float() + 1) / 2


def share(margin: torch.Tensor) -> torch.Tensor:
    """The probability p behind a margin of 2p - 1; float32."""
    return (margin.float() + 1) / 2


Orders = tuple[torch.Tensor, torch.Tensor]


class Judge(ABC):
    """Decides which of two responses is preferred.

    calls: the pairs it was asked about. spent: what else its answers have cost so far, by name, such as the requests
    and tokens of an endpoint; empty for a judge that costs nothing but time.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.spent: dict[str, float] = {}

    def prefer(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        """1 where the first response is preferred, 0 where the second is, 0.5 for a tie; float32 [n]."""
        return decision(self.margin(prompts, first, second))

    @spending("judging")
    def margin(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        """By how much the first response is preferred, in the judge's own unit; the sign is the decision; [n].

        The tokens may be on any device; the answer comes back on theirs.

        Identical responses are a tie by definition: no judge may break it by rounding.
        """
        self.calls += len(prompts.ids)
        before = dict(self.spent)
        margins = ranks.map_rows(self.compare, prompts, first, second)
        self._add_up(before)
        return margins.masked_fill(same_rows(first, second), 0.0)

    def against(self, prompts: Tokens, opponents: Sequence[Tokens]) -> Against:
        """Opponents' responses to prompts, which other responses will be compared with again and again."""
        return Against(self, prompts, opponents)

    def _add_up(self, before: dict[str, float]) -> None:
        """Of several ranks that shared the work, each has spent what all have."""
        if ranks.size() == 1:
            return
        parts = ranks.gather({name: amount - before.get(name, 0.0) for name, amount in self.spent.items()})
        self.spent.clear()
        self.spent.update(before)
        for name, amount in (item for part in parts for item in part.items()):
            self.spent[name] = self.spent.get(name, 0.0) + amount

    def probability(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        """How likely the first response is preferred, for judges that can say; else the decision; float32 [n]."""
        return self.likelihood(self.margin(prompts, first, second))

    def likelihood(self, margin: torch.Tensor) -> torch.Tensor:
        """The probability that a margin stands for, for judges that can say; else the decision; float32 [n]."""
        return decision(margin)

    @spending("judging")
    def orders(self, prompts: Tokens, first: Tokens, second: Tokens) -> Orders | None:
        """What the judge prefers when it reads `first` before `second`, and when it reads it after: 1 where it prefers
        `first`, 0 where `second`, 0.5 for neither, whatever it makes of both for its decision; float32 [n] each. None
        for a judge that reads each response by itself.
        """
        orders = self.compare_orders(prompts, first, second)
        self.calls += 0 if orders is None else len(prompts.ids)
        return orders

    def compare_orders(self, prompts: Tokens, first: Tokens, second: Tokens) -> Orders | None:
        """As `orders`, for pairs that differ. Judges whose `compare` asks in one order only need no more than this."""
        return decision(self.compare(prompts, first, second)), decision(-self.compare(prompts, second, first))

    @abstractmethod
    def compare(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        """As `margin`, for pairs that differ; [n]."""


class Against:
    """A judge of responses to prompts against those of several opponents, which stay the same."""

    def __init__(self, judge: Judge, prompts: Tokens, opponents: Sequence[Tokens]) -> None:
        self.judge, self.prompts, self.opponents = judge, prompts, opponents

    def margins(self, index: torch.Tensor, responses: Tokens) -> torch.Tensor:
        """`Judge.margin` of responses to some of the prompts (index, int64 [n]) as the first and each opponent's as the
        second; [opponents, n].
        """
        prompts = self.prompts.take(index)
        return torch.stack([self.judge.margin(prompts, responses, other.take(index)) for other in self.opponents])


def same_rows(first: Tokens, second: Tokens) -> torch.Tensor:
    """True where both rows hold the same tokens, bool [n]."""
    width = max(first.ids.shape[1], second.ids.shape[1])
    a, b = (torch.nn.functional.pad(part.ids * part.mask(), (0, width - part.ids.shape[1])) for part in (first, second))
    return (first.lengths == second.lengths) & (a == b).all(1)
