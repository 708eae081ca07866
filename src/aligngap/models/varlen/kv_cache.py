"""Keys and values of what has been read, to read on behind it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from aligngap.models.varlen.attention import attention_bias, cached_attention, rotated, rotations
from aligngap.models.varlen.forward import decoder_layer
from aligngap.types import Tokens


@dataclass(frozen=True)
class KVCache:
    """What a decoder has read in B rows of W columns.

    real: which columns are tokens and not padding, bool [B, W]. layers: keys and values, [2, B, G, W, D] a layer.
    """

    real: torch.Tensor
    layers: tuple[torch.Tensor, ...]

    def take(self, index: torch.Tensor) -> KVCache:
        """These rows."""
        return KVCache(self.real[index], tuple(layer.index_select(1, index) for layer in self.layers))


@torch.no_grad()
def prefill(backbone: Any, tokens: Tokens, past: KVCache | None = None) -> tuple[torch.Tensor, KVCache]:
    """Read tokens (B rows of T columns), each row behind its own of `past`.

    Returns the last hidden states of the tokens, [B, T, E], anything at padding; and the cache of all that is read now.
    """
    real, device = tokens.mask(), tokens.ids.device
    rows, width = real.shape
    before = real[:, :0] if past is None else past.real
    column = torch.arange(width, device=device)
    x = backbone.embed_tokens(tokens.ids[real])  # [N, E]
    rope = rotations(backbone, x, (before.sum(1, keepdim=True) + column)[real])
    index = (real.flatten().cumsum(0) - 1).clamp(min=0)  # where in the list each cell's token is, [B * T]
    future = (column > column[:, None]).expand(rows, -1, -1)
    bias = attention_bias(torch.cat([~before[:, None].expand(-1, width, -1), future], 2), x.dtype)[:, None]

    def by_head(x: torch.Tensor, size: int) -> torch.Tensor:
        """[N, heads * D] -> [B, heads, T, D]"""
        return x.flatten(1).index_select(0, index).view(rows, width, -1, size).transpose(1, 2)

    layers = list[torch.Tensor]()

    def attend(attention: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        size = attention.head_dim
        queries = by_head(rotated(q, rope * attention.scaling), size)
        both = torch.stack([by_head(rotated(k, rope), size), by_head(v, size)])
        if past is not None:
            both = torch.cat([past.layers[len(layers)], both], 3)
        layers.append(both)
        out = cached_attention(queries, both[0], both[1], bias).transpose(1, 2).reshape(rows * width, -1)
        return out[real.flatten()]

    for layer in backbone.layers:
        x = decoder_layer(layer, x, partial(attend, layer.self_attn))
    states = backbone.norm(x).index_select(0, index).view(rows, width, -1)
    return states, KVCache(torch.cat([before, real], 1), tuple(layers))
