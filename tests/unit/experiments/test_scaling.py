"""Arms of several sizes, and H5's rule on made-up runs whose truth is known. The numbers are test data, not results."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aligngap.experiments import scaling
from aligngap.experiments.base import Analysis, Finished, TaskData
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.coverage import arms as coverage_arms
from aligngap.experiments.scaling import arms
from aligngap.experiments.spec import AnalysisSpec
from aligngap.experiments.study import load_study
from made_up import RISING, finished

SEEDS = 3
# The shipped bases that every checkout has; larger ones only change the plan, not the rule.
BENCH = Bench(load_study("quick", ["models.sizes=[small, medium]"], seeds=SEEDS), "summarisation")
WEIGHTS = {"small": 90_000, "medium": 300_000}
LOW = [win / 2 for win in RISING]
HIGH = [1.5 * win for win in RISING]


def sized(entry: ArmEntry, wins: list[float], kl_factor: float = 1.0) -> Finished:
    return replace(finished(entry, wins, kl_factor=kl_factor), parameters=WEIGHTS[entry.stage.sft.base.name])


def at(entry: ArmEntry) -> tuple[str, str]:
    return entry.stage.sft.base.name, entry.family.split("_")[0]


def made(wins: dict[tuple[str, str], list[float]], kl_factor: float = 1.0) -> list[Finished]:
    """All arms of those sizes and methods, in all seeds; `kl_factor` moves those of the medium policy."""
    return [
        sized(entry, wins[at(entry)], kl_factor if at(entry)[0] == "medium" else 1.0)
        for entry in arms(BENCH)
        if at(entry) in wins
    ]


def analysed(found: list[Finished]) -> Analysis:
    return scaling.EXPERIMENT.analyse(TaskData("summarisation", AnalysisSpec(replicates=100), found))


def wins(
    small: list[float], medium: list[float], online: tuple[list[float], list[float]] = (RISING, RISING)
) -> dict[tuple[str, str], list[float]]:
    return {
        ("small", "online"): online[0],
        ("medium", "online"): online[1],
        ("small", "offline"): small,
        ("medium", "offline"): medium,
    }


def test_arms_of_each_size_share_all_but_the_policy() -> None:
    entries = [entry for entry in arms(BENCH) if entry.stage.seed == 0]
    families = {entry.family: entry.stage for entry in entries}
    assert list(families) == ["online", "offline", "shuffled", "online_medium", "offline_medium", "shuffled_medium"]
    assert len({entry.name for entry in entries}) == 6
    assert all(entry.baseline for entry in entries)
    # At the study's own size, the very arms of other experiments.
    shared = {entry.family: entry.stage.identity for entry in coverage_arms(BENCH) if entry.stage.seed == 0}
    assert {family: families[family].identity for family in shared} == shared
    for method in ("online", "offline", "shuffled"):
        own, larger = families[method], families[f"{method}_medium"]
        assert (own.sft.base.name, larger.sft.base.name) == ("small", "medium")
        assert own.task == larger.task
        assert (own.source, own.loss, own.optim, own.keep) == (larger.source, larger.loss, larger.optim, larger.keep)
    assert families["online"].judge == families["online_medium"].judge
    assert families["offline"].recorded == families["offline_medium"].recorded
    # Each size replays its own stream.
    assert families["shuffled_medium"].recorded == families["online_medium"]


@pytest.mark.parametrize(
    ("small", "medium", "verdict"),
    [
        (LOW, LOW, "supported"),
        (LOW, [0.9 * win for win in RISING], "supported"),  # shrinks, but is there
        (LOW, RISING, "contradicted"),
        (LOW, HIGH, "contradicted"),
        (RISING, LOW, "supported"),
        (RISING, RISING, "inconclusive"),  # no gap that scaling could have closed
    ],
)
def test_the_gap_at_the_largest_policy_decides(small: list[float], medium: list[float], verdict: str) -> None:
    found = analysed(made(wins(small, medium)))
    assert found.verdict == verdict
    assert next(iter(found.estimates)) == "offline_at_largest"


def test_best_is_the_quantile_and_its_share_of_onlines() -> None:
    found = {key: value.estimate for key, value in analysed(made(wins(LOW, RISING, (RISING, HIGH)))).estimates.items()}
    assert found["online_small_best"].value == pytest.approx(0.55, abs=0.03)  # between the last two of six
    assert found["offline_small_share"].value == found["offline_at_smallest"].value == pytest.approx(1 / 2, abs=0.05)
    assert found["offline_at_largest"].value == pytest.approx(2 / 3, abs=0.05)
    assert found["offline_change"].value == pytest.approx(1 / 6, abs=0.05)
    assert found["offline_change"].low > 0
    assert found["online_rise"].value == pytest.approx(0.275, abs=0.03)
    assert np.isnan(found["shuffled_change"].value)


def test_kl_at_the_peak_is_compared_across_sizes() -> None:
    found = analysed(made(wins(LOW, LOW), kl_factor=2.0)).estimates
    assert found["online_kl_ratio"].estimate.value == pytest.approx(2.0)
    assert found["online_small_kl"].estimate.value == pytest.approx(5.0)


def test_other_arms_of_a_method_do_not_enter() -> None:
    """A sweep at the study's own size only would give that size more tries at a high best."""
    plain = made(wins(LOW, LOW))
    swept = [sized(BENCH.offline(seed, lr_factor=3.0), HIGH) for seed in range(SEEDS)]
    labels = [sized(BENCH.offline_proxy(seed), HIGH) for seed in range(SEEDS)]
    more, without = (
        [one.estimate.value for one in analysed(given).estimates.values()]
        for given in ([*plain, *swept, *labels], plain)
    )
    assert more == pytest.approx(without, nan_ok=True)


def test_smallest_first_whatever_the_order_of_the_arms() -> None:
    found = analysed(made(wins(LOW, RISING))[::-1])
    assert found.verdict == "contradicted"
    assert "medium, 300,000 weights" in found.sentence


def test_figures_put_bests_over_the_number_of_weights() -> None:
    figures = {figure.name: figure for figure in analysed(made(wins(LOW, RISING))).figures}
    assert {point.x for point in figures["best"].points} == set(WEIGHTS.values())
    assert {point.series for point in figures["normalised"].points} == {"offline"}
    assert all(point.low <= point.y <= point.high for point in figures["best"].points)  # type: ignore[operator]
    assert figures["curves_medium"].families == ("online_medium", "offline_medium")


@pytest.mark.parametrize("kept", [set(), {("small", "online"), ("small", "offline")}, {("medium", "online")}])
def test_without_two_sizes_nothing_is_concluded(kept: set[tuple[str, str]]) -> None:
    all_wins = wins(LOW, LOW)
    found = analysed(made({key: all_wins[key] for key in kept}))
    assert found.verdict == "inconclusive"
    assert np.isnan(found.estimates["offline_at_largest"].estimate.value)


def test_a_largest_policy_without_its_offline_arm_is_not_replaced_by_a_smaller() -> None:
    found = analysed([arm for arm in made(wins(LOW, LOW)) if at(arm.entry) != ("medium", "offline")])
    assert found.verdict == "inconclusive"
    assert np.isnan(found.estimates["offline_at_largest"].estimate.value)
    assert found.estimates["offline_small_share"].estimate.value == pytest.approx(0.5, abs=0.05)


def test_one_seed_says_what_its_interval_covers() -> None:
    one = [arm for arm in made(wins(LOW, LOW)) if arm.entry.stage.seed == 0]
    assert "covers the 400 prompts only" in analysed(one).sentence
