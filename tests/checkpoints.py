"""Checkpoints as users have them: folders that `transformers` saved, of many architectures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RwkvConfig,
    SwitchTransformersConfig,
    T5Config,
)

from aligngap.models.tokenizer import byte_tokenizer

_COMMON = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
_GROUPED = _COMMON | {"num_key_value_heads": 2}
_GPT = {"n_layer": 2, "n_head": 4}
_T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
_BART = {"d_model": 16, **{f"{part}_layers": 2 for part in ("encoder", "decoder")}}
_BART |= {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
_BART |= {f"{part}_ffn_dim": 24 for part in ("encoder", "decoder")}

WINDOW = 12

KINDS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, _GROUPED),
    "qwen2": (Qwen2Config, _GROUPED),
    "qwen3": (Qwen3Config, _GROUPED | {"head_dim": 4}),
    "gpt2": (GPT2Config, {**_GPT, "n_embd": 16}),
    "mistral": (MistralConfig, _GROUPED | {"sliding_window": WINDOW}),
    "gemma2": (Gemma2Config, _GROUPED | {"head_dim": 4, "sliding_window": WINDOW}),
    "gemma3": (
        Gemma3TextConfig,
        _GROUPED | {"head_dim": 4, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "bloom": (BloomConfig, {**_GPT, "hidden_size": 16}),
    "mpt": (MptConfig, {"n_layers": 2, "n_heads": 4, "d_model": 16}),
    "falcon": (FalconConfig, {**_COMMON, "alibi": True, "parallel_attn": False}),
    "mamba": (MambaConfig, {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}),
    "lfm2": (Lfm2Config, _GROUPED | {"layer_types": ["conv", "full_attention"]}),
    "rwkv": (
        RwkvConfig,
        {"hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    ),
    "t5": (T5Config, _T5 | {"decoder_start_token_id": 0}),
    "switch_transformers": (
        SwitchTransformersConfig,
        _T5 | {"num_decoder_layers": 2, "num_experts": 4, "decoder_start_token_id": 0},
    ),
    "bart": (BartConfig, _BART | {"decoder_start_token_id": 1, "forced_eos_token_id": 2}),
}
"""Configurations of tiny models: with rotary and learned positions, ALiBi, sliding windows, recurrent layers, and an
encoder, without and with experts.
"""


def config_of(kind: str, *, context: int = 128, **values: Any) -> Any:
    """A configuration. context: where the architecture has one; values: beside what the kind says."""
    made, given = KINDS[kind]
    names = {"gpt2": "n_positions", "mpt": "max_seq_len"}
    limit = (
        {}
        if kind in ("bloom", "mamba", "rwkv", "switch_transformers", "t5")
        else {names.get(kind, "max_position_embeddings"): context}
    )
    return made(**given | limit | {"tie_word_embeddings": False} | values)


def model_of(config: Any, *, scale: float = 1.0, seed: int = 0) -> Any:
    """A model with random weights. scale: of the matrices; the larger, the more context and position matter to what it
    says.
    """
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = kind.from_config(config)
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(scale)
    return model.eval()


def saved(
    kind: str,
    folder: Path,
    texts: Iterable[str],
    *,
    context: int = 128,
    rows: int | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    scale: float = 1.0,
) -> Path:
    """A tiny folder with a byte-level tokenizer trained on texts, unless one is given. rows: of the embedding, where
    not one a token.
    """
    tokenizer = tokenizer or byte_tokenizer(texts, 320)
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    special = {name: getattr(tokenizer, name) for name in names}
    config = config_of(kind, context=context, vocab_size=rows or len(tokenizer), **special)
    model_of(config, scale=scale).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def qwen2(folder: Path, texts: Iterable[str], *, context: int = 128, rows: int | None = None) -> Path:
    """A tiny Qwen2-type folder, see `saved`."""
    return saved("qwen2", folder, texts, context=context, rows=rows)
