"""What every judge that a study can name must do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from aligngap.judges.base import Judge
from aligngap.judges.registry import JUDGES, GivenJudge, judge_spec
from aligngap.judges.spec import JudgeIngredients, JudgeSpec
from aligngap.models.build import Architecture, random_model
from aligngap.models.preference import PREFERENCE_MODELS
from aligngap.models.tokenizer import word_tokenizer
from aligngap.tasks.worlds import world
from aligngap.testing.judges import JUDGE_CHECKS, Judged, has_an_identity, sides, world_pairs
from aligngap.types import PairBatch
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
    found = world_pairs(WORLD, TOKENIZER)
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
                return spec, JudgeIngredients(
                    tokenizer=TOKENIZER, cache=root / "cache", search=root, world=world(WORLD)
                )

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


@pytest.mark.parametrize("check", JUDGE_CHECKS, ids=lambda check: check.__name__)
def test_contract(judge: Judge, pairs: PairBatch, check: Callable[[Judged], None]) -> None:
    check(Judged(judge, pairs))


def test_decides_both_ways(judge: Judge, pairs: PairBatch) -> None:
    assert len(set(judge.prefer(*sides(pairs)).tolist())) > 1


def test_orders_agree_somewhere(judge: Judge, pairs: PairBatch) -> None:
    found = judge.orders(*sides(pairs))
    assert found is None or bool((found[0] == found[1]).any())


def test_the_identity_can_be_hashed_and_holds_no_path(given: tuple[JudgeSpec, JudgeIngredients]) -> None:
    spec, ingredients = given
    has_an_identity(spec, ingredients.search)
