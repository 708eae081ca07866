"""H2, figure 5: is it the absolute quality of the online data that offline training lacks?"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from aligngap.experiments.base import Analysis, Experiment, Figure, TaskData, View, each_seed
from aligngap.experiments.bench import ArmEntry, Bench, Measure
from aligngap.experiments.contrasts import Contrasts
from aligngap.experiments.dataset import (
    D_GOLDEN,
    LABELS,
    STEP_FACTOR,
    entry,
    profile,
    profile_name,
    profiles,
    quality_bars,
)
from aligngap.stats.budget import common_range
from aligngap.stats.estimands import average_gap
from aligngap.stats.intervals import Estimate, Seed
from aligngap.stats.verdict import Verdict, threshold_verdict

FINAL = "final_vs_final"
LONG = (D_GOLDEN, FINAL)
"""The two arms that differ in nothing but their pairs."""


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """Online, offline, and for longer: offline on `D_golden` and on pairs of the final online policy (figure 5)."""
    return [bench.online(seed), bench.offline(seed), *(entry(bench, seed, family) for family in LONG)]


def measures(bench: Bench) -> list[Measure]:
    """A profile of both sets of pairs."""
    return profiles(bench, LONG)


HALF = 0.5


def over_offline(seed: Seed) -> tuple[float, float]:
    """Final-vs-final and online, each minus offline: mean over the KL range of all three."""
    (final,), (offline,), (online,) = (seed[name] for name in (FINAL, D_GOLDEN, "online"))
    within = common_range((final, offline, online))
    return average_gap(final, offline, within), average_gap(online, offline, within)


def excess(seed: Seed) -> float:
    """How far final-vs-final lies above half-way. A difference, not the share closed: it is defined whether or not
    there is a gap.
    """
    final, online = over_offline(seed)
    return final - HALF * online


def analyse(data: TaskData) -> Analysis:
    """Excess over half-way, the share closed, gaps to both sides, and the quality of the pairs."""
    contrasts = Contrasts(data, "quality")

    def of_three(statistic: Callable[[Seed], float], purpose: str, view: View | None = None) -> Estimate:
        groups = {family: contrasts.runs(family, view) for family in (FINAL, D_GOLDEN, "online")}
        return data.estimate(groups, statistic, "quality", purpose)

    main = of_three(excess, "main")
    gap = of_three(lambda seed: over_offline(seed)[1], "gap")
    contrasts.put("excess_over_halfway", "final-vs-final above half-way from offline to online, at equal KL", main)
    share = contrasts.share(FINAL, ends=(D_GOLDEN, "online"))
    contrasts.put("share_closed", "share of the online-offline gap closed by final-vs-final", share, "share")
    win, gain = _better(data)
    contrasts.put("data_golden_win_rate", "final-vs-final responses over D_golden's, by golden", win)
    label = "final-vs-final responses minus D_golden's, true utility"
    contrasts.put("data_utility_gain", label, gain, "utility")
    label = "average gap on the KL range of all three, online minus offline (long)"
    contrasts.put("online_minus_offline", label, gap)
    label, keys = "{}, final-vs-final minus offline (long)", ("final_minus_offline", "final_minus_offline_peak")
    contrasts.compare(label, FINAL, D_GOLDEN, "long", keys=keys)
    label, keys = "{}, final-vs-final minus offline (baseline)", ("final_minus_baseline", "")
    contrasts.compare(label, FINAL, "offline", "baseline", keys=keys)
    over_sft, online_over_sft = (
        contrasts.gaps(family, D_GOLDEN, View(opponent="sft"), "sft") for family in (FINAL, "online")
    )
    contrasts.put("final_over_sft", "peak win rate over SFT, final-vs-final", over_sft["online_peak"])
    contrasts.put("offline_over_sft", "peak win rate over SFT, offline (long)", over_sft["offline_peak"])
    contrasts.put("online_over_sft", "peak win rate over SFT, online", online_over_sft["online_peak"])
    contrasts.elsewhere(
        "excess_over_halfway", "final-vs-final above half-way", lambda view: of_three(excess, view.name, view)
    )
    tests = [threshold_verdict(win, HALF, 1), *([threshold_verdict(gain, 0.0, 1)] if data.truth else [])]
    better = set(tests) == {"supported"}
    verdict: Verdict = threshold_verdict(main, 0.0, -1) if better else "inconclusive"
    if verdict == "contradicted" and not gap.low > 0:
        verdict = "inconclusive"
    sentence = (
        f"Golden prefers final-vs-final responses to D_golden's on {win:.1%} of the prompts"
        f"{'' if better else ', and they are not shown to be truly better'}; offline training on them lies "
        f"{main:+.1%} above half-way from offline to online ({main.across()})."
    )
    profiles = profile(data, LONG)
    figures = [
        Figure("curves", "Offline training on pairs of the final online policy", families=("online", "offline", *LONG)),
        quality_bars(profiles),
    ]
    for family in LONG:
        label = f"{LABELS[family]}: mean true utility"
        contrasts.put(f"quality_{family}", label, profiles[family]["quality"], "utility")
    return Analysis(verdict, sentence, contrasts.estimates, figures)


def _better(data: TaskData) -> tuple[Estimate, Estimate]:
    """Final-vs-final responses over `D_golden`'s to the same prompts: golden's win rate, and gain in true utility."""
    table = data.table(profile_name(FINAL))
    values = {name: (table, pl.mean_horizontal(f"{name}_first", f"{name}_second")) for name in ("win", "gain")}
    result = data.prompt_means(values, "quality", "data")
    return result["win"], result["gain"]


EXPERIMENT = Experiment(
    name="quality",
    title="H2: data quality",
    question="Does offline training catch up when both responses of every pair come from the final online policy?",
    finding="Offline training on pairs of the final online policy is barely better than SFT: the data's absolute "
    "quality is not the cure (Tang et al. 2024, figure 5).",
    rule=f"Offline and final-vs-final train for the same {STEP_FACTOR:g} times the baseline's steps and differ in "
    "their pairs only; online is the baseline; paired by seed. Excess over half-way = (final-vs-final minus offline) "
    "minus one half of (online minus offline), each averaged over ln KL on the range all three reach. The pairs are "
    "truly of higher quality if, on the training prompts, the 95% intervals of golden's win rate of their responses "
    "over those of D_golden lies wholly above one half and that of their gain in true utility wholly above 0 (where "
    "nobody knows the true utility, golden's word is taken). Given that: "
    "supported (quality is not the cure) if the interval of the excess lies wholly below 0, which is to close less than"
    " half of the gap, or to stay below offline where there is no gap; contradicted if it lies wholly above 0 and "
    "online minus offline does so too; else inconclusive. Inconclusive, too, where the pairs are not of higher "
    "quality.",
    arms=arms,
    analyse=analyse,
    measures=measures,
)
