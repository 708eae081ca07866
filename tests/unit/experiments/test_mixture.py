"""Shares of on-policy pairs, on made-up runs whose truth is known, and on real ones of a few steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from aligngap.experiments.base import Analysis
from aligngap.experiments.mixture import SHARES
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.experiments.study import load_study
from aligngap.sources.mixture import MixtureSpec
from aligngap.store.disk import read_json
from aligngap.tasks.pairs import read_pairs
from made_up import HALFWAY, LOW, RISING, analysed, entries, finished
from tiny import Tiny

NEARLY_LOW = [0.1, 0.11, 0.16, 0.22, 0.23, 0.24]
NEARLY_RISING = [0.1, 0.19, 0.29, 0.38, 0.48, 0.57]
QUICKLY_CLOSED = {
    "offline": LOW,
    "online": RISING,
    "mixture_10": NEARLY_LOW,
    "mixture_25": NEARLY_RISING,
    "mixture_50": RISING,
}


def concluded(changes: Mapping[str, list[float]], seeds: int = 1, missing: str = "") -> Analysis:
    curves = QUICKLY_CLOSED | changes
    found = entries("mixture", seeds).items()
    return analysed("mixture", [finished(entry, curves[family]) for (family, _), entry in found if family != missing])


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "supported"),
        ({"mixture_25": NEARLY_LOW}, "contradicted"),
        ({"mixture_25": HALFWAY}, "inconclusive"),  # about half of it
        ({"online": LOW}, "inconclusive"),  # no gap, so no share of it
        ({"online": LOW, "offline": RISING}, "inconclusive"),  # offline is ahead: not a gap that online pairs close
        ({"mixture_10": LOW, "mixture_50": LOW}, "supported"),  # the other shares decide nothing
    ],
)
def test_the_verdict_rests_on_a_quarter(changes: dict[str, list[float]], verdict: str) -> None:
    found = concluded(changes)
    assert found.verdict == verdict
    assert next(iter(found.estimates)) == "share_mixture_25"
    assert ("cannot be told" in found.sentence) == ("online" in changes)


def test_numbers_are_those_of_the_arms() -> None:
    found = concluded({"mixture_25": HALFWAY})
    values = {key: one.estimate.value for key, one in found.estimates.items()}
    # Areas above offline by trapezoids at evenly spaced ln KL.
    assert values["share_mixture_25"] == pytest.approx(0.47 / 0.95)
    assert values["share_mixture_50"] == pytest.approx(1)
    assert values["online_minus_offline"] == pytest.approx(0.95 / 5)
    assert values["mixture_25_minus_offline"] == pytest.approx(0.47 / 5)
    assert values["online_minus_mixture_25"] == pytest.approx(0.48 / 5)
    measured = {point.x: point.y for point in found.figures[0].points if point.series == "measured"}
    assert measured == pytest.approx({0.1: values["share_mixture_10"], 0.25: 0.47 / 0.95, 0.5: 1})
    held_out = {point.x: point.y for point in found.figures[1].points if point.series == "held-out prompts"}
    assert list(held_out) == [0.1, 0.25, 0.5, 1]
    assert held_out[1] == pytest.approx(0.95 / 5)


def test_without_a_gap_no_share_is_drawn() -> None:
    assert not concluded({"online": LOW}).figures[0].points


@pytest.mark.parametrize("missing", ["offline", "online", "mixture_25"])
def test_a_missing_arm_is_no_evidence(missing: str) -> None:
    found = concluded({}, missing=missing)
    assert found.verdict == "inconclusive"
    assert np.isnan(found.estimates["share_mixture_25"].estimate.value)
    assert "cannot be told" in found.sentence


def test_arms_mix_the_pairs_and_labels_of_both_ends() -> None:
    arms = {family: entry.stage for (family, _), entry in entries("mixture", 1).items()}
    assert set(arms) == {"offline", "online", *SHARES}
    for family, share in SHARES.items():
        arm = arms[family]
        assert arm.source == MixtureSpec(on_policy=share)
        assert (arm.recorded, arm.judge) == (arms["offline"].recorded, arms["online"].judge)
        assert (arm.optim, arm.loss) == (arms["online"].optim, arms["online"].loss)


def test_the_ends_of_the_mixture_are_offline_and_online(tmp_path: Path) -> None:
    """Bit for bit, or the share of on-policy pairs would not be all that differs along it."""
    tiny = Tiny(tmp_path)
    arms = {entry.family: entry.stage for entry in EXPERIMENTS["mixture"].arms(tiny.bench)}

    def weights(share: float) -> str:
        arm = arms["mixture_50"].model_copy(update={"source": MixtureSpec(on_policy=share)})
        return str(read_json(tiny.made(arm) / "weights.json")["weights_sha256"])

    ends = [read_json(tiny.made(arms[family]) / "weights.json")["weights_sha256"] for family in ("offline", "online")]
    assert [weights(0.0), weights(1.0)] == ends
    assert weights(0.5) not in ends
    origins = read_pairs(tiny.made(arms["mixture_50"]) / "stream.parquet").provenance
    sampled = sum(origin.startswith("policy at step") for origin in origins)
    assert 0 < sampled < len(origins)
    assert read_json(tiny.made(arms["mixture_50"]) / "cost.json")["judge_calls"] == sampled


def test_the_shipped_study_runs_it() -> None:
    assert load_study("mixture").experiments == ("mixture",)
