"""The bases' recipe: worlds join cycle by cycle, the vocabulary grows, and a recipe may go on where another stopped."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from aligngap.errors import UserError
from aligngap.models.build import SHAPES, Architecture, base_path, load_language_model, random_model
from aligngap.models.tokenizer import SPECIAL_TOKENS, load_tokenizer
from aligngap.store import read_json
from aligngap.tasks.worlds import WORLDS, world
from aligngap.train.pretrain import (
    RECIPES,
    Cycle,
    PretrainSpec,
    Rows,
    _Training,
    evaluate_base,
    extend_vocabulary,
    pretrain,
)

TINY = Architecture(hidden=8, layers=1, heads=2, intermediate=8)
FIRST = Cycle(worlds=("summarisation",), steps=3, lr=1e-2)
BASES = Path(base_path("small")).parent
MADE = sorted(path.stem for path in BASES.glob("*.json") if path.stem in RECIPES)
"""Shipped bases that this recipe made; small, medium and large are the first laboratory's, by revision 25f4713's."""


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size of seconds, without the evaluation that ends a recipe."""
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.setattr("aligngap.train.pretrain.evaluate_base", lambda *_: {})


def recipe(*cycles: Cycle, seed: int = 0) -> PretrainSpec:
    return PretrainSpec(size="tiny", cycles=cycles, rows=2, warmup=2, seed=seed)


def made(spec: PretrainSpec, folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a recipe leaves in a folder."""
    pretrain(spec, folder, lambda done, total, metrics: None)
    return weights(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def embedding(model: LlamaForCausalLM) -> torch.Tensor:
    return model.get_input_embeddings().weight.detach().clone()  # type: ignore[no-any-return,operator,union-attr]


def test_new_words_leave_the_old_ones_alone() -> None:
    model = random_model(TINY, 10, 0)
    before = embedding(model)
    extend_vocabulary(model, 400, 0)
    after = embedding(model)
    assert after.shape == (400, 8)
    assert torch.equal(after[:10], before)
    assert model.config.vocab_size == 400
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()  # still tied
    # Drawn as first rows are: no word begins as the average of the others.
    assert float(after[10:].std()) == pytest.approx(model.config.initializer_range, rel=0.1)
    extend_vocabulary(model, 400, 0)
    extend_vocabulary(model, 5, 0)
    assert torch.equal(embedding(model), after)


def test_new_words_depend_on_the_seed_and_nothing_else() -> None:
    rows = []
    for state, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(state)
        model = random_model(TINY, 10, 0)
        extend_vocabulary(model, 14, seed)
        rows.append(embedding(model)[10:])
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_a_model_learns_on_with_its_new_words() -> None:
    """Also while the graph of its last step is still there, as it is in a loop."""
    model = random_model(TINY, 10, 0)
    before = model(input_ids=torch.tensor([[1, 3, 4]])).logits.sum()
    before.backward()
    extend_vocabulary(model, 14, 0)
    model.zero_grad()
    model(input_ids=torch.tensor([[1, 3, 13]])).logits.sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert isinstance(gradient, torch.Tensor)
    assert gradient.shape == (14, 8)
    assert gradient[13].abs().sum() > 0


def test_a_recipe_goes_on_from_its_folder_as_if_it_had_never_stopped(tiny: None, tmp_path: Path) -> None:
    spec = recipe(FIRST, Cycle(steps=3, lr=1e-2))
    whole = made(spec, tmp_path / "whole")
    assert equal(whole, made(spec, tmp_path / "again"))
    first = made(recipe(FIRST), tmp_path / "on")
    assert len(first["model.embed_tokens.weight"]) < len(whole["model.embed_tokens.weight"])
    assert equal(whole, made(spec, tmp_path / "on"))
    assert (tmp_path / "whole" / "tokenizer.json").read_bytes() == (tmp_path / "on" / "tokenizer.json").read_bytes()
    assert not equal(whole, made(recipe(*spec.cycles, seed=1), tmp_path / "other"))


def test_what_another_recipe_made_is_left_alone(tiny: None, tmp_path: Path) -> None:
    before = made(recipe(FIRST), tmp_path / "base")
    for other in (recipe(FIRST, seed=1), recipe(FIRST.model_copy(update={"steps": 4}))):
        with pytest.raises(UserError, match="another recipe"):
            made(other, tmp_path / "base")
    assert equal(before, weights(tmp_path / "base"))


def test_bases_are_kept_in_half_precision_and_read_in_full(tiny: None, tmp_path: Path) -> None:
    made(recipe(FIRST), tmp_path / "base")
    saved = load_file(tmp_path / "base" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float16}
    model = load_language_model(str(tmp_path / "base"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(torch.equal(value.float(), model.state_dict()[name]) for name, value in saved.items())


def stopped(spec: PretrainSpec, folder: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe, killed after so many steps, with a step checkpoint of each."""
    rows, count = Rows.of, [0]

    def of(*given: Any) -> Rows:
        count[0] += 1
        if count[0] > at:
            raise KeyboardInterrupt
        return rows(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "of", of)
        with pytest.raises(KeyboardInterrupt):
            resumed(spec, folder)


def resumed(spec: PretrainSpec, folder: Path) -> dict[str, torch.Tensor]:
    pretrain(spec, folder / "on", lambda done, total, metrics: None, folder / "partial", 0)
    return weights(folder / "on")


@pytest.mark.parametrize("killed_at", [1, 3, 4, 5])
def test_a_recipe_resumes_bit_for_bit(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    spec = recipe(FIRST, Cycle(steps=3, lr=1e-2))
    whole = made(spec, tmp_path / "whole")
    stopped(spec, tmp_path, killed_at, monkeypatch)
    kept = [path.name for path in (tmp_path / "partial").iterdir()]
    assert kept == {1: ["0"], 3: [], 4: ["1"], 5: ["1"]}[killed_at]
    taken: list[int] = []
    step = _Training.step
    monkeypatch.setattr(_Training, "step", lambda self, rows: (taken.append(1), step(self, rows))[1])
    assert equal(whole, resumed(spec, tmp_path))
    assert len(taken) == 6 - killed_at
    record = read_json(tmp_path / "on.json")
    assert [cycle["tokens"] for cycle in record["cycles"]] == [3 * 2 * 96] * 2


def test_a_damaged_step_checkpoint_costs_its_cycle_and_no_other(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = recipe(FIRST, Cycle(steps=3, lr=1e-2))
    whole = made(spec, tmp_path / "whole")
    stopped(spec, tmp_path, 5, monkeypatch)
    for state in (tmp_path / "partial" / "1").glob("state-*"):
        state.write_bytes(state.read_bytes()[:-1])
    assert equal(whole, resumed(spec, tmp_path))


def test_a_cycle_sees_its_own_worlds_only(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for name, place in WORLDS.items():

        def document(self: Any, rng: Any, name: str = name, of: Any = place.document) -> str:
            seen.append(name)
            return str(of(self, rng))

        monkeypatch.setattr(place, "document", document)
    made(recipe(FIRST), tmp_path / "first")
    assert set(seen) == {"summarisation"}
    made(recipe(FIRST, Cycle(steps=3, lr=1e-2)), tmp_path / "both")
    assert set(seen) == set(WORLDS)


def test_the_record_says_what_was_done(tiny: None, tmp_path: Path) -> None:
    spec = recipe(FIRST, Cycle(worlds=("summarisation", "arena"), steps=2, lr=1e-2))
    done: list[tuple[int, int]] = []
    record = pretrain(spec, tmp_path / "base", lambda at, total, metrics: done.append((at, total)))
    assert record == read_json(tmp_path / "base.json")
    assert PretrainSpec.model_validate(record["spec"]) == spec
    assert record["tokens"] == 5 * 2 * 96
    assert record["seconds"] == pytest.approx(sum(cycle["seconds"] for cycle in record["cycles"]), abs=0.01)
    assert [set(cycle["held_out"]) for cycle in record["cycles"]] == [{"summarisation"}, {"summarisation", "arena"}]
    assert record["held_out"] == record["cycles"][-1]["held_out"]
    assert done == [(5, 5)]


@pytest.mark.parametrize("size", RECIPES)
def test_vocabularies_of_a_recipe_grow_at_their_end(size: str) -> None:
    """Else a word would change its number from cycle to cycle."""
    words = [
        list(dict.fromkeys(word for name in cycle.worlds for word in world(name).vocabulary()))
        for cycle in RECIPES[size].cycles
    ]
    for shorter, longer in pairwise(words):
        assert longer[: len(shorter)] == shorter
    assert RECIPES[size].cycles[-1].worlds == tuple(WORLDS)


@pytest.mark.parametrize("size", MADE)
def test_shipped_bases_follow_their_recipe_and_know_every_word(size: str) -> None:
    assert PretrainSpec.model_validate(read_json(BASES / f"{size}.json")["spec"]) == RECIPES[size]
    known = load_tokenizer(base_path(size)).get_vocab()
    words = dict.fromkeys(word for place in WORLDS.values() for word in place().vocabulary())
    assert sorted(known, key=known.__getitem__) == [*SPECIAL_TOKENS, *words]
    assert read_json(BASES / size / "config.json")["vocab_size"] == len(known)


FREE = {"loss", "who", "asked"}
"""Not gated: a base need not look up a subject by its verb, nor who was asked about."""
PASSED = [name for name in MADE if name not in ("91k", "x1-second")]
"""91k fails `how`, and is kept for what follows from that; x1-second fails `how` in the arena (.926)."""


@pytest.mark.parametrize("name", PASSED)
def test_bases_answer_the_recipes_questions(name: str) -> None:
    for place, held_out in read_json(BASES / f"{name}.json")["held_out"].items():
        assert {question: share for question, share in held_out.items() if question not in FREE and share < 0.95} == {}
        assert {"loss", "means"} < set(held_out), place


@pytest.mark.parametrize("name", MADE)
def test_a_record_tells_what_its_weights_say(name: str) -> None:
    """On summarisation's documents, whose questions are asked of every base."""
    model, tokenizer = load_language_model(base_path(name)), load_tokenizer(base_path(name))
    told = read_json(BASES / f"{name}.json")["held_out"]["summarisation"]
    found = evaluate_base(model, tokenizer, [world("summarisation")], 32)  # type: ignore[arg-type]
    assert found == pytest.approx(told, abs=0.005)
