"""Beyond the paper: online against offline at equal numbers of judge calls, beside equal labels and equal steps."""

from __future__ import annotations

from aligngap.experiments.base import Analysis, Experiment, Figure, FigurePoint, TaskData, each_seed
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.contrasts import Contrasts
from aligngap.stats.budget import JUDGE_CALLS, LABELS, STEPS, curve
from aligngap.stats.verdict import sign_verdict

BESIDE = {
    LABELS: "gap at equal labels (online's are those that its proxy was trained on), online minus offline",
    STEPS: "average gap at equal optimiser steps, online minus offline",
}
FAMILIES = ("online", "offline")


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """Online and offline at the baseline configuration, shared with other experiments."""
    return [bench.online(seed), bench.offline(seed)]


def analyse(data: TaskData) -> Analysis:
    """The gap over judge calls, in three views; and over labels and steps."""
    contrasts = Contrasts(data, "judge_calls", JUDGE_CALLS)
    gap, label = contrasts.gap(*FAMILIES), "average gap at equal judge calls, online minus offline"
    contrasts.put("average_gap", label, gap)
    contrasts.gap_elsewhere("average_gap", label, *FAMILIES)
    beside = {budget: Contrasts(data, "judge_calls", budget).gap(*FAMILIES, None, budget.name) for budget in BESIDE}
    for budget, words in BESIDE.items():
        contrasts.put(f"average_gap_{budget.name}", words, beside[budget])
    points = [
        FigurePoint(family, place, win, seed=run.seed)
        for family in FAMILIES
        for run in contrasts.runs(family)
        for line in (curve(run),)
        for place, win in zip(line.x.tolist(), line.win.tolist(), strict=True)
    ]
    figure = Figure(
        name="by_judge_calls",
        title="Win rate by judge calls",
        x="judge calls (pairs labelled for training)",
        y="win rate",
        points=points,
    )
    sentence = (
        f"At equal judge calls online wins {gap:+.1%} of the prompts more than offline does ({gap.across()}); at as "
        f"many labels as its proxy learned from, {beside[LABELS]:+.1%}."
    )
    return Analysis(sign_verdict(gap, 1, data.settings.margin), sentence, contrasts.estimates, [figure])


EXPERIMENT = Experiment(
    name="judge_calls",
    title="Online against offline at equal judge calls",
    question="With as many pairs labelled by a judge, does online training reach a higher win rate than offline?",
    finding="Not in the paper, which compares at equal KL. Hypothesis of ours: online is ahead at equal judge calls.",
    rule="Estimand: same configuration (both at the baseline, paired by seed); win rate on the study's primary split, "
    "opponent and judge. Judge calls = pairs labelled for what an arm has trained on so far: by the proxy, each pair "
    "that online samples; by golden, each pair of D_golden when offline first uses it. Gap = online minus offline, "
    "averaged over judge calls on the range both reach, each call counting alike. Supported if its 95% interval lies "
    "wholly above 0; contradicted if wholly below 0 or wholly within the margin of no difference; else inconclusive. "
    "Gaps at equal labels and at equal optimiser steps stand beside it, without a verdict.",
    arms=arms,
    analyse=analyse,
)
