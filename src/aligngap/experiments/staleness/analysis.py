"""Estimates and verdict on stale samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from aligngap.experiments.base import Analysis, Figure, Labelled, Point, TaskData
from aligngap.experiments.discrimination.analysis import spearman
from aligngap.experiments.order.sweep import LABELS
from aligngap.experiments.staleness.sweep import PERIODS, SHUFFLED, lag
from aligngap.experiments.words import across, interval_words
from aligngap.pipeline.stages import SPLITS
from aligngap.stats.bootstrap import Estimate, Seed
from aligngap.stats.curves import average_gap, common_range
from aligngap.stats.verdict import all_of, sign_verdict, threshold_verdict

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
    other = next(split for split in SPLITS if split != data.settings.split)
    lags = {
        family: lag(arms[0].entry.stage)
        for family in ("online", *NAMES)
        for arms in (data.finished(family, baseline=True),)
        if arms
    }

    def gaps(a: str, b: str, split: str | None = None, judge: str | None = None) -> dict[str, Estimate]:
        above, below = (data.runs(family, baseline=True, split=split, judge=judge) for family in (a, b))
        return data.gap(above, below, "staleness", a, b, split or "", judge or "")

    def trend(seed: Seed) -> float:
        """Rank correlation of the arms' lag with how far online is above them; ranks of lag are ranks of the period."""
        curves = {family: seed[family][0] for family in ("online", *PERIODS)}
        within = common_range(curves.values())
        above = [average_gap(curves["online"], curve, within) for curve in curves.values()]
        return float(spearman(np.array([[lags[family] for family in curves]]), np.array([above]))[0])

    def trends(*purpose: str, split: str | None = None, judge: str | None = None) -> Estimate:
        families = ("online", *PERIODS)
        groups = {family: data.runs(family, baseline=True, split=split, judge=judge) for family in families}
        found = data.estimate(groups, trend, "staleness", "trend", *purpose)
        # Draws are centred on the value, and may pass what a correlation can be.
        low, high = np.clip([found.low, found.high], -1, 1).tolist()
        return replace(found, low=low, high=high)

    to_online = {family: gaps("online", family) for family in NAMES}
    end, rank = to_online["stale_never"], trends()
    elsewhere = {
        other: (f"{other.replace('_', '-')} prompts", gaps("online", "stale_never", other), trends(other, split=other)),
        "true": (
            "by true utility",
            gaps("online", "stale_never", judge="true"),
            trends("true", judge="true"),
        ),
    }
    from_sft, sync = "online minus sampled from SFT alone", "rank correlation of the sync period with the gap to online"
    shuffled = gaps("shuffled", "stale_never")["average_gap"]
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
    for key, (where, found, correlation) in elsewhere.items():
        estimates[f"online_minus_stale_never_{key}"] = Labelled(
            f"average gap, {from_sft}, {where}", found["average_gap"]
        )
        estimates[f"trend_{key}"] = Labelled(f"{sync}, {where}", correlation, "correlation")
    points = [
        Point(SERIES[family], lags[family], gap.value, gap.low, gap.high)
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
