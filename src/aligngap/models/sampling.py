"""Our own sampling loop: one prefill for all samples of a prompt, then a static cache."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

from aligngap.models.packing import pack
from aligngap.types import Tokens


@torch.no_grad()
def sample(model: PreTrainedModel, prompts: Tokens, samples: int, noise: torch.Tensor, end_token: int) -> Tokens:
    """Sample responses at temperature 1 by inverting the cumulative distribution.

    noise: uniform numbers in [0, 1), [n * samples, limit], one row a response, one column a token. Returns n * samples
    responses, grouped by prompt, each ending with `end_token` or `limit` tokens long. Common random numbers (the same
    noise) make the samples of two policies as alike as the policies are.
    """
    packed = pack(prompts, [])
    count, limit = noise.shape
    width = packed.prompt_width
    prefix = DynamicCache(config=model.config)
    output = model(
        input_ids=packed.ids,
        attention_mask=packed.mask,
        position_ids=packed.positions,
        past_key_values=prefix,
        use_cache=True,
        logits_to_keep=1,
    )
    cache = _repeated(model, prefix, samples, width + limit)
    logits = output.logits[:, -1].repeat_interleave(samples, 0)
    start = prompts.lengths.repeat_interleave(samples)[:, None]
    visible = torch.zeros((count, 1, 1, width + limit), dtype=torch.bool, device=logits.device)
    visible[:, 0, 0, :width] = packed.mask[:, 0, -1].repeat_interleave(samples, 0)
    ids = torch.zeros((count, limit), dtype=torch.int64, device=logits.device)
    lengths = torch.full((count,), limit, dtype=torch.int64, device=logits.device)
    alive = torch.ones(count, dtype=torch.bool, device=logits.device)
    for at in range(limit):
        token = _invert(logits, noise[:, at])
        ids[:, at] = token * alive
        ended = alive & (token == end_token)
        lengths[ended] = at + 1
        alive = alive & ~ended
        if at + 1 == limit or not bool(alive.any()):
            break
        visible[..., width + at] = True
        output = model(
            input_ids=token[:, None],
            attention_mask=visible,
            position_ids=start + at,
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]
    return Tokens(ids[:, : int(lengths.max())], lengths)


def _repeated(model: PreTrainedModel, prefix: DynamicCache, samples: int, size: int) -> StaticCache:
    """A static cache of `size` positions that begins with the prefix, each row repeated."""
    cache = StaticCache(config=model.config, max_cache_len=size)
    layers: Any = zip(cache.layers, prefix.layers, strict=True)
    for layer, filled in layers:
        layer.update(filled.keys.repeat_interleave(samples, 0), filled.values.repeat_interleave(samples, 0))
    return cache


def _invert(logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Token whose slice of the cumulative distribution holds the noise. float64: over a large vocabulary a float32 sum
    drifts.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    return (cumulative <= noise[:, None] * cumulative[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)
