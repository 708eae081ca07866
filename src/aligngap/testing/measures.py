"""What every measure of arms must do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from aligngap.judges.true_utility import TrueUtilityJudge
from aligngap.measure.base import Answers, ArmMeasure, values_of
from aligngap.models.build import Architecture, random_model
from aligngap.models.policy import Policy
from aligngap.models.tokenizer import word_tokenizer
from aligngap.tasks.worlds import world
from aligngap.testing.contract import must, run
from aligngap.testing.fakes import likes_token, same_weights, weights_of
from aligngap.testing.judges import world_pairs

_WORLD = "summarisation"


def check_measure(measure: ArmMeasure) -> None:
    """Raises Broken or UserError, which say how, for a measure that a study cannot ask of every arm."""
    run(MEASURE_CHECKS, measure)


def some_answers(rows: int = 12) -> Answers:
    """Responses of a built-in world's writers, as those of an arm with a tiny random policy. `proxy` and `golden` are
    judges with tastes of their own.
    """
    place = world(_WORLD)
    tokenizer = word_tokenizer(place.words())
    pairs = world_pairs(_WORLD, tokenizer, rows)
    end = int(tokenizer.eos_token_id)
    shape = Architecture(hidden=16, layers=1, heads=2, intermediate=16)
    models = [Policy(random_model(shape, len(tokenizer), seed), end, place.max_response_tokens) for seed in (0, 1)]
    policy, reference = models
    reference.model.requires_grad_(False)
    judges = {"golden": likes_token(5), "proxy": likes_token(6), "true": TrueUtilityJudge(place, tokenizer)}
    return Answers(
        step=100,
        split="held_out",
        numbers=pairs.prompt_numbers,
        prompts=pairs.prompts,
        responses=pairs.first,
        opponents={"sft": pairs.second, "golden_policy": pairs.first},
        tokenizer=tokenizer,
        models=lambda: (policy, reference),
        judge=judges.__getitem__,
    )


def _name(measure: ArmMeasure) -> str:
    return getattr(measure, "__name__", "measure")


def gives_a_number_a_prompt(measure: ArmMeasure) -> None:
    """As many numbers as prompts; NaN where there is none."""
    values_of(measure, some_answers(), _name(measure))


def measures_a_prompt_by_itself(measure: ArmMeasure) -> None:
    """A prompt's number is its own: intervals resample prompts, as if each stood for itself."""
    answers = some_answers()
    whole = values_of(measure, answers, _name(measure))
    few = torch.tensor([3, 0, 7])
    part = replace(
        answers,
        numbers=answers.numbers[few],
        prompts=answers.prompts.take(few),
        responses=answers.responses.take(few),
        opponents={who: drawn.take(few) for who, drawn in answers.opponents.items()},
    )
    alone = values_of(measure, part, _name(measure))
    same = torch.allclose(alone, whole[few], rtol=1e-4, atol=1e-5, equal_nan=True)
    must(same, "a prompt's number depends on which other prompts there are")


def gives_the_same_again(measure: ArmMeasure) -> None:
    """A function of what it is given; and it leaves the policies as they are."""
    answers = some_answers()
    before = [weights_of(policy) for policy in answers.models()]
    one, two = (values_of(measure, answers, _name(measure)) for _ in range(2))
    must(torch.equal(one.nan_to_num(), two.nan_to_num()), "it gives something else when asked again")
    after = [weights_of(policy) for policy in answers.models()]
    must(all(map(same_weights, before, after)), "it changes the policies that it measures")


MEASURE_CHECKS: tuple[Callable[[ArmMeasure], None], ...] = (
    gives_a_number_a_prompt,
    measures_a_prompt_by_itself,
    gives_the_same_again,
)
