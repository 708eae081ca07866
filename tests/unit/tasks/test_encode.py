"""From texts to token ids: the rules of cutting, of ends and of templates, and the split by prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from aligngap.errors import UserError
from aligngap.models.tokenizer import word_tokenizer
from aligngap.tasks.datasets import DatasetSpec, Tally
from aligngap.tasks.encode import PreparedData, cut_prompt, encode, make_dataset_pairs
from aligngap.tasks.formats import TextPair
from aligngap.tasks.messages import Message
from aligngap.tasks.pairs import read_pairs, write_pairs
from aligngap.types import PairBatch
from unit.tasks.rows import Row, battle

WORDS = "Human: Assistant: a b c d e f g".split()
BEGIN, END = 1, 2
CHATML = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = (Message("user", "a b"), Message("assistant", "c"), Message("user", "d"))


def byte_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's and Llama's, with or without a chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>", "<|user|>", "<|assistant|>"],
        show_progress=False,
    )
    core.train_from_iterator(["the sky is blue and the sea is blue"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    tokenizer.chat_template = template
    return tokenizer


def encoded(pair: TextPair, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int], list[int]]:
    (item,) = encode([pair], tokenizer, Tally())
    assert item is not None
    return item.prompt, item.first, item.second


def test_text_is_taken_as_it_stands() -> None:
    tokenizer = word_tokenizer(WORDS)
    a, b, c = tokenizer.convert_tokens_to_ids(list("abc"))
    assert encoded(TextPair("a b", " c", " d e"), tokenizer)[:2] == ([BEGIN, a, b], [c, END])
    tokenizer = byte_tokenizer(CHATML)  # a template is for conversations
    prompt, first, second = encoded(TextPair("The sky is", " blue.", " é\U0001f600"), tokenizer)
    assert tokenizer.decode(prompt + first) == "The sky is blue.<eos>"
    assert tokenizer.decode(second) == " é\U0001f600<eos>"


def test_a_conversation_goes_through_the_chat_template() -> None:
    tokenizer = byte_tokenizer(CHATML)
    prompt, first, _ = encoded(TextPair(CHAT, "yes", "no"), tokenizer)
    assert tokenizer.decode(prompt) == "<|user|>a b<eos><|assistant|>c<eos><|user|>d<eos><|assistant|>"
    whole = [*(message.turn() for message in CHAT), {"role": "assistant", "content": "yes"}]
    assert prompt + first == tokenizer.apply_chat_template(whole, tokenize=True)["input_ids"]


def test_without_a_template_a_conversation_is_a_transcript() -> None:
    tokenizer = byte_tokenizer()
    prompt, first, _ = encoded(TextPair(CHAT, "yes", "no"), tokenizer)
    assert tokenizer.decode(prompt + first) == ("\n\nHuman: a b\n\nAssistant: c\n\nHuman: d\n\nAssistant: yes<eos>")
    assert encoded(TextPair(CHAT, "c", "d"), word_tokenizer(WORDS))[0][0] == BEGIN


def test_what_a_template_refuses_is_counted() -> None:
    pairs = [
        TextPair(CHAT, "yes", "no", where="row 1"),
        TextPair((Message("system", "s"), *CHAT), "yes", "no", where="row 2"),
        TextPair("text", "yes", "no", where="row 3"),
    ]
    tally = Tally()
    found = list(encode(pairs, byte_tokenizer(CHATML), tally))
    assert [item is None for item in found] == [False, True, False]
    assert list(tally.reasons()) == ["the chat template refuses the prompt: no system message: 1 (row 2)"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content + 1 }}",
        "{{ messages[9].content.text }}",
        "{% for i in range(10000000) %}{{ i }}{% endfor %}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{% for m in messages %}{{ m.content }}",
    ],
)
def test_a_template_may_fail_in_any_way(template: str) -> None:
    tally = Tally()
    (found,) = encode([TextPair(CHAT, "yes", "no", where="row 1")], byte_tokenizer(template), tally)
    assert found is None
    (reason,) = tally.reasons()
    assert reason.startswith("the chat template refuses the prompt: ")


def test_nothing_follows_an_end_token_that_the_data_wrote() -> None:
    tokenizer = byte_tokenizer()
    (item,) = encode([TextPair("x", " yes<eos> more", " no")], tokenizer, Tally())
    assert item is not None
    assert tokenizer.decode(item.first) == " yes<eos>"
    assert item.ends == 1


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        list(encode([TextPair("a", "b", "c")], tokenizer, Tally()))


def test_a_long_prompt_keeps_its_end() -> None:
    assert cut_prompt([BEGIN, 5, 6, 7, 8], 5, BEGIN) == [BEGIN, 5, 6, 7, 8]
    assert cut_prompt([BEGIN, 5, 6, 7, 8], 3, BEGIN) == [BEGIN, 7, 8]
    assert cut_prompt([5, 6, 7, 8], 3, BEGIN) == cut_prompt([5, 6, 7, 8], 3, None) == [6, 7, 8]


def saved(folder: Path, rows: Sequence[Row], name: str = "pairs.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(number: int, chosen: str = " c", rejected: str = " d") -> Row:
    return {
        "prompt": " ".join("abcdefg"[int(digit)] for digit in f"{number:o}"),
        "chosen": chosen,
        "rejected": rejected,
    }


def prepared(source: Path, **options: Any) -> PreparedData:
    return make_dataset_pairs(DatasetSpec(source=str(source), **options), word_tokenizer(WORDS))


def prompts(pairs: PairBatch) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in pairs.prompts.rows()]


REPEATED = [row(number, chosen=f" {letter}") for number in range(8, 48) if "7" not in f"{number:o}" for letter in "abc"]


def test_no_prompt_is_in_both_splits(tmp_path: Path) -> None:
    source = saved(tmp_path, REPEATED)
    for seed in range(5):
        made = prepared(source, held_out_share=0.2, seed=seed)
        train, held_out = prompts(made.data.train), prompts(made.data.held_out)
        assert not set(train) & set(held_out)
        assert len(train) + len(held_out) == len(REPEATED) == made.tally.kept
        assert len(held_out) == 21  # 105 pairs; prompts have three each, so seven of them fit
        numbers = torch.cat([made.data.train.prompt_numbers, made.data.held_out.prompt_numbers])
        assert numbers.tolist() == list(range(len(REPEATED)))
        assert len(set(train[: len(set(train))])) == len(set(train))  # every prompt once before any comes again


def test_the_split_is_a_function_of_the_seed(tmp_path: Path) -> None:
    one, elsewhere = saved(tmp_path / "one", REPEATED), saved(tmp_path / "two", REPEATED)
    first, again, other = (
        prepared(source, held_out_pairs=9, seed=seed).data for source, seed in ((one, 3), (elsewhere, 3), (one, 4))
    )
    assert len(first.held_out) == 9
    for split in ("train", "held_out"):
        a, b = getattr(first, split), getattr(again, split)
        assert prompts(a) == prompts(b)
        assert a.provenance == b.provenance  # names the set and the row, never a path
        assert torch.equal(a.preference, b.preference)
    assert set(prompts(first.held_out)) != set(prompts(other.held_out))
    assert not torch.equal(first.train.preference, other.train.preference)


def test_chance_puts_the_chosen_answer_first_or_second(tmp_path: Path) -> None:
    made = prepared(saved(tmp_path, REPEATED)).data.train
    assert 0.3 < float(made.preference.mean()) < 0.7
    d = word_tokenizer(WORDS).convert_tokens_to_ids("d")
    for preference, first, second in zip(made.preference.tolist(), made.first.rows(), made.second.rows(), strict=True):
        assert (second if preference == 1.0 else first) == [d, END]


def test_the_raters_own_positions_stay(tmp_path: Path) -> None:
    battles = []
    for letter in "abcdefgh":
        battles.append(battle("model_b"))
        for side in ("a", "b"):
            question = battles[-1][f"conversation_{side}"][0]
            battles[-1][f"conversation_{side}"] = [
                {**question, "content": letter},
                battles[-1][f"conversation_{side}"][1],
            ]
    made = prepared(saved(tmp_path, battles), ties="keep").data
    assert made.train.preference.tolist() == [0.0] * len(made.train)


def test_limits_are_kept_and_counted(tmp_path: Path) -> None:
    data = [row(number) for number in range(8, 15)] + [
        {"prompt": "a " * 100_000 + "f g", "chosen": " d" * 5, "rejected": " e" * 4},
    ]
    made = prepared(saved(tmp_path, data), max_prompt_tokens=3, max_response_tokens=5)
    ids = word_tokenizer(WORDS).convert_tokens_to_ids
    assert (made.cuts.prompts, made.cuts.responses, made.cuts.end_tokens) == (1, 1, 0)
    assert made.data.max_new_tokens == 5
    rows = {
        prompt: {tuple(first), tuple(second)}
        for part in (made.data.train, made.data.held_out)
        for prompt, first, second in zip(prompts(part), part.first.rows(), part.second.rows(), strict=True)
    }
    long = rows[(BEGIN, *ids(["f", "g"]))]
    assert long == {tuple(ids(["d"] * 5)), (*ids(["e"] * 4), END)}  # too long: no end token; at the limit: with it


def test_prompts_that_are_the_same_once_cut_are_not_in_both_splits(tmp_path: Path) -> None:
    data = [{**row(8), "prompt": f"{first} {last}"} for first in "abcdefg" for last in "abcdefg"]
    made = prepared(saved(tmp_path, data), max_prompt_tokens=2, held_out_pairs=2)
    train, held_out = prompts(made.data.train), prompts(made.data.held_out)
    assert not set(train) & set(held_out)
    assert len(train) == 47 - made.tally.dropped["the prompt is held out as well, once it is cut"] < 47


def test_train_pairs_is_a_limit(tmp_path: Path) -> None:
    source = saved(tmp_path, REPEATED)
    few, all_of_them = (prepared(source, train_pairs=n, held_out_pairs=9).data for n in (10, None))
    assert len(few.train) == 10
    assert prompts(few.train) == prompts(all_of_them.train)[:10]


def test_a_held_out_split_of_the_source(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    saved(tmp_path, [row(8), row(9), row(10), row(9, " e")], "train.jsonl")
    saved(tmp_path, [row(9), row(11)], "test.jsonl")
    made = prepared(tmp_path, held_out_split="test")
    assert (len(made.data.train), len(made.data.held_out)) == (2, 2)
    assert "the prompt is held out as well: 2 (train.jsonl row 2, train.jsonl row 4)" in "".join(made.tally.reasons())
    assert len(prepared(tmp_path, held_out_pairs=1).data.train) == 3  # of the train split alone


def test_several_splits_without_a_train_split(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets")
    part = library.Dataset.from_list([row(number) for number in (8, 9, 10)])
    library.DatasetDict({"one": part, "two": part}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(UserError, match="Choose one: one, two"):
        prepared(tmp_path / "set")
    assert len(prepared(tmp_path / "set", split="two", held_out_pairs=1).data.train) == 2


def test_what_cannot_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be split"):
        prepared(saved(tmp_path, [row(8), row(8, " e")]))


def test_pairs_go_through_the_projects_own_file(tmp_path: Path) -> None:
    made = prepared(saved(tmp_path, REPEATED)).data.train
    write_pairs(made, tmp_path / "train.parquet")
    again = read_pairs(tmp_path / "train.parquet")
    assert (again.first.rows(), prompts(again)) == (made.first.rows(), prompts(made))
