"""Nothing of a user's data is dropped, cut, changed or left out without a count and a row.

Kinds of fault from public reports, each with the right behaviour: a rule checked before a step that can break it; an
option handed to somebody else's template without a look at its effect; reading that loses something and does not count
it; an option that cannot be honoured. Where the handed cases lie beside the checkout, they are read, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aligngap.errors import UserError
from aligngap.experiments.starter import fitted_limits
from aligngap.models.tokenizer import byte_tokenizer, word_tokenizer
from aligngap.tasks.chat import CHANGED_ANSWER, CHANGED_TURN, OTHER_OPENING, PREFILL, template_facts
from aligngap.tasks.check import describe, survey
from aligngap.tasks.datasets import DatasetSpec, Tally, read, training_split
from aligngap.tasks.encode import TWO_BEGINNINGS, encode, make_dataset_pairs
from aligngap.tasks.formats import TextPair
from aligngap.tasks.messages import Message

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases"
Row = dict[str, Any]
TEXTS = ["What is the river? It is long. No, tell me about animal cat sea"] * 3

HEADER = "<|im_start|>{{ m.role }}\n"
TURN = "{% for m in messages %}" + HEADER + "{{ m.content }}<|im_end|>\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
THINK = (
    "{% for m in messages %}"
    + HEADER
    + "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}" + OPEN
)
LLAMA = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} <eos>{% endif %}{% endfor %}"
)
TOOLS = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}{% for m in messages %}" + HEADER + "{{ m.content }}"
    "{% if m.tool_calls %}<call>{{ m.tool_calls | tojson }}</call>{% endif %}<|im_end|>\n{% endfor %}" + OPEN
)
SILENT_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}" + HEADER + "{{ m.content }}\n{% endif %}{% endfor %}"
)


def tokenizer(template: str | None = None) -> Any:
    made = byte_tokenizer([*TEXTS, "<|im_start|><|im_end|>"], 400)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = template
    return made


def turn(role: str, content: str, **keys: Any) -> Row:
    return {"role": role, "content": content, **keys}


def talk(number: int = 0, **changes: Any) -> Row:
    row = {
        "prompt": [turn("user", f"What is river {number}?")],
        "chosen": [turn("assistant", f"It is long {number}.")],
        "rejected": [turn("assistant", f"No {number}.")],
    }
    return row | changes


def saved(path: Path, rows: list[Row]) -> DatasetSpec:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetSpec(source=str(path))


def decoded(spec: DatasetSpec, words: Any) -> tuple[list[tuple[str, str, str]], Tally]:
    """Prompt, first and second answer of each pair as the tokens read, and what was counted."""
    reading, tally = read(spec), Tally()
    items = [item for item in encode(reading, words, tally) if item is not None]
    tally.add(reading.tally)
    return [tuple(words.decode(ids) for ids in item[1:4]) for item in items], tally  # type: ignore[misc]


# --- a validity rule is checked before a step that can break it ---


def test_answers_that_are_the_same_once_cut_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"river {n}", "chosen": " cat" * 20 + f" good {n}", "rejected": " cat" * 20} for n in range(30)]
    rows += [{"prompt": f"sea {n}", "chosen": f" good {n}", "rejected": " bad"} for n in range(30)]
    spec = saved(tmp_path / "a.jsonl", rows).model_copy(update={"max_response_tokens": 8})
    made = make_dataset_pairs(spec, tokenizer())
    assert made.tally.dropped["the two answers are the same once cut to 8 tokens"] == 30
    for pairs in (made.data.train, made.data.held_out):
        assert all(a != b for a, b in zip(pairs.first.rows(), pairs.second.rows(), strict=True))
    assert made.tally.warnings()
    costs = describe(spec, tokenizer()).over_limit
    assert costs is not None
    assert [*costs.values()][-1] == 30


def test_answers_that_a_lossy_tokenizer_makes_the_same_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"river {n}", "chosen": "alpha", "rejected": "beta"} for n in range(20)]
    rows += [{"prompt": f"sea {n}", "chosen": "long", "rejected": "beta"} for n in range(20)]
    spec, words = saved(tmp_path / "a.jsonl", rows), word_tokenizer([*map(str, range(40)), "river", "sea", "long"])
    reason = "the two answers are the same once the tokenizer has read them"
    assert make_dataset_pairs(spec, words).tally.dropped[reason] == 20
    contents = describe(spec, words)
    assert (contents.tally.dropped[reason], contents.kept) == (20, 20)
    assert any("50% of the rows are dropped" in line for line in contents.warnings)


def test_an_answer_without_tokens_is_dropped(tmp_path: Path) -> None:
    rows = [{"prompt": f"river {n}", "chosen": "<eos>", "rejected": " no"} for n in range(9)]
    rows += [{"prompt": f"sea {n}", "chosen": " yes", "rejected": " no"} for n in range(9)]
    made = make_dataset_pairs(saved(tmp_path / "a.jsonl", rows), tokenizer())
    assert made.tally.dropped["an answer has no tokens"] == 9


def test_prompts_that_nearly_leak_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "What is it?", "chosen": " a", "rejected": " b"}]
    rows += [{"prompt": f"river {n}", "chosen": " a", "rejected": " b"} for n in range(9)]
    for row, split in zip(rows, ["train"] * 9 + ["test"], strict=True):
        row["split"] = split
    rows.append({"prompt": "what  is it", "chosen": " a", "rejected": " b", "split": "test"})
    spec = saved(tmp_path / "a.jsonl", rows).model_copy(update={"split": "train", "held_out_split": "test"})
    made = make_dataset_pairs(spec, tokenizer())
    (note,) = made.tally.notes
    assert "case, white space or a last mark" in note
    (leak,) = describe(saved(tmp_path / "a.jsonl", rows)).leaks
    assert (leak.rows, leak.nearly) == (0, 1)


@pytest.mark.parametrize("context", [64, 128, 256, 1024])
def test_limits_fit_the_data_or_say_what_they_cost(context: int, tmp_path: Path) -> None:
    rows = [
        {"prompt": "river " * 8 + str(n), "chosen": " cat" * 80 + f" {n}", "rejected": " sea" * 70} for n in range(40)
    ]
    frame = survey(saved(tmp_path / "a.jsonl", rows), tokenizer()).frame
    limits = fitted_limits(frame, context)
    assert limits.prompt + 2 * limits.response + 2 <= context
    medians = (frame["prompt"].median(), max(frame["chosen"].median(), frame["rejected"].median()))
    below = [limit < median for limit, median in zip(limits[:2], medians, strict=True)]  # type: ignore[operator]
    assert len(limits.warnings) == sum(below)
    assert (context >= 256) is not any(below)


# --- an option is handed to somebody else's template without a look at its effect ---


@pytest.mark.parametrize("template", [TURN + OPEN, TURN, THINK, LLAMA, TOOLS])
def test_ids_are_what_the_template_writes_for_the_whole_conversation(template: str, tmp_path: Path) -> None:
    words = tokenizer(template)
    words.eos_token = "<eos>" if template is LLAMA else "<|im_end|>"
    spec = saved(tmp_path / "c.jsonl", [talk(n) for n in range(3)])
    rows, tally = decoded(spec, words)
    for number, (prompt, first, _) in enumerate(rows):
        row = talk(number)
        whole = words.apply_chat_template([*row["prompt"], *row["chosen"]], tokenize=False)
        assert whole.rstrip("\n") == prompt + first
        assert "It is long" in first
        assert "assistant" not in first
    told = " ".join(tally.notes)
    assert ("knows no generation prompt" in told) is (template is TURN)
    assert ("behind its generation prompt" in told) is (template is THINK)


def test_a_gap_before_the_answer_belongs_to_it(tmp_path: Path) -> None:
    ((prompt, first, second),), tally = decoded(saved(tmp_path / "c.jsonl", [talk()]), tokenizer(LLAMA))
    assert prompt.endswith("[/INST]")
    assert (first, second) == (" It is long 0. <eos>", " No 0. <eos>")  # and the gap before its end
    assert not tally.notes


def test_a_template_that_opens_otherwise_than_it_writes_is_told(tmp_path: Path) -> None:
    template = TURN + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ((prompt, *_),), tally = decoded(saved(tmp_path / "c.jsonl", [talk()]), tokenizer(template))
    assert prompt.endswith("assistant\n")
    assert tally.notes == {OTHER_OPENING: 1}


def test_a_beginning_that_the_text_holds_already_is_not_doubled(tmp_path: Path) -> None:
    words = tokenizer()
    spec = saved(tmp_path / "c.jsonl", [{"prompt": "<bos>river", "chosen": " a", "rejected": " b"}])
    ((prompt, *_),), tally = decoded(spec, words)
    assert prompt == "<bos>river"
    assert tally.notes == {TWO_BEGINNINGS: 1}


@pytest.mark.parametrize("template", [None, TURN + OPEN])
def test_a_prefilled_turn_gets_no_second_header(template: str | None, tmp_path: Path) -> None:
    row = talk(prompt=[turn("user", "Which?"), turn("assistant", "It is")], chosen=[turn("assistant", " long")])
    ((prompt, first, _),), tally = decoded(saved(tmp_path / "c.jsonl", [row]), tokenizer(template))
    assert prompt.endswith("It is")
    assert first.startswith(" long")
    assert prompt.lower().count("assistant") == 1
    assert tally.notes == {PREFILL: 1}


def test_a_template_that_changes_or_loses_an_answer_is_counted(tmp_path: Path) -> None:
    template = TURN.replace("m.content", "m.content.split('</think>')[-1]") + OPEN
    rows = [
        talk(),
        talk(chosen=[turn("assistant", "<think>hm</think>yes")]),
        talk(chosen=[turn("assistant", "x</think>")]),
    ]
    pairs, tally = decoded(saved(tmp_path / "c.jsonl", rows), tokenizer(template))
    assert [first.partition("<")[0] for _, first, _ in pairs] == ["It is long 0.", "yes"]
    assert tally.notes == {CHANGED_ANSWER: 1}
    assert tally.dropped == {"the chat template leaves nothing of an answer": 1}


def test_a_system_message_that_a_template_swallows_drops_the_row(tmp_path: Path) -> None:
    rows = [talk(), talk(prompt=[turn("system", "Be brief."), turn("user", "What?")])]
    pairs, tally = decoded(saved(tmp_path / "c.jsonl", rows), tokenizer(SILENT_SYSTEM + OPEN))
    assert len(pairs) == 1
    assert tally.dropped == {"the chat template leaves out a turn of the system": 1}
    assert tally.warnings()


def test_a_template_that_changes_a_turn_is_told_so_and_not_that_it_leaves_it_out(tmp_path: Path) -> None:
    """A message says what is the case: lower-case is not missing, and half a turn is not a whole one."""
    long = "Which RIVER is long, " * 8 + "and WHY?"
    rows = [talk(prompt=[turn("user", long)]), talk(prompt=[turn("user", "what")])]
    for content, note in (
        ("m.content | lower", CHANGED_TURN.format("user")),
        ("m.content[-90:]", CHANGED_TURN.format("user")),
        ("m.content", None),
    ):
        pairs, tally = decoded(saved(tmp_path / "c.jsonl", rows), tokenizer(TURN.replace("m.content", content) + OPEN))
        notes = {what: count for what, count in tally.notes.items() if what != CHANGED_ANSWER}
        assert (len(pairs), notes) == (2, {note: 1} if note else {})
    shorter = tokenizer(TURN.replace("m.content", "m.content[:90]") + OPEN)
    pairs, tally = decoded(saved(tmp_path / "c.jsonl", rows), shorter)
    assert (len(pairs), tally.dropped) == (1, {"the chat template leaves out the end of a turn of the user": 1})


def test_a_template_that_asks_the_date_is_told_the_same_one_every_day() -> None:
    words = tokenizer("{{ strftime_now('%d %b %Y') }} " + TURN + OPEN)
    (item,) = encode([TextPair((Message("user", "Which?"),), "a", "b")], words, Tally())
    assert item is not None
    assert words.decode(item.prompt).startswith("01 Jan 2025 ")
    assert any("2025-01-01, on every day" in fact for fact in template_facts(words, (words.eos_token_id,)))


def unigram() -> PreTrainedTokenizerFast:
    """Puts a space before every text, as Llama 2's: an answer read alone begins with a gap that is not there."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(["Say: yes or no.", "no", "yes", "Say:\nyes"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("words", "prompt", "answer", "joined"),
    [
        (unigram(), "Say:", " yes", False),
        (unigram(), "Say: ", "yes", False),
        (tokenizer(), "Say:", " yes", False),
        (tokenizer(), "the ri", "ver", True),
        (word_tokenizer(["Say:", "yes"]), "Say:", "yes", True),
        (word_tokenizer(["Say:", "yes"]), "unknown", "yes", True),
    ],
)
def test_an_answer_is_tokenised_as_it_follows_its_prompt(words: Any, prompt: str, answer: str, joined: bool) -> None:
    tally = Tally()
    (item,) = encode([TextPair(prompt, answer, answer + " no")], words, tally)
    assert item is not None
    together = words(prompt + answer)["input_ids"]
    assert (item.prompt + item.first[:-1] == together) is not joined
    assert bool(tally.notes) is joined


# --- reading that loses something ---

CALL = [{"type": "function", "function": {"name": "look", "arguments": "{}"}}]


@pytest.mark.parametrize(("template", "kept"), [(TOOLS, 2), (TURN + OPEN, 1), (None, 1)])
def test_tool_calls_reach_a_template_that_knows_them_or_the_row_goes(
    template: str | None, kept: int, tmp_path: Path
) -> None:
    asked = [turn("user", "How long?"), turn("assistant", "", tool_calls=CALL), turn("tool", "0 km")]
    rows = [talk(), talk(prompt=asked, tools=CALL, rejected=[turn("assistant", "", tool_calls=CALL)])]
    pairs, tally = decoded(saved(tmp_path / "e.jsonl", rows), tokenizer(template))
    assert len(pairs) == kept
    assert tally.dropped.total() == 2 - kept
    if kept == 2:
        assert "<call>" in pairs[1][0]
        assert "<tools>" in pairs[1][0]
        assert "<call>" in pairs[1][2]


def test_columns_that_nothing_reads_are_named(tmp_path: Path) -> None:
    rows = [talk(margin=0.5, id=n) for n in range(1, 4)] + [talk(margin=None)]
    contents = describe(saved(tmp_path / "c.jsonl", rows))
    assert contents.tally.unused == {"margin": 3, "id": 3}
    assert any("margin (3 rows)" in line for _, lines in contents.sections() for line in lines)


def test_a_system_column_goes_before_the_prompt(tmp_path: Path) -> None:
    ((prompt, *_),), _ = decoded(saved(tmp_path / "c.jsonl", [talk(system="Be brief.")]), tokenizer(TURN + OPEN))
    assert prompt.startswith("<|im_start|>system\nBe brief.")
    text = {"prompt": "a", "chosen": " b", "rejected": " c", "system": "Be brief."}
    _, tally = decoded(saved(tmp_path / "t.jsonl", [text]), tokenizer())
    assert tally.notes == {"the column `system` is not used: the prompt is text": 1}


def test_pictures_drop_a_row(tmp_path: Path) -> None:
    pairs, tally = decoded(
        saved(tmp_path / "c.jsonl", [talk(images=["a.png"]), talk(images=[])]), tokenizer(TURN + OPEN)
    )
    assert len(pairs) == 1
    assert tally.dropped == {"it holds images, and models here read text alone": 1}


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_messages_written_as_text_are_read_as_messages(write: Callable[[Any], str], tmp_path: Path) -> None:
    row = {
        name: write([turn("user", "Q"), turn("assistant", text, name=None)])
        for name, text in (("chosen", "A"), ("rejected", "B"))
    }
    reading = read(saved(tmp_path / "c.jsonl", [row]))
    (pair,) = reading
    assert (pair.prompt, pair.first, pair.second) == ((Message("user", "Q"),), "A", "B")
    assert reading.schema is not None
    assert reading.schema.name == "conversational"


def test_messages_that_cannot_be_read_are_refused_in_words(tmp_path: Path) -> None:
    text = "[{'role': 'user', 'content': 'Q'}\n {'role': 'assistant', 'content': 'A'}]"  # as NumPy writes an array
    spec = saved(tmp_path / "c.jsonl", [{"chosen": text, "rejected": text.replace("'A'", "'B'")}])
    with pytest.raises(UserError, match="looks like a list of messages"):
        list(read(spec))


def test_a_prompt_that_is_said_twice_is_taken_once(tmp_path: Path) -> None:
    asked, said = turn("user", "What is it?"), [turn("assistant", "a"), turn("assistant", "b")]
    prompt = [turn("system", "Be brief."), asked]
    rows = [talk(prompt=prompt, chosen=[asked, said[0]], rejected=[asked, said[1]])]
    nearly = turn("user", "what  is it")
    rows += [talk(prompt=prompt, chosen=[nearly, said[0]], rejected=[nearly, said[1]])]
    reading = read(saved(tmp_path / "v.jsonl", rows))
    first, second = list(reading)
    assert [message.role for message in first.prompt] == ["system", "user"]  # type: ignore[union-attr]
    assert [message.role for message in second.prompt] == ["system", "user"]  # type: ignore[union-attr]
    assert [(note.partition(":")[0], count) for note, count in reading.tally.notes.items()] == [
        ("the prompt is said twice, with a small difference", 1)
    ]


def test_scores_that_contradict_the_order_in_some_rows_only_drop_those(tmp_path: Path) -> None:
    rows = [{"prompt": f"river {n}", "chosen": " a", "rejected": " b"} for n in range(6)]
    for row in rows[::3]:
        row |= {"score_chosen": 1, "score_rejected": 9}
    reading = read(saved(tmp_path / "m.jsonl", rows))
    assert len(list(reading)) == 4
    assert reading.tally.dropped == {"the scores contradict the order": 2}


# --- an option that cannot be honoured ---


@pytest.mark.parametrize(
    ("names", "asked", "right"),
    [
        (["test", "train"], None, "train"),
        (["test_prefs", "train_prefs"], None, "train_prefs"),
        (["only"], None, "only"),
        ([], None, None),
        (["a", "b"], "b", "b"),
        (["a", "b"], None, UserError),
        (["train_a", "train_b"], None, UserError),
        (["test", "train"], "dev", UserError),
    ],
)
def test_which_split_is_trained_on(names: list[str], asked: str | None, right: object) -> None:
    if right is UserError:
        with pytest.raises(UserError):
            training_split(names, asked, "here")
    else:
        assert training_split(names, asked, "here") == right


def test_configurations_of_files_and_folders(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    file = saved(tmp_path / "c.jsonl", [talk()])
    with pytest.raises(UserError, match="a file has no configurations"):
        list(read(file.model_copy(update={"config": "good"})))
    with pytest.raises(UserError, match="only a hub set has revisions"):
        list(read(file.model_copy(update={"revision": "v1"})))
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for name, text in (("good", "yes"), ("bad", "no")):
        saved(folder / "data" / f"{name}.jsonl", [talk(prompt=[turn("user", text)])])
    card = "- config_name: good\n  default: true\n  data_files: data/good.jsonl\n"
    card += "- config_name: bad\n  data_files: data/bad.jsonl\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    for config, text in ((None, "yes"), ("good", "yes"), ("bad", "no")):
        (pair,) = read(DatasetSpec(source=str(folder), config=config))
        assert pair.prompt[0].content == text  # type: ignore[union-attr]
    with pytest.raises(UserError, match="no configuration 'nosuch'"):
        list(read(DatasetSpec(source=str(folder), config="nosuch")))


@pytest.mark.parametrize("held_out", [20, 21, 400])
def test_holding_out_all_of_it_is_refused(held_out: int, tmp_path: Path) -> None:
    rows = [{"prompt": f"river {n}", "chosen": " a", "rejected": " b"} for n in range(20)]
    spec = saved(tmp_path / "g.jsonl", rows).model_copy(update={"held_out_pairs": held_out})
    with pytest.raises(UserError, match="cannot be split"):
        make_dataset_pairs(spec, tokenizer())


# --- the handed cases ---


@pytest.mark.skipif(not CASES.is_dir(), reason="the handed cases are not here")
def test_the_handed_cases() -> None:
    pytest.importorskip("datasets")
    spec = {name: DatasetSpec(source=str(CASES / name)) for name in ("A.jsonl", "E.jsonl", "V1.jsonl", "T.jsonl")}
    cut = spec["A.jsonl"].model_copy(update={"max_prompt_tokens": 32, "max_response_tokens": 64})
    costs = describe(cut, tokenizer()).over_limit
    assert costs is not None
    assert [*costs.values()][-1] > 0
    assert describe(spec["E.jsonl"], tokenizer(TOOLS)).kept == 40
    with pytest.raises(UserError, match="tool_calls"):
        describe(spec["E.jsonl"], tokenizer(TURN + OPEN))
    pairs, _ = decoded(spec["V1.jsonl"], tokenizer(TURN + OPEN))
    assert all(prompt.count("<|im_start|>user") == 1 for prompt, *_ in pairs)
    assert describe(spec["T.jsonl"], tokenizer(SILENT_SYSTEM + OPEN)).warnings
    assert read(DatasetSpec(source=str(CASES / "hubset"), config="bad"))
    bad, good = (
        [pair.first for pair in read(DatasetSpec(source=str(CASES / "hubset"), config=config), "train")]
        for config in ("bad", "good")
    )
    assert bad != good
    assert describe(DatasetSpec(source=str(CASES / "splits"))).train_split == "train_prefs"
    for name in ("jsontext.parquet", "pandas_repr.csv"):
        reading = read(DatasetSpec(source=str(CASES / name)))
        assert all(isinstance(pair.prompt, tuple) for pair in reading)
    reading = read(DatasetSpec(source=str(CASES / "mixed.jsonl")))
    assert len(list(reading)) + reading.tally.dropped["the scores contradict the order"] == 41
    assert reading.tally.dropped["the scores contradict the order"] == 20
