"""Reading studies: shipped or the user's own YAML, with overrides, or as a run has recorded them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from aligngap.errors import UserError, brief, nearest
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.experiments.shipped import alone, shipped, shipped_text
from aligngap.experiments.spec import StudySpec
from aligngap.models.build import SHIPPED
from aligngap.plugins import use_plugins

_LARGEST = 100_000
"""Values in a study, far more than anybody writes."""
_LONGEST_TEXT = 1 << 20
_LARGEST_NUMBER = 2**53
_LONGEST_MESSAGE = 1000
"""Characters of a message that a check made, which may hold what was given."""


def load_study(name: str, overrides: Sequence[str] = (), seeds: int | None = None, smoke: bool = False) -> StudySpec:
    """A shipped study or an experiment by name, or a YAML file by path, with `key=value` overrides (dotted keys).

    An experiment is a study that asks it alone, on the settings of `paper`. A plugin's is one too where an override
    names the plugin (`plugins=[my_ideas]`), which is looked for in the working folder.

    Raises UserError for an unknown study or key, unreadable YAML, or a value out of range; the message says where and
    how to fix it.
    """
    folder: Path | None = None  # of a study that is not shipped
    if name in shipped():
        where, default = f"study '{name}'", name
        content = _parse(shipped_text(name), where)
    elif Path(name).suffix in (".yaml", ".yml"):
        where, default, folder = name, Path(name).stem, Path(name).parent
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"the study file cannot be read: {error}", where=name, hint="Check the path and that it is UTF-8 text."
            ) from error
        content = _parse(text, where)
        _placed(content, folder)
    else:
        where, default = f"experiment '{name}'", name
        given: dict[str, Any] = {}
        for override in overrides:
            _set(given, override)
        if "plugins" in given:
            folder = Path()
            use_plugins(_plugins(given, where), folder.resolve())
        content = alone(name) or {}
        if not content:
            hint = f"{nearest(name, [*shipped(), *EXPERIMENTS])} Or give a file that ends in .yaml."
            raise UserError(f"there is no study and no experiment '{name}'", hint=hint)
    content = _extended(content, where)
    content.setdefault("name", default)
    for override in overrides:
        _set(content, override)
    if seeds is not None:
        if seeds < 1:
            raise UserError(f"{seeds} seeds are too few", where="--seeds", hint="Give a number from 1 on.")
        if seeds > _LARGEST:
            raise UserError("so many seeds are no study", where="--seeds", hint=f"Give a number up to {_LARGEST}.")
        content["seeds"] = list(range(seeds))
    use_plugins(_plugins(content, where), folder and folder.resolve())
    _check_numbers(content, where)
    try:
        study = StudySpec.model_validate(content)
        if folder is not None:
            study = study.placed(folder.resolve())
    except ValidationError as error:
        raise _explained(error, where) from None
    _check_numbers(study.model_dump(), where)  # those that were given as text
    _know_experiments(study, f"{where}, experiments")
    return study.shrunk() if smoke else study


def _plugins(content: dict[str, Any], where: str) -> list[str]:
    plugins = content.get("plugins") or []
    if not isinstance(plugins, list) or not all(isinstance(module, str) for module in plugins):
        raise UserError("plugins are a list of modules", where=f"{where}, plugins", hint="As in plugins: [my_losses].")
    return plugins


def resolved_study(specification: Mapping[str, Any], folder: Path | None = None) -> StudySpec:
    """A study as a run has recorded it, with every setting. No plugin is imported. folder: where its file lies.

    Raises UserError for what this version cannot read, and for an experiment that nobody has registered: it may be a
    plugin's that has not been imported.
    """
    try:
        study = StudySpec.model_validate(specification)
    except ValidationError as error:
        raise UserError(brief(error.errors()[0]["msg"], _LONGEST_MESSAGE)) from error
    _know_experiments(study)
    return study.placed(folder) if folder else study


def _know_experiments(study: StudySpec, where: str | None = None) -> None:
    for name in study.experiments:
        if name not in EXPERIMENTS:
            raise UserError(f"there is no experiment '{name}'", where=where, hint=nearest(name, EXPERIMENTS))


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        content = _yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(
            f"this is not valid YAML: {problem}",
            where=f"{where}{line}",
            hint="Fix the file; compare with a shipped study.",
        ) from None
    if not isinstance(content, dict):
        raise UserError(
            "a study is a mapping of keys to values",
            where=where,
            hint="Compare with a shipped study, or write one with `aligngap init` (docs/tutorial.md).",
        )
    return content


def _yaml(text: str) -> Any:
    """What a YAML text says. Raises yaml.YAMLError for all that cannot be read, or would fill the memory once read."""
    try:
        if len(text) > _LONGEST_TEXT or text.count("\n") + text.count(",") > _LARGEST:
            raise yaml.YAMLError("it is far longer than any study")
        content = yaml.load(text, _UniqueKeys)
        if _expanded(content, {}) > _LARGEST:
            raise yaml.YAMLError("its aliases unfold to too much")
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        # Of the library's own readers of dates and numbers.
        raise yaml.YAMLError(f"a value cannot be read: {error}") from None
    return content


class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's plain values alone. A key that is given twice is an error: the first value would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in lines and isinstance(key.value, str) and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key.value}' is given twice, in lines {lines[key.value]} and {line}",
                    problem_mark=key.start_mark,
                )
            lines |= {key.value: line} if isinstance(key.value, str) else {}
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


def _check_numbers(value: Any, where: str) -> None:
    """Raises UserError for a whole number that no setting takes and no arithmetic here is exact for, naming its key."""
    if isinstance(value, dict):
        for key, part in value.items():
            _check_numbers(part, f"{where}, {key}")
    elif isinstance(value, list | tuple):
        for part in value:
            _check_numbers(part, where)
    elif isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        raise UserError(
            f"a number of {len(str(abs(value)))} digits is no setting of a study",
            where=where,
            hint=f"Give one up to {_LARGEST_NUMBER}.",
        )


def _expanded(value: Any, known: dict[int, int | None]) -> int:
    """How many values there are when every alias is written out."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = None  # until all below it is counted
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_expanded(part, known) for part in parts)
    count = known[id(value)]
    if count is None:
        raise yaml.YAMLError("an alias stands within what it stands for")
    return count


def _placed(content: dict[str, Any], folder: Path) -> None:
    """Paths of data and models that lie beside the study's file are taken from there."""

    def placed(value: Any, key: str) -> Any:
        """value: a path, a mapping that holds one under `key`, or a list of such."""
        if isinstance(value, list):
            return [placed(item, key) for item in value]
        if isinstance(value, dict):
            return value | {key: placed(value[key], key)} if key in value else value
        known = isinstance(value, str) and value not in SHIPPED and not Path(value).is_absolute()
        return str((folder / value).resolve()) if known and (folder / value).exists() else value

    for part, key in (("datasets", "source"), ("models", "path")):
        if isinstance(content.get(part), dict):
            content[part] = {name: placed(value, key) for name, value in content[part].items()}


def _extended(content: dict[str, Any], where: str) -> dict[str, Any]:
    """A study that `extends` a shipped one: that one's settings, with this one's keys in their place."""
    parent = content.pop("extends", None)
    if parent is None:
        return content
    if not isinstance(parent, str) or parent not in shipped():
        raise UserError(
            f"there is no shipped study '{parent}'", where=f"{where}, extends", hint=nearest(str(parent), shipped())
        )
    base = _extended(_parse(shipped_text(parent), f"study '{parent}'"), f"study '{parent}'")
    base.pop("name", None)
    if _are_mappings(content.get("datasets")) and content["datasets"]:
        # Data of one's own: their pairs, and no built-in world's, unless the file says so.
        base.pop("sft_tasks", None)
        base["tasks"] = list(content["datasets"])
    for role in ("golden", "proxy"):
        if _are_mappings(content.get(role)) and "judge" in content[role]:
            base.pop(role, None)  # a judge that is given is not trained
    return _merged(base, content)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merged(base[key], value) for key, value in over.items() if _are_mappings(base.get(key), value)}
    return base | over | both


def _are_mappings(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


def _set(content: dict[str, Any], override: str) -> None:
    """Apply one `dotted.key=value`; the value is YAML, so lists and numbers work."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(
            f"'{brief(override)}' is not of the form key=value",
            where="--set",
            hint="For example --set baseline.optim.lr=0.001",
        )
    try:
        value = _yaml(text)
    except yaml.YAMLError:
        raise UserError(
            f"the value '{brief(text)}' is not valid YAML",
            where=f"--set {key}",
            hint="Quote it, or give a plain number, word or [list].",
        ) from None
    *parents, last = key.strip().split(".")
    place = content
    for depth, parent in enumerate(parents, 1):
        if isinstance(place.get(parent), str) and "path" in _known_keys(parents[:depth]):
            place[parent] = {"path": place[parent]}  # a model is a path alone, or a mapping that has it
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise UserError(
                f"'{parent}' has no keys below it",
                where=f"--set {key}",
                hint="Check the key against `aligngap plan`'s settings.",
            )
    place[last] = value


def _explained(error: ValidationError, where: str) -> UserError:
    """The first problem of a validation, in words; unknown keys name the nearest known one."""
    result = error.errors()
    # A misspelt key is often the reason for a missing one.
    first = next((problem for problem in result if problem["type"] == "extra_forbidden"), result[0])
    path, place = [str(part) for part in first["loc"]], ".".join(brief(str(part)) for part in first["loc"])
    hint = "Fix the value in the file or the --set option."
    what = brief(first["msg"].removeprefix("Value error, "), _LONGEST_MESSAGE)
    if first["type"] == "extra_forbidden":
        what, hint = f"there is no key '{brief(path[-1])}'", nearest(path[-1], _known_keys(path[:-1]))
    elif first["type"] == "missing":
        what, hint = f"the key '{path[-1]}' is missing", "Add it; a shipped study shows how."
    elif first["type"] != "value_error" and not isinstance(first.get("input", {}), dict | list):
        given = first["input"]
        what = f"{what}, not {brief(repr(given) if isinstance(given, str) else given)}"
    return UserError(what, where=f"{where}, {place}" if path else where, hint=hint)


def _known_keys(path: Sequence[str]) -> list[str]:
    model: Any = StudySpec
    for part in path:
        if get_origin(model) is dict:  # by names of the user's own
            model = get_args(model)[1]
            continue
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    return sorted(getattr(model, "model_fields", {}))
