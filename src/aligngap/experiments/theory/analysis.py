"""Estimates and verdict of appendix H."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import polars as pl

from aligngap.experiments.base import Analysis, Figure, FigurePoint, Labelled, TaskData
from aligngap.experiments.words import across, interval_words
from aligngap.stats.budget import Floats
from aligngap.stats.intervals import Estimate
from aligngap.stats.items import item_estimate
from aligngap.stats.verdict import Verdict, threshold_verdict

HALF = 0.5

RULE = (
    "Improvement over mu = win rate, by golden, of a policy restricted to the enumerated responses against mu, minus "
    "one half; averaged over prompts, then seeds. Excess = the trained policy's improvement minus half of the closed "
    "form's, prompt by prompt. Asked of narrow mu, provided that theory predicts something there (the 95% interval of "
    "the closed form's improvement lies wholly above 0): contradicted (practice shows what theory predicts) if the "
    "interval of the excess lies wholly above 0; supported if it lies wholly below 0 and that of wide mu, the control, "
    "wholly above 0, so that it is for want of support and not of training; else inconclusive."
)

MUS = ("narrow", "wide")
METHODS = {
    "sft": "SFT, before training",
    "closed_form": "closed form",
    "tabular": "table trained on the sampled pairs",
    "trained": "trained policy",
}
MEASURES = {
    "over_mu": ("improvement over mu", "win rate", tuple(METHODS)),
    "over_sft": ("improvement over SFT", "win rate", ("closed_form", "tabular", "trained")),
    "kl": ("KL from SFT, both restricted", "nats", ("closed_form", "tabular", "trained")),
    "mass": ("probability of the enumerated responses", "share", ("sft", "trained")),
}
"""What a column of the table says, its unit, and for which methods it says something."""


def analyse(data: TaskData) -> Analysis:
    """What theory predicts and what practice reaches, with wide and narrow pairs."""
    table = data.table("theory")
    found = {
        (column, mu, method): estimated(data, table, column, mu, method)
        for column, (_, _, methods) in MEASURES.items()
        for mu, method in product(MUS, methods)
    }
    excess = {mu: estimated(data, table, "over_mu", mu, "trained", less=HALF) for mu in MUS}
    listed = {
        f"excess_{mu}": Labelled(
            f"{mu} mu: trained policy's improvement over mu, less half of the closed form's", value
        )
        for mu, value in excess.items()
    }
    for (column, mu, method), value in found.items():
        what, unit, _ = MEASURES[column]
        listed[f"{column}_{mu}_{method}"] = Labelled(f"{mu} mu, {METHODS[method]}: {what}", value, unit)
    predicted, reached = (
        {mu: interval_words(found["over_mu", mu, method], signed=True) for mu in MUS}
        for method in ("closed_form", "trained")
    )
    sentence = (
        f"With narrow mu the closed form predicts an improvement over mu of {predicted['narrow']} and the trained "
        f"policy reaches {reached['narrow']}; with wide mu they are {predicted['wide']} and {reached['wide']} "
        f"({across(excess['narrow'])})."
    )
    verdict = conclude(found["over_mu", "narrow", "closed_form"], excess["narrow"], excess["wide"])
    return Analysis(verdict, sentence, listed, [figure(found, column) for column in MEASURES])


def estimated(data: TaskData, table: pl.DataFrame, column: str, mu: str, method: str, *, less: float = 0.0) -> Estimate:
    """Mean of a column over a method's prompts; `less`: minus that share of the closed form's, prompt by prompt."""
    values: dict[int, Floats] = {}
    if len(table):
        part = table.filter(pl.col("mu") == mu)
        keys = ["seed", "prompt_number"]
        theory = part.filter(pl.col("method") == "closed_form").select(*keys, theory=column)
        joined = part.filter(pl.col("method") == method).join(theory, on=keys)
        for (seed,), rows in joined.partition_by("seed", as_dict=True).items():
            value = rows[column].cast(pl.Float64).fill_null(np.nan).to_numpy()
            values[int(seed)] = value - less * rows["theory"].to_numpy() if less else value
    return item_estimate(values, data.rng("theory", column, mu, method), replicates=data.settings.replicates)


def conclude(predicted: Estimate, narrow: Estimate, wide: Estimate) -> Verdict:
    """The rule, from the closed form's improvement over narrow mu and the excess of either mu."""
    side = threshold_verdict(narrow, 0.0, -1)
    enough = predicted.low > 0 and (side == "contradicted" or wide.low > 0)
    return side if enough else "inconclusive"


def figure(found: Mapping[tuple[str, str, str], Estimate], column: str) -> Figure:
    """A measure by policy, as bars, for either mu."""
    what, unit, _ = MEASURES[column]
    points = [
        FigurePoint(f"{mu} mu", METHODS[method], value.value, value.low, value.high)
        for (name, mu, method), value in found.items()
        if name == column and value.n_seeds
    ]
    title = f"{what[0].upper()}{what[1:]}, by policy"
    return Figure(name=column, title=title, x="policy", y=f"{what} ({unit})", mark="bar", points=points)
