"""The gates of a data set of one's own: made-up judges of made-up pairs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from aligngap.gates.own import agreement, consistency, word_of_style
from aligngap.judges.base import Judge
from aligngap.types import PairBatch, Tokens

N = 400


class MadeUp(Judge):
    """The first response's value less the second's, and something for being read first."""

    def __init__(self, value: Callable[[list[int]], float], for_the_first: float = 0.0) -> None:
        super().__init__()
        self.value, self.for_the_first = value, for_the_first

    def compare(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        both = zip(first.rows(), second.rows(), strict=True)
        return torch.tensor([self.value(a) - self.value(b) + self.for_the_first for a, b in both])


@pytest.fixture
def pairs() -> PairBatch:
    generator = torch.Generator().manual_seed(0)
    first, second = (Tokens(torch.randint(1, 100, (N, 5), generator=generator), torch.full((N,), 5)) for _ in range(2))
    preference = (first.ids.sum(1) > second.ids.sum(1)).float()
    prompts = Tokens(torch.arange(N)[:, None], torch.ones(N, dtype=torch.int64))
    return PairBatch(torch.arange(N), prompts, first, second, preference, ("",) * N)


def test_agreement_with_raters(pairs: PairBatch) -> None:
    assert agreement(MadeUp(sum), pairs).value == pytest.approx(1.0, abs=0.005)  # a tie counts one half
    assert agreement(MadeUp(sum), pairs).passed
    opposite = agreement(MadeUp(lambda ids: -sum(ids)), pairs)
    assert opposite.value == pytest.approx(0.0, abs=0.005)
    assert not opposite.passed
    coin = agreement(MadeUp(lambda ids: (ids[0] * 7919 + ids[4] * 104729) % 101), pairs)
    assert coin.value == pytest.approx(0.5, abs=0.15)


def test_ties_of_the_raters_are_left_out(pairs: PairBatch) -> None:
    tied = pairs.preference.clone()
    tied[::2] = 0.5
    score = agreement(MadeUp(sum), PairBatch(**{**vars(pairs), "preference": tied}))
    assert (score.value, score.n) == (pytest.approx(1.0, abs=0.01), N // 2)


def test_both_orders(pairs: PairBatch) -> None:
    same, first = consistency(MadeUp(sum), pairs)
    assert (same.value, first.value) == (pytest.approx(1.0, abs=0.01), pytest.approx(0.5, abs=0.02))
    same, first = consistency(MadeUp(sum, for_the_first=1e6), pairs)
    assert (same.value, first.value) == (0.0, 1.0)
    assert not same.passed


def test_a_word_of_style(pairs: PairBatch) -> None:
    blind = word_of_style(MadeUp(lambda ids: sum(ids[-5:])), pairs, "tldr:", [999], 8)
    assert (blind.value, blind.n, blind.passed) == (0.0, N, True)
    fond = word_of_style(MadeUp(lambda ids: 1e6 * (ids[0] == 999) + sum(ids)), pairs, "tldr:", [999], 8)
    assert fond.value == pytest.approx(0.5, abs=0.1), "it always prefers the answer with the word"
    assert not fond.passed


def test_answers_without_room_for_the_word_are_counted(pairs: PairBatch) -> None:
    none = word_of_style(MadeUp(sum), pairs, "tldr:", [999], 5)
    assert none.value is None
    assert f"{N} pairs have no room" in none.note
    assert not none.passed
