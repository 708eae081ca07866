"""Reading a conversation back from the tokens that a chat template made of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aligngap.judges.conversation import ConversationReader, Turn
from unit.judges.texts import CHATML, bpe

QWEN = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}" + CHATML
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}<|im_end|>\n\n{{ m['content'] | trim }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant<|im_end|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% else %}{{ raise_exception('no system') }}"
    "{% endif %}{% endfor %}"
)
FORGETS = (  # as templates that drop what a model thought in earlier turns
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENIZER = bpe(
    ("<s>", "</s>", "<|im_start|>", "<|im_end|>"), bos_token="<s>", eos_token="</s>", pad_token="</s>", template=CHATML
)


def written(template: str, turns: list[Turn]) -> list[int]:
    TOKENIZER.chat_template = template
    return list(TOKENIZER.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)["input_ids"])


def turns_of(*contents: str, system: str | None = None) -> list[Turn]:
    said = [{"role": "user" if k % 2 == 0 else "assistant", "content": text} for k, text in enumerate(contents)]
    return said if system is None else [{"role": "system", "content": system}, *said]


@pytest.mark.parametrize("template", [CHATML, QWEN, LLAMA, MISTRAL], ids=["chatml", "qwen", "llama", "mistral"])
def test_what_a_template_wrote_is_read(template: str) -> None:
    for said in (turns_of("One?"), turns_of("One?", "One.\n\nTwo.", "user\nThree? 東京")):
        ids = written(template, said)
        assert ConversationReader(TOKENIZER).read(ids) == said
    said = turns_of("One?", "One.", "Two?", system="Be brief.")
    if template != MISTRAL:
        ids = written(template, said)
        assert ConversationReader(TOKENIZER).read(ids) == said


def test_what_no_template_wrote_is_not() -> None:
    ids = written(CHATML, turns_of("One?", "One.", "Two?"))
    reader = ConversationReader(TOKENIZER)
    assert reader.read(ids) is not None
    for broken in (ids[1:], ids[:-1], ids[5:], [*ids, ids[-1]], TOKENIZER("One?")["input_ids"], []):
        assert reader.read(broken) is None


def test_what_a_template_would_write_otherwise_is_not_believed() -> None:
    # Spaces that the template trims, and thoughts that it forgets, cannot be where they are read.
    ids = written(CHATML, turns_of("One?", "<think>Hm.</think>One.", "Two?"))
    TOKENIZER.chat_template = FORGETS
    assert ConversationReader(TOKENIZER).read(ids) is None
    ids = written(LLAMA.replace(" | trim", ""), turns_of("  One?  "))
    TOKENIZER.chat_template = LLAMA
    assert ConversationReader(TOKENIZER).read(ids) is None


def test_without_a_template_nothing_is_read() -> None:
    TOKENIZER.chat_template = None
    assert ConversationReader(TOKENIZER).read(TOKENIZER("One?")["input_ids"]) is None


@settings(max_examples=60)
@given(st.lists(st.text(), min_size=1, max_size=5).filter(lambda texts: len(texts) % 2 == 1), st.none() | st.text())
def test_what_is_read_writes_the_same_tokens(contents: list[str], system: str | None) -> None:
    ids = written(CHATML, turns_of(*contents, system=system))
    found = ConversationReader(TOKENIZER).read(ids)
    assert found is not None
    assert written(CHATML, found) == ids
