"""Beyond the paper: does a better proxy make a better online run? Proxies of other forms and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan

import numpy as np
import polars as pl

from aligngap.experiments.base import Analysis, Experiment, Figure, FigurePoint, TaskData, View, each_seed, points
from aligngap.experiments.bench import ArmEntry, Bench, Measure
from aligngap.experiments.contrasts import Contrasts
from aligngap.experiments.proxy.measure import ProxyAgreement
from aligngap.pipeline.stages import JudgeStage
from aligngap.stats.estimands import peak
from aligngap.stats.intervals import Estimate, Seed
from aligngap.stats.verdict import gap_verdict

NAMES = {
    "online": "online",
    "online_pointwise": "online, point-wise proxy",
    "online_large_proxy": "online, larger proxy",
    "online_large_pointwise": "online, larger point-wise proxy",
}
"""Families of arms, each named for its proxy; `online` has the baseline's."""


def obstacle(bench: Bench) -> str:
    """Other proxies are trained as the study's own is."""
    return "The proxy is given, so no others are trained." if bench.study.proxy.judge is not None else ""


def proxies(bench: Bench, seed: int) -> dict[str, JudgeStage]:
    """The proxy of each family. The larger ones start from golden's base."""
    large = bench.study.models.golden
    result = (
        bench.proxy(seed),
        bench.proxy(seed, model="pointwise"),
        bench.proxy(seed, model="pairwise", base=large),
        bench.proxy(seed, model="pointwise", base=large),
    )
    return dict(zip(NAMES, result, strict=True))


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """Four arms a seed."""
    return [bench.online(seed, family, NAMES[family], judge=proxy) for family, proxy in proxies(bench, seed).items()]


@each_seed
def measures(bench: Bench, seed: int) -> list[Measure]:
    """The proxies' agreement with golden, a table a seed."""
    judges = proxies(bench, seed)
    stage = ProxyAgreement(golden_pairs=bench.golden_pairs, proxies=tuple(judges.values()), names=tuple(judges))
    return [Measure("proxy_agreement", seed, stage)]


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
    pair = f"online against {PROXIES[better]} minus {PROXIES[worse]}"
    gap, peak_difference = contrasts.compare(f"{{}}, {pair}", better, worse, better, worse)
    share, agrees_with = "share of pairs", "agreement with golden"
    label = f"{agrees_with}, {PROXIES[LARGE]} minus {PROXIES[SMALL]}"
    contrasts.put("agreement_difference", label, larger, share)
    excess = over_optimisation(data, better, worse)
    contrasts.put("excess_difference", f"over-optimisation at the end, {pair}", excess)
    form = f"{PROXIES[POINTWISE]} minus {PROXIES[SMALL]}"
    contrasts.put("pointwise_agreement", f"{agrees_with}, {form}", agrees[f"{POINTWISE} - {SMALL}"], share)
    keys = ("pointwise_gap", "pointwise_peak")
    by_form, _ = contrasts.compare(f"{{}}, online against {form}", POINTWISE, SMALL, POINTWISE, SMALL, keys=keys)
    contrasts.gap_elsewhere("average_gap", f"average gap, {pair}", better, worse, better, worse)
    each = {
        "agreement": ("agreement with golden on held-out pairs", share, {name: agrees[name] for name in NAMES}),
        "peak": ("peak of its arm, by golden", "win rate", {name: peaks(data, name) for name in NAMES}),
        "excess": (
            "over-optimisation of its arm: win rate against SFT by itself minus by golden",
            "win rate",
            {name: over_optimisation(data, name) for name in NAMES},
        ),
    }
    for measure, (words, unit, result) in each.items():
        for family, estimate in result.items():
            contrasts.put(f"{measure}_{family}", f"{PROXIES[family]}: {words}", estimate, unit)
    doubt = "" if told_apart else ", which does not tell which is the better"
    sentence = (
        f"The larger proxy agrees with golden on {larger:+.1%} of the pairs more than the baseline's{doubt}. Online "
        f"against {PROXIES[better]} wins {gap:+.1%} of the prompts more at equal KL than against {PROXIES[worse]}, its "
        f"peak is {peak_difference:+.1%} higher, and its over-optimisation differs by {excess:+.1%} ({gap.across()}). "
        f"At the baseline's size, point-wise instead of the baseline's form changes {by_form:+.1%} at equal KL."
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
                points=scatter(each["agreement"][2], each[measure][2]),
            )
            for measure, words, axis in (
                ("peak", "the peak of the arm", "peak win rate, by golden"),
                ("excess", "over-optimisation", "win rate against SFT at the end, by the proxy minus by golden"),
            )
        ),
    ]
    verdict = gap_verdict(gap, peak_difference, data.settings.margin) if told_apart else "inconclusive"
    return Analysis(verdict, sentence, contrasts.estimates, figures)


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
        end = {group: float(np.mean([curve.end for curve in result])) for group, result in seed.items()}
        first, *rest = (end[f"{name}, proxy"] - end[f"{name}, golden"] for name in families)
        return first - sum(rest)

    return data.estimate(groups, statistic, "proxy", "excess", *families)


def scatter(x: Mapping[str, Estimate], y: Mapping[str, Estimate]) -> list[FigurePoint]:
    """A point a proxy that has both measures, with the interval of `y`."""
    known = [family for family in x if not isnan(x[family].value) and not isnan(y[family].value)]
    return points((PROXIES[family], x[family].value, y[family]) for family in known)


EXPERIMENT = Experiment(
    name="proxy",
    title="Proxies of other forms and sizes",
    question="Does online training against a proxy that agrees better with golden reach a higher win rate by golden, "
    "and over-optimise less?",
    finding="Hypothesis of ours; Tang et al. 2024 use one proxy, and name the point-wise one (appendix A) as the more "
    "controlled comparison: the better proxy's arm is ahead by golden at equal KL, with the higher peak.",
    rule="Compared are the baseline's proxy and the larger one of pairwise form. The better of the two is the one that "
    "agrees more often with golden on held-out D_golden, if the 95% interval of the difference excludes 0; else the "
    "verdict is inconclusive. Estimand: same configuration but for the proxy, paired by seed; win rate on the study's "
    "primary split, opponent and judge. Gap = online against the better proxy minus online against the worse, averaged "
    "over ln KL on the range both reach; peak difference likewise. Supported if the 95% intervals of both lie wholly "
    "above 0; contradicted if either lies wholly below 0, or both lie wholly within the margin of no difference; else "
    "inconclusive. The point-wise proxies and over-optimisation (win rate against SFT at the end of training, by the "
    "arm's own proxy minus by golden) are reported beside it, without a verdict.",
    arms=arms,
    analyse=analyse,
    measures=measures,
    obstacle=obstacle,
)
