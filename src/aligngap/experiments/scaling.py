"""H5, figures 10, 11 and 14: does a larger policy close the gap between online and offline?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import nan

import numpy as np

from aligngap.experiments.base import (
    PRIMARY,
    Analysis,
    Experiment,
    Figure,
    Finished,
    TaskData,
    View,
    each_seed,
    points,
)
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.contrasts import Contrasts
from aligngap.sources.recorded import RecordedSpec
from aligngap.stats.budget import Curve, Floats
from aligngap.stats.estimands import peak
from aligngap.stats.intervals import Estimate, Seed, intervals
from aligngap.stats.verdict import Verdict

METHODS = ("online", "offline", "shuffled")


def family(method: str, base: str) -> str:
    """Family of a method's arms at a size that is not the study's own."""
    return f"{method}_{base}"


def obstacle(bench: Bench) -> str:
    """At least two sizes, the study's own among them."""
    models = bench.study.models
    if models.policy in models.sizes and len(set(models.sizes)) > 1:
        return ""
    return "models.sizes names no policies of other sizes beside the study's own, models.policy."


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """Online, offline and the shuffled online stream for each size under the same proxy, at the baseline configuration;
    at the study's own size the ones that other experiments have too. Each size replays its own online stream.
    """
    entries = []
    for size in bench.study.models.sizes:
        sized = bench.at_size(size)
        online, offline, shuffled = (family(method, size.name) if sized.size else method for method in METHODS)
        entries += [
            sized.online(seed, online),
            sized.recorded(seed, offline, sized.golden_pairs) if sized.size else sized.offline(seed),
            sized.on_stream(seed, shuffled, RecordedSpec(order="uniform")),
        ]
    return entries


QUANTILE = 0.9

NAMES = ("best", "normalised", "ln_kl")
SHARE = "share of online's best"


@dataclass(frozen=True)
class Size:
    """The arms of one policy size, by method. name: the base's, without its folder; parameters: number of weights."""

    name: str
    parameters: int
    arms: Mapping[str, list[Finished]]


def sizes(data: TaskData) -> list[Size]:
    """The policy sizes that have finished arms, smallest first."""
    result: dict[str, Size] = {}
    for arm, method in product(data.arms, METHODS):
        base = arm.entry.stage.sft.base
        if arm.entry.baseline and arm.entry.family in (method, family(method, base.name)):
            size = result.setdefault(base.digest, Size(base.name, arm.parameters, {method: [] for method in METHODS}))
            size.arms[method].append(arm)
    return sorted(result.values(), key=lambda size: size.parameters)


def best(curves: Sequence[Curve]) -> float:
    """90% quantile of the win rate over all checkpoints of the curves; NaN without any (figures 10 and 11)."""
    wins = np.sort(np.concatenate([curve.win for curve in curves]))
    # np.quantile's own interpolation; its checks would take most of the bootstrap's time.
    return float(np.interp(QUANTILE * (len(wins) - 1), np.arange(len(wins)), wins)) if len(wins) else nan


def compared(data: TaskData, at: Sequence[Size], method: str, view: View = PRIMARY) -> dict[str, Estimate]:
    """Best (win rate), normalised best and ln KL at the peak (nats) of a method at one size; of two sizes, the second's
    minus the first's. NaN without a size.
    """
    key = data.curve(view)
    groups = {
        f"{which} {number}": [arm.runs[key] for arm in size.arms[which] if key in arm.runs]
        for number, size in enumerate(at)
        for which in ("online", method)
    }

    def row(own: Sequence[Curve], online: Sequence[Curve]) -> Floats:
        reached, top = best(own), best(online)
        peaks = [float(np.log(peak(curve)[1])) for curve in own]
        return np.array([reached, reached / top if top > 0 else nan, sum(peaks) / len(peaks)])

    def statistic(seed: Seed) -> dict[str, float]:
        rows = [row(seed[f"{method} {number}"], seed[f"online {number}"]) for number in range(len(at))]
        return dict(zip(NAMES, (rows[-1] - rows[0] if len(rows) > 1 else rows[0]).tolist(), strict=True))

    purpose = ("scaling", method, *key, *(size.name for size in at))
    return intervals(groups, statistic, NAMES, rng=data.rng(*purpose), replicates=data.settings.replicates)


def conclude(largest: Estimate, smallest: Estimate, margin: float) -> Verdict:
    """The rule, from offline's normalised best at the largest and at the smallest policy."""
    if largest.high < 1:
        return "supported"
    return "contradicted" if largest.low > 1 - margin and smallest.high < 1 else "inconclusive"


def analyse(data: TaskData) -> Analysis:
    """Bests by size, absolute and as shares of online's, and what changes from the smallest to the largest policy."""
    result, contrasts = sizes(data), Contrasts(data, "scaling")
    ends = [result[0], result[-1]] if len(result) > 1 else []
    each = [{method: compared(data, [size], method) for method in METHODS} for size in result]
    trend = {method: compared(data, ends, method) for method in METHODS}
    shares = [values["offline"]["normalised"] for values in each if ends] or [trend["offline"]["normalised"]]
    smallest, largest = shares[0], shares[-1]
    offline, where = "offline's best as a share of online's", "from the smallest to the largest policy"
    contrasts.put("offline_at_largest", f"{offline}, largest policy", largest, SHARE, null=1.0)
    contrasts.put("offline_at_smallest", f"{offline}, smallest policy", smallest, SHARE)
    ratio = trend["online"]["ln_kl"].exponential()
    contrasts.put("online_kl_ratio", "KL at online's peak, largest policy over smallest", ratio, "ratio")
    contrasts.elsewhere(
        "offline_at_largest",
        f"{offline}, largest policy",
        lambda view: compared(data, ends[1:], "offline", view)["normalised"],
        SHARE,
    )
    for method, change in trend.items():
        contrasts.put(f"{method}_rise", f"{method}: change of the best {where}", change["best"])
        if method != "online":
            label = f"{method}: change of the share of online's best {where}"
            contrasts.put(f"{method}_change", label, change["normalised"], SHARE)
    for size, values in zip(result, each, strict=True):
        for method, value in values.items():
            key, who = f"{method}_{size.name}", f"{method}, {size.name} policy ({size.parameters:,} weights)"
            contrasts.put(f"{key}_best", f"{who}: best", value["best"])
            contrasts.put(f"{key}_kl", f"{who}: KL at the peak", value["ln_kl"].exponential(), "nats")
            if method != "online":
                contrasts.put(f"{key}_share", f"{who}: share of online's best", value["normalised"], SHARE)
    which = f" ({ends[1].name}, {ends[1].parameters:,} weights)" if ends else ""
    sentence = (
        f"At the largest policy{which} offline's best is {largest:.1%} of online's ({largest.across()}), at the "
        f"smallest {smallest:.1%}; from the smallest to the largest online's best changes by "
        f"{trend['online']['best']:+.1%}, offline's share by {trend['offline']['normalised']:+.1%} and that of the "
        f"shuffled online stream by {trend['shuffled']['normalised']:+.1%}."
    )
    verdict = conclude(largest, smallest, data.settings.margin)
    return Analysis(verdict, sentence, contrasts.estimates, figures(result, each))


def figures(result: Sequence[Size], each: Sequence[Mapping[str, Mapping[str, Estimate]]]) -> list[Figure]:
    """Bests over the number of weights (figures 10 and 11), and the curves of each size (figure 14). each: for every
    size, by method, what `compared` gives.
    """

    def over_size(name: str, title: str, y: str, methods: Sequence[str]) -> Figure:
        shown = points(
            (method, size.parameters, values[method][name])
            for size, values in zip(result, each, strict=True)
            for method in methods
        )
        return Figure(name=name, title=title, x="weights of the policy", y=y, points=shown, x_log=True)

    curves = [
        Figure(
            name=f"curves_{size.name}",
            title=f"Win rate against KL, {size.name} policy",
            families=tuple(dict.fromkeys(arm.entry.family for arms in size.arms.values() for arm in arms)),
        )
        for size in result
    ]
    return [
        over_size("normalised", "Best by policy size, as a share of online's", SHARE, METHODS[1:]),
        over_size("best", "Best by policy size", "win rate, 90% quantile over checkpoints", METHODS),
        *curves,
    ]


EXPERIMENT = Experiment(
    name="scaling",
    title="H5: larger policies",
    question="With the same data and the same proxy, is a larger policy all that offline training needs to catch up "
    "with online training?",
    finding="Peaks rise with the policy's size at the same KL; the gap of the shuffled online stream shrinks, that of "
    "offline training only slowly: scaling the policy alone does not close it (Tang et al. 2024, figures 10, 11 and "
    "14).",
    rule="Best of a method at a size = 90% quantile of its win rate over the checkpoints of its run (baseline "
    "configuration, step 0 left out), by seed; normalised best = best divided by online's of the same size and seed, "
    "averaged over seeds. It rests on offline's normalised best at the largest policy. Supported (scaling the policy "
    "alone does not close the gap) if its 95% interval lies wholly below 1; contradicted if it lies wholly above 1 "
    "minus the margin of no difference (taken as a share of online's best) while at the smallest policy it lies wholly"
    " below 1, so that there was a gap to close; else inconclusive, as with fewer than two sizes.",
    arms=arms,
    analyse=analyse,
    obstacle=obstacle,
)
