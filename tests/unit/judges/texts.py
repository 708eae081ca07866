"""Byte-level BPE tokenizers trained on the spot, and pairs of texts as their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from aligngap.types import Tokens

CORPUS = [
    "How do I mend a bicycle tyre? Take the wheel off, find the hole, and glue a patch on it.",
    "What is the capital of France? Paris is the capital of France, and has been for centuries.",
    "Write a short poem about rain. Rain on the roof, rain on the road, and rain again tomorrow.",
    "Größe, naïve, 東京, emoji 🙂 and symbols {x} <y> [z] are bytes like all others.",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def bpe(
    special: Sequence[str] = ("<s>", "</s>", "<pad>"), *, size: int = 400, template: str | None = None, **roles: str
) -> Any:
    """A tokenizer of the kind most public checkpoints have. roles: `eos_token="</s>"` and so on."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    if "cls_token" in roles:
        first, last = (roles[name] for name in ("cls_token", "sep_token"))
        core.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(token, core.token_to_id(token)) for token in (first, last)],
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **roles)
    tokenizer.chat_template = template
    return tokenizer


def chat_policy() -> Any:
    """A policy's tokenizer with a chat template and no beginning token, as Qwen's."""
    return bpe(
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        template=CHATML,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


def tokens(tokenizer: Any, texts: Sequence[str], *, ended: bool = False) -> Tokens:
    """Texts as the policy's tokens; with its end token if they are responses that end."""
    end = [tokenizer.eos_token_id] if ended else []
    return Tokens.collate([tokenizer(text, add_special_tokens=False)["input_ids"] + end for text in texts])


def sides(tokenizer: Any, rows: Sequence[tuple[str, str, str]]) -> tuple[Tokens, Tokens, Tokens]:
    """(prompt, first, second) as tokens."""
    prompts, first, second = zip(*rows, strict=True)
    return tokens(tokenizer, prompts), tokens(tokenizer, first, ended=True), tokens(tokenizer, second, ended=True)
