"""The built-in world: its utility worked out by hand, a language that knows nothing of it, and raters who feel it."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from aligngap.errors import UserError
from aligngap.judges.true_utility import TrueUtilityJudge
from aligngap.models.build import SPECIAL_TOKENS, word_tokenizer
from aligngap.tasks.spec import TaskData, TaskSpec, make_pairs, response_ids
from aligngap.tasks.worlds import WORLDS, World, world
from aligngap.tasks.worlds.base import Written
from aligngap.tasks.worlds.summarisation import Summarisation
from aligngap.types import Tokens

POST = "sadly captain won anyway wife escaped finally doctor cried tl;dr"  # two important facts, one side fact

# text, ended, features that are not 0, utility by the weights of the module's table
BY_HAND: list[tuple[str, bool, dict[str, float], float]] = [
    ("captain won and doctor cried .", True, {"important": 1}, 3.0),
    ("tldr: captain won , doctor cried .", True, {"important": 1}, 3.0),
    ("captain won .", True, {"important": 0.5}, 1.5),
    ("captain won , wife escaped and doctor cried .", True, {"important": 1, "side": 1}, 2.5),
    ("captain escaped .", True, {"invented": 1}, -1.3),  # subject and verb of two facts
    ("captain won , captain won and captain won .", True, {"important": 0.5, "repeated": 2}, -0.1),
    (
        "so: well captain really won .",
        True,
        {"filler": 2, "broken": 3},
        -2.4,
    ),  # a filler tears the fact apart, and nothing is told before the stop
    ("basically captain won .", True, {"important": 0.5, "filler": 1}, 1.2),
    ("captain won doctor cried .", True, {"important": 1, "broken": 1}, 2.4),  # no joiner
    ("captain won", True, {"important": 0.5, "no_stop": 1}, 1.1),
    ("captain won and doctor cried", False, {"important": 1, "no_stop": 1, "unended": 1}, 1.6),
    ("captain won . thanks", True, {"important": 0.5, "polite": 1}, 1.7),
    ("captain won . please thanks cheers", True, {"important": 0.5, "polite": 1, "over_polite": 2}, 1.1),
    ("captain won . doctor", True, {"important": 0.5, "broken": 1}, 0.9),
    ("captain won and .", True, {"important": 0.5, "broken": 1}, 0.9),
    ("", True, {"no_stop": 1}, -0.4),
    ("", False, {"no_stop": 1, "unended": 1}, -1.4),
    (".", True, {"broken": 1}, -0.6),
    ("thanks captain", False, {"broken": 2, "no_stop": 1, "unended": 1}, -2.6),
    ("<pad> captain won .", True, {"important": 0.5, "broken": 1}, 0.9),
]


@pytest.fixture(scope="module", params=WORLDS)
def place(request: pytest.FixtureRequest) -> World:
    return world(request.param)


@pytest.fixture(scope="module")
def tokenizer(place: World) -> PreTrainedTokenizerBase:
    return word_tokenizer(place.words())


@pytest.fixture(scope="module")
def data(place: World, tokenizer: PreTrainedTokenizerBase) -> TaskData:
    return make_pairs(TaskSpec(world=place.name, train_pairs=600, held_out_pairs=200), tokenizer)


@pytest.mark.parametrize(("text", "ended", "features", "utility"), BY_HAND)
def test_utility_by_hand(text: str, ended: bool, features: dict[str, float], utility: float) -> None:
    found = Summarisation().appraise(POST, Written(text, ended))
    assert {name: value for name, value in found.features.items() if value} == features
    assert found.utility == pytest.approx(utility)


def test_an_order_of_facts_is_no_matter() -> None:
    place = Summarisation()
    assert place.utility(POST, Written("doctor cried and captain won .")) == place.utility(
        POST, Written("captain won and doctor cried .")
    )


def test_documents_know_nothing_of_rater_or_writers(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [place.document(np.random.default_rng(k)) for k in range(50)]

    def forbidden(*arguments: Any, **options: Any) -> NoReturn:
        raise AssertionError("a document must not look at this")

    for name in ("appraise", "utility", "rate", "write", "writers"):
        monkeypatch.setattr(type(place), name, forbidden)
    if isinstance(place, Summarisation):
        monkeypatch.setattr("aligngap.tasks.worlds.summarisation.WEIGHTS", None)
        monkeypatch.setattr("aligngap.tasks.worlds.summarisation._SKILLS", None)
    assert [place.document(np.random.default_rng(k)) for k in range(50)] == before
    assert len(set(before)) == 50


def test_markers_and_facts_are_alike_in_documents() -> None:
    """Important and side markers take the same part in the pretraining language: nothing there says which matter."""
    place, rng = Summarisation(), np.random.default_rng(0)
    words = " ".join(place.document(rng) for _ in range(1500)).split()
    counts = np.array(
        [words.count(marker) for marker in ("sadly", "suddenly", "finally", "anyway", "meanwhile", "also")]
    )
    assert counts.min() > 500
    assert np.abs(counts / counts.mean() - 1).max() < 0.12


def test_every_word_is_in_the_vocabulary(place: World, tokenizer: PreTrainedTokenizerBase) -> None:
    known = {*place.words(), *SPECIAL_TOKENS}
    assert len(known) == len(tokenizer)
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert set(place.document(rng).split()) <= known
        prompt = place.prompt(rng)
        assert set(prompt.split()) <= set(place.words())
        for writer in place.writers():
            assert set(place.write(rng, prompt, writer).text.split()) <= set(place.words())


def test_text_to_ids_and_back(place: World, tokenizer: PreTrainedTokenizerBase) -> None:
    judge, rng = TrueUtilityJudge(place, tokenizer), np.random.default_rng(1)
    ends = set()
    for _ in range(100):
        prompt = place.prompt(rng)
        ids = tokenizer(prompt)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert judge.text(ids) == prompt
        for writer in place.writers():
            written = place.write(rng, prompt, writer)
            response = response_ids(written, tokenizer)
            assert 1 <= len(response) <= place.max_response_tokens
            assert judge.read(response) == dataclasses.replace(written, writer="")
            ends.add(written.ended)
    assert ends == {True, False}


def test_writers_differ_in_what_they_are_worth(place: World) -> None:
    rng = np.random.default_rng(0)
    prompts = [place.prompt(rng) for _ in range(300)]
    mean = [
        float(np.mean([place.utility(p, place.write(rng, p, writer)) for p in prompts])) for writer in place.writers()
    ]
    assert max(mean) - min(mean) > 0.5


def test_prompts_of_the_splits_are_disjoint_and_unlike(data: TaskData) -> None:
    train, held_out = ({tuple(row) for row in part.prompts.rows()} for part in (data.train, data.held_out))
    assert len(train) == 600
    assert len(held_out) == 200
    assert not train & held_out
    assert data.train.prompt_numbers.tolist() == list(range(600))
    assert data.held_out.prompt_numbers.tolist() == list(range(600, 800))


def test_pairs_repeat_with_their_seed_and_change_with_it(
    place: World, tokenizer: PreTrainedTokenizerBase, data: TaskData
) -> None:
    def rows(seed: int, train: int = 600) -> list[list[int]]:
        made = make_pairs(
            TaskSpec(world=place.name, train_pairs=train, held_out_pairs=800 - train, seed=seed), tokenizer
        )
        return [*made.train.first.rows(), *made.held_out.first.rows()]

    whole = [*data.train.first.rows(), *data.held_out.first.rows()]
    assert rows(0) == whole
    assert rows(0, 500) == whole  # where the split lies changes no pair
    assert rows(1) != whole


def test_raters_mostly_agree_with_the_true_utility(
    place: World, tokenizer: PreTrainedTokenizerBase, data: TaskData
) -> None:
    judge = TrueUtilityJudge(place, tokenizer)
    margin = judge.margin(data.train.prompts, data.train.first, data.train.second).numpy()
    decided = margin != 0
    assert decided.mean() > 0.9
    agreement = float(((margin > 0) == (data.train.preference.numpy() == 1))[decided].mean())
    assert 0.8 < agreement < 0.95
    assert 0.4 < float(data.train.preference.mean()) < 0.6


def test_rater_is_bradley_terry() -> None:
    place, rng = Summarisation(), np.random.default_rng(0)
    better, worse = Written("captain won . thanks"), Written("captain won .")  # by 0.2 at temperature 0.7
    rate = np.mean([place.rate(rng, POST, better, worse) for _ in range(20_000)])
    assert rate == pytest.approx(1 / (1 + np.exp(-0.2 / 0.7)), abs=0.015)


def test_true_utility_judge() -> None:
    place = Summarisation()
    words = word_tokenizer(place.words())
    judge = TrueUtilityJudge(place, words)
    texts = [
        ("captain won and doctor cried .", "captain won ."),
        ("captain escaped .", "captain won ."),
        ("doctor cried .", "captain won ."),
    ]
    prompts = Tokens.collate([words(POST)["input_ids"]] * 3)
    first, second = (Tokens.collate([response_ids(Written(pair[k]), words) for pair in texts]) for k in (0, 1))
    assert judge.margin(prompts, first, second).tolist() == pytest.approx([1.5, -2.8, 0.0])
    assert judge.prefer(prompts, first, second).tolist() == [1, 0, 0.5]
    assert judge.calls == 6
    # An end token in mid-text is a broken word, and a missing one is a response that ran into the limit.
    ids = words("captain won .", add_special_tokens=False)["input_ids"]
    inside = [*ids[:-1], words.eos_token_id, ids[-1], words.eos_token_id]
    assert judge.utilities(
        prompts, Tokens.collate([ids, inside, [*ids, words.eos_token_id]])
    ).tolist() == pytest.approx([0.5, 0.9, 1.5])


def test_unknown_world_names_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        world("summarization")
    assert "summarisation" in str(caught.value.mend)
