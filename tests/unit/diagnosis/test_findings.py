"""What is measured, on policies that are tables: the right answers are known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from aligngap.diagnosis.findings import Findings, measure
from aligngap.diagnosis.regime import decide
from aligngap.diagnosis.report import diagnose
from aligngap.diagnosis.subject import Subject
from aligngap.errors import UserError
from aligngap.judges.base import Judge, Orders
from aligngap.models.tokenizer import word_tokenizer
from aligngap.types import PairBatch, Tokens
from fakes import END, ScriptedJudge, TablePolicy, pairs_of

COUNT = 240
PROMPTS = [[1, 3 + number // 12, 3 + number % 12] for number in range(COUNT)]
COMMON = [[3, END], [4, 5, END], [6, 7, END], [8, 9, 10, END]]
FOREIGN = [[11, 11, 12, 13, END], [13, 12, 11, 12, 11, END]]
RESPONSES = [*COMMON, *FOREIGN]
P = [0.4, 0.3, 0.2, 0.098, 0.001, 0.001]


def table(rows: Sequence[float] = P) -> TablePolicy:
    logits = torch.tensor([rows] * COUNT, dtype=torch.float64).log()
    return TablePolicy(PROMPTS, RESPONSES, logits, vocabulary=14)


def drawn(chances: Sequence[float], seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [RESPONSES[k] for k in rng.choice(len(RESPONSES), size=COUNT, p=np.array(chances) / sum(chances))]


def subject(chosen: list[list[int]], rejected: list[list[int]], policy: TablePolicy | None = None) -> Subject:
    """Chosen is first in every other pair."""
    turned = [number % 2 == 1 for number in range(COUNT)]
    first = [b if turn else a for a, b, turn in zip(chosen, rejected, turned, strict=True)]
    second = [a if turn else b for a, b, turn in zip(chosen, rejected, turned, strict=True)]
    pairs = pairs_of(PROMPTS, first, second, [0.0 if turn else 1.0 for turn in turned])
    about = {"policy": "table", "data": "made up", "format": "pairs", "pairs": COUNT, "prompts": COUNT}
    return Subject(policy or table(), word_tokenizer(["a"]), pairs, about | {"repeated_pairs": 0})


def own_kind(seed: int) -> list[list[int]]:
    return drawn([*P[:4], 0, 0], seed)


def foreign(seed: int) -> list[list[int]]:
    return drawn([0, 0, 0, 0, 1, 1], seed)


@pytest.fixture(scope="module")
def on_policy() -> Findings:
    return measure(subject(own_kind(1), own_kind(2)), replicates=200)


@pytest.fixture(scope="module")
def off_policy() -> Findings:
    return measure(subject(foreign(1), foreign(2)), replicates=200)


def value(found: Findings, section: str, row: str, column: str = "data") -> float:
    return found.number(section, row, column).value


def test_numbers_are_those_of_the_table(off_policy: Findings) -> None:
    entropy = -sum(p * math.log(p) for p in P)
    assert value(off_policy, "on_policy", "excess", "chosen") == pytest.approx(-math.log(0.001) - entropy, abs=0.01)
    assert value(off_policy, "on_policy", "excess_first", "either") == pytest.approx(
        -math.log(0.002) - entropy, abs=0.7
    )
    # The two foreign answers have 5 and 6 tokens: a ratio of sums, not a mean of ratios.
    lengths = [len(row) for row in foreign(1)]
    expected = COUNT * math.log(0.001) / sum(lengths)
    assert value(off_policy, "on_policy", "log_prob_per_token", "chosen") == pytest.approx(expected, rel=1e-4)
    assert value(off_policy, "on_policy", "tokens", "chosen") == pytest.approx(np.mean(lengths))
    assert value(off_policy, "on_policy", "too_unlikely", "either") == 1
    assert value(off_policy, "on_policy", "in_bulk", "own") >= 0.98
    assert value(off_policy, "on_policy", "ended", "rejected") == 1


def test_data_of_the_policys_own_are_not_told_apart(on_policy: Findings) -> None:
    for row in ("told_apart_chosen", "told_apart_rejected", "nearer", "farther"):
        number = on_policy.number("contrast", row, "data")
        assert number.low < 0.5 < number.high, row
        assert number.n == COUNT * 2 // 3
    excess = on_policy.number("on_policy", "excess_per_token", "either")
    assert excess.low < 0 < excess.high
    likeness = on_policy.number("coverage", "nearest_relative", "policy_by_data")
    assert likeness.low < 1 < likeness.high
    assert value(on_policy, "coverage", "bigrams_relative", "policy_by_data") == pytest.approx(1, abs=0.01)
    assert value(on_policy, "coverage", "bigrams", "policy_by_data") > 0.99
    assert decide(on_policy.signs()).name == "on_policy"


def test_data_from_elsewhere_are(off_policy: Findings) -> None:
    assert value(off_policy, "contrast", "nearer") > 0.98
    assert value(off_policy, "coverage", "nearest_relative", "policy_by_data") < 0.5
    assert value(off_policy, "coverage", "bigrams", "policy_by_data") == pytest.approx(0, abs=0.01)
    assert value(off_policy, "coverage", "bigrams", "data_by_policy") < 0.6
    assert decide(off_policy.signs()).name == "far_unjudged"
    assert value(off_policy, "tells", "tokens") > 0.98
    assert value(off_policy, "tells", "log_prob") < 0.02
    assert value(off_policy, "tells", "ended") == 0.5


def test_one_side_of_the_policys_own_whichever_the_label_prefers() -> None:
    mixed = [
        (a, b) if number % 3 else (b, a) for number, (a, b) in enumerate(zip(own_kind(1), foreign(2), strict=True))
    ]
    found = measure(subject([a for a, _ in mixed], [b for _, b in mixed]), replicates=200)
    assert value(found, "contrast", "nearer") == pytest.approx(2 / 3, abs=0.1)
    assert value(found, "contrast", "farther") > 0.95
    assert decide(found.signs()).name == "one_side_near"


def test_a_sharpened_policy_shows_an_excess_below_0_and_is_told_apart_all_the_same() -> None:
    """The trap of the proxy: always the likeliest response is KL 0.9 away, and looks the nearer for it."""
    found = measure(subject([COMMON[0]] * COUNT, [COMMON[0]] * COUNT), replicates=200)
    assert found.number("on_policy", "excess", "either").high < 0
    assert value(found, "contrast", "nearer") > 0.75
    assert value(found, "contrast", "identical") == 1
    assert found.number("coverage", "bigrams_relative", "policy_by_data").high < 1


def test_contrast_by_hand() -> None:
    found = measure(subject([[4, 5, END]] * COUNT, [[3, END]] * COUNT), replicates=50)
    assert value(found, "contrast", "log_prob_margin") == pytest.approx(math.log(0.4 / 0.3))
    assert value(found, "contrast", "policy_agrees") == 0
    assert value(found, "contrast", "chosen_longer_by") == 1
    assert value(found, "contrast", "similarity") == pytest.approx(1 / 3)
    assert value(found, "contrast", "identical") == 0
    same = sum(p * p for p in P)
    assert value(found, "contrast", "identical", "own") == pytest.approx(same, abs=0.08)


def prefers_long(bias: float = 0.0) -> Judge:
    class Long(ScriptedJudge):
        def compare_orders(self, prompts: Tokens, first: Tokens, second: Tokens) -> Orders:
            margin = self.compare(prompts, first, second)
            return (margin + bias).sign() / 2 + 0.5, (margin - bias).sign() / 2 + 0.5

    return Long(lambda prompt, response: float(len(response)))


def test_a_judge_adds_quality_agreement_and_bias() -> None:
    found = measure(subject(foreign(1), own_kind(1)), prefers_long(0.5), replicates=200)
    assert value(found, "quality", "win_rate", "chosen") == 1
    assert value(found, "quality", "win_rate", "rejected") == pytest.approx(0.5, abs=0.1)
    assert found.number("quality", "win_rate", "either").low > 0.5
    assert value(found, "judge", "agreement") == 1
    assert value(found, "judge", "read_first") == 0.5
    assert value(found, "judge", "turned") == 0
    assert value(found, "contrast", "judge_sure") == 1
    assert value(found, "contrast", "judge_ties") == 0
    assert value(found, "contrast", "judge_ties", "own") > 0.2
    assert found.counts["judge_calls"] == 5 * COUNT


def test_position_bias_is_seen() -> None:
    found = measure(subject(foreign(1), foreign(2)), prefers_long(9.0), replicates=200)
    differ = np.mean([a != b for a, b in zip(foreign(1), foreign(2), strict=True)])
    number = found.number("judge", "read_first", "data")
    assert (number.value, number.n) == (1, round(differ * COUNT))
    assert value(found, "judge", "turned") == 1


def test_ties_count_one_half_and_the_datas_own_not_at_all() -> None:
    given = subject(COMMON[1:2] * COUNT, COMMON[2:3] * COUNT)
    tied = given.pairs.preference.clone()
    tied[:40] = 0.5
    pairs = PairBatch(
        *(getattr(given.pairs, name) for name in ("prompt_numbers", "prompts", "first", "second")), tied, ("",) * COUNT
    )
    found = measure(Subject(given.policy, given.tokenizer, pairs, given.about), prefers_long(), replicates=50)
    assert found.counts["ties"] == 40
    number = found.number("judge", "agreement", "data")
    assert (number.value, number.n) == (0.5, COUNT - 40)
    assert found.number("judge", "agreement_decided", "data").n == 0
    assert math.isnan(found.number("judge", "agreement_decided", "data").value)


def test_without_a_judge_quality_is_unknown(on_policy: Findings) -> None:
    assert [section.key for section in on_policy.sections] == ["on_policy", "contrast", "tells", "coverage"]
    assert not on_policy.number("quality", "win_rate", "either").known


def test_a_failing_judge_is_the_users_error() -> None:
    def fail(prompt: object, response: object) -> float:
        raise UserError("out of order", where="judge")

    with pytest.raises(UserError, match="out of order"):
        measure(subject(own_kind(1), own_kind(2)), ScriptedJudge(fail), replicates=50)


def test_the_same_seed_the_same_numbers_and_json_is_whole() -> None:
    given = subject(own_kind(1), foreign(2))
    one, again, other = (diagnose(given, prefers_long(), seed=seed, replicates=50).as_json() for seed in (0, 0, 1))
    assert one == again
    assert one["on_policy"] != other["on_policy"]
    cell = one["quality"]["win_rate"]["chosen"]
    assert set(cell) == {"value", "low", "high", "n"}
    assert one["judge"]["agreement"]["data"]["n"] == COUNT
    assert one["regime"]["thresholds"]["near"] == 0.6
