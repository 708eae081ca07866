"""Whether a model can be read without padding, and the operations that then are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2MLP, Qwen2RMSNorm

from aligngap.models.build import with_gradients
from aligngap.models.engine import Engine
from aligngap.models.sampling import Choose
from aligngap.models.varlen import forward
from aligngap.models.varlen.decode import decode
from aligngap.models.varlen.kv_cache import KVCache, prefill
from aligngap.types import Tokens

_LAYERS = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer)
_NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm)
_FEED_FORWARD = (LlamaMLP, MistralMLP, Qwen2MLP)
_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that know a token's position, and not how long its sequence is."""


class Varlen(Engine):
    """Reads a Llama-type decoder as one list of real tokens. The model may be a language model or its backbone."""

    @property
    def backbone(self) -> Any:
        """The decoder beneath a language model's head."""
        return getattr(self.model, "model", self.model)

    def reads(self) -> bool:
        """Whether the model is of the type, and nothing asks for more than its forward pass (dropout, hooks). Its
        projections and feed-forward layers may be any modules, adapters included; gradients may be checkpointed.
        """
        backbone = self.backbone
        layers = getattr(backbone, "layers", None)
        if not isinstance(layers, nn.ModuleList) or not all(type(layer) in _LAYERS for layer in layers):
            return False
        config = backbone.config
        return (
            set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
            and (getattr(config, "sliding_window", None) is None or not getattr(config, "use_sliding_window", True))
            and (config.rope_parameters or {}).get("rope_type") in _ROPE
            and (config.attention_dropout == 0 or not backbone.training)
            and not _hooked(self.model, backbone, *layers, *(layer.self_attn for layer in layers))
        )

    def decodes(self) -> bool:
        """Whether a model that it `reads` is made of plain matrices and norms, which `decode` can fuse."""
        layers = self.backbone.layers
        norms = [self.backbone.norm]
        linear = []
        for layer in layers:
            attention, mlp = layer.self_attn, layer.mlp
            norms += [layer.input_layernorm, layer.post_attention_layernorm]
            linear += [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
            linear += [getattr(mlp, f"{name}_proj", None) for name in ("gate", "up", "down")]
        return (
            all(type(layer.mlp) in _FEED_FORWARD for layer in layers)
            and all(type(part) in _NORMS for part in norms)
            and all(type(part) is nn.Linear for part in linear)
            and not _hooked(*norms, *linear, *(layer.mlp for layer in layers))
        )

    def next_token_logits(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        return forward.next_token_logits(self.model, prompts, segments)

    def log_probs(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        return forward.log_probs(self.model, prompts, segments)

    def hidden_states(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        return forward.segment_states(self.backbone, prompts, segments)

    def decode(self, prompts: Tokens, samples: int, limit: int, choose: Choose, ends: Sequence[int]) -> Tokens:
        return decode(self.model, prompts, samples, limit, choose, ends)

    def prefill(self, tokens: Tokens, past: KVCache | None = None) -> tuple[torch.Tensor, KVCache]:
        """See `kv_cache.prefill`."""
        return prefill(self.backbone, tokens, past)

    def cache_bytes(self) -> int:
        """Bytes of keys and values that a `KVCache` holds for a column of a row."""
        config, size = self.backbone.config, self.backbone.layers[0].self_attn.head_dim
        width = 2 * config.num_key_value_heads * size
        return int(config.num_hidden_layers * width * self.backbone.dtype.itemsize)


def _hooked(*modules: Any) -> bool:
    """Whether somebody listens to what these modules compute, which only their own forward passes would tell."""
    return any(
        module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        # That one concerns the model's own forward pass.
        or any(hook is not with_gradients for hook in module._forward_pre_hooks.values())
        for module in modules
    )
