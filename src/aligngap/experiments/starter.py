"""A first study file for a user's own data and models, with every setting in it: `aligngap init`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from string import Template

from aligngap.errors import UserError, unwritable
from aligngap.models.build import context_length, load_tokenizer
from aligngap.models.spec import Checkpoint
from aligngap.tasks.check import describe
from aligngap.tasks.datasets import DatasetSpec
from aligngap.tasks.worlds import WORLDS


def write_starter(
    path: Path, data: DatasetSpec, policy: str, golden: str | None = None, proxy: str | None = None
) -> None:
    """Write what `starter` gives to a new file. Raises UserError as it does, and for a file that cannot be made."""
    if path.suffix not in (".yaml", ".yml"):
        raise UserError("a study's file ends in .yaml", where=str(path), hint=f"Write {path.stem or 'study'}.yaml.")
    if path.exists():
        raise UserError("the file is there already", where=str(path), hint="Give another name, or remove it.")
    text = starter(path, data, policy, golden, proxy)
    with unwritable(path, "Give another place."), path.open("x", encoding="utf-8") as handle:
        handle.write(text)


def starter(path: Path, data: DatasetSpec, policy: str, golden: str | None = None, proxy: str | None = None) -> str:
    """The YAML text of a study on `data`, to be written to `path`. Limits of length are fitted to the data.

    Reads the data once. Raises UserError where data or tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(Checkpoint(path=policy))
    found = describe(data, tokenizer, data.split)
    task = re.sub("[^A-Za-z0-9_-]+", "-", data.name).strip("-_") or "data"
    task = f"{task}-data" if task in WORLDS else task
    # What a twentieth of the data goes beyond is cut, and counted; a preference model reads a prompt and both answers.
    context = context_length(Checkpoint(path=policy))
    response = min(_rounded(found.lengths[side]["95%"] for side in _ANSWERS), context // 4)
    prompt = min(_rounded([found.lengths["prompt"]["95%"]]), context - 2 * response - 2)
    quantiles = ", ".join(
        f"{side} {found.lengths[side]['median']:g} / {found.lengths[side]['95%']:g} / {found.lengths[side]['max']:g}"
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
        "format": _yaml(found.format),
        "extra": extra,
        "lengths": f"{found.kept} pairs of {found.prompts} prompts; tokens, median / 95% / most: {quantiles}",
        "max_prompt": prompt,
        "max_response": response,
        "policy": _yaml(policy),
        "golden": _yaml(golden or policy),
        "proxy": _yaml(proxy or policy),
    }
    text = (resources.files("aligngap.studies") / "own.template").read_text("utf-8")
    return Template(text).substitute(values)


_ANSWERS = ("chosen", "rejected")


def _rounded(tokens: Iterable[float | None]) -> int:
    """The most of them, up to the next multiple of 16."""
    return max(16, -(-int(max(count or 0 for count in tokens)) // 16) * 16)


def _yaml(value: object) -> str:
    """As JSON, which is YAML."""
    return json.dumps(value)
