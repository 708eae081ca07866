"""One token closes a response, in data as in samples; and no response goes on behind another end token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from aligngap.errors import UserError
from aligngap.judges.text import response_text
from aligngap.models.build import load_language_model
from aligngap.models.check import check_vocabulary
from aligngap.models.policy import Policy
from aligngap.models.spec import Checkpoint
from aligngap.models.tokenizer import _leave_prompts_open, byte_tokenizer, end_tokens, load_tokenizer
from aligngap.sources.recorded import without_end
from aligngap.sources.recording import Recording
from aligngap.sources.sampled import Sampled
from aligngap.tasks.chat import template_facts
from aligngap.tasks.datasets import Tally
from aligngap.tasks.encode import encode
from aligngap.tasks.formats import TextPair
from aligngap.tasks.messages import Message
from aligngap.tasks.pairs import read_pairs, write_pairs
from aligngap.types import Prompt, Tokens
from checkpoints import saved
from fakes import ScriptedJudge

TEXTS = ["what is one and one?", "two, I think", "the sea is blue"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer(template: str = CHATML, end: str | None = "<eos>") -> PreTrainedTokenizerFast:
    """Of a base model that was given a chat template: its end token is not the one that ends a turn."""
    tokenizer = byte_tokenizer(TEXTS, 300)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    tokenizer.eos_token = end
    return tokenizer


def chat(folder: Path, ends: Any = None, **options: Any) -> Path:
    saved("llama", folder, TEXTS, tokenizer=chat_tokenizer(**options), scale=8.0)
    if ends is not None:
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ends}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat(tmp_path_factory.mktemp("chat") / "base")


def ids(tokenizer: Any, *words: str) -> tuple[int, ...]:
    return tuple(tokenizer.convert_tokens_to_ids(list(words)))


def test_the_chat_template_says_what_closes_a_response(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.eos_token == "<|im_end|>"
    assert end_tokens(tokenizer) == ids(tokenizer, "<|im_end|>", "<eos>")
    check_vocabulary(Checkpoint(path=str(folder)))


@pytest.mark.parametrize(
    ("template", "closing"),
    [
        ("{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}", "<eos>"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }} <|im_end|>{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}", "<eos>"),
        ("{{ raise_exception('not today') }}", "<eos>"),
    ],
)
def test_templates_that_close_otherwise_or_not_at_all(tmp_path: Path, template: str, closing: str) -> None:
    tokenizer = load_tokenizer(str(chat(tmp_path / "base", template=template)))
    assert tokenizer.eos_token == closing


def test_no_end_token_but_a_template_is_enough(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(chat(tmp_path / "base", end=None)))
    assert tokenizer.eos_token == tokenizer.pad_token or tokenizer.eos_token == "<|im_end|>"
    assert end_tokens(tokenizer)[0] == ids(tokenizer, "<|im_end|>")[0]


def test_other_ends_that_a_model_was_taught(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(TEXTS, 300)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<stop>", "<other>"]})
    stop, other, end, begin = ids(tokenizer, "<stop>", "<other>", "<eos>", "<bos>")
    letter = tokenizer("a", add_special_tokens=False)["input_ids"][0]
    folder = saved("llama", tmp_path / "base", TEXTS, tokenizer=tokenizer)
    path = folder / "generation_config.json"
    config = json.loads(path.read_text())
    # What stands for text, or begins one, is there by mistake.
    path.write_text(json.dumps(config | {"eos_token_id": [letter, stop, end, begin]}))
    assert end_tokens(load_tokenizer(str(folder))) == (end, stop)
    path.unlink()  # there need not be one
    assert end_tokens(load_tokenizer(str(folder))) == (end,)
    assert other not in end_tokens(load_tokenizer(str(folder)))


def test_the_shipped_bases_end_as_ever() -> None:
    tokenizer = load_tokenizer(Checkpoint(path="small"))
    assert end_tokens(tokenizer) == (tokenizer.eos_token_id,) == (2,)


def test_data_are_closed_by_the_same_token(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    eos = end_tokens(tokenizer)[1]
    prompt = (Message("user", "what is one and one?"),)
    pairs = [TextPair(prompt, "two", "three or<eos> four<eos><|im_end|>", 1.0, 0)]
    (item,) = encode(pairs, tokenizer, Tally())
    assert item is not None
    written = tokenizer.decode(item.prompt)
    assert written == "<|im_start|>user\nwhat is one and one?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(item.first) == "two<|im_end|>"
    # However the data close a response, it is closed as all are; an end token that is spelled before that is text.
    assert tokenizer.decode(item.second) == "three or<eos> four<|im_end|>"
    assert eos not in item.second
    assert item.ends == 1
    # Just as the template itself goes on behind an answer.
    whole = tokenizer.apply_chat_template(
        [prompt[0]._asdict(), {"role": "assistant", "content": "two"}], tokenize=False
    )
    assert tokenizer(whole, add_special_tokens=False)["input_ids"][: len(item.prompt + item.first)] == (
        item.prompt + item.first
    )


def test_samples_end_with_any_of_them_and_come_back_token_for_token(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    model = load_language_model(str(folder))
    ends = end_tokens(tokenizer)
    turns = [[{"role": "user", "content": text}] for text in TEXTS]
    prompts = [
        Prompt(number, tuple(tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]))
        for number, turn in enumerate(turns)
    ]
    with torch.no_grad():  # likely enough to be seen
        states = model.model(input_ids=torch.tensor([prompts[0].ids])).last_hidden_state[0, -1]
        for token in ends:
            model.lm_head.weight[token] = states * 4 / states.square().sum()
    policy = Policy(model, ends, 6)
    source = Recording(Sampled(prompts, ScriptedJudge(lambda x, y: float(len(y))), 0))
    source.observe(0, policy)
    for _ in range(12):
        source.next_batch(3)
    stream = source.stream()
    rows = [*stream.first.rows(), *stream.second.rows()]
    assert {row[-1] for row in rows if row[-1] in ends} == set(ends)
    assert not any(token in ends for row in rows for token in row[:-1])
    write_pairs(stream, tmp_path / "stream.parquet")
    again = read_pairs(tmp_path / "stream.parquet")
    assert [*again.first.rows(), *again.second.rows()] == rows
    assert again.prompts.rows() == stream.prompts.rows()
    with torch.no_grad():
        found = policy.log_probs(again.prompts, [again.first, again.second])[0]
        for prompt, row, value in zip(again.prompts.rows(), again.first.rows(), found, strict=True):
            said = model(input_ids=torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            assert value.item() == pytest.approx(sum(said[at, token].item() for at, token in enumerate(row)), abs=1e-4)
    for row in rows:
        text, ended = response_text(tokenizer, row)
        assert ended == (row[-1] in ends)
        assert not text.endswith(("<|im_end|>", "<eos>"))
    bare = without_end(Tokens.collate(rows), ends).rows()
    assert all(
        short == (row[:-1] if row[-1] in ends and len(row) > 1 else row) for short, row in zip(bare, rows, strict=True)
    )


def test_what_was_trained_and_saved_ends_alike(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    load_language_model(str(folder)).save_pretrained(tmp_path / "sft")
    tokenizer.save_pretrained(tmp_path / "sft")
    assert end_tokens(load_tokenizer(str(tmp_path / "sft"))) == end_tokens(tokenizer)


def test_a_tokenizer_that_closes_prompts(tmp_path: Path) -> None:
    """A decoder could not go on; an encoder reads it so."""
    tokenizer = byte_tokenizer(TEXTS, 300)
    special = [(word, ids(tokenizer, word)[0]) for word in ("<bos>", "<eos>")]
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=special)
    saved("t5", tmp_path / "encoder", TEXTS, tokenizer=tokenizer)
    assert load_tokenizer(str(tmp_path / "encoder"))("a")["input_ids"][-1] == tokenizer.eos_token_id
    saved("gpt2", tmp_path / "decoder", TEXTS, tokenizer=tokenizer)
    loaded = load_tokenizer(str(tmp_path / "decoder"))
    assert loaded("a")["input_ids"] == byte_tokenizer(TEXTS, 300)("a")["input_ids"]
    load_language_model(str(tmp_path / "decoder")).save_pretrained(tmp_path / "again")
    loaded.save_pretrained(tmp_path / "again")
    assert load_tokenizer(str(tmp_path / "again"))("a")["input_ids"] == loaded("a")["input_ids"]


def test_one_of_llamas_kind_that_closes_prompts(tmp_path: Path) -> None:
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a"])}
    llama = LlamaTokenizer(vocab=vocabulary, merges=[("▁", "a")], add_bos_token=True, add_eos_token=True)
    assert llama("a")["input_ids"][-1] == llama.eos_token_id
    saved("llama", tmp_path / "base", TEXTS, tokenizer=llama)
    loaded = load_tokenizer(str(tmp_path / "base"))
    assert loaded("a")["input_ids"] == [1, 6]
    assert end_tokens(loaded) == (2,)


def test_a_tokenizer_that_cannot_be_told_not_to_is_refused() -> None:
    class Stubborn:
        bos_token_id = None

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [5, 2]}

    with pytest.raises(UserError, match="closes every text") as caught:
        _leave_prompts_open(Stubborn(), 2, "somewhere")
    assert caught.value.where == "somewhere"


def plain_chat(folder: Path, ends: list[str], template: str = CHATML) -> Path:
    """A model whose chat tokens somebody added as plain ones, with an own end token that no turn ends with."""
    tokenizer = byte_tokenizer(TEXTS, 300)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<|stop|>"])
    tokenizer.chat_template = template
    saved("llama", folder, TEXTS, tokenizer=tokenizer)
    path = folder / "generation_config.json"
    listed = tokenizer.convert_tokens_to_ids(ends)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": listed}))
    return folder


def test_an_end_that_is_listed_and_written_need_not_be_flagged_as_special(tmp_path: Path) -> None:
    folder = plain_chat(tmp_path / "base", ["<eos>", "<|im_end|>"])
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.eos_token == "<|im_end|>"
    assert end_tokens(tokenizer) == ids(tokenizer, "<|im_end|>", "<eos>")
    pair = TextPair((Message("user", "what is one and one?"),), "two", "three<eos> or four", 1.0, 0)
    (item,) = encode([pair], tokenizer, Tally())
    assert item is not None
    assert item.first[-1] == item.second[-1] == tokenizer.eos_token_id
    assert item.first.count(tokenizer.eos_token_id) == 1
    facts = list(template_facts(tokenizer, end_tokens(tokenizer)))
    assert facts[0] == "a response is closed by '<|im_end|>', and ends with '<eos>' as well"
    # What is saved beside a model that was trained ends alike.
    load_language_model(str(folder)).save_pretrained(tmp_path / "sft")
    tokenizer.save_pretrained(tmp_path / "sft")
    assert end_tokens(load_tokenizer(str(tmp_path / "sft"))) == end_tokens(tokenizer)


def test_what_is_written_and_not_listed_is_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(plain_chat(tmp_path / "base", ["<eos>"])))
    assert end_tokens(tokenizer) == ids(tokenizer, "<eos>")


def test_what_is_listed_and_not_written_is_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(plain_chat(tmp_path / "base", ["<eos>", "<|im_end|>", "<|stop|>"])))
    assert end_tokens(tokenizer) == ids(tokenizer, "<|im_end|>", "<eos>")


def test_a_listed_header_of_the_next_turn_ends_a_response(tmp_path: Path) -> None:
    """Some models are taught to stop where the other side would go on."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = load_tokenizer(str(plain_chat(tmp_path / "base", ["<eos>", "<|im_start|>"], template)))
    assert tokenizer.eos_token == "<eos>"
    assert end_tokens(tokenizer) == ids(tokenizer, "<eos>", "<|im_start|>")


def test_white_space_and_words_that_are_listed_by_mistake_end_nothing(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(TEXTS, 300)
    newline, letter = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in ("\n", "a"))
    folder = chat(tmp_path / "base", ends=[newline, letter])
    loaded = load_tokenizer(str(folder))
    assert end_tokens(loaded) == ids(loaded, "<|im_end|>", "<eos>")
