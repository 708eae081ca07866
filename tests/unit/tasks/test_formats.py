"""Every known format on rows of its exact shape, and the traps of each."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aligngap.errors import UserError
from aligngap.tasks.formats import SCHEMAS, TextPair, convert, detect, schema_named
from aligngap.tasks.messages import Dropped, Message
from unit.tasks import rows
from unit.tasks.rows import Row

SKY = (Message("user", "What colour is the sky?"),)


def pair_of(row: Row) -> TextPair:
    return convert(detect([row], "here"), row)


def reason(row: Row, schema: str) -> str:
    with pytest.raises(Dropped) as dropped:
        convert(schema_named(schema), row)
    return str(dropped.value)


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("preference", rows.TLDR, (rows.TLDR["prompt"], " My cat left, sad.", " Cat.")),
        ("preference", rows.CARPER, (rows.CARPER["prompt"], "TL;DR: Cat left me.", "TL;DR: Cat.")),
        (
            "hh",
            rows.hh(" Yes", " No"),
            ("\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A pun?\n\nAssistant:", " Yes", " No"),
        ),
        ("implicit", rows.IMPLICIT, ("The sky is", " blue.", " black.")),
        ("conversational", rows.CONVERSATION, (SKY, "Blue.", "Green.")),
        ("conversational", rows.IMPLICIT_CONVERSATION, (SKY, "Blue.", "Green.")),
        ("conversational", {**rows.CONVERSATION, "chosen": "Blue.", "rejected": "Green."}, (SKY, "Blue.", "Green.")),
        ("scored", rows.ULTRAFEEDBACK, (SKY, "Blue.", "Green.")),
        ("scored", {**rows.TLDR, "chosen-rating": 5, "rejected-rating": 1}, tuple(rows.TLDR.values())),
        ("completions", rows.COMPLETIONS, (SKY, "Blue.", "Green.")),
        ("arena", rows.battle("model_a"), ((Message("user", "Why?"),), "Because.", "No idea.")),
        (
            "summarize_from_feedback",
            rows.comparison(0),
            ("SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: My cat left.\n\nTL;DR:", " Cat left.", " My cat left, sad."),
        ),
        (
            "summarize_from_feedback",
            rows.comparison(0, post=None, article="A cat has left."),
            ("Article:\nA cat has left.\n\nTL;DR:", " Cat left.", " My cat left, sad."),
        ),
    ],
)
def test_rows_of_every_format(name: str, row: Row, expected: tuple[Any, str, str]) -> None:
    assert detect([row], "here").name == name
    pair = pair_of(row)
    assert (pair.prompt, pair.first, pair.second, pair.preference) == (*expected, 1.0)
    assert pair.positioned is (name in ("arena", "summarize_from_feedback"))


def test_the_answer_that_the_rater_saw_second_may_be_the_chosen_one() -> None:
    for row in (rows.battle("model_b"), rows.comparison(1)):
        pair = pair_of(row)
        assert pair.preference == 0.0
        assert (pair.chosen, pair.rejected) == (pair.second, pair.first)


def test_hh_is_cut_at_each_sides_own_last_turn() -> None:
    """A common prefix would put `I think` into the prompt, or end the prompt at the wrong turn."""
    pair = pair_of(rows.hh(" I think so.", " I think not.\n\nHuman: Oh?"))
    assert (pair.first, pair.second) == (" I think so.", " I think not.\n\nHuman: Oh?")
    longer = rows.hh(" One\n\nHuman: Two\n\nAssistant: Three", " Four")
    assert reason(longer, "hh") == "the prompts differ"
    assert reason(rows.hh(" Yes", " \n"), "hh") == "the answer in rejected is empty"
    assert reason({"chosen": "\n\nHuman: x", "rejected": rows.hh(" a", " b")["rejected"]}, "hh").startswith(
        "chosen has no"
    )


def test_a_common_prefix_ends_between_words() -> None:
    pair = pair_of({"chosen": "Q: skyline or sky? skyline", "rejected": "Q: skyline or sky? sky"})
    assert (pair.prompt, pair.first, pair.second) == ("Q: skyline or sky?", " skyline", " sky")
    assert "there is no prompt" in reason({"chosen": "Yes", "rejected": "Yet"}, "implicit")
    assert "the same" in reason({"chosen": "a b", "rejected": "a b"}, "implicit")
    assert reason({"chosen": "a b ", "rejected": "a b c"}, "implicit") == "chosen is empty"


def test_arena_keeps_single_turns_and_knows_ties() -> None:
    assert pair_of(rows.battle("tie")).preference == pair_of(rows.battle("tie (bothbad)")).preference == 0.5
    assert reason(rows.battle(turns=2), "arena") == "more than one turn"
    assert reason(rows.battle("model_c"), "arena").startswith("winner is none of")


def test_conversations_with_a_repeated_prompt_and_a_system_message() -> None:
    system = rows.message("system", "")
    sides = {name: [system, *rows.IMPLICIT_CONVERSATION[name]] for name in ("chosen", "rejected")}
    whole = (Message("system", ""), *SKY)
    assert pair_of({**sides, "prompt": rows.SKY["content"]}).prompt == whole
    assert pair_of({**sides, "prompt": [system, rows.SKY]}).prompt == whole
    assert pair_of({**rows.CONVERSATION, "prompt": [system, rows.SKY]}).prompt == whole


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**rows.CONVERSATION, "rejected": [rows.GREEN, rows.SKY]}, "rejected does not end with the assistant's turn"),
        ({**rows.CONVERSATION, "rejected": [rows.SKY, rows.GREEN]}, "the prompts differ"),
        ({**rows.CONVERSATION, "prompt": []}, "prompt is empty"),
        ({**rows.CONVERSATION, "chosen": [{"role": "assistant", "content": None}]}, "chosen is missing"),
        (
            {**rows.CONVERSATION, "chosen": [{"role": "assistant", "content": [{"type": "image"}]}]},
            "chosen holds more than text",
        ),
        ({**rows.CONVERSATION, "chosen": [rows.GREEN]}, "the two answers are the same"),
    ],
)
def test_conversations_that_give_no_pair(row: Row, expected: str) -> None:
    assert reason(row, "conversational") == expected


def test_scores() -> None:
    assert pair_of({**rows.ULTRAFEEDBACK, "score_rejected": 8.5}).preference == 0.5
    assert reason({**rows.ULTRAFEEDBACK, "score_rejected": 9.0}, "scored") == "the scores contradict the order"
    assert reason({**rows.ULTRAFEEDBACK, "score_chosen": None}, "scored") == "score_chosen is missing"
    for value in (float("nan"), "N/A", {}):
        assert reason({**rows.ULTRAFEEDBACK, "score_chosen": value}, "scored") == "score_chosen is not a number"
    for value in (float("inf"), -float("inf"), 10**400, "1e999"):
        said = reason({**rows.ULTRAFEEDBACK, "score_chosen": value}, "scored")
        assert said == "score_chosen is infinite, or larger than any number that can be compared"
    unrated = {"response": "Red.", "overall_score": float("nan")}
    completions = {**rows.COMPLETIONS, "completions": [unrated, *rows.COMPLETIONS["completions"]]}
    assert reason(completions, "completions") == "a completion's score is not a number"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rejected": None}, "rejected is missing"),
        ({"rejected": 3}, "rejected is not text"),
        ({"rejected": " \n"}, "rejected is empty"),
        ({"prompt": ""}, "prompt is empty"),
        ({"chosen": "\ud800"}, "chosen is not valid Unicode"),
        ({"chosen": " Cat."}, "the two answers are the same"),
    ],
)
def test_rows_that_give_no_pair(change: Row, expected: str) -> None:
    assert reason({**rows.TLDR, **change}, "preference") == expected


def test_wrong_field_names_are_named_with_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        detect([{"prompt": "p", "choosen": "a", "rejected": "b"}], "pairs.jsonl, row 1")
    assert error.value.where == "pairs.jsonl, row 1"
    assert "'chosen' is missing" in error.value.what
    assert "--column chosen=choosen" in str(error.value.hint)
    for row in ({"Prompt": "p", "Chosen": "a", "Rejected": "b"}, {"promt": "p", "choosen": "a", "rejcted": "b"}):
        with pytest.raises(UserError) as error:
            detect([row], "x")
        names = zip(("prompt", "chosen", "rejected"), row, strict=True)
        assert [f"--column {name}={theirs}" in str(error.value.hint) for name, theirs in names] == [True] * 3
        assert str(error.value.hint).count("--column") == 3


def test_a_set_of_another_kind_is_told_the_known_formats() -> None:
    with pytest.raises(UserError) as error:
        detect([{"question": "q", "label": True}], "x")
    assert "question, label" in error.value.what
    assert all(schema.name in str(error.value.hint) for schema in SCHEMAS)
    with pytest.raises(UserError, match="no row among the first 1 can be read as 'preference'"):
        detect([{**rows.TLDR, "rejected": None}], "x")
    with pytest.raises(UserError, match="Did you mean 'arena'"):
        schema_named("arenas")


# What holds for every record

plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
answers = plain.filter(str.strip)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
    max_leaves=6,
)
COLUMNS = sorted({column for schema in SCHEMAS for column in schema.columns} | {"turn", "score", "prompt"})
turns = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": values}), max_size=3)


@given(st.dictionaries(st.sampled_from(COLUMNS), values | turns, max_size=6))
def test_any_record_is_a_pair_or_dropped_for_a_reason(record: dict[str, Any]) -> None:
    for schema in SCHEMAS:
        with suppress(Dropped):
            pair = convert(schema, record)
            assert pair.first != pair.second
            assert pair.preference in (0.0, 0.5, 1.0)
    with suppress(UserError):
        assert detect([record], "here").fits(record)


@given(answers, answers, answers)
def test_what_is_prompt_and_what_is_answer_is_lost_by_no_format(prompt: str, one: str, other: str) -> None:
    assume(one != other)
    pair = convert(schema_named("preference"), {"prompt": prompt, "chosen": one, "rejected": other})
    assert (pair.prompt, pair.first, pair.second) == (prompt, one, other)
    talk = [{"role": "user", "content": prompt}]
    ends = [{"role": "assistant", "content": answer} for answer in (one, other)]
    pair = convert(schema_named("conversational"), {"chosen": [*talk, ends[0]], "rejected": [*talk, ends[1]]})
    assert (pair.prompt, pair.first, pair.second) == ((Message("user", prompt),), one, other)


@given(plain, answers, answers)
def test_an_implicit_prompt_and_its_answers_are_the_two_texts(shared: str, one: str, other: str) -> None:
    chosen, rejected = f"{shared} {one}", f"{shared} {other}"
    try:
        pair = convert(schema_named("implicit"), {"chosen": chosen, "rejected": rejected})
    except Dropped:
        return
    assert isinstance(pair.prompt, str)
    assert (pair.prompt + pair.first, pair.prompt + pair.second) == (chosen, rejected)
    swapped = convert(schema_named("implicit"), {"chosen": rejected, "rejected": chosen})
    assert (swapped.prompt, swapped.first, swapped.second) == (pair.prompt, pair.second, pair.first)


@given(st.floats() | st.integers(), st.floats() | st.integers())
def test_scores_decide_or_drop(chosen: float, rejected: float) -> None:
    record = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": chosen, "score_rejected": rejected}
    try:
        pair = convert(detect([record], "here"), record)
    except Dropped:
        assert not chosen >= rejected or max(abs(chosen), abs(rejected)) > 1e300
    else:
        assert pair.preference == (0.5 if float(chosen) == float(rejected) else 1.0)
        assert chosen >= rejected


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "completion": "c", "label": True}, ["one answer ('completion')", "'label'", "KTO", "of two"]),
        ({"prompt": [], "completion": [], "label": 0}, ["'label'", "KTO"]),
        ({"question": "p", "answer": "c", "score": 1}, ["one answer ('answer')", "'score'"]),
        ({"instruction": "p", "output": "c"}, ["one answer ('output')", "supervised fine-tuning"]),
        ({"messages": [rows.SKY, rows.BLUE]}, ["one answer ('messages')", "supervised fine-tuning"]),
    ],
)
def test_data_without_a_comparison_are_called_what_they_are(row: Row, words: list[str]) -> None:
    """The nearest format is no help where there is no pair to be read."""
    with pytest.raises(UserError) as caught:
        detect([row], "here")
    assert all(word in str(caught.value) for word in words), str(caught.value)
