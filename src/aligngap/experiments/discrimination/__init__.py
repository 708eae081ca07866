"""H3b, figures 7 and 8: do policies that tell good from bad responses better also write better ones?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aligngap.experiments import coverage, goodhart
from aligngap.experiments.base import (
    Analysis,
    Experiment,
    Figure,
    FigurePoint,
    Finished,
    Labelled,
    TaskData,
    at_end,
    points,
)
from aligngap.experiments.bench import ArmEntry, Bench, Measure
from aligngap.experiments.contrasts import Contrasts
from aligngap.experiments.discrimination.measure import SelfAccuracy
from aligngap.stats.budget import Floats, weighted_means
from aligngap.stats.intervals import Estimate, mean_statistics
from aligngap.stats.spearman import spearman
from aligngap.stats.verdict import joint_verdict

FAMILIES = ("online", "offline", "shuffled")
SELF_FAMILIES = ("online", "offline")
"""Those whose own samples are looked at, at the baseline configuration."""


def arms(bench: Bench) -> list[ArmEntry]:
    """Online, the offline sweep and the shuffled stream of every seed, all shared with other experiments."""
    entries = [entry for entry in (*goodhart.arms(bench), *coverage.arms(bench)) if entry.family in FAMILIES]
    return list({(entry.family, entry.stage.identity): entry for entry in entries}.values())


def measures(bench: Bench) -> list[Measure]:
    """Self-classification of the baseline arms of `SELF_FAMILIES`, a seed each."""
    return [
        Measure(table_name(entry.family), entry.stage.seed, self_accuracy(bench, entry))
        for entry in arms(bench)
        if entry.baseline and entry.family in SELF_FAMILIES
    ]


def table_name(family: str) -> str:
    """Under which `TaskData.table` finds the self-classification of a family."""
    return f"self_accuracy {family}"


def self_accuracy(bench: Bench, entry: ArmEntry) -> SelfAccuracy:
    """The measure of an arm, on as many prompts as `D_golden` pairs are looked at."""
    return SelfAccuracy(arm=entry.stage, golden=bench.of(entry.stage.seed).golden, prompts=bench.study.evaluation.pairs)


CHANCE = 0.5

CORRELATIONS = {
    "within": "within an arm over its checkpoints, mean over arms",
    "all": "over all checkpoints of all arms",
    "end": "across arms, each at its last step",
    "peak": "across arms, each at its peak win rate",
}


class Kind(NamedTuple):
    """What is drawn over training: of which families, its column, and how the figure is called."""

    families: tuple[str, ...]
    column: str
    title: str
    axis: str


KINDS = {
    "accuracy": Kind(FAMILIES, "correct", "Accuracy on D_golden pairs", "accuracy"),
    "drift": Kind(FAMILIES, "drift", "Winners' log-probability on D_golden pairs", "log pi/pi_sft, nats"),
    "self_accuracy": Kind(SELF_FAMILIES, "correct", "Accuracy on pairs that the policy sampled itself", "accuracy"),
}

Asked = tuple[str, str, pl.DataFrame, pl.Expr]
"""A mean over a split's pairs: label, unit, table, and the value as an expression of its columns."""


def analyse(data: TaskData) -> Analysis:
    """Accuracy against win rate, the winners' drift, and self-classification."""
    primary, other, contrasts = data.settings.split, data.other_split, Contrasts(data, "discrimination")
    gap = data.gap(contrasts.runs("online"), contrasts.runs("offline"), "discrimination")["average_gap"]
    main, beside, grids = ends(data, primary), ends(data, other), checkpoints(data)
    outcome = {key: value.estimate for key, value in main.items()}
    ahead = outcome["accuracy_difference"]
    contrasts.estimates["accuracy_difference"] = main["accuracy_difference"]
    contrasts.put("average_gap", "average gap at equal KL, online minus offline", gap)
    contrasts.estimates |= main | {f"{key}_{other}": value for key, value in beside.items()} | correlations(data, grids)
    drifts = ", ".join(f"{nats(outcome[f'drift_{family}'])} ({family})" for family in FAMILIES)
    sentence = (
        f"At the end of training offline tells golden's choice on {outcome['accuracy_offline']:.1%} of the D_golden "
        f"pairs, online on {outcome['accuracy_online']:.1%}: {ahead:+.1%} more for offline ({ahead.across('pairs')}). "
        f"At equal KL online wins {gap:+.1%} of the prompts more than offline ({gap.across()}). The winners' "
        f"log-probability has moved by {drifts}. On its own pairs online is {outcome['self_online']:+.1%} above "
        f"chance, offline {outcome['self_offline']:+.1%}."
    )
    figures = [scatter(grids), *(over_training(data, name, split) for name, split in product(KINDS, (primary, other)))]
    return Analysis(joint_verdict((ahead, gap)), sentence, contrasts.estimates, figures)


def nats(estimate: Estimate) -> str:
    """`-1.23 nats`, or `(no data)`."""
    return "(no data)" if np.isnan(estimate.value) else f"{estimate.value:+.2f} nats"


def pairs_of(data: TaskData, kind: str, family: str, split: str) -> pl.DataFrame:
    """What a family's baseline arms make of the pairs of a split after step 0, at which nothing is to be told: those of
    `D_golden`, or, for self-accuracy, their own, which have no drift.
    """
    rows = data.pair_outcomes(family, split, baseline=True)
    if kind == "self_accuracy":
        table = data.table(table_name(family))
        rows = table.filter(pl.col("split") == split) if len(table) else rows.clear()
    return rows.filter(pl.col("step") > 0)


def ends(data: TaskData, split: str) -> dict[str, Labelled]:
    """Accuracy, drift and self-accuracy of each family at the end of training; how offline differs from online."""
    # Two sets of pairs, which need not be equally many.
    groups = {"golden": _of_golden_pairs(data, split), "self": _of_own_pairs(data, split)}
    outcome: dict[str, Labelled] = {}
    for name, asked in groups.items():
        values = {key: (rows, value) for key, (_, _, rows, value) in asked.items()}
        for key, estimate in data.prompt_means(values, "discrimination", name, split).items():
            label, unit, *_ = asked[key]
            outcome[key] = Labelled(f"{label}, {split.replace('_', '-')} pairs", estimate, unit)
    return outcome


def _of_golden_pairs(data: TaskData, split: str) -> dict[str, Asked]:
    last = {family: at_end(pairs_of(data, "accuracy", family, split)) for family in FAMILIES}
    both = last["offline"].join(last["online"], on=["seed", "prompt_number"], suffix="_online")
    quantities = (
        ("accuracy", "accuracy on D_golden at the end", "accuracy", "correct"),
        ("drift", "winners' log pi/pi_sft on D_golden at the end", "nats", "drift"),
    )
    outcome: dict[str, Asked] = {}
    for name, label, unit, column in quantities:
        difference = pl.col(column) - pl.col(f"{column}_online")
        outcome[f"{name}_difference"] = (f"{label}, offline minus online", unit, both, difference)
        for family, rows in last.items():
            outcome[f"{name}_{family}"] = (f"{family}: {label}", unit, rows, pl.col(column))
    return outcome


def _of_own_pairs(data: TaskData, split: str) -> dict[str, Asked]:
    correct = pl.col("correct")
    outcome: dict[str, Asked] = {}
    for family in SELF_FAMILIES:
        rows = pairs_of(data, "self_accuracy", family, split)
        last, mean = at_end(rows), rows.group_by("seed", "prompt_number").agg(correct.drop_nans().mean())
        own, above = f"{family}: accuracy on its own pairs", correct - CHANCE
        ties = f"{family}: own pairs at the end that golden calls a tie, left out"
        outcome[f"self_{family}"] = (f"{own} at the end, less one half", "accuracy", last, above)
        outcome[f"self_mean_{family}"] = (f"{own}, mean over checkpoints, less one half", "accuracy", mean, above)
        outcome[f"self_ties_{family}"] = (ties, "share of pairs", last, correct.is_nan())
    return outcome


@dataclass(frozen=True)
class Checkpoints:
    """All checkpoints after step 0 of all arms of a seed, P in all, on the primary split.

    owner: whose each is, index into `arms`, [P], by arm and then by step; correct: of N prompts, does the policy tell
    golden's choice between the prompt's `D_golden` pair, [P, N]; win: does its response win, [P, N]; NaN = missing.
    """

    arms: list[Finished]
    owner: NDArray[np.int64]
    correct: Floats
    win: Floats

    @property
    def values(self) -> Floats:
        """Both, one below the other, [2 P, N]."""
        return np.concatenate([self.correct, self.win])

    def correlations(self, means: Floats) -> Floats:
        """From the means of `values`, [B, 2 P], to the rank correlations of accuracy and win rate, in the order of
        `CORRELATIONS`, [B, 4].
        """
        accuracy, win = np.split(means, 2, axis=1)
        places = [np.flatnonzero(self.owner == number) for number in range(len(self.arms))]
        within = np.stack([spearman(accuracy[:, at], win[:, at]) for at in places], axis=1)
        defined = np.isfinite(within)
        count = defined.sum(axis=1)
        mean = np.divide(
            np.where(defined, within, 0).sum(axis=1), count, out=np.full(len(means), np.nan), where=count > 0
        )
        last = np.array([at[-1] for at in places])
        best = np.stack([at[win[:, at].argmax(axis=1)] for at in places], axis=1)
        at_peak = [np.take_along_axis(part, best, axis=1) for part in (accuracy, win)]
        return np.stack(
            [mean, spearman(accuracy, win), spearman(accuracy[:, last], win[:, last]), spearman(*at_peak)], axis=1
        )


def checkpoints(data: TaskData) -> dict[int, Checkpoints]:
    """By seed. Arms that were not evaluated are missing."""
    given = data.settings
    chosen = (pl.col("split") == given.split) & (pl.col("step") > 0)
    tables: dict[int, list[tuple[Finished, pl.DataFrame, pl.DataFrame]]] = {}
    for family in FAMILIES:
        for arm in data.finished(family):
            if len(arm.per_pair) and len(arm.per_prompt):
                both = (arm.per_pair.filter(chosen), arm.per_prompt.filter(chosen))
                tables.setdefault(arm.entry.stage.seed, []).append((arm, *both))
    asked = [rows.select("prompt_number") for outcome in tables.values() for _, *both in outcome for rows in both]
    numbers = pl.concat(asked or [pl.DataFrame(schema={"prompt_number": pl.Int64})]).unique().sort("prompt_number")
    result = {}
    for seed, outcome in sorted(tables.items()):
        correct = [outcomes(pairs, "correct", numbers) for _, pairs, _ in outcome]
        win = [outcomes(prompts, f"win_{given.opponent}_{given.judge}", numbers) for _, _, prompts in outcome]
        owner = np.repeat(np.arange(len(outcome)), [len(part) for part in correct])
        result[seed] = Checkpoints([arm for arm, *_ in outcome], owner, np.concatenate(correct), np.concatenate(win))
    return result


def outcomes(rows: pl.DataFrame, column: str, numbers: pl.DataFrame) -> Floats:
    """A column by step, in order, and prompt, NaN where a prompt is missing; [K, N]."""
    wide = rows.sort("step").pivot(on="step", index="prompt_number", values=column)
    wide = numbers.join(wide, on="prompt_number", how="left", maintain_order="left").drop("prompt_number")
    values: Floats = wide.cast(pl.Float64).to_numpy().T
    return values


def correlations(data: TaskData, grids: Mapping[int, Checkpoints]) -> dict[str, Labelled]:
    """Rank correlations of accuracy and win rate, of each seed, then averaged over seeds."""
    outcome = mean_statistics(
        {seed: grid.values for seed, grid in grids.items()},
        lambda seed, means: grids[seed].correlations(means),
        tuple(CORRELATIONS),
        rng=data.rng("discrimination", "correlation"),
        replicates=data.settings.replicates,
    )
    arms = max((len(grid.arms) for grid in grids.values()), default=0)
    points = max((len(grid.owner) for grid in grids.values()), default=0)
    size = f"{arms} arms and {points} checkpoints a seed"
    return {
        f"correlation_{key}": Labelled(
            f"rank correlation of accuracy and win rate {label} ({size})",
            outcome[key].clipped(-1, 1),
            "correlation",
        )
        for key, label in CORRELATIONS.items()
    }


def scatter(grids: Mapping[int, Checkpoints]) -> Figure:
    """Win rate against accuracy, a point a checkpoint (figure 7)."""
    shown = []
    for seed, grid in grids.items():
        accuracy, win = np.split(weighted_means(grid.values, np.ones((1, grid.values.shape[1])))[0], 2)
        series = [grid.arms[number].entry.family for number in grid.owner]
        shown += [FigurePoint(s, float(x), float(y), seed=seed) for s, x, y in zip(series, accuracy, win, strict=True)]
    return Figure(
        name="win_rate_by_accuracy",
        title="Win rate against accuracy on D_golden pairs, a point a checkpoint",
        x="accuracy",
        y="win rate",
        mark="point",
        points=shown,
    )


def over_training(data: TaskData, name: str, split: str) -> Figure:
    """One of `KINDS` over optimiser steps, of the baseline arms (figures 7 and 8)."""
    kind = KINDS[name]
    shown = []
    for family in kind.families:
        by_step = pairs_of(data, name, family, split).partition_by("step", as_dict=True)
        values = {str(step): (rows, pl.col(kind.column)) for (step,), rows in sorted(by_step.items())}
        means = data.prompt_means(values, "discrimination", name, split, family)
        shown += points((family, int(step), outcome) for step, outcome in means.items())
    return Figure(
        name=f"{name}_{split}",
        title=f"{kind.title}, {split.replace('_', '-')}",
        x="optimiser step",
        y=kind.axis,
        points=shown,
        x_log=True,
    )


EXPERIMENT = Experiment(
    name="discrimination",
    title="H3b: discrimination against generation",
    question="Is a policy that classifies preferences better also the one that generates better responses?",
    finding="Offline policies classify better (60-70%) than online ones (about 50%) yet generate worse; the winners' "
    "log-probability falls for all, most for offline; self-classification is near chance (Tang et al. 2024, figures 7 "
    "and 8).",
    rule="Accuracy = share of D_golden pairs on which the sign of the policy's log-ratio margin against SFT agrees "
    "with golden, at the last step; a tie counts one half. Two differences at the baseline configuration, paired by "
    "seed, on the study's primary split: offline's accuracy minus online's, pair by pair; and online's win rate minus "
    "offline's (primary opponent and judge), averaged over ln KL on the range both reach. Supported (discrimination "
    "does not explain generation) if the 95% intervals of both lie wholly above 0; contradicted if either lies wholly "
    "below 0; else inconclusive.",
    arms=arms,
    analyse=analyse,
    measures=measures,
)
