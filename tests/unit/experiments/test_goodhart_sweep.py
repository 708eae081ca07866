"""Estimand (b): best of sweep against best of sweep, at equal budgets."""

from __future__ import annotations

import numpy as np
import pytest

from aligngap.experiments.base import Finished
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.goodhart import arms
from aligngap.experiments.study import load_study
from made_up import LOW, RISING, analysed, finished

BENCH = Bench(
    load_study("quick", ["sweep={lr_factors: [1.0, 3.0], betas: [0.1, 0.03], online: true}"], seeds=3), "summarisation"
)


def swept(wins: dict[str, list[float]]) -> list[Finished]:
    """Every arm of figure 1; `wins` by the end of its name, or by its family."""
    return [finished(entry, wins_of(entry, wins)) for entry in arms(BENCH)]


def wins_of(entry: ArmEntry, wins: dict[str, list[float]]) -> list[float]:
    kind = "online" if entry.family.startswith("online") else "offline"
    point = f"{kind} lr={entry.stage.optim.lr:g} beta={entry.stage.loss.beta:g}"
    return wins.get(point, wins[kind])


def test_both_sides_have_the_same_points() -> None:
    points: dict[str, set[tuple[float, float, int]]] = {"online": set(), "offline": set()}
    for entry in arms(BENCH):
        if entry.family != "offline_proxy":
            optim = entry.stage.optim
            point = (optim.lr, entry.stage.loss.beta, optim.steps)
            points["online" if entry.family.startswith("online") else "offline"].add(point)
    assert points["online"] == points["offline"]
    assert len(points["online"]) == 4


def test_each_side_is_represented_by_its_best_arm() -> None:
    best = [0.1, 0.2, 0.4, 0.6, 0.7, 0.9]
    found = analysed("goodhart", swept({"online": LOW, "offline": LOW, "online lr=0.0015 beta=0.03": best}))
    estimate = found.estimates["best_peak_difference"]
    assert "online at lr=0.0015 beta=0.03" in estimate.label
    assert estimate.estimate.value == pytest.approx(max(best) - max(LOW), abs=0.05)
    assert estimate.estimate.n_prompts == 200  # chosen on the other half
    # The baseline's own comparison, on which the verdict rests, does not move with the sweep.
    assert np.isclose(found.estimates["peak_difference"].estimate.value, 0.0)


def test_an_unequal_sweep_gives_no_best() -> None:
    complete = swept({"online": RISING, "offline": LOW})
    assert "best_average_gap" in analysed("goodhart", complete).estimates
    lost = [arm for arm in complete if not (arm.entry.family == "online_sweep" and arm.entry.stage.seed == 1)]
    assert "best_average_gap" not in analysed("goodhart", lost).estimates
