"""The tables of a result folder, a column a number: points, samples, and what is derived from points alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from aligngap.results._values import HIDDEN, name_of

SPLITS = ("train", "held_out")
"""Of a task's prompts."""
JUDGES = ("golden", "true", "proxy")
"""By whom responses are compared."""
COMPARISONS = {"golden_policy": ("golden", "true"), "sft": ("golden", "true", "proxy")}
"""Whose responses a policy's are compared with, and by whom."""
OPPONENTS = tuple(COMPARISONS)

_Schema = dict[str, type[pl.DataType]]

RATE = "rate_golden_policy_golden"
"""The column of the win rate that best and last checkpoints are told by."""
_WIN: _Schema = {"rate": pl.Float64, "se": pl.Float64, "n": pl.Int64, "ties": pl.Int64}
_RUN: _Schema = {
    "task": pl.String,
    "run": pl.Int64,
    "arm": pl.String,
    "family": pl.String,
    "seed": pl.Int64,
    "baseline": pl.Boolean,
    "base": pl.String,
}
SETTINGS: _Schema = {"identity": pl.String, "loss": pl.String, "lr": pl.Float64, "beta": pl.Float64}
"""Columns of points that say how the arm was trained."""
MEASURES = ("utility", "tokens", "accuracy", "drift")
"""Columns of points that are means over prompts or pairs, beside KL and win rates."""
POINTS: _Schema = (
    _RUN
    | SETTINGS
    | {"step": pl.Int64, "split": pl.String, "kl": pl.Float64, "kl_se": pl.Float64}
    | {f"{what}_{who}_{judge}": kind for who in OPPONENTS for judge in JUDGES for what, kind in _WIN.items()}
    | dict.fromkeys(MEASURES, pl.Float64)
    | {"pairs": pl.Int64}
)
"""`points.parquet`: a row a run, step and split. Further measures follow (`measure_columns`)."""
COSTS = ("seconds", "tokens_sampled", "judge_calls", "steps")
_EXTREMES: _Schema = {
    f"{which}_{what}": kind
    for which in ("peak", "end")
    for what, kind in (("step", pl.Int64), ("kl", pl.Float64), ("rate", pl.Float64))
}
RUNS: _Schema = (
    _RUN
    | {"status": pl.String, "reason": pl.String, "weights_sha256": pl.String}
    | dict.fromkeys(COSTS, pl.Float64)
    | _EXTREMES
    | {"at_split": pl.String}
)
"""A row an arm and seed: `StudyResults.runs`."""
SAMPLES: _Schema = {
    "task": pl.String,
    "split": pl.String,
    "prompt_number": pl.Int64,
    "prompt": pl.String,
    "who": pl.String,
    "arm": pl.String,
    "seed": pl.Int64,
    "step": pl.Int64,
    "response": pl.String,
    "ended": pl.Boolean,
    "utility": pl.Float64,
    "margin_golden": pl.Float64,
    "margin_proxy": pl.Float64,
    "win_golden_policy_golden": pl.Float64,
}
"""`samples.parquet`: a row a prompt and response."""


def measure_columns(name: str) -> _Schema:
    """Columns of points for a further measure: mean over prompts, its standard error, and how many prompts have a
    number. The dot keeps them apart from every other column, whatever the measure is called.
    """
    return {f"{name}.mean": pl.Float64, f"{name}.se": pl.Float64, f"{name}.n": pl.Int64}


def measures_of(points: pl.DataFrame) -> list[str]:
    """The further measures that a table of points has."""
    return [column.removesuffix(".mean") for column in points.columns if column.endswith(".mean")]


def typed(frame: pl.DataFrame, schema: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
    """These columns in this order and of these types; one that is absent is all null, and no number is NaN or infinite.

    Raises polars' errors for what has another type altogether.
    """
    # A column that is all null has no type of its own in Parquet.
    columns = ((pl.col(name) if name in frame.columns else pl.lit(None)).cast(kind) for name, kind in schema.items())
    named = [column.alias(name) for column, name in zip(columns, schema, strict=True)]
    frame = frame.select(named) if frame.width else pl.DataFrame(schema=schema)
    floats = [pl.col(name) for name, kind in schema.items() if kind == pl.Float64]
    return frame.with_columns(pl.when(column.is_finite()).then(column) for column in floats)


def typed_points(frame: pl.DataFrame) -> pl.DataFrame:
    """Points as they are read: typed, with names that a reader can take."""
    further: _Schema = {}
    for name in measures_of(frame):
        further |= measure_columns(name)
    return with_readable_names(typed(frame, POINTS | further))


def typed_samples(frame: pl.DataFrame) -> pl.DataFrame:
    """Samples as they are read: typed, hidden characters as �, with names that a reader can take."""
    hidden = HIDDEN.pattern.replace("\ud800-\udfff", "")  # Parquet holds no lone surrogates
    frame = typed(frame, SAMPLES)
    return with_readable_names(frame.with_columns(pl.col(pl.String).str.replace_all(hidden, "\ufffd")))


def with_readable_names(frame: pl.DataFrame) -> pl.DataFrame:
    """A table whose columns of names, as far as it has them, name things as `results.json` does when it is read."""
    for column in {"task", "arm", "family", "split", "base"} & set(frame.columns):
        known = frame[column].unique().drop_nulls().to_list()
        changed = {name: name_of(name) for name in known}
        frame = frame.with_columns(pl.col(column).replace(changed))
    return frame


def with_extremes(runs: Sequence[Mapping[str, Any]], points: pl.DataFrame) -> pl.DataFrame:
    """Runs with their best and last checkpoint by `RATE`: on held-out prompts, or on train prompts where they have no
    others. The first of the best where several are as good.
    """
    frame = pl.DataFrame(list(runs), {name: kind for name, kind in RUNS.items() if name not in _EXTREMES})
    known = points.filter(pl.col(RATE).is_not_null() & pl.col("step").is_not_null() & pl.col("split").is_in(SPLITS))
    kept = {"step": "step", "kl": "kl", "rate": RATE}
    best = known.sort(RATE, "step", descending=[True, False]).group_by("run", "split", maintain_order=True).first()
    last = known.sort("step").group_by("run", "split", maintain_order=True).last()
    for which, chosen in (("peak", best), ("end", last)):
        one = chosen.sort(pl.col("split") != "held_out", maintain_order=True).unique("run", keep="first")
        values = {f"{which}_{name}": pl.col(column) for name, column in kept.items()}
        one = one.select("run", at_split=pl.col("split"), **values)
        frame = frame.drop("at_split").join(one, on="run", how="left", maintain_order="left")
    return frame.select(*RUNS)


def golden_kl(points: pl.DataFrame, finished: Sequence[int]) -> dict[str, float]:
    """By split, the mean over golden policies of the last checkpoint's KL. finished: their numbers in `run`."""
    known = points.filter(pl.col("run").is_in(list(finished)) & pl.col("kl").is_not_null())
    last = (
        known.sort("step", maintain_order=True).group_by("split", "run", maintain_order=True).agg(pl.col("kl").last())
    )
    by_split = {split: last.filter(pl.col("split") == split)["kl"].to_list() for split in SPLITS}
    return {split: sum(values) / len(values) for split, values in by_split.items() if values}
