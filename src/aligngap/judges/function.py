"""A judge that is a user's own Python function."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Literal, NoReturn

import numpy as np
import torch
from pydantic import field_validator
from transformers import PreTrainedTokenizerBase

from aligngap.errors import UserError, nearest
from aligngap.judges.base import share
from aligngap.judges.spec import JudgeIngredients, JudgeSpec
from aligngap.judges.text import TextJudge
from aligngap.store.identity import file_digest

Rule = Callable[[list[str], list[tuple[str, str]]], object]
"""Prompts and as many pairs of responses in; as many numbers from 0 to 1 out: how likely the first is preferred."""

_FORM = "A rule takes prompts and pairs of responses, and returns a list with one number from 0 to 1 for each pair."


class FunctionJudge(TextJudge):
    """Asks a function. name: what the user calls it, for errors.

    Raises UserError, which names function and row, when the function fails or does not return a number from 0 to 1 for
    every pair.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rule: Rule, name: str) -> None:
        super().__init__(tokenizer)
        self.rule, self.name = rule, name

    def likelihood(self, margin: torch.Tensor) -> torch.Tensor:
        """What the function returned; float32 [n]."""
        return share(margin)

    def compare_texts(self, prompts: list[str], first: list[str], second: list[str]) -> torch.Tensor:
        """2p - 1; float64 [n]."""
        pairs = list(zip(first, second, strict=True))
        try:
            # Copies: what the rule does to its arguments must not change whose answer is whose.
            answers = self.rule(list(prompts), list(pairs))
        except (Exception, SystemExit) as error:
            self._failed(error, prompts, pairs)
        values = _listed(answers)
        if values is None:
            self._refuse(f"returned {_kind(answers)}, not a list of numbers")
        if len(values) != len(pairs):
            self._refuse(f"returned {len(values)} values for {len(pairs)} pairs")
        numbers = []
        for row, value in enumerate(values):
            if not isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
                self._refuse(f"returned {_kind(value)}, not a number", row, prompts)
            if not 0 <= (number := float(value)) <= 1:
                self._refuse(f"returned {number}, which is no number from 0 to 1", row, prompts)
            numbers.append(number)
        return 2 * torch.tensor(numbers, dtype=torch.float64) - 1

    def _failed(self, error: BaseException, prompts: list[str], pairs: list[tuple[str, str]]) -> NoReturn:
        """Finds the row by asking about each alone."""
        row = None
        for index in range(len(pairs)):
            try:
                self.rule([prompts[index]], [pairs[index]])
            except (Exception, SystemExit) as again:
                row, error = index, again
                break
        places = traceback.extract_tb(error.__traceback__)
        at = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if len(places) > 1 else ""
        words = "".join(traceback.format_exception_only(error)).strip()
        self._refuse(f"failed{at}: {words}", row, prompts, error)

    def _refuse(
        self, what: str, row: int | None = None, prompts: list[str] | None = None, cause: BaseException | None = None
    ) -> NoReturn:
        where = f"judge function '{self.name}'"
        if row is not None and prompts is not None:
            start = prompts[row][:60] + ("..." if len(prompts[row]) > 60 else "")
            where += f", row {row + 1} of {len(prompts)} (prompt {start!r})"
        raise UserError(f"the function {what}", where=where, mend=_FORM) from cause


class FunctionJudgeSpec(JudgeSpec):
    """function: `module:function`. The module is looked for beside the study file, then wherever Python looks."""

    kind: Literal["function"] = "function"

    function: str

    @field_validator("function")
    @classmethod
    def _two_parts(cls, value: str) -> str:
        module, colon, name = value.partition(":")
        if not (colon and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))):
            raise ValueError(f"'{value}' is not of the form module:function, as in my_rules:prefer")
        return value

    def identity(self, search: Path | None = None) -> dict[str, object]:
        """The function's name and the digest of its module's file. Other files that the module imports do not count."""
        source = file_digest(str(self._source(search).origin))
        return {"kind": self.kind, "function": self.function, "source": source}

    def build(self, given: JudgeIngredients) -> FunctionJudge:
        module = load_module(self._source(given.search), given.search)
        path = self.function.partition(":")[2]
        found: object = module
        for part in path.split("."):
            if not hasattr(found, part):
                known = [name for name, value in vars(module).items() if inspect.isfunction(value)]
                hint = nearest(path, known) if known else _FORM
                raise UserError(f"the module has no '{path}'", where=f"judge function '{self.function}'", mend=hint)
            found = getattr(found, part)
        if not callable(found):
            raise UserError(f"'{path}' is no function", where=f"judge function '{self.function}'", mend=_FORM)
        return FunctionJudge(given.tokenizer, found, self.function)

    def _source(self, search: Path | None) -> ModuleSpec:
        return find_module(self.function.partition(":")[0], search)


def find_module(name: str, search: Path | None) -> ModuleSpec:
    """Where a module's source is: in the search folder, or wherever Python finds modules. Raises UserError."""
    where = f"module '{name}'"
    importlib.invalidate_caches()
    found = _beside(name, search) if search is not None else None
    if found is None:
        try:
            found = find_spec(name)
        except (ImportError, ValueError):  # a package above it that is none, or that has no spec of its own
            found = None
        except Exception as error:  # the code of a package above it, which Python runs to look inside
            raise UserError(
                f"the package cannot be imported: {error}", where=where, mend="Mend the package."
            ) from error
    if found is None:
        places = f"neither beside the study file ({search}) nor" if search is not None else "not"
        raise UserError(
            f"there is no such module: {places} where Python looks",
            where=where,
            mend="Put the file beside the study, or install its package in the same environment.",
        )
    if found.origin is None or not found.origin.endswith(".py") or not Path(found.origin).is_file():
        raise UserError(
            "the module has no Python source file, which is part of every result's identity",
            where=where,
            mend="Write a module of your own that calls it.",
        )
    return found


def _beside(name: str, search: Path) -> ModuleSpec | None:
    places, whole = [str(search)], ""
    found = None
    for part in name.split("."):
        whole = f"{whole}.{part}" if whole else part
        found = PathFinder.find_spec(whole, places)
        if found is None:
            return None
        places = list(found.submodule_search_locations or [])
    return found


def load_module(source: ModuleSpec, search: Path | None) -> ModuleType:
    """Runs a module's source file as it is now.

    The ordinary import would keep what it once loaded under the same name, from another folder or from the same file
    before it was edited; a judge's identity says what is in the file. So the module goes by a name of its own, with its
    place and source in it. Raises UserError when it cannot be run.
    """
    path = Path(str(source.origin))
    where = f"module '{source.name}' ({path.name})"
    text = path.read_bytes()
    name = f"{source.name}_{hashlib.sha256(str(path).encode() + text).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if search is not None and str(search) not in sys.path:
        sys.path.append(str(search))  # for what it imports; behind all else, so that it hides nothing
    spec = spec_from_file_location(name, path, submodule_search_locations=source.submodule_search_locations)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):
            raise
        words = "".join(traceback.format_exception_only(error)).strip()
        raise UserError(f"the module cannot be imported: {words}", where=where, mend="Mend the module.") from error
    return module


def _listed(answers: object) -> list[object] | None:
    """A list of plain values from a list, tuple, array or tensor of one dimension; None for anything else."""
    if isinstance(answers, np.ndarray | torch.Tensor):
        return list(answers.tolist()) if answers.ndim == 1 else None
    if isinstance(answers, list | tuple):
        return [item.item() if isinstance(item, torch.Tensor) and item.ndim == 0 else item for item in answers]
    return None


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    return "nothing (None)" if value is None else f"{value!r:.60} ({type(value).__name__})"
