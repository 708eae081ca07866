"""Estimates and verdict of section 6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import polars as pl

from aligngap.experiments.base import Analysis, Figure, FigurePoint, Labelled, TaskData
from aligngap.experiments.contrasts import Contrasts
from aligngap.experiments.dataset.sweep import D_GOLDEN, FAMILIES, LABELS, STEP_FACTOR, profile_name
from aligngap.experiments.words import across, interval_words
from aligngap.stats.intervals import Estimate
from aligngap.stats.verdict import gap_verdict

NEAR, FAR = ("sft_vs_early", D_GOLDEN), ("final_vs_final", "early_vs_final")

RULE = (
    f"All arms at the baseline configuration but for {STEP_FACTOR:g} times its steps, paired by seed; win rate on the "
    "study's primary split, opponent and judge. Two differences of peak win rates: SFT-vs-early minus final-vs-final "
    "(the pairs of higher quality), and SFT-vs-early minus early-vs-final (pairs as contrasting, but away from the SFT"
    " policy). Supported (proximity on one side is what helps) if the 95% intervals of both lie wholly above 0; "
    "contradicted if either lies wholly below 0, or both lie wholly within the margin of no difference; else "
    "inconclusive. Peaks, because the sets drive the policy to different KL, and the range that all reach may be too "
    "narrow to compare on; every arm has equally many checkpoints, so no peak is favoured. Each comparison is named "
    "here, not the best of several picked after the run."
)

QUANTITIES: Mapping[str, tuple[str, str, pl.Expr]] = {
    "quality": ("mean true utility of the responses", "utility", pl.mean_horizontal("utility_first", "utility_second")),
    "contrast": (
        "true utility between the two responses, absolute",
        "utility",
        (pl.col("utility_first") - pl.col("utility_second")).abs(),
    ),
    "golden_contrast": ("golden's margin between the two responses, absolute", "probability", pl.col("golden_margin")),
    "proximity": (
        "log-probability under SFT a token, first response (the side nearer SFT)",
        "nats a token",
        pl.col("sft_log_prob_first"),
    ),
    "proximity_second": (
        "log-probability under SFT a token, second response",
        "nats a token",
        pl.col("sft_log_prob_second"),
    ),
}
"""What a set of pairs is like: label, unit, and the value of a pair."""


def analyse(data: TaskData) -> Analysis:
    """Peaks of the sets with a side near the SFT policy over those without, and the profile of each set."""
    contrasts = Contrasts(data, "dataset")
    peaks, further = dict[str, Labelled](), dict[str, Labelled]()
    for near, far in product(NEAR, FAR):
        key, names = f"{near}_minus_{far}", f"{LABELS[near]} minus {LABELS[far]}"
        found = contrasts.gaps(near, far, None, key)
        peaks[key] = Labelled(f"difference of the peaks, {names}", found["peak_difference"])
        further[f"{key}_gap"] = Labelled(f"average gap at equal KL, {names}", found["average_gap"])
        label = f"difference of the peaks, {names}"
        further |= contrasts.gap_elsewhere(key, label, near, far, key, part="peak_difference")
    profiles = profile(data, FAMILIES)
    described = {
        f"{quantity}_{family}": Labelled(f"{LABELS[family]}: {label}", profiles[family][quantity], unit)
        for quantity, (label, unit, _) in QUANTITIES.items()
        for family in FAMILIES
    }
    over_final, over_early = (peaks[f"{NEAR[0]}_minus_{far}"].estimate for far in FAR)
    sentence = (
        f"Offline training peaks {interval_words(over_final, signed=True)} higher on SFT-vs-early pairs than on "
        f"final-vs-final ones, and {interval_words(over_early, signed=True)} higher than on early-vs-final ones "
        f"({across(over_final)})."
    )
    figures = [
        Figure("curves", "Offline training on four sets of pairs", families=FAMILIES),
        quality_bars(profiles),
        _bars("contrast", "How far apart the two responses are", profiles, {"both responses": "contrast"}),
        _bars(
            "proximity",
            "How near the SFT policy the responses are",
            profiles,
            {"first response": "proximity", "second response": "proximity_second"},
        ),
    ]
    verdict = gap_verdict(over_final, over_early, data.settings.margin)
    return Analysis(verdict, sentence, peaks | further | described, figures)


def profile(data: TaskData, families: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """By family, what its pairs are like; keys of `QUANTITIES`."""
    values = {
        f"{family} {quantity}": (data.table(profile_name(family)), value)
        for family in families
        for quantity, (_, _, value) in QUANTITIES.items()
    }
    found = data.prompt_means(values, "dataset", "profile")
    return {family: {quantity: found[f"{family} {quantity}"] for quantity in QUANTITIES} for family in families}


def quality_bars(profiles: Mapping[str, Mapping[str, Estimate]]) -> Figure:
    """Mean true utility of the responses of each set."""
    return _bars("quality", "How good the responses are", profiles, {"both responses": "quality"})


def _bars(name: str, title: str, profiles: Mapping[str, Mapping[str, Estimate]], series: Mapping[str, str]) -> Figure:
    points = [
        FigurePoint(label, LABELS[family], found[quantity].value, found[quantity].low, found[quantity].high)
        for label, quantity in series.items()
        for family, found in profiles.items()
        if found[quantity].n_seeds
    ]
    what, unit, _ = QUANTITIES[next(iter(series.values()))]
    axis = f"{what.partition(',')[0]}, {unit}"
    return Figure(name, title, x="pairs", y=axis, mark="bar", points=points)
