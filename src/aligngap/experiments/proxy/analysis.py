"""Estimates and verdict of the comparison of proxies."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan

import numpy as np
import polars as pl

from aligngap.experiments.base import Analysis, Figure, FigurePoint, Labelled, TaskData, View
from aligngap.experiments.contrasts import Contrasts
from aligngap.experiments.proxy.sweep import NAMES
from aligngap.experiments.words import across, interval_words
from aligngap.stats.estimands import peak
from aligngap.stats.intervals import Estimate, Seed
from aligngap.stats.verdict import gap_verdict

RULE = (
    "Compared are the baseline's proxy and the larger one of pairwise form. The better of the two is the one that "
    "agrees more often with golden on held-out D_golden, if the 95% interval of the difference excludes 0; else the "
    "verdict is inconclusive. Estimand: same configuration but for the proxy, paired by seed; win rate on the study's "
    "primary split, opponent and judge. Gap = online against the better proxy minus online against the worse, averaged "
    "over ln KL on the range both reach; peak difference likewise. Supported if the 95% intervals of both lie wholly "
    "above 0; contradicted if either lies wholly below 0, or both lie wholly within the margin of no difference; else "
    "inconclusive. The point-wise proxies and over-optimisation (win rate against SFT at the end of training, by the "
    "arm's own proxy minus by golden) are reported beside it, without a verdict."
)

SMALL, LARGE, POINTWISE = "online", "online_large_proxy", "online_pointwise"

PROXIES = {
    SMALL: "the baseline's proxy",
    POINTWISE: "the point-wise proxy",
    LARGE: "the larger proxy",
    "online_large_pointwise": "the larger point-wise proxy",
}


def analyse(data: TaskData) -> Analysis:
    """Agreement of each proxy with golden; peak and over-optimisation of each proxy's arm; the better proxy's arm
    against the worse one's.
    """
    agrees = agreement(data)
    larger = agrees[f"{LARGE} - {SMALL}"]
    better, worse = (SMALL, LARGE) if larger.value < 0 else (LARGE, SMALL)
    told_apart = larger.low > 0 or larger.high < 0
    contrasts = Contrasts(data, "proxy")
    main, form = (
        contrasts.gaps(better, worse, None, better, worse),
        contrasts.gaps(POINTWISE, SMALL, None, POINTWISE, SMALL),
    )
    pair = f"online against {PROXIES[better]} minus {PROXIES[worse]}"
    excess = over_optimisation(data, better, worse)
    estimates = {
        "average_gap": Labelled(f"average gap at equal KL, {pair}", main["average_gap"]),
        "peak_difference": Labelled(f"difference of the peaks, {pair}", main["peak_difference"]),
        "agreement_difference": Labelled(
            f"agreement with golden, {PROXIES[LARGE]} minus {PROXIES[SMALL]}", larger, "share of pairs"
        ),
        "excess_difference": Labelled(f"over-optimisation at the end, {pair}", excess),
        "pointwise_agreement": Labelled(
            f"agreement with golden, {PROXIES[POINTWISE]} minus {PROXIES[SMALL]}",
            agrees[f"{POINTWISE} - {SMALL}"],
            "share of pairs",
        ),
        "pointwise_gap": Labelled(
            f"average gap at equal KL, online against {PROXIES[POINTWISE]} minus {PROXIES[SMALL]}", form["average_gap"]
        ),
        "pointwise_peak": Labelled(
            f"difference of the peaks, online against {PROXIES[POINTWISE]} minus {PROXIES[SMALL]}",
            form["peak_difference"],
        ),
    }
    estimates |= contrasts.gap_elsewhere("average_gap", f"average gap, {pair}", better, worse, better, worse)
    each = {
        "agreement": ("agreement with golden on held-out pairs", "share of pairs"),
        "peak": ("peak of its arm, by golden", "win rate"),
        "excess": ("over-optimisation of its arm: win rate against SFT by itself minus by golden", "win rate"),
    }
    found = {
        "agreement": {family: agrees[family] for family in NAMES},
        "peak": {family: peaks(data, family) for family in NAMES},
        "excess": {family: over_optimisation(data, family) for family in NAMES},
    }
    for measure, (words, unit) in each.items():
        for family, estimate in found[measure].items():
            estimates[f"{measure}_{family}"] = Labelled(f"{PROXIES[family]}: {words}", estimate, unit)
    verdict = gap_verdict(main["average_gap"], main["peak_difference"], data.settings.margin)
    doubt = "" if told_apart else ", which does not tell which is the better"
    sentence = (
        f"The larger proxy agrees with golden on {interval_words(larger, signed=True)} of the pairs more than the "
        f"baseline's{doubt}. Online against {PROXIES[better]} wins {interval_words(main['average_gap'], signed=True)} "
        f"of the prompts more at equal KL than against {PROXIES[worse]}, its peak is "
        f"{interval_words(main['peak_difference'], signed=True)} higher, and its over-optimisation differs by "
        f"{interval_words(excess, signed=True)} ({across(main['average_gap'])}). At the baseline's size, point-wise "
        f"instead of the baseline's form changes {interval_words(form['average_gap'], signed=True)} at equal KL."
    )
    figures = [
        Figure(name="proxies", title="Online against each proxy", families=tuple(NAMES)),
        *(
            Figure(
                name=f"agreement_{measure}",
                title=f"Agreement with golden, and {words} (all seeds)",
                x="agreement with golden, share of held-out pairs",
                y=axis,
                mark="point",
                points=scatter(found["agreement"], found[measure]),
            )
            for measure, words, axis in (
                ("peak", "the peak of the arm", "peak win rate, by golden"),
                ("excess", "over-optimisation", "win rate against SFT at the end, by the proxy minus by golden"),
            )
        ),
    ]
    return Analysis(verdict if told_apart else "inconclusive", sentence, estimates, figures)


def agreement(data: TaskData) -> dict[str, Estimate]:
    """Mean agreement with golden of each family's proxy, and, pair by pair, the differences `a - b` that are asked."""
    table = data.table("proxy_agreement")
    wide = table.pivot(on="proxy", index=["seed", "prompt_number"], values="agrees") if len(table) else table
    values = {family: pl.col(family) for family in NAMES}
    values |= {f"{family} - {SMALL}": pl.col(family) - pl.col(SMALL) for family in (LARGE, POINTWISE)}
    return data.prompt_means({name: (wide, value) for name, value in values.items()}, "proxy", "agreement")


def peaks(data: TaskData, family: str) -> Estimate:
    """Peak win rate of a family's arms."""

    def statistic(seed: Seed) -> float:
        return float(np.mean([peak(curve)[0] for curve in seed[""]]))

    return data.estimate({"": data.runs(family)}, statistic, "proxy", "peak", family)


def over_optimisation(data: TaskData, family: str, other: str | None = None) -> Estimate:
    """Win rate against SFT at the end of training, by the arm's own proxy minus by golden; or its difference from
    another family's.
    """
    families = [family] if other is None else [family, other]
    groups = {
        f"{name}, {judge}": data.runs(name, View(opponent="sft", judge=judge))
        for name in families
        for judge in ("proxy", "golden")
    }

    def statistic(seed: Seed) -> float:
        end = {group: float(np.mean([curve.end for curve in found])) for group, found in seed.items()}
        first, *rest = (end[f"{name}, proxy"] - end[f"{name}, golden"] for name in families)
        return first - sum(rest)

    return data.estimate(groups, statistic, "proxy", "excess", *families)


def scatter(x: Mapping[str, Estimate], y: Mapping[str, Estimate]) -> list[FigurePoint]:
    """A point a proxy that has both measures, with the interval of `y`."""
    return [
        FigurePoint(PROXIES[family], x[family].value, y[family].value, y[family].low, y[family].high)
        for family in x
        if not isnan(x[family].value) and not isnan(y[family].value)
    ]
