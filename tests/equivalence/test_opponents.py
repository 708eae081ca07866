"""What is kept of prompts and opponents gives what reading them again gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aligngap.judges.model import ModelJudge
from aligngap.models import opponents
from aligngap.models.layout import Layout
from aligngap.models.padded import behind
from aligngap.models.preference import PairwiseModel, PointwiseModel, PreferenceModel
from aligngap.models.varlen import attention
from aligngap.models.varlen.forward import segment_states
from aligngap.models.varlen.kv_cache import prefill
from aligngap.types import Tokens
from equivalence.test_varlen import KINDS, VOCABULARY, model
from fakes import ragged

SEPARATOR, ROWS = 3, 11
MODELS = {"pairwise": PairwiseModel, "pointwise": PointwiseModel}


def judge_of(kind: str, form: str, **values: Any) -> PreferenceModel:
    made = MODELS[form](model(kind, **values).model, SEPARATOR)
    assert made.layout.varlen
    for weight in made.readout.parameters():
        weight.data.normal_(generator=torch.Generator().manual_seed(len(form)))
    return made.eval().requires_grad_(False)


def sides(least: int = 1) -> tuple[Tokens, Tokens, list[Tokens]]:
    """Prompts, responses to them, and the answers of three opponents; of many lengths."""
    g = torch.Generator().manual_seed(7)
    prompts = Tokens.collate([[1, *row] for row in ragged(g, ROWS, VOCABULARY, 0, 7)])
    first, *others = (Tokens.collate(ragged(g, ROWS, VOCABULARY, least, longest)) for longest in (8, 5, 9, 6))
    return prompts, first, others


@pytest.mark.parametrize("kernel", ["by hand", "PyTorch's"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_reading_on_says_what_reading_at_once_says(kind: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel != "by hand":
        monkeypatch.setattr(attention, "_MATMUL_SCORES", 0)
    backbone = model(kind).model
    prompts, first, (second, *_) = sides()
    index = torch.tensor([4, 0, 9, 4, 2])
    _, kept = prefill(backbone, prompts)
    found, after = prefill(backbone, first.take(index), kept.take(index))
    (expected,) = segment_states(backbone, prompts.take(index), [first.take(index)])
    inside = first.take(index).mask()
    torch.testing.assert_close(found[inside], expected[inside], atol=5e-5, rtol=1e-4)
    found, _ = prefill(backbone, second.take(index), after)
    (expected,) = segment_states(backbone, behind(prompts.take(index), first.take(index)), [second.take(index)])
    inside = second.take(index).mask()
    torch.testing.assert_close(found[inside], expected[inside], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("form", MODELS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_same_log_odds_in_both_orders(kind: str, form: str) -> None:
    judge = judge_of(kind, form)
    prompts, first, others = sides()
    kept = judge.keep(prompts, others)
    assert kept is not None
    index = torch.tensor([10, 3, 3, 0, 7])
    found = kept.both_orders(index, first.take(index))
    for number, other in enumerate(others):
        expected = judge.both_orders(prompts.take(index), first.take(index), other.take(index))
        for one, two in zip(found, expected, strict=True):
            assert float(two.abs().max()) > 1
            torch.testing.assert_close(one[number], two, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_a_pairwise_model_reads_answers_without_a_token() -> None:
    judge = judge_of("llama", "pairwise")
    prompts, first, others = sides(least=0)
    assert int(first.lengths.min()) == int(others[0].lengths.min()) == 0
    kept = judge.keep(prompts, others)
    assert kept is not None
    expected = judge.both_orders(prompts, first, others[0])
    for one, two in zip(kept.both_orders(torch.arange(ROWS), first), expected, strict=True):
        torch.testing.assert_close(one[0], two, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("form", MODELS)
def test_a_judge_says_the_same_against_opponents(form: str) -> None:
    prompts, first, others = sides()
    index = torch.tensor([5, 1, 8, 2])
    # A response may be the opponent's own.
    others[1] = Tokens.collate([(first if row == 8 else others[1]).rows()[row] for row in range(ROWS)])
    one, two = (ModelJudge(judge_of("qwen2", form), chunk=3) for _ in range(2))
    found = one.against(prompts, others).margins(index, first.take(index))
    expected = torch.stack([two.margin(prompts.take(index), first.take(index), other.take(index)) for other in others])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert float(found[1, 2]) == float(expected[1, 2]) == 0
    assert one.calls == two.calls == 3 * len(index)


def test_models_that_cannot_keep_anything_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, first, others = sides()
    judge = judge_of("llama", "pairwise")
    assert judge.keep(prompts, others) is not None

    class Other(PairwiseModel):
        """Compares in a way of its own."""

    backbone = judge.backbone
    assert Other(backbone, SEPARATOR).keep(prompts, others) is None
    assert PairwiseModel(backbone, SEPARATOR, Layout(packed=True)).keep(prompts, others) is None
    monkeypatch.setattr(opponents, "_MOST_BYTES", 1000)
    assert judge.keep(prompts, others) is None
    asked = ModelJudge(judge)
    found = asked.against(prompts, others).margins(torch.arange(ROWS), first)
    expected = torch.stack([asked.margin(prompts, first, other) for other in others])
    assert torch.equal(found, expected)


def test_no_more_is_kept_than_is_counted() -> None:
    judge = judge_of("llama", "pairwise")
    prompts, _, others = sides()
    kept: Any = judge.keep(prompts, others)
    held = sum(layer.nbytes for part in (kept._prompts, kept._answered) for layer in part.layers)
    assert 0 < held <= opponents.cache_bytes(judge, prompts, others)
