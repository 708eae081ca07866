"""Estimates and verdict of figure 1."""

from __future__ import annotations

from itertools import product

import numpy as np

from aligngap.experiments.base import Analysis, Figure, Labelled, Point, TaskData
from aligngap.experiments.words import across, interval_words
from aligngap.pipeline.stages import SPLITS
from aligngap.stats.bootstrap import Estimate, gap_band, select_best, split_prompts
from aligngap.stats.curves import Run
from aligngap.stats.verdict import gap_verdict

RULE = (
    "Estimand: same configuration (both at the baseline, paired by seed); win rate on the study's primary split, "
    "opponent and judge. Gap = online minus offline, averaged over ln KL on the range both reach; peak difference = "
    "online's peak minus offline's. Supported if the 95% intervals of both lie wholly above 0; contradicted if either "
    "lies wholly below 0, or both lie wholly within the margin of no difference; else inconclusive."
)

LABELS = {
    "average_gap": ("average gap at equal KL, online minus offline", "win rate"),
    "peak_difference": ("difference of the peaks, online minus offline", "win rate"),
    "online_peak": ("peak of online", "win rate"),
    "offline_peak": ("peak of offline", "win rate"),
    "online_kl_at_peak": ("KL at online's peak", "nats"),
    "offline_kl_at_peak": ("KL at offline's peak", "nats"),
    "online_fall": ("online: fall from peak to end", "win rate"),
    "offline_fall": ("offline: fall from peak to end", "win rate"),
}

Gaps = dict[str, Estimate]


def analyse(data: TaskData) -> Analysis:
    """Gap, peaks and falls at the baseline configuration; the gap by true utility, on the other split, and with the
    sweep pooled.
    """
    settings = data.settings

    def gaps(
        purpose: str,
        family: str = "offline",
        baseline: bool | None = True,
        split: str | None = None,
        judge: str | None = None,
    ) -> Gaps:
        online = data.runs("online", split=split, judge=judge)
        return data.gap(online, data.runs(family, baseline=baseline, split=split, judge=judge), "goodhart", purpose)

    main = gaps("main")
    estimates = {key: Labelled(label, main[key], unit) for key, (label, unit) in LABELS.items()}
    other = "train" if settings.split == "held_out" else "held_out"
    further = {
        f"average_gap_{other}": (f"average gap, {other.replace('_', '-')} prompts", gaps(other, split=other)),
        "average_gap_true": ("average gap, by true utility", gaps("true", judge="true")),
        "average_gap_pooled": (
            "average gap, online minus the pooled offline sweep (as in the paper)",
            gaps("pooled", baseline=None),
        ),
        "average_gap_proxy_labels": (
            "average gap, online minus offline on the same pairs with the proxy's labels (equal label information)",
            gaps("proxy labels", family="offline_proxy"),
        ),
    }
    estimates |= {key: Labelled(label, found["average_gap"]) for key, (label, found) in further.items()}
    best = best_of_sweep(data)
    estimates |= best
    for family, judge in product(("online", "offline"), ("golden", "true")):
        runs = data.runs(family, baseline=True, opponent="sft", judge=judge)
        fit = data.over_optimisation(runs, "goodhart", "gao", judge)
        name = (
            f"{family}, by {'true utility' if judge == 'true' else judge}: gain over SFT = d (a - b ln d), d = sqrt(KL)"
        )
        estimates[f"{family}_gao_a_{judge}"] = Labelled(f"{name}; a", fit.a, "win rate / sqrt(nats)")
        estimates[f"{family}_gao_b_{judge}"] = Labelled(f"{name}; b", fit.b, "win rate / sqrt(nats)")
    verdict = gap_verdict(main["average_gap"], main["peak_difference"], settings.margin)
    falls = [
        f"{name} {'falls' if main[f'{name}_fall'].low > 0 else 'shows no clear fall'} after its peak"
        for name in ("online", "offline")
    ]
    sentence = (
        f"At equal KL online wins {interval_words(main['average_gap'], signed=True)} of the prompts more than offline "
        f"does, and its peak is {interval_words(main['peak_difference'], signed=True)} higher "
        f"({across(main['average_gap'])}); {falls[0]}, {falls[1]}."
    )
    if data.finished("online_sweep") and not best:
        sentence += " The best of either sweep are not compared: their finished arms do not have the same budgets."
    other_split = [split for split in SPLITS if split != settings.split]
    return Analysis(
        verdict, sentence, estimates, [_difference(data, split) for split in (settings.split, *other_split)]
    )


def best_of_sweep(data: TaskData) -> dict[str, Labelled]:
    """Estimand (b): the best of either sweep, at equal budgets, chosen on one half of the prompts by its peak and
    compared on the other. Nothing unless both were swept over the same points for the same seeds.
    """
    swept: dict[str, dict[str, list[Run]]] = {"online": {}, "offline": {}}
    for family in ("online", "online_sweep", "offline"):
        method = family.removesuffix("_sweep")
        for arm in data.finished(family):
            point = f"lr={arm.entry.stage.optim.lr:g} beta={arm.entry.stage.loss.beta:g} {arm.entry.stage.optim.steps}"
            key = (data.settings.split, data.settings.opponent, data.settings.judge)
            swept[method].setdefault(point, []).append(arm.runs[key])
    budgets = [{(point, run.seed) for point, runs in points.items() for run in runs} for points in swept.values()]
    if budgets[0] != budgets[1] or len(swept["online"]) < 2:
        return {}
    runs = next(iter(swept["online"].values()))
    chosen = select_best(swept, split_prompts(runs[0].n_prompts, data.rng("goodhart", "selection")))
    found = data.gap(chosen["online"].runs, chosen["offline"].runs, "goodhart", "best")
    points = " and ".join(f"{method} at {best.arm} steps" for method, best in chosen.items())
    which = f"best of sweep ({points}; chosen on half of the prompts, compared on the other)"
    return {
        f"best_{key}": Labelled(f"{LABELS[key][0]}: {which}", found[key]) for key in ("average_gap", "peak_difference")
    }


def _difference(data: TaskData, split: str) -> Figure:
    """Online minus offline at equal KL, by the golden judge and by true utility, with their max-t bands."""
    points, notes = [], []
    for judge, series in (("golden", "golden judge"), ("true", "true utility")):
        online = data.runs("online", split=split, judge=judge)
        offline = data.runs("offline", baseline=True, split=split, judge=judge)
        rng = data.rng("goodhart", "band", split, judge)
        band = gap_band(online, offline, rng, replicates=data.settings.replicates)
        rows = np.stack([np.exp(band.kappa), band.value, band.low, band.high], axis=1).tolist()
        points += [Point(series, kl, value, low, high) for kl, value, low, high in rows]
        notes += [note for note in [band.note] if note and note not in notes]
    return Figure(
        name=f"difference_{split}",
        title=f"Online minus offline at equal KL, {split.replace('_', '-')} prompts, with simultaneous 95% bands"
        + "".join(f"; {note}" for note in notes),
        x="KL(policy || SFT), nats",
        y="difference of win rates",
        points=points,
        x_log=True,
    )
