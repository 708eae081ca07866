"""A judge's probability, and pairs labelled with it."""

from __future__ import annotations

import pytest
import torch

from aligngap.judges.model import ModelJudge
from aligngap.models.preference import PREFERENCE_MODELS, PreferenceModel
from aligngap.sources.base import Ingredients
from aligngap.sources.sampled import Sampled, SampledSpec
from aligngap.types import PairBatch
from fakes import likes_token, prompts_of, random_pairs, sharp_model, tiny_policy

VOCABULARY, SEPARATOR, LIMIT = 8, 3, 4
PAIRS = random_pairs(1, 17, VOCABULARY)
PROMPTS = prompts_of(PAIRS.prompts.rows())


def model(kind: str) -> PreferenceModel:
    made = PREFERENCE_MODELS[kind](sharp_model(VOCABULARY).model, SEPARATOR)
    g = torch.Generator().manual_seed(0)
    for head in made.readout.values():
        head.weight.data.normal_(std=0.3, generator=g)  # type: ignore[union-attr,operator]
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", PREFERENCE_MODELS)
def test_probability_is_the_mean_over_both_orders(kind: str) -> None:
    made = model(kind)
    judge = ModelJudge(made, chunk=4)
    probability = judge.probability(PAIRS.prompts, PAIRS.first, PAIRS.second)
    same = torch.tensor([a == b for a, b in zip(PAIRS.first.rows(), PAIRS.second.rows(), strict=True)])
    forward = made.logit(PAIRS.prompts, PAIRS.first, PAIRS.second).sigmoid()
    backward = made.logit(PAIRS.prompts, PAIRS.second, PAIRS.first).sigmoid()
    expected = torch.where(same, 0.5, (forward + 1 - backward) / 2)
    torch.testing.assert_close(probability, expected, atol=1e-5, rtol=1e-4)
    if kind == "pointwise":  # no order to be biased by: the Bradley-Terry probability itself
        torch.testing.assert_close(probability[~same], forward[~same], atol=1e-5, rtol=1e-4)
    assert probability.dtype == torch.float32
    assert judge.calls == len(PAIRS)


@pytest.mark.parametrize("kind", PREFERENCE_MODELS)
def test_probability_swaps_with_the_responses_and_agrees_with_the_decision(kind: str) -> None:
    judge = ModelJudge(model(kind))
    probability = judge.probability(PAIRS.prompts, PAIRS.first, PAIRS.second)
    swapped = judge.probability(PAIRS.prompts, PAIRS.second, PAIRS.first)
    torch.testing.assert_close(probability + swapped, torch.ones(17), atol=1e-5, rtol=1e-5)
    decided = judge.prefer(PAIRS.prompts, PAIRS.first, PAIRS.second)
    assert (probability - 0.5).sign().tolist() == (decided - 0.5).sign().tolist()
    assert ((probability > 0) & (probability < 1)).all()
    assert ((probability > 0.01) & (probability < 0.99) & (probability != 0.5)).sum() > 5


def test_a_judge_without_probabilities_gives_its_decision() -> None:
    judge = likes_token(4)
    decided, probability = (ask(PAIRS.prompts, PAIRS.first, PAIRS.second) for ask in (judge.prefer, judge.probability))
    assert probability.tolist() == decided.tolist()


def batch(spec: SampledSpec) -> tuple[PairBatch, Sampled]:
    source = spec.build(Ingredients(0, 6, PROMPTS, ModelJudge(model("pairwise"))))
    source.observe(0, tiny_policy(VOCABULARY, 0, LIMIT, layers=1))
    return source.next_batch(17), source


def test_sampled_pairs_are_labelled_with_the_probability() -> None:
    soft, source = batch(SampledSpec(labels="probability"))
    expected = ModelJudge(model("pairwise")).probability(soft.prompts, soft.first, soft.second)
    torch.testing.assert_close(soft.preference, expected, atol=1e-6, rtol=1e-5)
    assert soft.preference.dtype == torch.float32
    assert source.cost.judge_calls == 17


def test_the_labels_are_all_that_differs() -> None:
    hard, soft = (batch(spec)[0] for spec in (SampledSpec(), SampledSpec(labels="probability")))
    assert (hard.first.rows(), hard.second.rows()) == (soft.first.rows(), soft.second.rows())
    assert set(hard.preference.tolist()) <= {0.0, 0.5, 1.0}
    assert len(set(soft.preference.tolist()) - {0.0, 0.5, 1.0}) > 5
    assert (hard.preference - 0.5).sign().tolist() == (soft.preference - 0.5).sign().tolist()
