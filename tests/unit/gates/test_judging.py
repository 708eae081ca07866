"""The gate of judges: what it lets through and what not, on writers' pairs of every world, by made-up judges."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from aligngap.gates.agreement import balanced_agreement, first_of_each_sign
from aligngap.gates.golden import Stratum, attained, examined, style_edits
from aligngap.judges.base import Judge
from aligngap.judges.true_utility import TrueUtilityJudge
from aligngap.models.tokenizer import word_tokenizer
from aligngap.results import Score
from aligngap.tasks.spec import TaskSpec, make_pairs
from aligngap.tasks.worlds import WORLDS, world
from aligngap.types import PairBatch, Tokens


class MadeUp(Judge):
    """Judges by a function of a prompt's and a response's tokens: the higher value is preferred."""

    def __init__(self, value: Callable[[list[int], list[int]], float]) -> None:
        super().__init__()
        self.value = value

    def compare(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        rows = zip(prompts.rows(), first.rows(), second.rows(), strict=True)
        return torch.tensor([self.value(p, a) - self.value(p, b) for p, a, b in rows], dtype=torch.float64)


class AlwaysFirst(Judge):
    """Says "the trained one" where that is first."""

    def compare(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        return torch.ones(len(prompts.lengths))


@pytest.fixture(scope="module", params=list(WORLDS))
def material(request: pytest.FixtureRequest) -> tuple[TrueUtilityJudge, PairBatch]:
    place = world(request.param)
    tokenizer = word_tokenizer(place.vocabulary())
    spec = TaskSpec(world=place.name, train_pairs=1600, held_out_pairs=8, part="gates")
    return TrueUtilityJudge(place, tokenizer), make_pairs(spec, tokenizer).train


def strata(judge: Judge, truth: TrueUtilityJudge, pairs: PairBatch) -> Score:
    drawn = [(pairs.prompts, pairs.first, pairs.second)]
    (score,) = examined(judge, truth, Stratum("writers", iter(drawn), []))
    return score


def style(judge: Judge, truth: TrueUtilityJudge, pairs: PairBatch) -> Score:
    part = pairs.take(torch.arange(400))
    return style_edits(judge, truth, (part.prompts, part.first, part.second), 0)


def test_the_truth_passes(material: tuple[TrueUtilityJudge, PairBatch]) -> None:
    truth, pairs = material
    assert strata(truth, truth, pairs).value == 1.0
    edits = style(truth, truth, pairs)
    assert edits.value == 0.0
    assert edits.n is not None
    assert edits.n > 200, "nearly every response has another style"
    (share, *_) = attained(truth, truth, pairs)
    assert share.value == pytest.approx(1.0)
    assert share.passed


def test_a_judge_that_says_the_trained_one_fails(material: tuple[TrueUtilityJudge, PairBatch]) -> None:
    truth, pairs = material
    score = strata(AlwaysFirst(), truth, pairs)
    assert score.value == 0.5
    assert score.gated
    assert not score.passed


def test_a_judge_that_reads_only_the_opener_fails(material: tuple[TrueUtilityJudge, PairBatch]) -> None:
    """It prefers by the first word: the first laboratory's golden took `tldr:` for a better answer 138 of 138 times."""
    truth, pairs = material
    opener = MadeUp(lambda prompt, response: float(response[0] * 7919 % 101))
    assert not strata(opener, truth, pairs).passed
    edits = style(opener, truth, pairs)
    assert not edits.passed
    assert edits.value is not None
    assert edits.value > 0.2
    assert not attained(opener, truth, pairs)[0].passed


def test_a_judge_that_counts_words_fails(material: tuple[TrueUtilityJudge, PairBatch]) -> None:
    truth, pairs = material
    for sign in (1, -1):
        longer = MadeUp(lambda prompt, response, sign=sign: float(sign * len(response)))  # type: ignore[misc]
        assert not strata(longer, truth, pairs).passed
        assert not attained(longer, truth, pairs)[0].passed


def test_a_judge_that_errs_alike_both_ways_is_measured(material: tuple[TrueUtilityJudge, PairBatch]) -> None:
    truth, pairs = material

    class Erring(Judge):
        def compare(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
            right = truth.compare(prompts, first, second)
            flip = torch.rand(len(right), generator=torch.Generator().manual_seed(0)) < 0.2
            return torch.where(flip, -right, right)

    score = strata(Erring(), truth, pairs)
    assert score.value is not None
    assert score.se is not None
    assert abs(score.value - 0.8) < 4 * score.se
    assert score.se == pytest.approx((0.16 / 800) ** 0.5, rel=0.2)
    assert not score.passed


def test_too_few_pairs_are_reported_and_not_gated(material: tuple[TrueUtilityJudge, PairBatch]) -> None:
    truth, pairs = material
    few = pairs.take(torch.arange(300))
    score = strata(truth, truth, few)
    assert not score.gated
    assert "of 400 pairs" in score.note


def test_balance_does_not_depend_on_how_often_a_sign_comes() -> None:
    """Written out: 9 of 10 of the better firsts recognised, 1 of 2 of the better seconds."""
    difference = torch.tensor([1.0] * 10 + [-1.0] * 2)
    says = torch.tensor([1.0] * 9 + [0.0] + [0.0, 1.0])
    value, error = balanced_agreement(says, difference)
    assert value == pytest.approx((0.9 + 0.5) / 2)
    assert error == pytest.approx(((0.9 * 0.1 / 10 + 0.25 / 2) ** 0.5) / 2)
    assert balanced_agreement(says[:10], difference[:10]) == (None, None)
    assert balanced_agreement(torch.full((12,), 0.5), difference)[0] == 0.5


def test_each_sign_has_its_first_clear_pairs() -> None:
    difference = torch.tensor([0.1, 2.0, -3.0, 4.0, -0.2, 5.0, -6.0])
    assert first_of_each_sign(difference, 0.5, 2).tolist() == [1, 2, 3, 6]
