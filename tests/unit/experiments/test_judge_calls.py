"""Online against offline at equal judge calls: the verdict, and what it is compared over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from aligngap.experiments.base import Analysis, Finished
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.experiments.study import load_study
from made_up import BENCH, LOW, RISING, analysed, entries, finished


def arms(wins: dict[str, Sequence[float]], seeds: int = 5) -> list[Finished]:
    return [finished(entry, wins[family]) for (family, _), entry in entries("judge_calls", seeds).items()]


def with_costs(arm: Finished, **budgets: Sequence[float]) -> Finished:
    """The same arm, whose checkpoints have cost something else."""
    amounts = {name: np.asarray(values, float) for name, values in budgets.items()}
    return replace(arm, runs={key: replace(run, budgets={**run.budgets, **amounts}) for key, run in arm.runs.items()})


def asked(online: Sequence[float], offline: Sequence[float]) -> Analysis:
    return analysed("judge_calls", arms({"online": online, "offline": offline}))


@pytest.mark.parametrize(
    ("online", "offline", "verdict"),
    [
        (RISING, LOW, "supported"),
        (LOW, RISING, "contradicted"),
        (RISING, RISING, "contradicted"),  # wholly within the margin
    ],
)
def test_the_verdict_rests_on_the_gap_over_judge_calls(
    online: Sequence[float], offline: Sequence[float], verdict: str
) -> None:
    found = asked(online, offline)
    assert found.verdict == verdict
    assert next(iter(found.estimates)) == "average_gap"
    assert "at equal judge calls" in found.estimates["average_gap"].label


def test_no_data_and_seeds_that_disagree_give_no_verdict() -> None:
    assert analysed("judge_calls", []).verdict == "inconclusive"
    better = arms({"online": RISING, "offline": LOW}, seeds=2)
    worse = arms({"online": LOW, "offline": RISING}, seeds=2)
    mixed = [(better if arm.entry.stage.seed == 0 else worse)[place] for place, arm in enumerate(better)]
    assert analysed("judge_calls", mixed).verdict == "inconclusive"


def test_arms_are_compared_at_equal_calls_and_not_at_equal_steps() -> None:
    """Step by step alike, but offline has used twice the pairs: no gap over steps, one over calls."""
    online, offline = (finished(entry, RISING) for entry in entries("judge_calls", 1).values())
    calls = np.arange(1, 7) * 32.0
    found = analysed("judge_calls", [with_costs(online, judge_calls=calls), with_costs(offline, judge_calls=2 * calls)])
    gaps = {key: found.estimates[key].estimate.value for key in ("average_gap", "average_gap_steps")}
    assert gaps["average_gap_steps"] == pytest.approx(0, abs=1e-12)
    # Win rates .1 to .6 at 32 to 192 calls, against the same at twice as many: on 64 to 192, .4 - .225 in the mean.
    assert gaps["average_gap"] == pytest.approx(0.2, abs=0.01)
    apart = analysed("judge_calls", [online, with_costs(offline, judge_calls=100 * calls)])
    assert apart.verdict == "inconclusive"
    assert np.isnan(apart.estimates["average_gap"].estimate.value)


def test_at_equal_labels_online_stands_at_its_end() -> None:
    """All its checkpoints rest on the labels that the proxy was trained on, 100 here; offline has 96 to 128 then."""
    online, offline = (finished(entry, RISING) for entry in entries("judge_calls", 1).values())
    found = analysed("judge_calls", [with_costs(online, labels=[100.0] * 6), offline]).estimates["average_gap_labels"]
    assert found.estimate.value == pytest.approx(0.6 - (0.3 + 0.1 * 4 / 32), abs=0.01)


def test_the_figure_is_over_judge_calls() -> None:
    (figure,) = asked(RISING, LOW).figures
    assert "judge calls" in figure.x
    assert {point.x for point in figure.points} == {32.0 * step for step in range(1, 7)}


def test_it_runs_by_its_name_with_either_dash_and_trains_nothing_of_its_own() -> None:
    for name in ("judge_calls", "judge-calls"):
        assert load_study(name).experiments == ("judge_calls",)
    of = {entry.stage.identity for entry in EXPERIMENTS["goodhart"].arms(BENCH)}
    assert {entry.stage.identity for entry in EXPERIMENTS["judge_calls"].arms(BENCH)} < of
