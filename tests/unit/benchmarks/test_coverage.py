"""The simulation of coverage, cut down: intervals hold the truth about as often as they say, and it shows where not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import coverage
from benchmarks.coverage import AT_MARGIN, NO_GAP, RISE_AND_FALL, SWEEP, Tally

from aligngap.stats import intervals

REPETITIONS, REPLICATES = 40, 150


def rates(tallies: list[Tally]) -> dict[str, float]:
    """By statistic, over the numbers of seeds."""
    found: dict[str, list[float]] = {}
    for row in (row for tally in tallies for row in tally.rows()):
        found.setdefault(row.get("statistic") or row["question"], []).append(row["rate"])
    return {name: float(np.mean(values)) for name, values in found.items()}


def simulated(world: coverage.World, *checks: coverage.Check, repetitions: int = REPETITIONS) -> dict[str, float]:
    rng = np.random.default_rng(11)
    return rates([tally for _, tally in coverage.simulate(world, checks, repetitions, REPLICATES, rng)])


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    found = simulated(RISE_AND_FALL, coverage.gap, coverage.band, coverage.law, coverage.closed)
    found.pop("share closed: interval excludes one half")
    found |= simulated(SWEEP, coverage.best)
    assert len(found) == 17
    assert {name: rate for name, rate in found.items() if not rate >= 0.85} == {}


@pytest.mark.slow
def test_rules_are_rarely_wrong() -> None:
    found = simulated(NO_GAP, coverage.no_gap) | simulated(AT_MARGIN, coverage.gap_of_the_margin)
    assert found["no average gap"] == 0  # of the world that has one just as large as the margin
    assert found["figure 1: supported"] < 0.06
    assert found["average gap: interval excludes 0"] < 0.15  # with one seed it does not speak of other seeds
    holm = rates([tally for _, tally in coverage.family_wise(REPETITIONS, np.random.default_rng(1))])
    assert holm["any effect, with Holm's"] < 0.1 < holm["any effect, without correction"]


@pytest.mark.slow
def test_intervals_of_half_the_width_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the tests above could not fail."""
    draws = intervals._draws

    def half(values: coverage.Floats, *args: Any, **named: Any) -> coverage.Floats:
        found, middle = draws(values, *args, **named), values[:, 0].mean()
        return np.asarray(middle + (found - middle) / 2)

    monkeypatch.setattr(intervals, "_draws", half)
    found = simulated(RISE_AND_FALL, coverage.gap)
    assert max(found[name] for name in ("average_gap", "peak_difference", "online_peak", "online_fall")) < 0.85


def test_what_is_printed_is_written_and_comes_back_with_the_same_seed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coverage, "POPULATION", 20)
    monkeypatch.setattr(coverage, "SEEDS", (1, 2))
    for number in range(2):
        coverage.main(seed=4, repetitions=2, replicates=20, json=tmp_path / f"{number}.json")
    first, second = (json.loads((tmp_path / f"{number}.json").read_text())["rows"] for number in range(2))
    assert first == second
    assert {row["world"] for row in first} == {world.name for world, _ in coverage.PLAN} | {"Holm"}
    assert capsys.readouterr().out.count("\n") == 2 * (2 + len(first))
    assert "NaN" not in (tmp_path / "0.json").read_text()
    assert all(0 <= row["rate"] <= 1 for row in first if row["rate"] is not None)


def test_a_withheld_interval_is_counted_and_no_hit() -> None:
    nothing = intervals.Estimate(0.3, np.nan, np.nan, 3, 10, 0, "")
    held = intervals.Estimate(0.3, 0.2, 0.4, 3, 10, 0, "")
    tally = Tally()
    for found, truth in ((nothing, 0.3), (held, 0.35), (held, 0.5), (held, 0.2)):
        tally.add("x", found, truth)
    (row,) = tally.rows()
    assert (row["rate"], row["withheld"]) == (pytest.approx(2 / 3), 1)


def test_simulated_runs_have_the_truths_means() -> None:
    rng = np.random.default_rng(0)
    truth = RISE_AND_FALL.truth(rng)
    seen = [RISE_AND_FALL.observe([truth], rng)["online"][0] for _ in range(200)]
    assert np.mean([run.win.mean(axis=1) for run in seen], axis=0) == pytest.approx(truth["online"].win[:, 0], abs=0.01)
    assert np.mean([run.amount.mean(axis=1) for run in seen], axis=0) == pytest.approx(
        truth["online"].amount[:, 0], rel=0.02
    )
    both = RISE_AND_FALL.observe([truth, truth], rng)
    across_arms = np.corrcoef(both["online"][0].win.mean(axis=0), both["offline"][1].win.mean(axis=0))[0, 1]
    assert across_arms > 0.3  # the same prompts
