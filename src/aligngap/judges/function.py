"""A judge that is a user's own Python function."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import torch
from pydantic import field_validator
from transformers import PreTrainedTokenizerBase

from aligngap.errors import UserError, nearest
from aligngap.judges.base import share
from aligngap.judges.spec import JudgeIngredients, JudgeSpec
from aligngap.judges.text import TextJudge
from aligngap.plugins import find_module, load_module
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
        words = " ".join("".join(traceback.format_exception_only(error)).split())
        self._refuse(f"failed{at}: {words}", row, prompts, error)

    def _refuse(
        self, what: str, row: int | None = None, prompts: list[str] | None = None, cause: BaseException | None = None
    ) -> NoReturn:
        where = f"judge function '{self.name}'"
        if row is not None and prompts is not None:
            start = prompts[row][:60] + ("..." if len(prompts[row]) > 60 else "")
            where += f", row {row + 1} of {len(prompts)} (prompt {start!r})"
        raise UserError(f"the function {what}", where=where, hint=_FORM) from cause


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
        target: object = module
        for part in path.split("."):
            if not hasattr(target, part):
                known = [name for name, value in vars(module).items() if inspect.isfunction(value)]
                hint = nearest(path, known) if known else _FORM
                raise UserError(f"the module has no '{path}'", where=f"judge function '{self.function}'", hint=hint)
            target = getattr(target, part)
        if not callable(target):
            raise UserError(f"'{path}' is no function", where=f"judge function '{self.function}'", hint=_FORM)
        return FunctionJudge(given.tokenizer, target, self.function)

    def _source(self, search: Path | None) -> ModuleSpec:
        return find_module(self.function.partition(":")[0], search)


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
