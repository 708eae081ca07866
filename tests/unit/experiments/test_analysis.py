"""The verdict rules on made-up runs whose truth is known. The numbers here are test data, not results."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from aligngap.experiments.base import Analysis, Finished, TaskData
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.experiments.spec import AnalysisSpec
from aligngap.experiments.study import load_study
from aligngap.sources.recorded import RecordedSpec
from aligngap.stats.budget import Run

PROMPTS = 400
KL = np.geomspace(0.05, 5.0, 6)
BENCH = Bench(load_study("quick"), "summarisation")


def finished(entry: ArmEntry, wins: list[float], weights: str = "w", kl_factor: float = 1.0) -> Finished:
    """An arm whose win rate at the six KLs is as given, up to the prompts' own luck."""
    seed = entry.stage.seed
    luck = np.random.default_rng(seed).random(PROMPTS)
    win = (luck < np.array(wins)[:, None]).astype(float)
    kl = np.repeat((KL * kl_factor)[:, None], PROMPTS, 1)
    steps = np.arange(1, len(KL) + 1)
    keys = product(("train", "held_out"), ("golden_policy", "sft"), ("golden", "true", "proxy"))
    return Finished(entry, {key: Run(entry.name, seed, steps, win, {"kl": kl}) for key in keys}, weights)


def analysed(name: str, arms: list[Finished]) -> Analysis:
    settings = AnalysisSpec(replicates=200)
    return EXPERIMENTS[name].analyse(TaskData("summarisation", settings, arms))


RISING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
LOW = [0.1, 0.1, 0.15, 0.2, 0.2, 0.2]
RISE_AND_FALL = [0.1, 0.3, 0.6, 0.5, 0.3, 0.1]


@pytest.mark.parametrize(
    ("online", "offline", "verdict"),
    [
        (RISING, LOW, "supported"),
        (LOW, RISING, "contradicted"),
        (RISING, RISING, "contradicted"),  # wholly within the margin: a claim of a difference is then refuted
        # A higher peak, but no better on average: half a finding is not the finding.
        ([0.2, 0.4, 0.2, 0.4, 0.2, 0.45], [0.3] * 6, "inconclusive"),
    ],
)
def test_goodhart_needs_both_halves(online: list[float], offline: list[float], verdict: str) -> None:
    arms = [
        arm
        for seed in range(5)
        for arm in (finished(BENCH.online(seed), online), finished(BENCH.offline(seed), offline))
    ]
    found = analysed("goodhart", arms)
    assert found.verdict == verdict
    assert next(iter(found.estimates)) == "average_gap"


def test_goodhart_says_which_arm_falls() -> None:
    arms = [
        arm
        for seed in range(5)
        for arm in (finished(BENCH.online(seed), RISING), finished(BENCH.offline(seed), RISE_AND_FALL))
    ]
    sentence = analysed("goodhart", arms).sentence
    assert "online shows no clear fall" in sentence
    assert "offline falls after its peak" in sentence


def test_goodhart_pools_the_sweep_apart_from_the_baseline() -> None:
    arms = []
    for seed in range(3):
        arms += [finished(BENCH.online(seed), RISING), finished(BENCH.offline(seed), LOW)]
        arms.append(finished(BENCH.offline(seed, lr_factor=3.0), RISING))
    found = analysed("goodhart", arms).estimates
    assert found["average_gap_pooled"].estimate.value == pytest.approx(
        found["average_gap"].estimate.value / 2, abs=0.02
    )


@pytest.mark.parametrize(("shuffled", "verdict"), [(LOW, "supported"), (RISING, "contradicted")])
def test_coverage_by_the_share_closed(shuffled: list[float], verdict: str) -> None:
    stream = next(entry for entry in EXPERIMENTS["coverage"].arms(BENCH) if entry.family == "shuffled")
    arms = [finished(BENCH.online(0), RISING), finished(BENCH.offline(0), LOW), finished(stream, shuffled)]
    assert analysed("coverage", arms).verdict == verdict


def test_coverage_is_undefined_without_a_gap() -> None:
    stream = next(entry for entry in EXPERIMENTS["coverage"].arms(BENCH) if entry.family == "shuffled")
    arms = [finished(BENCH.online(0), LOW), finished(BENCH.offline(0), LOW), finished(stream, RISING)]
    found = analysed("coverage", arms)
    assert found.verdict == "inconclusive"
    assert np.isnan(found.estimates["share_closed"].estimate.value)
    assert "cannot be told" in found.sentence


def tandem(replay: Finished | None, mismatched: Finished | None) -> Analysis:
    return analysed("tandem", [finished(BENCH.online(0), RISING), *filter(None, (replay, mismatched))])


TANDEM = {entry.family: entry for entry in EXPERIMENTS["tandem"].arms(BENCH)}
DIVERGED = finished(TANDEM["replay_mismatched"], LOW, "third")


@pytest.mark.parametrize(
    ("weights", "wins", "verdict"),
    [("w", RISING, "supported"), ("other", RISING, "supported"), ("other", LOW, "contradicted")],
)
def test_tandem_by_weights_or_by_equivalence(weights: str, wins: list[float], verdict: str) -> None:
    found = tandem(finished(TANDEM["replay"], wins, weights), DIVERGED)
    assert found.verdict == verdict
    assert f"for {int(weights == 'w')} of 1 seeds" in found.sentence


@pytest.mark.parametrize(
    ("wins", "kl_factor", "verdict"),
    [
        (LOW, 1.0, "supported"),
        ([win + 0.2 for win in RISING], 1.0, "supported"),  # better is not the same either
        (RISING, 1.0, "contradicted"),  # identical with or without end tokens
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.51], 1.0, "supported"),  # about the same gap, but another peak
        ([win - 0.018 for win in RISING], 1.0, "inconclusive"),  # by about the margin
        (LOW, 1000.0, "supported"),  # no KL in common: the peaks alone tell
    ],
)
def test_tandem_needs_a_mismatch_to_diverge(wins: list[float], kl_factor: float, verdict: str) -> None:
    mismatched = finished(TANDEM["replay_mismatched"], wins, "third", kl_factor)
    found = tandem(finished(TANDEM["replay"], RISING), mismatched)
    assert found.verdict == verdict
    gap = found.estimates["mismatched_average_gap"].estimate
    assert np.isnan(gap.value) == (kl_factor != 1)


@pytest.mark.parametrize("missing", ["replay", "replay_mismatched"])
def test_half_a_tandem_decides_nothing(missing: str) -> None:
    arms = {"replay": finished(TANDEM["replay"], RISING), "replay_mismatched": DIVERGED}
    assert tandem(*(None if family == missing else arm for family, arm in arms.items())).verdict == "inconclusive"


def test_tandem_arms_differ_in_the_end_tokens_alone() -> None:
    exact, mismatched = (TANDEM[family].stage for family in ("replay", "replay_mismatched"))
    changed = {"source": RecordedSpec(order="sequence", ends="dropped"), "reference": None}
    assert mismatched == exact.model_copy(update=changed)


@pytest.mark.parametrize("name", list(EXPERIMENTS))
@pytest.mark.parametrize("families", [[], ["online"]])
def test_nothing_is_concluded_from_nothing(name: str, families: list[str]) -> None:
    found = analysed(name, [finished(BENCH.online(0), RISING)] if families else [])
    assert found.verdict == "inconclusive"
    assert np.isnan(next(iter(found.estimates.values())).estimate.value)


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_one_seed_is_said_aloud(name: str) -> None:
    entries = {entry.family: entry for entry in EXPERIMENTS[name].arms(BENCH)}
    arms = [finished(entry, RISING if family == "online" else LOW) for family, entry in entries.items()]
    estimates = analysed(name, arms).estimates.values()
    assert all("1 seed" in one.estimate.note for one in estimates if one.estimate.n_seeds)


def test_gao_form_is_fitted_to_the_gain_over_sft() -> None:
    d = np.sqrt(KL)
    gain = d * (0.3 - 0.1 * np.log(d))
    arms = [finished(BENCH.online(seed), list(0.5 + gain)) for seed in range(5)]
    found = analysed("goodhart", arms).estimates
    assert found["online_gao_a_golden"].estimate.value == pytest.approx(0.3, abs=0.05)
    assert found["online_gao_b_golden"].estimate.value == pytest.approx(0.1, abs=0.05)
    assert np.isnan(found["offline_gao_a_golden"].estimate.value)
