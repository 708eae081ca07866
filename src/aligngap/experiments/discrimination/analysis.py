"""Estimates and verdict of H3b."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aligngap.experiments.base import Analysis, Figure, FigurePoint, Finished, Labelled, TaskData
from aligngap.experiments.contrasts import Contrasts
from aligngap.experiments.discrimination.sweep import FAMILIES, SELF_FAMILIES, table_name
from aligngap.experiments.words import across, interval_words
from aligngap.stats.budget import Floats, weighted_means
from aligngap.stats.intervals import Estimate, mean_statistics
from aligngap.stats.verdict import joint_verdict

CHANCE = 0.5

RULE = (
    "Accuracy = share of D_golden pairs on which the sign of the policy's log-ratio margin against SFT agrees with "
    "golden, at the last step; a tie counts one half. Two differences at the baseline configuration, paired by seed, on"
    " the study's primary split: offline's accuracy minus online's, pair by pair; and online's win rate minus "
    "offline's (primary opponent and judge), averaged over ln KL on the range both reach. Supported (discrimination "
    "does not explain generation) if the 95% intervals of both lie wholly above 0; contradicted if either lies wholly "
    "below 0; else inconclusive."
)

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

EMPTY = pl.DataFrame(
    schema={"seed": pl.Int64, "step": pl.Int64, "prompt_number": pl.Int64, "correct": pl.Float64, "drift": pl.Float64}
)


def analyse(data: TaskData) -> Analysis:
    """Accuracy against win rate, the winners' drift, and self-classification."""
    primary = data.settings.split
    other = data.other_split
    contrasts = Contrasts(data, "discrimination")
    gap = data.gap(contrasts.runs("online"), contrasts.runs("offline"), "discrimination")["average_gap"]
    main, beside = ends(data, primary), ends(data, other)
    ahead, grids = main["accuracy_difference"].estimate, checkpoints(data)
    estimates = {
        "accuracy_difference": main["accuracy_difference"],
        "average_gap": Labelled("average gap at equal KL, online minus offline", gap),
        **main,
        **{f"{key}_{other}": value for key, value in beside.items()},
        **correlations(data, grids),
    }
    offline_right, online_right, offline_self, online_self = (
        interval_words(main[f"{what}_{family}"].estimate, signed=what == "self")
        for what, family in product(("accuracy", "self"), ("offline", "online"))
    )
    drifts = ", ".join(f"{nats(main[f'drift_{family}'].estimate)} ({family})" for family in FAMILIES)
    sentence = (
        f"At the end of training offline tells golden's choice on {offline_right} of the D_golden pairs, online on "
        f"{online_right}: {interval_words(ahead, signed=True)} more for offline ({across(ahead, 'pairs')}). At equal KL"
        f" online wins {interval_words(gap, signed=True)} of the prompts more than offline ({across(gap)}). The "
        f"winners' log-probability has moved by {drifts}. On its own pairs online is {online_self} above chance, "
        f"offline {offline_self}."
    )
    figures = [scatter(grids), *(over_training(data, name, split) for name, split in product(KINDS, (primary, other)))]
    return Analysis(joint_verdict((ahead, gap)), sentence, estimates, figures)


def nats(estimate: Estimate) -> str:
    """`-1.23 nats`, or `(no data)`."""
    return "(no data)" if np.isnan(estimate.value) else f"{estimate.value:+.2f} nats"


def pairs_of(data: TaskData, kind: str, family: str, split: str) -> pl.DataFrame:
    """What a family's baseline arms make of the pairs of a split after step 0, at which nothing is to be told: those of
    `D_golden`, or, for self-accuracy, their own. Columns of `EMPTY`, of which the policy's own have no drift.
    """
    if kind == "self_accuracy":
        table = data.table(table_name(family))
        tables = [table] if len(table) else []
    else:
        arms = data.finished(family, baseline=True)
        tables = [arm.per_pair.with_columns(seed=arm.entry.stage.seed) for arm in arms if len(arm.per_pair)]
    kept = [table.filter((pl.col("split") == split) & (pl.col("step") > 0)).drop("split") for table in tables]
    return pl.concat([EMPTY, *kept], how="diagonal_relaxed")


def at_end(rows: pl.DataFrame) -> pl.DataFrame:
    """The last step of each seed."""
    return rows.filter(pl.col("step") == pl.col("step").max().over("seed"))


class Asked(NamedTuple):
    """A mean over a split's pairs: what it is called, its unit, and the value as an expression of a table's columns."""

    label: str
    unit: str
    rows: pl.DataFrame
    value: pl.Expr


def ends(data: TaskData, split: str) -> dict[str, Labelled]:
    """Accuracy, drift and self-accuracy of each family at the end of training; how offline differs from online."""
    golden = {family: at_end(pairs_of(data, "accuracy", family, split)) for family in FAMILIES}
    own = {family: pairs_of(data, "self_accuracy", family, split) for family in SELF_FAMILIES}
    # Two sets of pairs, which need not be equally many.
    groups = {"golden": _of_golden_pairs(golden), "self": _of_own_pairs(own)}
    found: dict[str, Labelled] = {}
    for name, asked in groups.items():
        values = {key: (one.rows, one.value) for key, one in asked.items()}
        for key, estimate in data.prompt_means(values, "discrimination", name, split).items():
            label = f"{asked[key].label}, {split.replace('_', '-')} pairs"
            found[key] = Labelled(label, estimate, asked[key].unit)
    return found


def _of_golden_pairs(last: dict[str, pl.DataFrame]) -> dict[str, Asked]:
    both = last["offline"].join(last["online"], on=["seed", "prompt_number"], suffix="_online")
    quantities = {
        "accuracy": ("accuracy on D_golden at the end", "accuracy", "correct"),
        "drift": ("winners' log pi/pi_sft on D_golden at the end", "nats", "drift"),
    }
    found = {}
    for name, (label, unit, column) in quantities.items():
        difference = pl.col(column) - pl.col(f"{column}_online")
        found[f"{name}_difference"] = Asked(f"{label}, offline minus online", unit, both, difference)
        for family, rows in last.items():
            found[f"{name}_{family}"] = Asked(f"{family}: {label}", unit, rows, pl.col(column))
    return found


def _of_own_pairs(own: dict[str, pl.DataFrame]) -> dict[str, Asked]:
    correct = pl.col("correct")
    found: dict[str, Asked] = {}
    for family, rows in own.items():
        last, mean = at_end(rows), rows.group_by("seed", "prompt_number").agg(correct.drop_nans().mean())
        label = f"{family}: accuracy on its own pairs"
        found |= {
            f"self_{family}": Asked(f"{label} at the end, less one half", "accuracy", last, correct - CHANCE),
            f"self_mean_{family}": Asked(
                f"{label}, mean over checkpoints, less one half", "accuracy", mean, correct - CHANCE
            ),
            f"self_ties_{family}": Asked(
                f"{family}: own pairs at the end that golden calls a tie, left out",
                "share of pairs",
                last,
                correct.is_nan(),
            ),
        }
    return found


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
    asked = [rows.select("prompt_number") for found in tables.values() for _, *both in found for rows in both]
    numbers = pl.concat(asked or [EMPTY.select("prompt_number")]).unique().sort("prompt_number")
    result = {}
    for seed, found in sorted(tables.items()):
        correct = [outcomes(pairs, "correct", numbers) for _, pairs, _ in found]
        win = [outcomes(prompts, f"win_{given.opponent}_{given.judge}", numbers) for _, _, prompts in found]
        owner = np.repeat(np.arange(len(found)), [len(part) for part in correct])
        result[seed] = Checkpoints([arm for arm, *_ in found], owner, np.concatenate(correct), np.concatenate(win))
    return result


def outcomes(rows: pl.DataFrame, column: str, numbers: pl.DataFrame) -> Floats:
    """A column by step, in order, and prompt, NaN where a prompt is missing; [K, N]."""
    wide = rows.sort("step").pivot(on="step", index="prompt_number", values=column)
    wide = numbers.join(wide, on="prompt_number", how="left", maintain_order="left").drop("prompt_number")
    values: Floats = wide.cast(pl.Float64).to_numpy().T
    return values


def spearman(x: Floats, y: Floats) -> Floats:
    """Rank correlation of each row, [B, K] -> [B]; NaN for fewer than three places, or where either does not vary."""
    if x.shape[1] < 3:
        return np.full(len(x), np.nan)
    from scipy import stats

    a, b = (stats.rankdata(part, axis=1) for part in (x, y))
    a, b = (part - part.mean(axis=1, keepdims=True) for part in (a, b))
    spread = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    product_sum = (a * b).sum(axis=1)
    return np.asarray(np.divide(product_sum, spread, out=np.full(len(x), np.nan), where=spread > 0))


def correlations(data: TaskData, grids: Mapping[int, Checkpoints]) -> dict[str, Labelled]:
    """Rank correlations of accuracy and win rate, of each seed, then averaged over seeds."""
    found = mean_statistics(
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
            # Draws around a value near 1 reach beyond what a correlation can be.
            replace(found[key], low=float(np.clip(found[key].low, -1, 1)), high=float(np.clip(found[key].high, -1, 1))),
            "correlation",
        )
        for key, label in CORRELATIONS.items()
    }


def scatter(grids: Mapping[int, Checkpoints]) -> Figure:
    """Win rate against accuracy, a point a checkpoint (figure 7)."""
    points = []
    for seed, grid in grids.items():
        accuracy, win = np.split(weighted_means(grid.values, np.ones((1, grid.values.shape[1])))[0], 2)
        series = [grid.arms[number].entry.family for number in grid.owner]
        points += [FigurePoint(s, float(x), float(y), seed=seed) for s, x, y in zip(series, accuracy, win, strict=True)]
    return Figure(
        name="win_rate_by_accuracy",
        title="Win rate against accuracy on D_golden pairs, a point a checkpoint",
        x="accuracy",
        y="win rate",
        mark="point",
        points=points,
    )


def over_training(data: TaskData, name: str, split: str) -> Figure:
    """One of `KINDS` over optimiser steps, of the baseline arms (figures 7 and 8)."""
    kind = KINDS[name]
    points = []
    for family in kind.families:
        by_step = pairs_of(data, name, family, split).partition_by("step", as_dict=True)
        values = {str(step): (rows, pl.col(kind.column)) for (step,), rows in sorted(by_step.items())}
        for step, found in data.prompt_means(values, "discrimination", name, split, family).items():
            if found.n_seeds:
                points.append(FigurePoint(family, int(step), found.value, found.low, found.high))
    return Figure(
        name=f"{name}_{split}",
        title=f"{kind.title}, {split.replace('_', '-')}",
        x="optimiser step",
        y=kind.axis,
        points=points,
        x_log=True,
    )
