"""One contract for every measure that a study can ask of its arms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from aligngap.errors import UserError
from aligngap.measure.base import ArmMeasure, values_of
from aligngap.measure.registry import MEASURES
from aligngap.testing.measures import MEASURE_CHECKS, some_answers
from aligngap.types import Tokens


@pytest.mark.parametrize("check", MEASURE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", MEASURES)
def test_contract(name: str, check: Callable[[ArmMeasure], None]) -> None:
    check(MEASURES[name])


def test_repetition_by_hand() -> None:
    rows = [[5, 6, 7, 2], [5, 6, 5, 6, 5, 2], [5, 2], [2]]
    answers = replace(some_answers(4), responses=Tokens.collate(rows))
    # 5 6, 6 5, 5 6, 6 5, 5 2: three of five are new.
    assert values_of(MEASURES["repetition"], answers, "it")[:3].tolist() == pytest.approx([0.0, 0.4, 0.0])
    assert math.isnan(values_of(MEASURES["repetition"], answers, "it")[3])


def test_sft_log_prob_is_the_references_token_by_token() -> None:
    answers = some_answers(4)
    found = values_of(MEASURES["sft_log_prob"], answers, "it")
    for row, (prompt, response) in enumerate(zip(answers.prompts.rows(), answers.responses.rows(), strict=True)):
        logits = answers.reference.model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        by_hand = sum(float(logits[len(prompt) - 1 + at, token]) for at, token in enumerate(response))
        assert float(found[row]) == pytest.approx(by_hand, abs=1e-4)


def test_what_answers_say_of_themselves() -> None:
    answers = some_answers(3)
    assert len(answers) == len(answers.texts) == len(answers.prompt_texts) == 3
    assert all(text == " ".join(text.split()) and "<" not in text for text in answers.prompt_texts)
    assert answers.policy is not answers.reference
    assert answers.judge("true") is not None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda answers: 1.0, r"\[\] numbers for 3 prompts"),
        (lambda answers: [1.0], r"\[1\] numbers for 3 prompts"),
        (lambda answers: ["a"] * 3, "list, and no list of numbers"),
        (lambda answers: None, "NoneType"),
        (lambda answers: [1.0, math.inf, 2.0], "an infinite number for prompt 1"),
    ],
)
def test_what_is_no_number_a_prompt_is_refused(given: ArmMeasure, says: str) -> None:
    with pytest.raises(UserError, match=f"the measure 'mine' gives {says}"):
        values_of(given, some_answers(3), "mine")
