"""Preference models: both orders, no bias towards identical responses, and what they can learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from aligngap.judges.model import ModelJudge
from aligngap.models.build import Architecture, random_model
from aligngap.models.preference import (
    PREFERENCE_MODELS,
    PairwiseModel,
    PointwiseModel,
    PreferenceModel,
    build_preference_model,
    join,
    load_preference_model,
)
from aligngap.sources.order import uniform
from aligngap.sources.recorded import Recorded
from aligngap.train.step import OptimSpec
from aligngap.train.supervised import fit, preference_loss
from aligngap.types import PairBatch, Tokens
from fakes import END, pairs_of, ragged, random_pairs, sharp_model

VOCABULARY, SEPARATOR = 8, 3
PAIRS = random_pairs(1, 17, VOCABULARY)


def model(kind: str, seed: int = 0) -> PreferenceModel:
    made = PREFERENCE_MODELS[kind](sharp_model(VOCABULARY, seed).model, SEPARATOR)
    g = torch.Generator().manual_seed(seed)
    for head in made.readout.values():
        head.weight.data.normal_(generator=g)  # type: ignore[union-attr,operator]
    return made.eval()


def side(pairs: PairBatch) -> tuple[Tokens, Tokens, Tokens]:
    return pairs.prompts, pairs.first, pairs.second


@pytest.mark.parametrize("kind", PREFERENCE_MODELS)
def test_starts_undecided(kind: str) -> None:
    fresh = PREFERENCE_MODELS[kind](sharp_model(VOCABULARY).model, SEPARATOR)
    assert fresh.logit(*side(PAIRS)).tolist() == [0] * 17


@pytest.mark.parametrize("kind", PREFERENCE_MODELS)
@torch.no_grad()
def test_both_orders_are_each_order_read_alone(kind: str) -> None:
    made = model(kind)
    forward, backward = made.both_orders(*side(PAIRS))
    torch.testing.assert_close(forward, made.logit(PAIRS.prompts, PAIRS.first, PAIRS.second), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(backward, made.logit(PAIRS.prompts, PAIRS.second, PAIRS.first), atol=1e-4, rtol=1e-4)
    if kind == "pairwise":
        assert (forward + backward).abs().max() > 0.1  # there is a position bias to undo
    else:
        assert torch.equal(forward, -backward)


@pytest.mark.parametrize("kind", PREFERENCE_MODELS)
@torch.no_grad()
def test_company_in_the_batch_does_not_matter(kind: str) -> None:
    made = model(kind)
    together = made.logit(*side(PAIRS))
    alone = torch.cat([made.logit(*side(PAIRS.take(index))) for index in torch.arange(17).split(1)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_pairwise_by_hand() -> None:
    """One unpadded row through the backbone: end token, plus the first response's tokens, minus the second's."""
    made = model("pairwise")
    prompt, a, b = [1, 5, 6], [4, 5, END], [7, END]
    states = made.backbone(input_ids=torch.tensor([[*prompt, *a, SEPARATOR, *b, SEPARATOR]])).last_hidden_state[0]
    end, first, second = (states @ made.readout[name].weight[0] for name in ("end", "first", "second"))  # type: ignore[operator]
    expected = end[-1] + first[3:6].sum() - second[7:9].sum()
    found = made.logit(Tokens.collate([prompt, [1]]), Tokens.collate([a, [4, 4, 4, 4]]), Tokens.collate([b, [5]]))
    assert found[0].item() == pytest.approx(expected.item(), abs=1e-4)


@torch.no_grad()
def test_pointwise_by_hand() -> None:
    made = model("pointwise")
    assert isinstance(made, PointwiseModel)
    prompt, response = [1, 5, 6], [4, 5, END]
    states = made.backbone(input_ids=torch.tensor([[*prompt, *response]])).last_hidden_state[0, 3:]
    end, first = (states @ made.readout[name].weight[0] for name in ("end", "first"))  # type: ignore[operator]
    found = made.rewards(Tokens.collate([prompt, [1]]), [Tokens.collate([response, [7, 7, 7, 7]])])[0]
    assert found[0].item() == pytest.approx((end[-1] + first.sum()).item(), abs=1e-4)


@torch.no_grad()
def test_pointwise_is_antisymmetric_and_transitive() -> None:
    made = model("pointwise")
    third = random_pairs(2, 17, VOCABULARY).first
    ab, bc, ac, ba = (
        made.logit(PAIRS.prompts, x, y)
        for x, y in (
            (PAIRS.first, PAIRS.second),
            (PAIRS.second, third),
            (PAIRS.first, third),
            (PAIRS.second, PAIRS.first),
        )
    )
    torch.testing.assert_close(ab + bc, ac, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ab, -ba, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", PREFERENCE_MODELS)
def test_identical_responses_are_a_tie(kind: str) -> None:
    same = pairs_of(
        [[1, 4], [1], [1, 5]], [[4, END], [5, 5, 5], [6, END]], [[4, END], [5, 5, 5], [7, 7, END]], [1, 1, 1]
    )
    found = ModelJudge(model(kind)).prefer(*side(same)).tolist()
    assert found[:2] == [0.5, 0.5]
    assert found[2] in (0.0, 1.0)


def test_a_pairwise_judge_says_what_it_prefers_in_either_order() -> None:
    made = model("pairwise")
    found = ModelJudge(made, chunk=5).orders(*side(PAIRS))
    assert found is not None
    with torch.no_grad():
        forward, backward = made.both_orders(*side(PAIRS))
    assert torch.equal(found[0], (forward > 0).float())
    assert torch.equal(found[1], (backward < 0).float())
    assert ModelJudge(model("pointwise")).orders(*side(PAIRS)) is None


@pytest.mark.parametrize("kind", PREFERENCE_MODELS)
def test_judge_decides_by_the_sign_of_both_orders(kind: str) -> None:
    made = model(kind)
    judge = ModelJudge(made, chunk=5)
    margin = judge.margin(*side(PAIRS))
    with torch.no_grad():
        forward, backward = (part.sigmoid() for part in made.both_orders(*side(PAIRS)))
    torch.testing.assert_close(margin, forward - backward, atol=1e-4, rtol=1e-4)
    assert (margin.abs() <= 1).all()
    assert judge.prefer(*side(PAIRS)).tolist() == [(1 + (m > 0) - (m < 0)) / 2 for m in margin.tolist()]
    torch.testing.assert_close(judge.margin(PAIRS.prompts, PAIRS.second, PAIRS.first), -margin, atol=1e-5, rtol=1e-4)
    assert judge.calls == 3 * 17
    assert not margin.requires_grad
    if kind == "pairwise":  # reading one order alone would decide otherwise on some pairs
        assert ((forward > 0.5) != (margin > 0)).any()


def test_join_by_hand() -> None:
    tokens, first, second = join(Tokens.collate([[4, 5], [6]]), Tokens.collate([[7], [4, 4, 4]]), SEPARATOR)
    assert tokens.rows() == [[4, 5, 3, 7, 3], [6, 3, 4, 4, 4, 3]]
    assert first.int().tolist() == [[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert second.int().tolist() == [[0, 0, 0, 1, 0, 0], [0, 0, 1, 1, 1, 0]]


@pytest.mark.parametrize("kind", PREFERENCE_MODELS)
def test_saved_and_loaded_is_the_same(kind: str, tmp_path: Path) -> None:
    made = model(kind)
    made.save(tmp_path)
    loaded = load_preference_model(kind, tmp_path, SEPARATOR)
    assert type(loaded) is type(made)
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())
    with torch.no_grad():
        assert torch.equal(loaded.logit(*side(PAIRS)), made.requires_grad_(False).logit(*side(PAIRS)))


class Scripted(PairwiseModel):
    """Notes what it is asked; says how much it likes the response read first, from a script of tokens."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.read_first: list[tuple[list[int], list[int]]] = []

    def logit(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        self.read_first += list(zip(prompts.rows(), first.rows(), strict=True))
        return torch.tensor([row[0] / 2 for row in first.rows()])


def flips(pairs: PairBatch, step: int, seed: int) -> list[bool]:
    scripted = Scripted()
    preference_loss(scripted, pairs, step, seed)
    return [
        (prompt, row) in scripted.read_first
        for prompt, row in zip(pairs.prompts.rows(), pairs.second.rows(), strict=True)
    ]


def test_training_order_is_drawn_anew_for_each_pair_step_and_seed() -> None:
    pairs = pairs_of([[1, 3 + k] for k in range(200)], [[4]] * 200, [[5]] * 200, [1.0] * 200)
    base = flips(pairs, 0, 0)
    assert 70 < sum(base) < 130
    assert base == flips(pairs, 0, 0)
    for other in (flips(pairs, 1, 0), flips(pairs, 0, 1)):
        assert 60 < sum(a != b for a, b in zip(base, other, strict=True)) < 140


def test_preference_loss_by_hand() -> None:
    """Labels, soft ones too, follow the flip: cross-entropy of the log-odds of whichever response is read first."""
    pairs = pairs_of([[1, 3 + k] for k in range(40)], [[4]] * 40, [[6]] * 40, [1.0, 0.0, 0.5, 0.25] * 10)
    expected = []
    for flipped, preference in zip(flips(pairs, 3, 7), pairs.preference.tolist(), strict=True):
        logit, target = (3.0, 1 - preference) if flipped else (2.0, preference)
        expected.append(functional.softplus(torch.tensor(logit)).item() - target * logit)
    assert preference_loss(Scripted(), pairs, 3, 7).item() == pytest.approx(sum(expected) / 40, rel=1e-5)


@pytest.mark.parametrize("kind", PREFERENCE_MODELS)
def test_learns_an_easy_preference(kind: str, tmp_path: Path) -> None:
    """More of token 7 is better; held-out pairs, above 90% in some dozen steps from random weights."""
    random_model(
        Architecture(hidden=16, layers=1, heads=2, intermediate=32, context=64), VOCABULARY, 0
    ).save_pretrained(tmp_path)
    made = build_preference_model(kind, str(tmp_path), SEPARATOR)
    g = torch.Generator().manual_seed(0)
    first, second = ([[*row, END] for row in ragged(g, 900, VOCABULARY, 1, 6)] for _ in range(2))
    different = [(a, b) for a, b in zip(first, second, strict=True) if a.count(7) != b.count(7)]
    pairs = pairs_of(
        [[1, 4]] * len(different),
        *map(list, zip(*different, strict=True)),
        [float(a.count(7) > b.count(7)) for a, b in different],
    )
    train, held_out = pairs.take(torch.arange(300)), pairs.take(torch.arange(300, len(pairs)))
    reports: list[float] = []
    fit(
        made,
        lambda batch, step: preference_loss(made, batch, step, 0),
        Recorded(train, uniform("t")),
        OptimSpec(lr=0.02, steps=60, batch=32, warmup_steps=5),
        lambda done, total, metrics: reports.append(metrics["loss"]),
    )
    assert len(reports) == 60
    assert reports[0] == pytest.approx(0.6931, abs=1e-3)
    judge = ModelJudge(made.eval())
    agreement = (judge.prefer(*side(held_out)) == held_out.preference).double().mean()
    assert len(held_out) > 200
    assert agreement > 0.9
