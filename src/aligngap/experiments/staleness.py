"""Beyond the paper: how stale may samples be? Online with growing sync periods, to sampling from SFT alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from aligngap.experiments.base import Analysis, Experiment, Figure, FigurePoint, Labelled, TaskData, View, each_seed
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.contrasts import Contrasts
from aligngap.experiments.discrimination.analysis import spearman
from aligngap.experiments.order import LABELS, replays, window
from aligngap.experiments.words import across, interval_words
from aligngap.pipeline.stages import Arm
from aligngap.sources.sampled import SampledSpec
from aligngap.stats.budget import common_range
from aligngap.stats.estimands import average_gap
from aligngap.stats.intervals import Estimate, Seed
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
        stage = bench.arm(seed=seed, source=SampledSpec(sync_period=period), judge=bench.proxy(seed))
        name = "sampled from SFT, proxy's labels" if period is None else f"synchronised every {period} steps"
        entries.append(ArmEntry(name, family, stage, baseline=True))
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


RULE = (
    "Estimand: same configuration (the baseline's), all labelled by the seed's proxy, paired by seed; win rate on the "
    "study's primary split, opponent and judge. Two halves. The end: the average gap at equal KL, online minus sampled "
    "from SFT alone (never synchronised), holds if its 95% interval lies wholly above 0, and is refuted if it lies "
    "wholly below 0 or wholly within the margin of no difference. The trend: Spearman's rank correlation, within a "
    "seed, of the sync period (1, 4, 16, 64, never) with the average gap of online over that arm, all on the KL range "
    "that the five reach, averaged over seeds; it holds if its 95% interval lies wholly above 0, and is refuted if "
    "wholly below. Supported if both halves hold; contradicted if either is refuted; else inconclusive."
)

NAMES = {
    family: "sampled from SFT alone" if period is None else f"synchronised every {period} steps"
    for family, period in PERIODS.items()
} | {family: f"online stream, {LABELS[family]}" for family in SHUFFLED}

SERIES = dict.fromkeys(PERIODS, "stale samples") | dict.fromkeys(SHUFFLED, "online stream, shuffled")


def analyse(data: TaskData) -> Analysis:
    """The gap of online to each sync period, its trend, and the shuffled stream beside it."""
    contrasts = Contrasts(data, "staleness")
    lags = {
        family: lag(arms[0].entry.stage)
        for family in ("online", *NAMES)
        for arms in (data.finished(family, baseline=True),)
        if arms
    }

    def trend(seed: Seed) -> float:
        """Rank correlation of the arms' lag with how far online is above them; ranks of lag are ranks of the period."""
        curves = {family: seed[family][0] for family in ("online", *PERIODS)}
        within = common_range(curves.values())
        above = [average_gap(curves["online"], curve, within) for curve in curves.values()]
        return float(spearman(np.array([[lags[family] for family in curves]]), np.array([above]))[0])

    def trends(view: View | None = None) -> Estimate:
        groups = {family: contrasts.runs(family, view) for family in ("online", *PERIODS)}
        found = data.estimate(groups, trend, "staleness", "trend", *([view.name] if view else []))
        # Draws are centred on the value, and may pass what a correlation can be.
        low, high = np.clip([found.low, found.high], -1, 1).tolist()
        return replace(found, low=low, high=high)

    to_online = {family: contrasts.gaps("online", family) for family in NAMES}
    end, rank = to_online["stale_never"], trends()
    from_sft, sync = "online minus sampled from SFT alone", "rank correlation of the sync period with the gap to online"
    shuffled = contrasts.gap("shuffled", "stale_never")
    estimates = {
        "online_minus_stale_never": Labelled(f"average gap at equal KL, {from_sft}", end["average_gap"]),
        "trend": Labelled(sync, rank, "correlation"),
        "online_minus_stale_never_peak": Labelled(f"difference of the peaks, {from_sft}", end["peak_difference"]),
    }
    estimates |= {
        f"online_minus_{family}": Labelled(
            f"average gap at equal KL, online minus {NAMES[family]}", found["average_gap"]
        )
        for family, found in to_online.items()
        if family != "stale_never"
    }
    estimates["shuffled_minus_stale_never"] = Labelled(
        "average gap at equal KL, online stream wholly shuffled minus sampled from SFT alone", shuffled
    )
    estimates |= contrasts.gap_elsewhere(
        "online_minus_stale_never", f"average gap, {from_sft}", "online", "stale_never"
    )
    estimates |= contrasts.elsewhere("trend", sync, trends, "correlation")
    points = [
        FigurePoint(SERIES[family], lags[family], gap.value, gap.low, gap.high)
        for family, found in to_online.items()
        for gap in (found["average_gap"],)
        if gap.n_seeds and lags[family] > 0
    ]
    rise = "no data" if np.isnan(rank.value) else f"{rank.value:+.2f} [{rank.low:+.2f}, {rank.high:+.2f}]"
    sentence = (
        f"At equal KL online is {interval_words(end['average_gap'], signed=True)} above training on pairs sampled from "
        f"SFT alone ({across(end['average_gap'])}); the gap to online has a rank correlation with the sync period of "
        f"{rise}. Online's own pairs, wholly shuffled, are "
        f"{interval_words(shuffled, signed=True)} above those of SFT."
    )
    verdict = all_of([sign_verdict(end["average_gap"], 1, data.settings.margin), threshold_verdict(rank, 0.0, 1)])
    figures = [
        Figure(
            name="by_lag",
            title="Gap to online by the distance in training between sampler and learner",
            x="mean distance between the policy that sampled a pair and the one trained on it, steps",
            y="average gap at equal KL, online minus arm, win rate",
            points=points,
            x_log=True,
        ),
        Figure(name="curves", title="Sync periods between online and offline", families=("online", *PERIODS)),
    ]
    return Analysis(verdict, sentence, estimates, figures)


EXPERIMENT = Experiment(
    name="staleness",
    title="Stale samples between online and offline",
    question="With the same prompts and the same judge, does training get worse the longer the policy that samples "
    "lags behind the policy in training?",
    finding="Hypothesis of ours; Tang et al. 2024 compare the two ends only, and the sync period is the dial of "
    "2506.21495: performance falls as sampling grows stale, and pairs sampled from the SFT policy alone are below "
    "online ones.",
    rule=RULE,
    arms=arms,
    analyse=analyse,
)
