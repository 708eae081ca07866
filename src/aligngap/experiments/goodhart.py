"""Figure 1: win rate against KL, online and offline, from the same preference data under one loss."""

from __future__ import annotations

from itertools import product

import numpy as np

from aligngap.experiments.base import Analysis, Experiment, Figure, FigurePoint, Labelled, TaskData, View, each_seed
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.contrasts import Contrasts
from aligngap.stats.budget import Run
from aligngap.stats.estimands import gap_band, select_best, split_prompts
from aligngap.stats.verdict import gap_verdict


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """Online at the baseline configuration; the offline sweep's arms, the baseline always among them; offline on the
    proxy's labels; and, where the study asks for it, online at the sweep's other points (family `online_sweep`).

    Offline on the proxy's labels is a control: the proxy may have learned from fewer pairs than the offline arms train
    on.
    """
    sweep, baseline = bench.study.sweep, bench.study.baseline
    points = dict.fromkeys(
        [(1.0, baseline.loss.beta, 1.0), *product(sweep.lr_factors, sweep.betas, sweep.step_factors)]
    )
    entries = [bench.online(seed), bench.offline_proxy(seed)]
    entries += [bench.offline(seed, lr, beta, steps) for lr, beta, steps in points]
    return entries + [swept(bench, seed, *point) for point in list(points)[1:] if sweep.online]


def swept(bench: Bench, seed: int, lr_factor: float, beta: float, step_factor: float) -> ArmEntry:
    """Online at a point of the sweep, named as the offline arm there is."""
    name = bench.offline(seed, lr_factor, beta, step_factor).name.replace("offline", "online")
    loss = bench.loss(beta=beta)
    return bench.online(seed, "online_sweep", name, loss=loss, lr_factor=lr_factor, step_factor=step_factor)


LABELS = {
    "average_gap": ("average_gap", "average gap at equal KL, online minus offline", "win rate"),
    "peak_difference": ("peak_difference", "difference of the peaks, online minus offline", "win rate"),
    "online_peak": ("online_peak", "peak of online", "win rate"),
    "offline_peak": ("offline_peak", "peak of offline", "win rate"),
    "online_kl_at_peak": ("online_at_peak", "KL at online's peak", "nats"),
    "offline_kl_at_peak": ("offline_at_peak", "KL at offline's peak", "nats"),
    "online_fall": ("online_fall", "online: fall from peak to end", "win rate"),
    "offline_fall": ("offline_fall", "offline: fall from peak to end", "win rate"),
}
"""Estimates at the baseline: which of `stats.estimands.GAP_NAMES`, label, unit."""


def analyse(data: TaskData) -> Analysis:
    """Gap, peaks and falls at the baseline configuration; the gap by true utility, on the other split, and with the
    sweep pooled.
    """
    contrasts = Contrasts(data, "goodhart")
    main = contrasts.gaps("online", "offline", None, "main")
    for key, (part, label, unit) in LABELS.items():
        contrasts.put(key, label, main[part], unit)
    contrasts.elsewhere("average_gap", "average gap", lambda at: contrasts.gap("online", "offline", at, at.name))
    pooled = data.gap(data.runs("online"), data.runs("offline"), "goodhart", "pooled")["average_gap"]
    contrasts.put("average_gap_pooled", "average gap, online minus the pooled offline sweep (as in the paper)", pooled)
    label = "average gap, online minus offline on the same pairs with the proxy's labels (equal label information)"
    equal = contrasts.gap("online", "offline_proxy", None, "proxy labels")
    contrasts.put("average_gap_proxy_labels", label, equal)
    best = best_of_sweep(data)
    contrasts.estimates |= best
    unit = "win rate / sqrt(nats)"
    for family, (judge, name) in product(("online", "offline"), (("golden", "golden"), ("true", "true utility"))):
        runs = contrasts.runs(family, View(opponent="sft", judge=judge))
        fit = data.over_optimisation(runs, "goodhart", "gao", judge)
        for part in ("a", "b"):
            label = f"{family}, by {name}: gain over SFT = d (a - b ln d), d = sqrt(KL); {part}"
            contrasts.put(f"{family}_gao_{part}_{judge}", label, fit[part], unit)
    gap, peak = main["average_gap"], main["peak_difference"]
    falls = [
        f"{name} {'falls' if main[f'{name}_fall'].low > 0 else 'shows no clear fall'} after its peak"
        for name in ("online", "offline")
    ]
    sentence = (
        f"At equal KL online wins {gap:+.1%} of the prompts more than offline does, and its peak is {peak:+.1%} higher "
        f"({gap.across()}); {falls[0]}, {falls[1]}."
    )
    if data.finished("online_sweep") and not best:
        sentence += " The best of either sweep are not compared: their finished arms do not have the same budgets."
    splits = (data.settings.split, data.other_split)
    figures = [_difference(data, split) for split in splits]
    return Analysis(gap_verdict(gap, peak, data.settings.margin), sentence, contrasts.estimates, figures)


def best_of_sweep(data: TaskData) -> dict[str, Labelled]:
    """Estimand (b): the best of either sweep, at equal budgets, chosen on one half of the prompts by its peak and
    compared on the other. Nothing unless both were swept over the same points for the same seeds.
    """
    swept: dict[str, dict[str, list[Run]]] = {"online": {}, "offline": {}}
    for family in ("online", "online_sweep", "offline"):
        method = family.removesuffix("_sweep")
        for arm in data.finished(family):
            point = f"lr={arm.entry.stage.optim.lr:g} beta={arm.entry.stage.loss.beta:g} {arm.entry.stage.optim.steps}"
            swept[method].setdefault(point, []).append(arm.runs[data.curve()])
    budgets = [{(point, run.seed) for point, runs in points.items() for run in runs} for points in swept.values()]
    if budgets[0] != budgets[1] or len(swept["online"]) < 2:
        return {}
    runs = next(iter(swept["online"].values()))
    chosen = select_best(swept, split_prompts(runs[0].n_prompts, data.rng("goodhart", "selection")))
    result = data.gap(chosen["online"].runs, chosen["offline"].runs, "goodhart", "best")
    points = " and ".join(f"{method} at {best.arm} steps" for method, best in chosen.items())
    which = f"best of sweep ({points}; chosen on half of the prompts, compared on the other)"
    return {
        f"best_{key}": Labelled(f"{LABELS[key][1]}: {which}", result[key]) for key in ("average_gap", "peak_difference")
    }


def _difference(data: TaskData, split: str) -> Figure:
    """Online minus offline at equal KL, by the golden judge and by true utility, with their max-t bands."""
    points, notes, contrasts = [], [], Contrasts(data, "goodhart")
    for judge, series in (("golden", "golden judge"), ("true", "true utility")):
        online, offline = (contrasts.runs(name, View(split=split, judge=judge)) for name in ("online", "offline"))
        rng = data.rng("goodhart", "band", split, judge)
        band = gap_band(online, offline, rng, replicates=data.settings.replicates)
        rows = np.stack([np.exp(band.x), band.value, band.low, band.high], axis=1).tolist()
        points += [FigurePoint(series, kl, value, low, high) for kl, value, low, high in rows]
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


EXPERIMENT = Experiment(
    name="goodhart",
    title="Online against offline at equal KL",
    question="From the same preference data and under the same loss, does online training reach a higher win rate "
    "than offline training at the same KL from the SFT policy?",
    finding="Online is better at every KL and has the higher peak; both rise, then fall (Tang et al. 2024, figure 1).",
    rule="Estimand: same configuration (both at the baseline, paired by seed); win rate on the study's primary split, "
    "opponent and judge. Gap = online minus offline, averaged over ln KL on the range both reach; peak difference = "
    "online's peak minus offline's. Supported if the 95% intervals of both lie wholly above 0; contradicted if either "
    "lies wholly below 0, or both lie wholly within the margin of no difference; else inconclusive.",
    arms=arms,
    analyse=analyse,
)
