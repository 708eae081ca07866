"""Beyond the paper: how stale may samples be? Online with growing sync periods, to sampling from SFT alone."""

from __future__ import annotations

import numpy as np

from aligngap.experiments.base import Analysis, Experiment, Figure, TaskData, View, each_seed, points
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.contrasts import Contrasts
from aligngap.experiments.order import LABELS, replays, window
from aligngap.pipeline.stages import Arm
from aligngap.sources.sampled import SampledSpec
from aligngap.stats.budget import common_range
from aligngap.stats.estimands import average_gap
from aligngap.stats.intervals import Estimate, Seed
from aligngap.stats.spearman import spearman
from aligngap.stats.verdict import all_of, sign_verdict, threshold_verdict

PERIODS = {"stale_4": 4, "stale_16": 16, "stale_64": 64, "stale_never": None}
"""Sync period in optimiser steps by family; online has 1, and None never synchronises."""

SHUFFLED = ("window_4", "window_eighth", "shuffled")
"""The same pairs as online's, trained on at other times (figure 13)."""


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """Sampled from weights of growing age, all labelled by the proxy, beside the online stream shuffled."""
    entries = [bench.online(seed)]
    for family, period in PERIODS.items():
        name = "sampled from SFT, proxy's labels" if period is None else f"synchronised every {period} steps"
        entries.append(bench.online(seed, family, name, source=SampledSpec(sync_period=period)))
    return [*entries, *replays(bench, seed, SHUFFLED)]


def lag(arm: Arm) -> float:
    """Mean distance in optimiser steps, over a run, between the policy that sampled a pair and the policy that is
    trained on it; on a shuffled online stream, which has pairs of later policies too, of either sign.

    Raises:
        ValueError: the arm's pairs are neither sampled nor an online stream.
    """
    steps = arm.optim.steps
    if isinstance(arm.source, SampledSpec):
        return float(np.mean(np.arange(steps) % (arm.source.sync_period or steps)))
    blocks = np.diff([*range(0, steps, max(1, int(window(arm)))), steps])
    # Two places drawn from a block of w batches are (w - 1/w) / 3 apart on average, and w batches are in it.
    return float((blocks**2 - 1).sum() / 3 / steps)


NAMES = {
    family: "sampled from SFT alone" if period is None else f"synchronised every {period} steps"
    for family, period in PERIODS.items()
} | {family: f"online stream, {LABELS[family]}" for family in SHUFFLED}

SERIES = dict.fromkeys(PERIODS, "stale samples") | dict.fromkeys(SHUFFLED, "online stream, shuffled")


def analyse(data: TaskData) -> Analysis:
    """The gap of online to each sync period, its trend, and the shuffled stream beside it."""
    contrasts = Contrasts(data, "staleness")
    trained = {family: arms[0] for family in ("online", *NAMES) if (arms := contrasts.arms(family))}
    lags = {family: lag(arm.entry.stage) for family, arm in trained.items()}

    def trend(seed: Seed) -> float:
        """Rank correlation of the arms' lag with how far online is above them; ranks of lag are ranks of the period."""
        curves = {family: seed[family][0] for family in ("online", *PERIODS)}
        within = common_range(curves.values())
        above = [average_gap(curves["online"], curve, within) for curve in curves.values()]
        return float(spearman(np.array([[lags[family] for family in curves]]), np.array([above]))[0])

    def trends(view: View | None = None) -> Estimate:
        groups = {family: contrasts.runs(family, view) for family in ("online", *PERIODS)}
        result = data.estimate(groups, trend, "staleness", "trend", *([view.name] if view else []))
        return result.clipped(-1, 1)

    to_online = {family: contrasts.gaps("online", family) for family in NAMES}
    end, rank = to_online["stale_never"], trends()
    gap = end["average_gap"]
    from_sft, sync = "online minus sampled from SFT alone", "rank correlation of the sync period with the gap to online"
    contrasts.put("online_minus_stale_never", f"average gap at equal KL, {from_sft}", gap)
    contrasts.put("trend", sync, rank, "correlation")
    contrasts.put("online_minus_stale_never_peak", f"difference of the peaks, {from_sft}", end["peak_difference"])
    for family, result in to_online.items():
        if family != "stale_never":
            label = f"average gap at equal KL, online minus {NAMES[family]}"
            contrasts.put(f"online_minus_{family}", label, result["average_gap"])
    shuffled = contrasts.gap("shuffled", "stale_never")
    label = "average gap at equal KL, online stream wholly shuffled minus sampled from SFT alone"
    contrasts.put("shuffled_minus_stale_never", label, shuffled)
    contrasts.gap_elsewhere("online_minus_stale_never", f"average gap, {from_sft}", "online", "stale_never")
    contrasts.elsewhere("trend", sync, trends, "correlation")
    sentence = (
        f"At equal KL online is {gap:+.1%} above training on pairs sampled from SFT alone ({gap.across()}); the gap to "
        f"online has a rank correlation with the sync period of {rank:+.2f}. Online's own pairs, wholly shuffled, are "
        f"{shuffled:+.1%} above those of SFT."
    )
    verdict = all_of([sign_verdict(gap, 1, data.settings.margin), threshold_verdict(rank, 0.0, 1)])
    figures = [
        Figure(
            name="by_lag",
            title="Gap to online by the distance in training between sampler and learner",
            x="mean distance between the policy that sampled a pair and the one trained on it, steps",
            y="average gap at equal KL, online minus arm, win rate",
            points=points(
                (SERIES[family], lags[family], result["average_gap"])
                for family, result in to_online.items()
                if lags.get(family, 0) > 0
            ),
            x_log=True,
        ),
        Figure(name="curves", title="Sync periods between online and offline", families=("online", *PERIODS)),
    ]
    return Analysis(verdict, sentence, contrasts.estimates, figures)


EXPERIMENT = Experiment(
    name="staleness",
    title="Stale samples between online and offline",
    question="With the same prompts and the same judge, does training get worse the longer the policy that samples "
    "lags behind the policy in training?",
    finding="Hypothesis of ours; Tang et al. 2024 compare the two ends only, and the sync period is the dial of "
    "2506.21495: performance falls as sampling grows stale, and pairs sampled from the SFT policy alone are below "
    "online ones.",
    rule="Estimand: same configuration (the baseline's), all labelled by the seed's proxy, paired by seed; win rate on "
    "the study's primary split, opponent and judge. Two halves. The end: the average gap at equal KL, online minus "
    "sampled from SFT alone (never synchronised), holds if its 95% interval lies wholly above 0, and is refuted if it "
    "lies wholly below 0 or wholly within the margin of no difference. The trend: Spearman's rank correlation, within "
    "a seed, of the sync period (1, 4, 16, 64, never) with the average gap of online over that arm, all on the KL "
    "range that the five reach, averaged over seeds; it holds if its 95% interval lies wholly above 0, and is refuted "
    "if wholly below. Supported if both halves hold; contradicted if either is refuted; else inconclusive.",
    arms=arms,
    analyse=analyse,
)
