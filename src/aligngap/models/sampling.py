"""Our own sampling loop: one prefill for all samples of a prompt, then a static cache. Architectures that it does not
suit go through `transformers`' generation, with our choice of each token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StaticCache,
)

from aligngap import ranks
from aligngap.models.packing import left_pad, pack
from aligngap.models.seq2seq import decoder_start, encoded, start_column
from aligngap.types import Tokens

Choose = Callable[[torch.Tensor, int], torch.Tensor]
"""(logits [n, vocabulary], number of the token) -> token ids [n]."""


def by_noise(noise: torch.Tensor, device: torch.device) -> Choose:
    """Tokens at temperature 1, by inverting the cumulative distribution.

    noise: uniform numbers in [0, 1), one row a response, one column a token. Common random numbers (the same noise)
    make the samples of two policies as alike as the policies are.
    """
    drawn = noise.to(exact_device(device))
    return lambda logits, at: _invert(logits, drawn[:, at])


@torch.no_grad()
def decode_cached(
    model: PreTrainedModel, prompts: Tokens, samples: int, limit: int, choose: Choose, ends: Sequence[int]
) -> Tokens:
    """n * samples responses, grouped by prompt, each ending with one of `ends` or `limit` tokens long; from a packed
    prefix, so for models that can be packed.
    """
    packed = pack(prompts, [])
    count = len(prompts.ids) * samples
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

    def following(token: torch.Tensor, at: int) -> torch.Tensor:
        visible[..., width + at] = True
        output = model(
            input_ids=token[:, None],
            attention_mask=visible,
            position_ids=start + at,
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits[:, -1]  # type: ignore[no-any-return]

    return decoded(logits, following, limit, choose, ends)


def decoded(
    logits: torch.Tensor,
    following: Callable[[torch.Tensor, int], torch.Tensor],
    limit: int,
    choose: Choose,
    ends: Sequence[int],
) -> Tokens:
    """Responses token by token until all have ended. logits: for the first token, [n, vocabulary]; following: those for
    the next one, given a token of each response and its number.
    """
    ids = list[torch.Tensor]()
    done = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    for at in range(limit):
        ids.append(choose(logits, at))
        done |= among(ids[at], ends)
        if at + 1 == limit or not ranks.unfinished(not bool(done.all())):
            break
        logits = following(ids[at], at)
    return ended(torch.stack(ids, 1), ends, limit)


def _repeated(model: PreTrainedModel, prefix: DynamicCache, samples: int, size: int) -> StaticCache:
    """A static cache of `size` positions that begins with the prefix, each row repeated."""
    cache = StaticCache(config=model.config, max_cache_len=size)
    layers: Any = zip(cache.layers, prefix.layers, strict=True)
    for layer, filled in layers:
        layer.update(filled.keys.repeat_interleave(samples, 0), filled.values.repeat_interleave(samples, 0))
    return cache


class _Chosen(LogitsProcessor):
    """Leaves one token to choose from."""

    def __init__(self, choose: Choose) -> None:
        self.choose, self.at = choose, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = self.choose(scores, self.at)
        self.at += 1
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)


@torch.no_grad()
def decode_generated(
    model: Any, prompts: Tokens, samples: int, limit: int, choose: Choose, ends: Sequence[int]
) -> Tokens:
    """As `decode_cached`, through the model's own `generate`, which knows every kind of cache. The encoder of an
    encoder-decoder reads each prompt once.
    """
    if model.config.is_encoder_decoder:
        given = {
            "encoder_outputs": encoded(model, prompts, lambda states: states.repeat_interleave(samples, 0)),
            "attention_mask": prompts.mask().long().repeat_interleave(samples, 0),
            "decoder_input_ids": start_column(model, len(prompts.ids) * samples),
        }
    else:
        ids, real = (part.repeat_interleave(samples, 0) for part in left_pad(prompts))
        given = {"input_ids": ids, "attention_mask": real.long()}
    return ended(_generated(model, given, limit, _Chosen(choose), ends), ends, limit)


def _generated(
    model: Any, given: dict[str, Any], limit: int, chosen: LogitsProcessor, ends: Sequence[int]
) -> torch.Tensor:
    """What follows the tokens given, [n, at most limit]; zeros behind an end."""
    before = given["decoder_input_ids"] if "decoder_input_ids" in given else given["input_ids"]
    config = GenerationConfig(
        max_new_tokens=limit,
        eos_token_id=list(ends) or None,
        pad_token_id=0,
        decoder_start_token_id=decoder_start(model),
        do_sample=False,
        use_cache=True,
    )
    # What a configuration leaves open, `generate` takes from the model's own: penalties, forced tokens and the like.
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        sequences = model.generate(
            **given,
            generation_config=config,
            logits_processor=LogitsProcessorList([chosen]),
            synced_gpus=ranks.sharded(),
        )
    finally:
        model.generation_config = own
    return sequences[:, before.shape[1] :]  # type: ignore[no-any-return]


def ended(ids: torch.Tensor, ends: Sequence[int], limit: int) -> Tokens:
    """Rows cut behind their first end; generation stops short of the limit when all rows have one."""
    last = among(ids, ends)
    lengths = torch.where(last.any(1), last.int().argmax(1) + 1, limit)
    found = Tokens(ids, lengths)
    return Tokens((ids * found.mask())[:, : int(lengths.max())], lengths)


def among(token: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
    """True where a token is one of `ends`."""
    if not ends:
        return torch.zeros_like(token, dtype=torch.bool)
    found = token == ends[0]
    for end in ends[1:]:
        found |= token == end
    return found


def _invert(logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Token whose slice of the cumulative distribution holds the noise. float64: over a large vocabulary a float32 sum
    drifts.
    """
    cumulative = logits.softmax(-1, dtype=torch.float32).to(noise.device).cumsum(-1, dtype=torch.float64)
    place = torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], right=True)
    return place[:, 0].clamp_(max=logits.shape[-1] - 1).to(logits.device)


def exact(values: torch.Tensor) -> torch.Tensor:
    """In float64; on the CPU where the device has none."""
    return values.to(exact_device(values.device)).double()


def exact_device(device: torch.device) -> torch.device:
    """Where float64 is: on a device itself, or on the CPU."""
    return torch.device("cpu") if device.type == "mps" else device
