"""What every judge that a study can name must do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aligngap.judges.base import Judge
from aligngap.judges.registry import JUDGES, GivenJudge, judge_spec
from aligngap.judges.spec import JudgeIngredients, JudgeSpec
from aligngap.models.build import Architecture, random_model, word_tokenizer
from aligngap.models.preference import PREFERENCE_MODELS
from aligngap.store.identity import canonical
from aligngap.tasks.spec import TaskSpec, make_pairs
from aligngap.tasks.worlds import world
from aligngap.types import PairBatch, Tokens, concatenate
from unit.judges.server import chat_server, longer
from unit.judges.test_reward import llama, save

WORLD = "summarisation"
TOKENIZER = word_tokenizer(world(WORLD).words())
RULES = """
def prefer(prompts, pairs):
    return [(1 + (len(a) - len(b)) / (len(a) + len(b) + 1)) / 2 for a, b in pairs]
"""


@pytest.fixture(scope="module")
def pairs() -> PairBatch:
    found = make_pairs(TaskSpec(world=WORLD, train_pairs=12, held_out_pairs=2, seed=0), TOKENIZER).train
    assert not bool((found.first.lengths == found.second.lengths).all())
    return found


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Callable[[], tuple[JudgeSpec, JudgeIngredients]]]]:
    """How to build each kind."""
    root = tmp_path_factory.mktemp("judges")
    (root / "my_rules.py").write_text(RULES)
    base = random_model(Architecture(hidden=16, layers=1, heads=2, intermediate=16), len(TOKENIZER), 0)
    base.save_pretrained(root / "base")
    TOKENIZER.save_pretrained(root / "base")
    model = PREFERENCE_MODELS["pairwise"](base.model, TOKENIZER.sep_token_id)
    for weight in model.readout.parameters():
        weight.data.normal_(generator=torch.Generator().manual_seed(0))
    (root / "preference").mkdir()
    model.save(root / "preference")
    save(root / "reward", llama)
    with chat_server(longer) as server:
        settings: dict[str, dict[str, Any]] = {
            "preference": {"folder": str(root / "preference"), "base": str(root / "base")},
            "reward": {"model": str(root / "reward"), "max_length": 40},
            "function": {"function": "my_rules:prefer"},
            "endpoint": {"url": server.url, "model": "m"},
            "true": {},
        }
        assert set(settings) == set(JUDGES)

        def builder(kind: str) -> Callable[[], tuple[JudgeSpec, JudgeIngredients]]:
            def build() -> tuple[JudgeSpec, JudgeIngredients]:
                spec = judge_spec({"kind": kind, **settings[kind]})
                return spec, JudgeIngredients(tokenizer=TOKENIZER, cache=root / "cache", search=root, world=WORLD)

            return build

        yield {kind: builder(kind) for kind in JUDGES}


@pytest.fixture(params=list(JUDGES))
def given(request: pytest.FixtureRequest, made: Any) -> tuple[JudgeSpec, JudgeIngredients]:
    return made[request.param]()  # type: ignore[no-any-return]


@pytest.fixture
def judge(given: tuple[JudgeSpec, JudgeIngredients], monkeypatch: pytest.MonkeyPatch) -> Judge:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    spec, ingredients = given
    return GivenJudge.of(spec, ingredients.search).build(ingredients)


def sides(pairs: PairBatch) -> tuple[Tokens, Tokens, Tokens]:
    return pairs.prompts, pairs.first, pairs.second


def test_margins_are_one_a_pair_and_decide(judge: Judge, pairs: PairBatch) -> None:
    margin = judge.margin(*sides(pairs))
    assert margin.shape == (12,)
    assert margin.isfinite().all()
    assert len(set(margin.sign().tolist())) > 1
    assert judge.prefer(*sides(pairs)).tolist() == [0.5 + sign / 2 for sign in margin.sign().tolist()]
    assert judge.prefer(*sides(pairs)).dtype == torch.float32


def test_the_other_order_is_the_other_sign(judge: Judge, pairs: PairBatch) -> None:
    margin = judge.margin(*sides(pairs))
    torch.testing.assert_close(judge.margin(pairs.prompts, pairs.second, pairs.first), -margin, atol=1e-5, rtol=1e-5)


def test_orders_are_those_of_the_decision(judge: Judge, pairs: PairBatch) -> None:
    """Where both reading orders prefer the same response, so does the judge; swapped sides, swapped orders."""
    before = judge.calls
    found = judge.orders(*sides(pairs))
    if found is None:
        assert judge.calls == before
        return
    assert judge.calls == before + 12
    forward, backward = found
    assert {*forward.tolist(), *backward.tolist()} <= {0.0, 0.5, 1.0}
    agreed = forward == backward
    assert agreed.any()
    assert torch.equal(judge.prefer(*sides(pairs))[agreed], forward[agreed])
    swapped = judge.orders(pairs.prompts, pairs.second, pairs.first)
    assert swapped is not None
    assert torch.equal(swapped[0], 1 - backward)
    assert torch.equal(swapped[1], 1 - forward)


def test_the_same_response_is_a_tie(judge: Judge, pairs: PairBatch) -> None:
    assert judge.margin(pairs.prompts, pairs.first, pairs.first).tolist() == [0] * 12
    assert judge.probability(pairs.prompts, pairs.first, pairs.first).tolist() == [0.5] * 12


def test_probabilities_agree_with_decisions(judge: Judge, pairs: PairBatch) -> None:
    probability, decided = judge.probability(*sides(pairs)), judge.prefer(*sides(pairs))
    assert probability.dtype == torch.float32
    assert bool(((probability >= 0) & (probability <= 1)).all())
    assert ((probability - 0.5).sign() == (decided - 0.5).sign()).all()


def test_a_pair_is_judged_alike_in_any_company(judge: Judge, pairs: PairBatch) -> None:
    whole = judge.margin(*sides(pairs))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    parts = [judge.margin(*sides(pairs.take(part))) for part in order.split(5)]
    torch.testing.assert_close(torch.cat(parts), whole[order], atol=1e-5, rtol=1e-5)


def test_padding_says_nothing(judge: Judge, pairs: PairBatch) -> None:
    margin = judge.margin(*sides(pairs))
    wide = [Tokens(torch.nn.functional.pad(part.ids, (0, 7), value=5), part.lengths) for part in sides(pairs)]
    torch.testing.assert_close(judge.margin(*wide), margin, atol=1e-5, rtol=1e-5)


def test_calls_are_counted(judge: Judge, pairs: PairBatch) -> None:
    judge.prefer(*sides(pairs))
    judge.probability(*sides(pairs.take(torch.arange(5))))
    assert judge.calls == 17
    assert all(isinstance(value, float) for value in json.loads(json.dumps(judge.spent)).values())


def test_large_batches_will_do(judge: Judge, pairs: PairBatch) -> None:
    margin = judge.margin(*sides(pairs))
    torch.testing.assert_close(judge.margin(*sides(concatenate([pairs] * 6))), margin.repeat(6), atol=1e-5, rtol=1e-5)


def test_the_identity_can_be_hashed_and_holds_no_path(given: tuple[JudgeSpec, JudgeIngredients]) -> None:
    spec, ingredients = given
    identity = spec.identity(ingredients.search)
    assert identity["kind"] == spec.kind
    assert canonical(identity) == canonical(spec.identity(ingredients.search))
    assert str(Path(str(ingredients.search))) not in canonical(identity)
