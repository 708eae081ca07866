"""Stale samples, on made-up runs whose truth is known, and on real ones of a few steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from aligngap.experiments.base import Analysis
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.experiments.staleness import PERIODS, SHUFFLED, lag
from aligngap.experiments.study import load_study
from aligngap.pipeline.stages import Arm
from aligngap.sources.order import windowed
from aligngap.tasks.pairs import read_pairs
from aligngap.types import PairBatch
from made_up import HALFWAY, LOW, RISING, analysed, entries, finished
from tiny import STEPS, Tiny


def less(cost: float) -> list[float]:
    """Online's curve, but for a cost that the training adds up."""
    return [win - cost * place / 5 for place, win in enumerate(RISING)]


FALLING = {
    "online": RISING,
    "stale_4": less(0.02),
    "stale_16": less(0.1),
    "stale_64": less(0.2),
    "stale_never": LOW,
    **dict.fromkeys(SHUFFLED, HALFWAY),
}
UNORDERED = {"stale_4": less(0.2), "stale_16": less(0.1), "stale_64": less(0.3), "stale_never": less(0.15)}


def concluded(changes: Mapping[str, list[float]], seeds: int = 1, missing: str = "") -> Analysis:
    curves = FALLING | changes
    found = entries("staleness", seeds).items()
    return analysed("staleness", [finished(entry, curves[family]) for (family, _), entry in found if family != missing])


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "supported"),
        ({"online": LOW, "stale_never": RISING}, "contradicted"),
        (dict.fromkeys(PERIODS, RISING), "contradicted"),  # no difference, within the margin
        (dict(zip(PERIODS, (LOW, less(0.2), less(0.1), less(0.03)), strict=True)), "inconclusive"),  # lower, no trend
    ],
)
def test_both_halves_are_needed(changes: dict[str, list[float]], verdict: str) -> None:
    found = concluded(changes)
    assert found.verdict == verdict
    assert next(iter(found.estimates)) == "online_minus_stale_never"


def test_the_trend_is_the_rank_correlation_over_the_periods() -> None:
    assert concluded({}).estimates["trend"].estimate.value == pytest.approx(1)
    # Ranks of the gap: 1, 4, 2, 5, 3; squared differences from 1 to 5 sum to 0 + 4 + 1 + 1 + 4.
    found = concluded(UNORDERED, seeds=2).estimates["trend"].estimate
    assert found.value == pytest.approx(1 - 6 * 10 / (5 * 24))
    assert (found.n_seeds, found.n_prompts) == (2, 400)


def test_the_interval_of_a_correlation_ends_at_one() -> None:
    # Nearly as low as its neighbour, but elsewhere: which of the two is lower depends on the prompts.
    swaying = [win + (-1) ** place * 0.06 for place, win in enumerate(less(0.098))]
    found = concluded({"stale_4": swaying}).estimates["trend"].estimate
    assert found.low < found.value
    assert found.draws.max() > found.high == 1


def test_numbers_are_those_of_the_arms() -> None:
    found = concluded({})
    values = {key: one.estimate.value for key, one in found.estimates.items()}
    assert values["online_minus_stale_never"] == pytest.approx((0.1 + 0.15 + 0.2 + 0.3 + 0.4 / 2) / 5)
    assert values["online_minus_stale_never_peak"] == pytest.approx(0.4)
    assert values["online_minus_stale_64"] == pytest.approx(0.1, abs=0.003)  # a straight line from 0 to 0.2
    assert values["shuffled_minus_stale_never"] == pytest.approx((0.05 + 0.07 + 0.1 + 0.15 + 0.2 / 2) / 5)
    stale = [point.x for point in found.figures[0].points if point.series == "stale samples"]
    # Of 500 steps 31 whole periods of 16 and 4 steps more; 7 of 64 and 52 more.
    assert stale == pytest.approx([1.5, (31 * 120 + 6) / 500, (7 * 2016 + 1326) / 500, 249.5])
    assert len(found.figures[0].points) == len(PERIODS) + len(SHUFFLED)


@pytest.mark.parametrize("missing", ["online", "stale_16", "stale_never"])
def test_a_missing_arm_is_no_evidence(missing: str) -> None:
    found = concluded({}, missing=missing)
    assert found.verdict == "inconclusive"
    assert np.isnan(found.estimates["trend"].estimate.value)
    assert "rank correlation with the sync period of (no data)" in found.sentence


def test_arms_have_the_same_labels_and_settings() -> None:
    arms = {family: entry.stage for (family, _), entry in entries("staleness", 1).items()}
    assert set(arms) == {"online", *PERIODS, *SHUFFLED}
    for family in PERIODS:
        assert arms[family].judge == arms["online"].judge
        assert (arms[family].optim, arms[family].loss) == (arms["online"].optim, arms["online"].loss)
    order = {family: entry.stage.identity for (family, _), entry in entries("order", 1).items()}
    assert {family: arms[family].identity for family in ("online", *SHUFFLED)}.items() <= order.items()


def test_lag_of_a_shuffled_stream_is_how_far_its_batches_move() -> None:
    arms = {family: entry.stage for (family, _), entry in entries("staleness", 1).items()}
    steps, batch = arms["shuffled"].optim.steps, arms["shuffled"].optim.batch
    for family, batches in (("window_4", 4), ("window_eighth", steps // 8), ("shuffled", steps)):
        places = windowed(batches * batch, "test")(steps * batch, 0).numpy()
        moved = np.abs(places // batch - np.arange(steps * batch) // batch).mean()
        assert lag(arms[family]) == pytest.approx(moved, rel=0.03)


def test_lag_of_stale_samples_is_the_age_of_the_policy_that_sampled(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path)
    arms = {entry.family: entry.stage for entry in EXPERIMENTS["staleness"].arms(tiny.bench)}

    def stream(arm: Arm) -> PairBatch:
        return read_pairs(tiny.made(arm) / "stream.parquet")

    online, batch = stream(arms["online"]), arms["online"].optim.batch
    for family in ("online", "stale_4", "stale_never"):
        pairs = stream(arms[family])
        sampled_at = np.array([int(found[1]) for origin in pairs.provenance if (found := re.search(r"(\d+)$", origin))])
        assert lag(arms[family]) == pytest.approx((np.repeat(np.arange(STEPS), batch) - sampled_at).mean())
        # All start with the SFT policy's own samples of the same prompts.
        assert pairs.first.rows()[:batch] == online.first.rows()[:batch]
        assert pairs.prompt_numbers.tolist() == online.prompt_numbers.tolist()
    assert lag(arms["online"]) == 0
    assert lag(arms["stale_64"]) == lag(arms["stale_never"]) == (STEPS - 1) / 2


def test_the_shipped_study_runs_it() -> None:
    assert load_study("staleness").experiments == ("staleness",)
