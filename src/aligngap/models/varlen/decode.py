"""Sampling: each prompt is read once, then one pass a token. Both multiply by fused weights and fill a static KV cache.

Beside the letters of the package: R rows of the cache, C samples that share one; B * samples = R * C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from aligngap.models.sampling import Choose, decoded
from aligngap.models.varlen.attention import SAMPLES_PER_ROW, attention_bias, cached_attention, rotations
from aligngap.models.varlen.batch import VarlenBatch, varlen_batch
from aligngap.types import Tokens


@torch.no_grad()
def decode(model: Any, prompts: Tokens, samples: int, limit: int, choose: Choose, ends: Sequence[int]) -> Tokens:
    """As `Engine.decode`. Up to `SAMPLES_PER_ROW` samples of a prompt share a row of the cache.

    A pass looks at as much of the cache as is filled. On a device that records its work (CUDA graphs) a pass over all
    of it, with what is to come hidden, would stand here.
    """
    # An eighth of a pass is what the other mode costs. What is made in this one cannot be learned from: it stays here.
    with torch.inference_mode():
        decoder = _Decoder(model, varlen_batch(prompts, []), samples, limit)
        drawn = decoded(decoder.first_logits, decoder.following, limit, choose, ends)
    return Tokens(drawn.ids.clone(), drawn.lengths.clone())


class _Decoder:
    """A model that has read prompts and is to go on with several samples of each.

    first_logits: for each sample's first token, [R * C, V].
    """

    def __init__(self, model: Any, batch: VarlenBatch, samples: int, limit: int) -> None:
        self.model, self.backbone, self.limit = model, model.model, limit
        self.per_row = math.gcd(samples, SAMPLES_PER_ROW)
        self.lengths = batch.lengths.repeat_interleave(samples)  # [R * C]
        rows, self.width = batch.prompts.shape
        self.norm = _RMSNorm(self.backbone.norm)
        x = self.backbone.embed_tokens(batch.ids)  # [N, E]
        self.rope = rotations(self.backbone, x, torch.arange(self.width + limit, device=x.device))
        copies = samples // self.per_row  # rows of the cache for each prompt
        self.layers = [
            _DecoderLayer(layer, copies * rows, self.width, self.per_row, limit) for layer in self.backbone.layers
        ]
        rope = self.rope.index_select(0, batch.positions)
        column = torch.arange(self.width, device=x.device)
        padded, future = column >= batch.lengths[:, None], column > column[:, None]
        for layer in self.layers:
            final = layer is self.layers[-1]
            bias = attention_bias(padded[:, None] if final else future[None], x.dtype)[:, None]
            x = layer.prefill(x, rope, batch.prompts, copies, batch.prompt_ends if final else None, bias)
        self.first_logits = self._logits(x).repeat_interleave(samples, 0)
        self.bias = self._bias(padded.repeat_interleave(copies, 0), x.dtype)

    def _bias(self, padded: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """What is added to the scores of the cache's columns, [R, 1, C, P + C * limit]: those of a prompt's padding
        (padded, [R, P]) and of other samples' tokens count for nothing. None where there are none of either.
        """
        if self.per_row == 1 and not bool(padded.any()):
            return None
        sample = torch.arange(self.per_row, device=padded.device)
        others = (sample != sample[:, None]).repeat(1, self.limit).expand(len(padded), -1, -1)
        return attention_bias(torch.cat([padded[:, None].expand(-1, self.per_row, -1), others], 2), dtype)[:, None]

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        """[n, E] -> [n, V]"""
        normed = self.norm.direction(x.float()).mul_(self.norm.scale)
        return self.model.lm_head(normed.to(x.dtype))  # type: ignore[no-any-return]

    def following(self, token: torch.Tensor, at: int) -> torch.Tensor:
        """Logits behind a token of each sample, [R * C] -> [R * C, V]. at: the token's number."""
        x = self.backbone.embed_tokens(token)
        rope = self.rope.index_select(0, self.lengths + at)
        end = self.width + (at + 1) * self.per_row
        bias = None if self.bias is None else self.bias[..., :end]
        for layer in self.layers:
            x = layer.step(x, rope, end, bias)
        return self._logits(x)


class _DecoderLayer:
    """A layer with fused weights and its KV cache, [2, R, G, P + C * limit, D].

    At these sizes the time goes into the number of operations: the norms' weights are multiplied into the matrices
    behind them, the queries' scale too. A row of the cache holds a prompt's tokens, then the first token of each of the
    samples that share it, then the second of each ...
    """

    def __init__(self, layer: Any, rows: int, width: int, per_row: int, limit: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.size, self.per_row = attention.head_dim, per_row
        self.heads, self.groups = (part.out_features // self.size for part in (attention.q_proj, attention.k_proj))
        self.input_norm, self.mlp_norm = _RMSNorm(layer.input_layernorm), _RMSNorm(layer.post_attention_layernorm)
        q = _interleaved(attention.q_proj, self.size, attention.scaling)
        k = _interleaved(attention.k_proj, self.size)
        self.qkv = _fused([q, k, _affine(attention.v_proj)], self.input_norm.scale)
        self.gate_up = _fused([_affine(mlp.gate_proj), _affine(mlp.up_proj)], self.mlp_norm.scale)
        self.act, self.out, self.down = mlp.act_fn, _affine(attention.o_proj), _affine(mlp.down_proj)
        # What is not filled yet is not looked at.
        self.cache = self.qkv[0].new_empty(2, rows, self.groups, width + per_row * limit, self.size)

    def prefill(
        self,
        x: torch.Tensor,
        rope: torch.Tensor,
        index: torch.Tensor,
        copies: int,
        ends: torch.Tensor | None,
        bias: torch.Tensor,
    ) -> torch.Tensor:
        """The layer's output for a list of tokens, [N, E], or for those in `ends`, one of each prompt, [B, E].

        index: where in the list the prompts' tokens are, [B, P]; copies: rows of the cache for each prompt; bias: added
        to the scores, [B or 1, 1, P or 1, P].
        """
        rows, width = index.shape
        qkv = self._project(x, rope)
        q, kv = self._by_head(qkv.index_select(0, index.flatten()).view(rows, width, -1))
        self.cache[:, :, :, :width] = kv.repeat_interleave(copies, 1) if copies > 1 else kv
        k, v = self.cache[:, ::copies, :, :width]
        if ends is not None:
            q, _ = self._by_head(qkv.index_select(0, ends)[:, None])
            return self._finish(x.index_select(0, ends), cached_attention(q, k, v, bias).flatten(1))
        out = cached_attention(q, k, v, bias).transpose(1, 2).reshape(rows * width, -1)
        listed = out[index.flatten() < len(x) - 1]
        return self._finish(x, functional.pad(listed, (0, 0, 0, len(x) - len(listed))))

    def step(self, x: torch.Tensor, rope: torch.Tensor, end: int, bias: torch.Tensor | None) -> torch.Tensor:
        """The layer's output for one more token of each sample, [R * C, E]. end: columns of the cache with the tokens'
        own; bias: added to the scores, [R, 1, C, end].
        """
        q, kv = self._by_head(self._project(x, rope).view(len(x) // self.per_row, self.per_row, -1))
        self.cache.narrow(3, end - self.per_row, self.per_row).copy_(kv)
        k, v = self.cache.narrow(3, 0, end)
        return self._finish(x, cached_attention(q, k, v, bias).transpose(1, 2).reshape(len(x), -1))

    def _project(self, x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values side by side, [N, (H + 2 G) * D], the first two rotated."""
        qkv = functional.linear(self.input_norm.direction(x), *self.qkv)
        turned = qkv[:, : (self.heads + self.groups) * self.size]
        exact = turned.float()
        torch.view_as_complex(exact.view(len(x), -1, self.size // 2, 2)).mul_(rope)
        if exact.dtype != qkv.dtype:
            turned.copy_(exact)
        return qkv

    def _by_head(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, T, (H + 2 G) * D] -> queries [n, H, T, D]; keys and values [2, n, G, T, D]"""
        rows, width, _ = qkv.shape
        by_head = qkv.view(rows, width, -1, self.size)
        kv = by_head[:, :, self.heads :].view(rows, width, 2, self.groups, self.size)
        return by_head[:, :, : self.heads].transpose(1, 2), kv.permute(2, 0, 3, 1, 4)

    def _finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """What comes behind attention, from x, [n, E], which is changed, and attention's output, [n, H * D]."""
        _add(x, attended, self.out)
        gate, up = functional.linear(self.mlp_norm.direction(x), *self.gate_up).chunk(2, 1)
        return _add(x, self.act(gate).mul_(up), self.down)


class _RMSNorm:
    """A norm in two parts: rows divided by their length, which costs few operations, and a scale of the columns.

    What it adds to the mean square is the square of one more number in each row.
    """

    def __init__(self, norm: Any) -> None:
        columns = norm.weight.shape[0]
        self.scale = norm.weight.float() * columns**0.5
        self.more = torch.tensor((columns * norm.variance_epsilon) ** 0.5, device=norm.weight.device)

    def direction(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of about unit length, [n, E]."""
        wide = x.float()
        lengths = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        return (wide / lengths.hypot_(self.more)).to(x.dtype)  # type: ignore[no-any-return]


Affine = tuple[torch.Tensor, torch.Tensor | None]
"""Weight [out, in] and bias [out] of a projection."""


def _affine(projection: nn.Linear) -> Affine:
    return projection.weight, projection.bias


def _interleaved(projection: Any, size: int, scale: float = 1.0) -> Affine:
    """Weight and bias whose outputs come in the order in which `rotated` leaves its own, times `scale`."""

    def ordered(part: torch.Tensor) -> torch.Tensor:
        return part.view(-1, 2, size // 2, *part.shape[1:]).transpose(1, 2).reshape(part.shape) * scale

    return ordered(projection.weight), None if projection.bias is None else ordered(projection.bias)


def _fused(parts: Sequence[Affine], scale: torch.Tensor) -> Affine:
    """Projections of the same input as one that scales it first; a bias where one of them has one. scale: in fp32, so
    that weights of less precision are rounded once.
    """
    joined = torch.cat([weight for weight, _ in parts])
    weights = joined.float().mul_(scale).to(joined.dtype)
    if all(bias is None for _, bias in parts):
        return weights, None
    return weights, torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in parts])


def _add(x: torch.Tensor, inner: torch.Tensor, projection: Affine) -> torch.Tensor:
    """x + the projection of `inner`, in place of x."""
    weight, bias = projection
    x.addmm_(inner, weight.t())
    return x if bias is None else x.add_(bias)
