"""A judge as the command line names it: `kind:argument`, or a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from aligngap.errors import UserError, brief, nearest
from aligngap.judges.registry import JUDGES, judge_spec
from aligngap.judges.spec import JudgeSpec


def named_judge(text: str, defaults: Mapping[str, object] | None = None) -> tuple[JudgeSpec, Path]:
    """The judge, and the folder where what it names is looked for first: the YAML file's, or where we are.

    `kind:argument` gives the kind's first setting, as in `function:my_rules:prefer`, `reward:FOLDER` or `true`; a file
    that ends in .yaml or .yml holds a mapping with a `kind`, by itself or under `judge`. defaults: settings for kinds
    that have them, unless given.

    Raises UserError for an unknown kind, a setting that is wrong or missing, or a file that cannot be read.
    """
    if text.endswith((".yaml", ".yml")):
        content, search = _read(Path(text)), Path(text).parent
    else:
        content, search = _inline(text), Path()
    spec = JUDGES.get(str(content.get("kind")))
    known = {name: value for name, value in (defaults or {}).items() if spec is not None and name in spec.model_fields}
    try:
        return judge_spec(known | content), search
    except ValidationError as error:
        trouble = error.errors()[0]
        key = brief(".".join(map(str, trouble["loc"])))
        what = f"the judge needs '{key}'" if trouble["type"] == "missing" else f"{key}: {brief(trouble['msg'], 400)}"
        raise UserError(what, where=f"judge {text}", hint="Settings of every kind: docs/judges.md.") from None
    except ValueError as error:
        raise UserError(str(error), where=f"judge {text}", hint="Settings of every kind: docs/judges.md.") from None


def _inline(text: str) -> dict[str, Any]:
    kind, _, argument = text.partition(":")
    if kind not in JUDGES:
        raise UserError(
            f"there is no judge of kind '{kind}'",
            where=f"judge {text}",
            hint=f"{nearest(kind, JUDGES)} Write kind:argument, as in function:my_rules:prefer, or give a YAML file.",
        )
    setting = next((name for name in JUDGES[kind].model_fields if name != "kind"), None)
    if argument and setting is None:
        raise UserError(f"a judge of kind '{kind}' takes no argument", where=f"judge {text}", hint=f"Write {kind}.")
    return {"kind": kind} | ({setting: argument} if argument and setting is not None else {})


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        what = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise UserError(
            f"the judge's file cannot be read: {what}", where=str(path), hint="Check the path, and the YAML."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("judge"), dict):
        content = content["judge"]
    if not isinstance(content, dict):
        raise UserError(
            "the file holds no judge", where=str(path), hint="Write a mapping with a kind: see docs/judges.md."
        )
    return content
