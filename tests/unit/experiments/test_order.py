"""Figure 13 on made-up runs whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from aligngap.experiments.base import Analysis
from aligngap.experiments.bench import Bench
from aligngap.experiments.order import LABELS, window
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.experiments.study import load_study
from made_up import BENCH, HALFWAY, LOW, RISING, analysed, entries, finished

AS_IN_THE_PAPER = {
    "online": RISING,
    "replay": RISING,
    "window_1": RISING,
    "window_4": RISING,
    "window_eighth": HALFWAY,
    "shuffled": LOW,
}


def concluded(changes: Mapping[str, list[float]], seeds: int = 1, missing: str = "") -> Analysis:
    curves = AS_IN_THE_PAPER | changes
    arms = [
        finished(entry, curves[family]) for (family, _), entry in entries("order", seeds).items() if family != missing
    ]
    return analysed("order", arms)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "supported"),
        ({"window_4": LOW}, "contradicted"),  # small windows already cost all of it
        ({"shuffled": RISING}, "contradicted"),  # order does not matter at all
        ({"replay": LOW, "window_4": LOW, "shuffled": RISING}, "contradicted"),  # order does harm
        ({"window_4": [win - 0.02 for win in RISING]}, "inconclusive"),  # a cost about as large as the margin
        # Small windows and the whole shuffle cost the same, within the margin: robust, but nothing gets worse.
        ({key: [win - 0.003 for win in RISING] for key in ("window_4", "shuffled")}, "contradicted"),
    ],
)
def test_both_halves_are_needed(changes: dict[str, list[float]], verdict: str) -> None:
    found = concluded(changes)
    assert found.verdict == verdict
    assert next(iter(found.estimates)) == "replay_minus_shuffled"


def test_numbers_are_those_of_the_arms() -> None:
    found = concluded({})
    values = {key: one.estimate.value for key, one in found.estimates.items()}
    # Trapezoids of online minus each at evenly spaced ln KL.
    whole = (0 / 2 + 0.1 + 0.15 + 0.2 + 0.3 + 0.4 / 2) / 5
    eighth = (0 / 2 + 0.05 + 0.08 + 0.1 + 0.15 + 0.2 / 2) / 5
    assert values["replay_minus_shuffled"] == pytest.approx(whole)
    assert values["online_minus_window_eighth"] == pytest.approx(eighth)
    assert values["small_minus_replay"] == 0
    points = [point for point in found.figures[0].points if point.series == "held-out prompts"]
    assert [point.x for point in points] == [1 / 32, 1, 4, 62, 500]
    assert [point.y for point in points] == pytest.approx([0, 0, 0, eighth, whole])
    assert len(found.figures[0].points) == 10  # as many on train prompts
    assert found.figures[1].families == tuple(AS_IN_THE_PAPER)


@pytest.mark.parametrize("missing", ["replay", "window_4", "shuffled"])
def test_a_missing_arm_is_no_evidence(missing: str) -> None:
    found = concluded({}, missing=missing)
    assert found.verdict == "inconclusive"
    assert np.isnan(found.estimates[f"online_minus_{missing}"].estimate.value)
    assert len(found.figures[0].points) == 8


def test_arms_differ_in_their_order_alone_and_are_shared() -> None:
    arms = {family: entry.stage for (family, _), entry in entries("order", 1).items()}
    assert set(arms) == {"online", *LABELS}
    assert {arms[family].recorded for family in LABELS} == {arms["online"]}
    assert len({arm.identity for arm in arms.values()}) == len(arms)
    for name, family in (("tandem", "replay"), ("coverage", "shuffled")):
        (same,) = (entry for entry in EXPERIMENTS[name].arms(BENCH) if entry.family == family)
        (own,) = (entry for entry in EXPERIMENTS["order"].arms(BENCH) if entry.family == family)
        assert (own.name, own.stage.identity) == (same.name, same.stage.identity)
    with pytest.raises(ValueError, match="only recorded pairs"):
        window(arms["online"])


def test_a_run_shorter_than_the_windows_still_has_them() -> None:
    study = load_study("order", ["baseline.optim.steps=4"])
    assert study.experiments == ("order",)
    arms = {entry.family: entry.stage for entry in EXPERIMENTS["order"].arms(Bench(study, BENCH.task))}
    assert [window(arms[family]) for family in LABELS] == [1 / 32, 1, 4, 1, 4]
