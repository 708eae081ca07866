"""A first study file for a user's own data and models, with every setting in it: `aligngap init`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from aligngap.errors import UserError
from aligngap.models.context import NO_LIMIT, context_of
from aligngap.models.spec import Checkpoint
from aligngap.models.tokenizer import end_tokens, load_tokenizer
from aligngap.store import disk_errors
from aligngap.tasks.chat import template_facts
from aligngap.tasks.check import limit_costs, survey
from aligngap.tasks.datasets import DatasetSpec, open_parts, training_split
from aligngap.tasks.worlds import WORLDS


class Starter(NamedTuple):
    """A study file's text, and notes on it for the user, warnings first."""

    text: str
    notes: tuple[str, ...]


def write_starter(
    path: Path, data: DatasetSpec, policy: str, golden: str | None = None, proxy: str | None = None
) -> tuple[str, ...]:
    """Write what `starter` gives to a new file; its notes. Raises UserError as it does, and for a file that cannot be
    made.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise UserError("a study's file ends in .yaml", where=str(path), hint=f"Write {path.stem or 'study'}.yaml.")
    if path.exists():
        raise UserError("the file is there already", where=str(path), hint="Give another name, or remove it.")
    made = starter(path, data, policy, golden, proxy)
    with disk_errors(path.parent, strict=True), path.open("x", encoding="utf-8") as handle:
        handle.write(made.text)
    return made.notes


def starter(path: Path, data: DatasetSpec, policy: str, golden: str | None = None, proxy: str | None = None) -> Starter:
    """A study on `data`, to be written to `path`. Limits of length are fitted to the data.

    Reads the data once. Raises UserError where data or tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(Checkpoint(path=policy))
    names = [part.split for part in open_parts(data) if part.split is not None]
    data = data.model_copy(update={"split": training_split(names, data.split, data.source)})
    result = survey(data, tokenizer, data.split)
    task = re.sub("[^A-Za-z0-9_-]+", "-", data.name).strip("-_") or "data"
    task = f"{task}-data" if task in WORLDS else task
    checkpoint = Checkpoint(path=policy)
    # The file names the policy as preference model as well, which reads prompt and answers in one row.
    context, alone = context_of(checkpoint, backbone=True), context_of(checkpoint)
    limits = fitted_limits(result.frame, min(context.room, alone.room), alone.response)
    quantiles = ", ".join(
        " / ".join(f"{result.frame[side].quantile(q, 'nearest'):g}" for q in (0.5, 0.95, 1.0)).join((f"{side} ", ""))
        for side in ("prompt", *_ANSWERS)
    )
    extra = "".join(
        f"\n    {name}: {_yaml(value)}"
        for name, value in (("config", data.config), ("revision", data.revision), ("split", data.split))
        if value is not None
    )
    if data.columns:
        extra += f"\n    columns: {_yaml(data.columns)}"
    values = {
        "task": task,
        "title": _yaml(f"Online against offline alignment: {task}"),
        "file": path.name,
        "source": _yaml(data.source),
        "format": _yaml(result.schema.name),
        "extra": extra,
        "lengths": f"{len(result.frame)} pairs of {result.frame['prompt_key'].n_unique()} prompts; tokens, median / "
        f"95% / most: {quantiles}",
        "max_prompt": limits.prompt,
        "max_response": limits.response,
        "policy": _yaml(policy),
        "golden": _yaml(golden or policy),
        "proxy": _yaml(proxy or policy),
    }
    text = (resources.files("aligngap.studies") / "own.template").read_text("utf-8")
    costs = (f"{name}: {count}" for name, count in limit_costs(result.frame, *limits[:2]).items())
    closed = next(template_facts(tokenizer, end_tokens(tokenizer)))
    ends = f"{closed}; answers in which the data wrote an end token: {result.written_ends}"
    notes = (*result.tally.warnings(), *limits.warnings, *result.tally.reasons(), *costs, ends)
    return Starter(Template(text).substitute(values), notes)


class Limits(NamedTuple):
    """Most tokens of a prompt and of a response, and where they are below what half of the data need."""

    prompt: int
    response: int
    warnings: tuple[str, ...]


def fitted_limits(frame: pl.DataFrame, context: int, longest: int = NO_LIMIT) -> Limits:
    """Limits that a twentieth of the data goes beyond, as far as a context of so many tokens has room: a preference
    model reads a prompt, both answers and two separators. longest: tokens of a response that the policy can write.
    """
    wanted = _rounded(frame[side].quantile(0.95, "nearest") for side in _ANSWERS)
    prompt = _rounded([frame["prompt"].quantile(0.95, "nearest")])
    # Where there is not room for all, a prompt keeps half of it at most: its end says what is asked.
    response = max(1, min(wanted, longest, (context - 2 - min(prompt, context // 2)) // 2))
    prompt = max(2, min(prompt, context - 2 * response - 2))
    medians = {
        "prompt": (prompt, float(np.median(frame["prompt"]))),
        "answer": (response, max(float(np.median(frame[side])) for side in _ANSWERS)),
    }
    warnings = tuple(
        f"the limit of {limit} tokens is below the median {what} of {median:g}, so more than half are cut: the model "
        f"takes {context} tokens, so take one with a longer context"
        for what, (limit, median) in medians.items()
        if limit < median
    )
    return Limits(prompt, response, warnings)


_ANSWERS = ("chosen", "rejected")


def _rounded(tokens: Iterable[Any]) -> int:
    """The most of them, up to the next multiple of 16."""
    return max(16, -(-int(max(count or 0 for count in tokens)) // 16) * 16)


def _yaml(value: object) -> str:
    """As JSON, which is YAML."""
    return json.dumps(value)
