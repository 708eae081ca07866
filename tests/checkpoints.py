"""Checkpoints as users have them: folders that `transformers` saved."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from aligngap.models.build import byte_tokenizer


def qwen2(folder: Path, texts: Iterable[str], *, context: int = 128, rows: int | None = None) -> Path:
    """A tiny Qwen2-type folder with a byte-level tokenizer trained on texts. rows: of the embedding, where not one a
    token.
    """
    tokenizer = byte_tokenizer(texts, 320)
    config = Qwen2Config(
        vocab_size=rows or len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
