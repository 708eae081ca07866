"""Estimates and verdict: golden's departure from the true utility, and what further pairs do about it."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from aligngap.experiments.base import Analysis, Figure, FigurePoint, Labelled, TaskData
from aligngap.experiments.golden.measure import GOLDENS
from aligngap.experiments.golden.sweep import LABELS, OVER_OPTIMISED, audit_name
from aligngap.experiments.words import across, interval_words
from aligngap.stats.verdict import sign_verdict

RULE = (
    "Departure = win rate over SFT's responses by golden minus that by true utility, on the same responses of the "
    f"study's primary split. It is taken at the last checkpoint of {LABELS[OVER_OPTIMISED]} minus at its step 0 (the "
    "SFT policy, against whose responses both are one half but for chance), paired by prompt. Supported (golden "
    "overrates the policy far from SFT) if the 95% interval lies wholly above 0; contradicted if it lies wholly below "
    "0 or wholly within the margin of no difference; else inconclusive. Further estimates: by how much the departure "
    "shrinks when golden is trained on further raters' pairs, and on as many on-policy ones."
)

WINS = ("win_true", *(f"win_{name}" for name in GOLDENS))
DEPARTURES: Mapping[str, pl.Expr] = {name: pl.col(f"win_{name}") - pl.col("win_true") for name in GOLDENS}


def analyse(data: TaskData) -> Analysis:
    """Departure of golden along each arm, and by each golden on the over-optimised one."""
    split = data.settings.split
    other = data.other_split
    audits = {family: data.table(audit_name(family)) for family in LABELS}
    risen = {(family, part): _risen(audits[family], part) for family in LABELS for part in (split, other)}
    far = risen[OVER_OPTIMISED, split]
    name = LABELS[OVER_OPTIMISED]
    asked: dict[str, tuple[str, pl.DataFrame, pl.Expr]] = {
        "departure": (f"{name}: golden minus true, rise from step 0 to the end", far, DEPARTURES["golden"]),
        "mended_more_pairs": (
            f"{name}: by how much more pairs shrink it",
            far,
            pl.col("win_golden") - pl.col("win_more_pairs"),
        ),
        "mended_on_policy": (
            f"{name}: by how much on-policy pairs shrink it",
            far,
            pl.col("win_golden") - pl.col("win_on_policy"),
        ),
        "on_policy_over_more_pairs": (
            f"{name}: by how much more on-policy pairs shrink it than more pairs do",
            far,
            pl.col("win_more_pairs") - pl.col("win_on_policy"),
        ),
        "departure_more_pairs": (f"{name}: what is left of it with more pairs", far, DEPARTURES["more_pairs"]),
        "departure_on_policy": (f"{name}: what is left of it with on-policy pairs", far, DEPARTURES["on_policy"]),
    }
    asked |= {
        f"departure_{family}": (
            f"{LABELS[family]}: golden minus true, rise",
            risen[family, split],
            DEPARTURES["golden"],
        )
        for family in LABELS
        if family != OVER_OPTIMISED
    }
    asked |= {
        f"departure_{other}": (
            f"{name}: golden minus true, rise, {other.replace('_', '-')} prompts",
            risen[OVER_OPTIMISED, other],
            DEPARTURES["golden"],
        ),
    }
    found = data.prompt_means({key: (table, value) for key, (_, table, value) in asked.items()}, "golden")
    estimates = {key: Labelled(label, found[key]) for key, (label, _, _) in asked.items()}
    figures = [
        Figure(
            "departure",
            "Golden's win rate minus the true one, along each arm",
            x="KL(policy || SFT), nats",
            y="win rate over SFT, golden minus true",
            points=[
                point
                for family, label in LABELS.items()
                for point in _path(data, audits[family], label, DEPARTURES["golden"])
            ],
            x_log=True,
        ),
        Figure(
            "remedies",
            f"The same by three goldens, {name}",
            x="KL(policy || SFT), nats",
            y="win rate over SFT, judge minus true",
            points=[
                point
                for golden, label in GOLDENS.items()
                for point in _path(data, audits[OVER_OPTIMISED], label, DEPARTURES[golden])
            ],
            x_log=True,
        ),
    ]
    main = found["departure"]
    sentence = (
        f"From SFT to the end of {name}, golden's win rate rises {interval_words(main, signed=True)} more than the "
        f"true one ({across(main)}); further raters' pairs shrink that by "
        f"{interval_words(found['mended_more_pairs'], signed=True)}, as many on-policy ones by "
        f"{interval_words(found['mended_on_policy'], signed=True)}."
    )
    return Analysis(sign_verdict(main, 1, data.settings.margin), sentence, estimates, figures)


def _risen(audit: pl.DataFrame, split: str) -> pl.DataFrame:
    """A row a seed and prompt: outcomes at the last checkpoint minus those at the first, step 0."""
    if not len(audit):
        return audit
    change = [pl.col(win).sort_by("step").last() - pl.col(win).sort_by("step").first() for win in WINS]
    return audit.filter(pl.col("split") == split).group_by("seed", "prompt_number").agg(change)


def _path(data: TaskData, audit: pl.DataFrame, series: str, value: pl.Expr) -> list[FigurePoint]:
    """A departure at each checkpoint, over the KL reached there; step 0 has no place on a log axis."""
    if not len(audit):
        return []
    later = audit.filter((pl.col("split") == data.settings.split) & (pl.col("step") > 0)).sort("step")
    steps = {str(rows["step"][0]): rows for rows in later.partition_by("step", maintain_order=True)}
    found = data.prompt_means({step: (rows, value) for step, rows in steps.items()}, "golden", "path")
    kl = {step: float(rows["kl"].to_numpy().mean()) for step, rows in steps.items()}
    return [FigurePoint(series, kl[step], here.value, here.low, here.high) for step, here in found.items()]
