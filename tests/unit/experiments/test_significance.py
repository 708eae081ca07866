"""p-values, Holm's adjustment, power and the band, on made-up estimates. The numbers are test data, not results."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aligngap.experiments.base import Labelled
from aligngap.experiments.conclusions import adjusted, power, record
from aligngap.results import Conclusion, EstimateRecord
from aligngap.stats.intervals import Estimate
from aligngap.stats.verdict import prompts_needed
from unit.experiments.test_analysis import BENCH, LOW, RISING, analysed, finished


def test_goodhart_draws_its_difference_with_a_band_on_either_split() -> None:
    runs = [
        finished(entry, wins) for s in range(3) for entry, wins in ((BENCH.online(s), RISING), (BENCH.offline(s), LOW))
    ]
    first, second = analysed("goodhart", runs).figures
    assert [first.name, second.name] == ["difference_held_out", "difference_train"]
    assert {point.series for point in first.points} == {"golden judge", "true utility"}
    for point in first.points:
        assert point.low is not None
        assert point.high is not None
        assert point.low <= point.y <= point.high
    # The made-up curves part further at every KL.
    golden = [point for point in first.points if point.series == "golden judge"]
    assert golden[0].y < golden[-1].y
    assert all(figure.points == [] for figure in analysed("goodhart", []).figures)


def estimate(value: float = 0.1, spread: float = 0.02, seeds: int = 3, prompt_se: float = 0.01) -> Estimate:
    draws = value + spread * np.random.default_rng(0).standard_normal(999)
    per_seed = value + spread * np.linspace(-1, 1, seeds) if seeds > 1 else np.array([value])
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high), seeds, 400, 999, "", draws, per_seed, prompt_se)


def test_only_the_estimate_that_decides_is_tested_and_against_its_null() -> None:
    found = Labelled("share", estimate(0.5), null=0.5)
    decides = record("main", found, decides=True)
    assert decides.p is not None
    assert (decides.null, decides.p > 0.5) == (0.5, True)
    assert record("gap", Labelled("gap", estimate(0.5)), decides=True).p == pytest.approx(0.002)
    no_null = record("x", Labelled("x", estimate(), null=None), decides=True)
    for other in (record("main", found, decides=False), no_null):
        assert (other.null, other.p) == (None, None)


def test_without_an_interval_there_is_no_p() -> None:
    nothing = Estimate(math.nan, math.nan, math.nan, 0, 0, 0, "no data")
    assert record("gap", Labelled("gap", nothing), decides=True).p is None


def test_holm_counts_what_could_not_be_tested() -> None:
    def first(p: float | None) -> tuple[EstimateRecord, ...]:
        return EstimateRecord(name="main", p=p), EstimateRecord(name="other", p=0.0001)

    asked = {"a": first(0.01), "b": first(None), "c": first(0.03), "d": ()}
    found = adjusted([Conclusion(name=name, estimates=estimates) for name, estimates in asked.items()])
    assert [x.holm for x in found] == [pytest.approx(0.04), None, pytest.approx(0.09), None]
    assert adjusted([]) == ()


def test_nothing_is_adjusted_before_all_are_finished() -> None:
    one = Conclusion(name="a", estimates=(EstimateRecord(name="main", p=0.01),))
    assert [x.holm for x in adjusted([one, Conclusion(name="b", verdict="unfinished")])] == [None, None]


def test_power_needs_two_seeds_and_says_so() -> None:
    wide, narrow = power(Labelled("gap", estimate(spread=0.08))), power(Labelled("gap", estimate(spread=0.02)))
    assert wide is not None
    assert narrow is not None
    assert wide.seeds > narrow.seeds >= 2
    one = power(Labelled("gap", estimate(seeds=1)))
    assert one is not None
    assert one.seeds is None
    assert one.prompts > 0
    assert "one seed" in one.note
    hopeless = power(Labelled("gap", estimate(prompt_se=0.2)))
    assert hopeless is not None
    assert hopeless.seeds is None
    assert hopeless.prompts > 400
    assert "more prompts" in hopeless.note


def test_power_is_for_the_distance_from_the_null() -> None:
    near = power(Labelled("share", estimate(0.5), null=0.45))
    far = power(Labelled("share", estimate(0.5), null=0.0))
    assert near is not None
    assert far is not None
    assert near.prompts > far.prompts
    assert power(Labelled("share", estimate(0.5), null=None)) is None
    nothing = power(Labelled("gap", Estimate(math.nan, math.nan, math.nan, 0, 0, 0, "no data")))
    assert nothing is not None
    assert (nothing.seeds, nothing.prompts) == (None, None)


def test_prompts_needed_give_the_power_asked_for() -> None:
    needed = prompts_needed(0.05, 0.03, 300)
    assert needed is not None
    error = 0.03 * math.sqrt(300 / needed)
    draws = 0.05 + error * np.random.default_rng(1).standard_normal(200_000)
    assert (draws > 1.96 * error).mean() == pytest.approx(0.8, abs=0.01)
    assert prompts_needed(math.nan, 0.03, 300) is None
    with pytest.raises(ValueError, match="gap"):
        prompts_needed(0.0, 0.03, 300)
