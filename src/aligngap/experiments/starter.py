"""A first study file for a user's own data and models, with every setting in it: `aligngap init`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import yaml
from transformers import PreTrainedTokenizerBase

from aligngap.errors import UserError
from aligngap.experiments.plan import Plan
from aligngap.experiments.spec import StudySpec
from aligngap.models.check import check_alike
from aligngap.models.context import NO_LIMIT, context_of
from aligngap.models.spec import Checkpoint
from aligngap.models.tokenizer import end_tokens, load_tokenizer
from aligngap.pipeline.stages.pairs import check_held_out
from aligngap.store import disk_errors
from aligngap.tasks.chat import template_facts
from aligngap.tasks.check import limit_costs, survey
from aligngap.tasks.datasets import DatasetSpec, open_parts, splits_of, training_split
from aligngap.tasks.preview import Preview, preview
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
    """A study on `data`, to be written to `path`, that `aligngap plan` accepts. Limits of length are fitted to the data
    and to what the models take; batches and the share that is held out, to how many pairs there are.

    Raises UserError where data or models cannot be read, where the models do not read the same tokens, and where the
    data are too few.
    """
    bases = {role: Checkpoint(path=path or policy) for role, path in (("golden", golden), ("proxy", proxy))}
    checkpoint = Checkpoint(path=policy)
    tokenizer = load_tokenizer(checkpoint)
    check_alike(checkpoint, list(bases.values()))
    splits = splits_of(data, open_parts(data))
    data = data.model_copy(update={"split": training_split(splits, data.split, data.source)})
    result = survey(data, tokenizer, data.split)
    task = re.sub("[^A-Za-z0-9_-]+", "-", data.name).strip("-_") or "data"
    task = f"{task}-data" if task in WORLDS else task
    # Preference models read a prompt and both answers in one row.
    alone, rooms = context_of(checkpoint), [context_of(base, backbone=True).room for base in bases.values()]
    limits = fitted_limits(result.frame, min(alone.room, *rooms), alone.response)
    fitted = {"max_prompt_tokens": limits.prompt, "max_response_tokens": limits.response}
    sizes = fitted_sizes(data.model_copy(update=fitted), tokenizer)
    names = {"policy": policy, "golden": golden or policy, "proxy": proxy or policy}
    numbers = {"max_prompt": limits.prompt, "max_response": limits.response, "share": sizes.held_out_share}
    numbers |= {f"{name}_batch": sizes.batch(name) for name in _BATCHES}
    others = [name for name in splits if name != data.split]
    values = {
        "task": task,
        "title": _yaml(f"Online against offline alignment: {task}"),
        "file": path.name,
        "source": _yaml(data.source),
        "format": _yaml(result.schema.name),
        "extra": _said_of_source(data, others),
        "lengths": _said_of_lengths(result.frame),
        **{name: _yaml(model) for name, model in names.items()},
        **numbers,
    }
    text = Template((resources.files("aligngap.studies") / "own.template").read_text("utf-8")).substitute(values)
    costs = (f"{name}: {count}" for name, count in limit_costs(result.frame, *limits[:2]).items())
    closed = next(template_facts(tokenizer, end_tokens(tokenizer)))
    tally = result.tally
    kept = (f"kept, but: {line}" for line in tally.lines(tally.notes))
    ends = f"{closed}; answers in which the data wrote an end token: {result.written_ends}"
    split = _said_of_splits(data.split, others)
    notes = (*tally.warnings(), *limits.warnings, *sizes.notes, *split, *tally.reasons(), *kept, *costs, ends)
    Plan(StudySpec.model_validate({"name": path.stem, **yaml.safe_load(text)})).check_models()
    return Starter(text, notes)


def _said_of_source(data: DatasetSpec, others: Sequence[str]) -> str:
    """The lines of the file beside source and format. others: splits that are not used."""
    given = {"config": data.config, "revision": data.revision, "split": data.split}
    lines = [f"{name}: {_yaml(value)}" for name, value in given.items() if value is not None]
    if others:
        lines.append(
            f"# not used: {', '.join(map(_yaml, others))}; held_out_split: NAME holds one out in place of a share"
        )
    if data.columns:
        lines.append(f"columns: {_yaml(data.columns)}")
    return "".join(f"\n    {line}" for line in lines)


def _said_of_lengths(frame: pl.DataFrame) -> str:
    quantiles = (
        f"{side} " + " / ".join(f"{frame[side].quantile(q, 'nearest'):g}" for q in (0.5, 0.95, 1.0))
        for side in ("prompt", *_ANSWERS)
    )
    count = f"{len(frame)} pairs of {frame['prompt_key'].n_unique()} prompts"
    return f"{count}; tokens, median / 95% / most: {', '.join(quantiles)}"


def _said_of_splits(trained: str | None, others: Sequence[str]) -> Iterator[str]:
    if others:
        yield (
            f"trained on: the split {trained}; not used: {', '.join(others)}. A share of {trained} is held out: "
            f"held_out_split: {others[0]} holds that split out instead"
        )


_SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
_BATCHES = {"sft": 64, "golden": 16, "proxy": 32, "baseline": 32}
"""Pairs a step of what is trained, where there are enough of them."""


class Sizes(NamedTuple):
    """How data are divided. train: pairs to train on; notes: where that is not as with data that are large enough."""

    held_out_share: float
    train: int
    notes: tuple[str, ...]

    def batch(self, name: str) -> int:
        """Pairs a step: a power of two, no more than there are."""
        return min(_BATCHES[name], 1 << (self.train.bit_length() - 1))


def fitted_sizes(data: DatasetSpec, tokenizer: PreTrainedTokenizerBase) -> Sizes:
    """The smallest share to hold out that leaves enough prompts for an evaluation. Raises UserError where none does."""
    problem, told = "", list[str]()
    for share in _SHARES:
        left: Preview | None = None
        try:
            left = preview(data.model_copy(update={"held_out_share": share}), tokenizer)
            check_held_out(left.held_out_prompts, data.source)
        except UserError as error:
            problem = error.what
            told = [f"Dropped: {reason}." for reason in left.reasons] if left else [error.hint or ""]
            continue
        notes = [] if share == _SHARES[0] else [f"few prompts: {share:g} of the pairs are held out, not {_SHARES[0]}"]
        if left.train < max(_BATCHES.values()):
            notes.append(f"{left.train} pairs are left to train on: no batch is larger; give more data for a study")
        return Sizes(share, left.train, tuple(notes))
    raise UserError(
        f"too few data for any study, whatever share of them is held out: {problem}",
        where=data.source,
        hint=" ".join(["Give more data.", *told]),
    )


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
        f"the limit of {limit} tokens is below the median {what} of {median:g}, so more than half are cut: the models "
        f"take {context} tokens, so take others with a longer context"
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
