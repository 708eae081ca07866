"""Prompts with the responses of the SFT policy, of an arm and of the golden policy, and their scores, as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from aligngap.errors import UserError, nearest
from aligngap.results import read_samples

_AGAIN = "Give the `aligngap run` command again."
_NONE = "-"


class Sample(NamedTuple):
    """A prompt; responses, scores: of the SFT policy, the arm and the golden policy."""

    heading: str
    responses: list[str]
    scores: list[str]


class SideBySide(NamedTuple):
    """title: of the arm that is shown. arms: all that there are; steps: those of the arm."""

    title: str
    rows: list[Sample]
    arms: list[str]
    steps: list[int]


def side_by_side(
    folder: Path, *, arm: str | None, step: int | None, seed: int | None, split: str, n: int
) -> SideBySide:
    """Of up to n prompts of a split. arm, step, seed: None is the first arm, its last kept step, the first seed.

    Raises UserError for a folder whose `samples.parquet` cannot be read, holds nothing, or has no such samples.
    """
    frame = read_samples(folder)
    if frame.is_empty():
        raise UserError("there are no samples: no arm came to its end", where=str(folder), hint=_AGAIN)
    policies = frame.filter(pl.col("who") == "policy")
    frame = frame.filter(pl.col("split") == _pick(frame, "split", split, "--split"))
    chosen = frame.filter(pl.col("who") == "policy")
    # The golden policy has its own column; it is an arm as well, for those who ask for its steps.
    if arm is None and not (others := chosen.filter(pl.col("arm") != "golden policy")).is_empty():
        chosen = others
    for column, value, option in (("arm", arm, "--arm"), ("seed", seed, "--seed"), ("step", step, "--step")):
        chosen = chosen.filter(pl.col(column) == _pick(chosen, column, value, option, last=column == "step"))
    opponents = frame.filter(pl.col("seed").is_null() | (pl.col("seed") == chosen["seed"][0]))
    rows = []
    for row in chosen.sort("task", "prompt_number").head(n).iter_rows(named=True):
        same = opponents.filter((pl.col("task") == row["task"]) & (pl.col("prompt_number") == row["prompt_number"]))
        cells = [_first(same, "sft"), row, _first(same, "golden_policy")]
        heading = f"{row['task']}, {split}, prompt {row['prompt_number']}:\n{row['prompt']}"
        rows.append(
            Sample(heading, [str(cell["response"]) if cell else _NONE for cell in cells], list(map(_scores, cells)))
        )
    name, at, of = chosen["arm"][0], chosen["step"][0], chosen["seed"][0]
    arms = policies["arm"].unique().sort().to_list()
    steps = policies.filter(pl.col("arm") == name)["step"].unique().sort().to_list()
    return SideBySide(f"{name}, step {at}, seed {of}", rows, arms, steps)


def _pick(frame: pl.DataFrame, column: str, value: Any, option: str, last: bool = False) -> Any:
    """The value asked for, which must be among the column's; the first or last one when none is asked for."""
    known = frame[column].drop_nulls().unique(maintain_order=True).to_list()
    if value is None and known:
        return max(known) if last else known[0]
    if value not in known:
        what = f"no samples with {column.replace('_', ' ')} '{value}'" if known else "there are no samples of policies"
        hint = nearest(value, known) if isinstance(value, str) else f"Known: {', '.join(map(str, sorted(known)))}."
        raise UserError(what, where=option, hint=hint if known else None)
    return value


def _first(frame: pl.DataFrame, who: str) -> dict[str, Any] | None:
    return next(frame.filter(pl.col("who") == who).iter_rows(named=True), None)


def _scores(row: dict[str, Any] | None) -> str:
    """The true utility and each judge's score, as far as there is one."""
    names = [name for name in row or {} if name.startswith(("utility", "margin_"))]
    scores = {name.replace("_", " "): row[name] for name in names} if row else {}
    return "  ".join(f"{name} {value:.3g}" for name, value in scores.items() if value is not None) or _NONE
