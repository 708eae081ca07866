"""What a measure of every arm is given, and what it gives back: a number a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedTokenizerBase

from aligngap.errors import UserError
from aligngap.judges.base import Judge
from aligngap.judges.text import prompt_text, response_text
from aligngap.models.policy import Policy
from aligngap.types import Tokens


@dataclass(frozen=True)
class Answers:
    """What an arm has answered at one checkpoint to the prompts of one split, and all that can be asked about it.

    numbers: of the prompts, int64 [n]; responses: one a prompt, sampled at temperature 1; opponents: what `sft` and
    `golden_policy` answered to the same prompts. models: loads the policy at this checkpoint and the reference, when
    they are first asked for. judge: loads `golden`, `proxy` or `true`; None where nobody knows the true utility.
    """

    step: int
    split: str
    numbers: torch.Tensor
    prompts: Tokens
    responses: Tokens
    opponents: Mapping[str, Tokens]
    tokenizer: PreTrainedTokenizerBase
    models: Callable[[], tuple[Policy, Policy]]
    judge: Callable[[str], Judge | None]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def policy(self) -> Policy:
        """The arm's policy at this checkpoint."""
        return self.models()[0]

    @property
    def reference(self) -> Policy:
        """The SFT policy that the arm started from."""
        return self.models()[1]

    @cached_property
    def prompt_texts(self) -> list[str]:
        """The prompts as text, without special tokens."""
        return [prompt_text(self.tokenizer, ids) for ids in self.prompts.rows()]

    @cached_property
    def texts(self) -> list[str]:
        """The responses as text, without the end token that closes them."""
        return [response_text(self.tokenizer, ids)[0] for ids in self.responses.rows()]


ArmMeasure = Callable[[Answers], object]
"""Answers -> as many numbers, in their order: a list, an array or a tensor. NaN where there is none."""


def values_of(measure: ArmMeasure, answers: Answers, name: str, where: str | None = None) -> torch.Tensor:
    """A measure of some answers, float64 [n]. Raises UserError when it does not give a number a prompt."""

    def fault(what: str) -> UserError:
        hint = "A measure gives one number a prompt, [n]; NaN where there is none."
        return UserError(f"the measure '{name}' {what}", where=where, hint=hint)

    result = measure(answers)
    try:
        values = torch.as_tensor(result, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise fault(f"gives {type(result).__name__}, and no list of numbers") from error
    if values.shape != (len(answers),):
        raise fault(f"gives {list(values.shape)} numbers for {len(answers)} prompts")
    if values.isinf().any():
        raise fault(f"gives an infinite number for prompt {int(answers.numbers[values.isinf()][0])}")
    return values
