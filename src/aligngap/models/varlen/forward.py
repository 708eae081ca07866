"""The forward pass over a batch: hidden states, logits and log-probabilities of the segments' tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from aligngap.models.varlen.attention import RowMap, plan_for, rotations
from aligngap.models.varlen.batch import VarlenBatch, segment_grids, varlen_batch
from aligngap.types import Tokens

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(queries [N, H * D], keys [N, G * D], values [N, G * D]), as projected -> [N, H * D]."""


def decoder_layer(layer: Any, x: torch.Tensor, attend: Attend, keep: RowMap | None = None) -> torch.Tensor:
    """One layer of a decoder over a list of tokens, [N, E]. keep: the tokens whose output is wanted, if not all's."""
    attention = layer.self_attn
    h = layer.input_layernorm(x)
    k, v = attention.k_proj(h), attention.v_proj(h)
    if keep is not None:
        x, h = keep.spread(x), keep.spread(h)
    x = x + attention.o_proj(attend(attention.q_proj(h), k, v))
    return x + layer.mlp(layer.post_attention_layernorm(x))  # type: ignore[no-any-return]


def hidden_states(backbone: Any, batch: VarlenBatch, *, prompt_ends: bool) -> torch.Tensor:
    """Last hidden states: with `prompt_ends` those of the prompts' last tokens, then those of the segments' tokens,
    then one that means nothing; [B + N - first, E] or [N - first, E].
    """
    x = backbone.embed_tokens(batch.ids)  # [N, E]
    rope = rotations(backbone, x, batch.positions)  # [N, 1, D / 2]
    heads = backbone.config.num_attention_heads, backbone.config.num_key_value_heads
    plan = plan_for(batch, prompt_ends, heads, x.dtype)

    def through(layer: Any, x: torch.Tensor, *, final: bool) -> torch.Tensor:
        queries, q_rope = plan.every, rope * layer.self_attn.scaling
        if final:
            queries, q_rope = plan.kept, plan.keep.spread(q_rope)

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return plan.attend(q, k, v, q_rope, rope, queries)

        return decoder_layer(layer, x, attend, plan.keep if final else None)

    for layer in backbone.layers:
        run = partial(through, layer, final=layer is backbone.layers[-1])
        recompute = layer.gradient_checkpointing and torch.is_grad_enabled()
        x = checkpoint(run, x, use_reentrant=False) if recompute else run(x)
    return backbone.norm(x)  # type: ignore[no-any-return]


def log_probs(model: Any, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
    """log pi(segment | prompt), summed over each segment's tokens; per segment [B]."""
    batch = varlen_batch(prompts, segments)
    wanted = batch.ids[batch.first : -1]
    each = -functional.cross_entropy(_predicting(model, batch)[:-1], wanted, reduction="none")
    index = batch.segments - batch.first
    return list(functional.pad(each, (0, 1)).index_select(0, index.flatten()).view_as(index).sum(2))


def next_token_logits(model: Any, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
    """Logits that predict each token of each segment, [B, T, V]; anything where there is none."""
    batch = varlen_batch(prompts, segments)
    return segment_grids(_predicting(model, batch), batch, segments)


def segment_states(backbone: Any, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
    """Last hidden states of each segment's tokens, [B, T, E]; anything where there is none."""
    batch = varlen_batch(prompts, segments)
    return segment_grids(hidden_states(backbone, batch, prompt_ends=False), batch, segments)


def _predicting(model: Any, batch: VarlenBatch) -> torch.Tensor:
    """Logits that predict each of the segments' tokens, in their order, and a row of padding; [N - first, V]."""
    states = hidden_states(model.model, batch, prompt_ends=True)
    rows = len(batch.lengths)
    before = batch.segments - batch.first + rows - 1  # where the state of the token before is
    before[:, :, :1] = torch.arange(rows, device=before.device)[:, None]
    last = torch.tensor([len(states) - 1], device=before.device)
    index = torch.cat([before[batch.segments < len(batch.ids) - 1], last])
    return model.lm_head(states.index_select(0, index)).float()  # type: ignore[no-any-return]
