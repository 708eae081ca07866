"""H2 on made-up runs and pairs whose truth is known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from aligngap.experiments.base import Analysis
from aligngap.experiments.dataset import D_GOLDEN, STEP_FACTOR, profile_name
from aligngap.experiments.quality import FINAL, measures
from aligngap.experiments.study import load_study
from aligngap.pipeline.stages import Generate
from made_up import BENCH, LOW, RISING, analysed, entries, finished

PAIRS = 150
WORSE = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
NEARLY = [0.1, 0.2, 0.28, 0.37, 0.46, 0.55]


def profile(seed: int, win: float, gain: float) -> pl.DataFrame:
    """Pairs of utility 5 + gain that golden prefers to D_golden's at this rate."""
    rng = np.random.default_rng(seed)
    columns = {"prompt_number": np.arange(PAIRS), "golden_margin": np.full(PAIRS, 0.2)}
    for side in ("first", "second"):
        luck = rng.normal(0, 0.5, PAIRS)
        columns |= {
            f"utility_{side}": 5 + gain + luck,
            f"gain_{side}": gain + luck,
            f"win_{side}": (rng.random(PAIRS) < win).astype(float),
            f"sft_log_prob_{side}": np.full(PAIRS, -1.0),
        }
    return pl.DataFrame(columns)


def concluded(
    final: list[float],
    online: list[float] = RISING,
    offline: list[float] = LOW,
    *,
    win: float = 0.9,
    gain: float = 1.0,
    seeds: int = 3,
    missing: str = "",
) -> Analysis:
    curves = {"online": online, "offline": offline, D_GOLDEN: offline, FINAL: final}
    arms = [
        finished(entry, curves[family]) for (family, _), entry in entries("quality", seeds).items() if family != missing
    ]
    tables = {(profile_name(FINAL), seed): profile(seed, win, gain) for seed in range(seeds)}
    tables[profile_name(D_GOLDEN), 0] = profile(9, 0.5, 0.0)
    return analysed("quality", arms, tables)


@pytest.mark.parametrize(
    ("final", "verdict"),
    [(LOW, "supported"), (WORSE, "supported"), (RISING, "contradicted"), (NEARLY, "contradicted")],
)
def test_by_the_middle_between_offline_and_online(final: list[float], verdict: str) -> None:
    found = concluded(final)
    assert found.verdict == verdict
    assert next(iter(found.estimates)) == "excess_over_halfway"
    # Trapezoids at evenly spaced ln KL, under the same prompts' luck.
    over = np.array(final) - (np.array(LOW) + np.array(RISING)) / 2
    value = found.estimates["excess_over_halfway"].estimate.value
    assert value == pytest.approx(np.trapezoid(over) / 5, abs=0.03)


@pytest.mark.parametrize(("win", "gain"), [(0.5, 1.0), (0.3, 1.0), (0.9, 0.0), (0.9, -1.0)])
@pytest.mark.parametrize("final", [LOW, RISING])
def test_nothing_follows_from_pairs_that_are_no_better(final: list[float], win: float, gain: float) -> None:
    found = concluded(final, win=win, gain=gain)
    assert found.verdict == "inconclusive"
    assert "not shown to be truly better" in found.sentence


@pytest.mark.parametrize(
    ("final", "verdict"),
    [(WORSE, "supported"), (RISING, "inconclusive")],
)
def test_without_a_gap_only_staying_below_offline_counts(final: list[float], verdict: str) -> None:
    found = concluded(final, online=LOW, offline=LOW)
    assert found.verdict == verdict
    assert np.isnan(found.estimates["share_closed"].estimate.value)


def test_the_share_and_the_data_are_reported() -> None:
    found = {key: one.estimate.value for key, one in concluded(LOW).estimates.items()}
    assert found["share_closed"] == pytest.approx(0, abs=0.02)
    assert found["data_golden_win_rate"] == pytest.approx(0.9, abs=0.03)
    assert found["data_utility_gain"] == pytest.approx(1.0, abs=0.1)
    assert found[f"quality_{FINAL}"] == pytest.approx(6.0, abs=0.1)
    assert found[f"quality_{D_GOLDEN}"] == pytest.approx(5.0, abs=0.1)
    assert found["online_over_sft"] == pytest.approx(0.6, abs=0.04)
    assert found["final_over_sft"] == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize("missing", ["online", D_GOLDEN, FINAL])
def test_a_missing_arm_is_no_evidence(missing: str) -> None:
    found = concluded(LOW, missing=missing, seeds=2)
    assert found.verdict == "inconclusive"
    assert np.isnan(found.estimates["excess_over_halfway"].estimate.value)


def test_without_profiles_nothing_is_concluded() -> None:
    arms = [finished(entry, LOW) for entry in entries("quality", 2).values()]
    found = analysed("quality", arms)
    assert found.verdict == "inconclusive"
    assert np.isnan(found.estimates["data_utility_gain"].estimate.value)
    assert not next(figure for figure in found.figures if figure.name == "quality").points


def test_one_seed_says_what_its_interval_covers() -> None:
    assert "covers the 400 prompts only" in concluded(LOW, seeds=1).sentence


def test_the_two_long_arms_differ_in_their_pairs_only() -> None:
    found = {family: entry.stage for (family, _), entry in entries("quality", 1).items()}
    assert set(found) == {"online", "offline", D_GOLDEN, FINAL}
    for name in ("loss", "optim", "keep", "source", "seed"):
        assert getattr(found[D_GOLDEN], name) == getattr(found[FINAL], name), name
    assert found[D_GOLDEN].recorded == found["offline"].recorded
    assert found[FINAL].optim.steps == STEP_FACTOR * found["online"].optim.steps
    pairs = found[FINAL].recorded
    assert isinstance(pairs, Generate)
    assert pairs.first == pairs.second == found["online"]
    assert pairs.first_step == pairs.second_step == found["online"].optim.steps
    assert pairs.judge == BENCH.golden
    assert {entry.name for entry in measures(BENCH)} == {profile_name(D_GOLDEN), profile_name(FINAL)}
    assert load_study("quality").experiments == ("quality",)
