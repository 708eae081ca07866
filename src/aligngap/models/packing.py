"""Several responses behind one prompt, in one row.

Every scoring job here reads continuations of a shared prompt: a policy scores both responses of a pair, a preference
model reads the pair in both orders. Packed as `[prompt | segment 1 | segment 2 ...]` with a mask that hides the
segments from each other and positions that restart behind the prompt, the prompt is computed once and the result
equals that of separate rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache, StaticCache

from aligngap.models.engine import Engine
from aligngap.models.sampling import Choose, decoded
from aligngap.types import Tokens


class PackedRows(NamedTuple):
    """Model input for n rows. Prompts end at column `prompt_width` (left-padded); segment k starts at column starts[k].

    ids, positions: int64 [n, width]; mask: bool [n, 1, width, width], True where a query (row) may look at a key
    (column).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    prompt_width: int
    starts: tuple[int, ...]


def left_pad(tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows pushed to the right edge: ids and bool mask, both [n, width]."""
    width = tokens.ids.shape[1]
    column = torch.arange(width, device=tokens.ids.device) - (width - tokens.lengths[:, None])
    real = column >= 0
    return tokens.ids.gather(1, column.clamp(min=0)) * real, real


def pack(prompts: Tokens, segments: Sequence[Tokens]) -> PackedRows:
    """Pack segments (each n rows) behind their prompts (n rows)."""
    device = prompts.ids.device
    prompt_ids, prompt_real = left_pad(prompts)
    width = prompt_ids.shape[1]
    ids, real, positions, owner, starts = (
        [prompt_ids],
        [prompt_real],
        [prompt_real.cumsum(1) - 1],
        [torch.zeros(width)],
        [],
    )
    at = width
    for number, segment in enumerate(segments, start=1):
        size = segment.ids.shape[1]
        ids.append(segment.ids)
        real.append(segment.mask())
        positions.append(prompts.lengths[:, None] + torch.arange(size, device=device))
        owner.append(torch.full((size,), float(number)))
        starts.append(at)
        at += size
    block = torch.cat(owner).to(device)
    allowed = (block[None, :] == 0) | (block[:, None] == block[None, :])
    causal = torch.ones((at, at), dtype=torch.bool, device=device).tril() & allowed
    mask = causal & torch.cat(real, 1)[:, None, :]
    # A padding row that may look at nothing gives NaN in the softmax; it looks at itself, and nobody looks at it.
    mask = mask | torch.eye(at, dtype=torch.bool, device=device)
    return PackedRows(torch.cat(ids, 1), torch.cat(positions, 1).clamp(min=0), mask[:, None], width, tuple(starts))


class Packed(Engine):
    """Reads packed rows, and samples from a packed prefix and a static cache; for models that take positions and 4-D
    masks at their word.
    """

    def next_token_logits(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        logits, columns = self._logits(prompts, segments)
        return [logits[:, index] for index in columns]

    def log_probs(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        """As `Engine.log_probs`; what normalises a prompt's last logits is computed once for all segments."""
        logits, columns = self._logits(prompts, segments)
        normaliser = logits.logsumexp(-1)
        rows = torch.arange(len(prompts.ids), device=logits.device)[:, None]
        return [
            ((logits[rows, index, segment.ids] - normaliser[:, index]) * segment.mask()).sum(-1)
            for segment, index in zip(segments, columns, strict=True)
        ]

    def hidden_states(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        packed = pack(prompts, segments)
        states = self._run(packed, use_cache=False).last_hidden_state
        return [
            states[:, start : start + part.ids.shape[1]] for start, part in zip(packed.starts, segments, strict=True)
        ]

    def _run(self, packed: PackedRows, **options: Any) -> Any:
        return self.model(input_ids=packed.ids, attention_mask=packed.mask, position_ids=packed.positions, **options)

    def _logits(self, prompts: Tokens, segments: Sequence[Tokens]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits at the positions that predict a segment's token, [B, 1 + the sum of T - 1, V], and for each segment
        which of them are its own, int64 [T].

        Nothing is computed at other prompt positions: the head is the larger part of a small model.
        """
        packed = pack(prompts, segments)
        device = packed.ids.device
        keep, columns = [torch.tensor([packed.prompt_width - 1])], []
        at = 1
        for start, segment in zip(packed.starts, segments, strict=True):
            rest = segment.ids.shape[1] - 1
            keep.append(torch.arange(start, start + rest))
            columns.append(torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(at, at + rest)]).to(device))
            at += rest
        output = self._run(packed, use_cache=False, logits_to_keep=torch.cat(keep).to(device))
        return output.logits.float(), columns

    @torch.no_grad()
    def decode(self, prompts: Tokens, samples: int, limit: int, choose: Choose, ends: Sequence[int]) -> Tokens:
        packed = pack(prompts, [])
        count, width = len(prompts.ids) * samples, packed.prompt_width
        prefix = DynamicCache(config=self.model.config)
        output = self._run(packed, past_key_values=prefix, use_cache=True, logits_to_keep=1)
        cache = self._repeated(prefix, samples, width + limit)
        logits = output.logits[:, -1].repeat_interleave(samples, 0)
        start = prompts.lengths.repeat_interleave(samples)[:, None]
        visible = torch.zeros((count, 1, 1, width + limit), dtype=torch.bool, device=logits.device)
        visible[:, 0, 0, :width] = packed.mask[:, 0, -1].repeat_interleave(samples, 0)

        def following(token: torch.Tensor, at: int) -> torch.Tensor:
            visible[..., width + at] = True
            output = self.model(
                input_ids=token[:, None],
                attention_mask=visible,
                position_ids=start + at,
                past_key_values=cache,
                use_cache=True,
            )
            return output.logits[:, -1]  # type: ignore[no-any-return]

        return decoded(logits, following, limit, choose, ends)

    def _repeated(self, prefix: DynamicCache, samples: int, size: int) -> StaticCache:
        """A static cache of `size` positions that begins with the prefix, each row repeated."""
        cache = StaticCache(config=self.model.config, max_cache_len=size)
        layers: Any = zip(cache.layers, prefix.layers, strict=True)
        for layer, filled in layers:
            layer.update(filled.keys.repeat_interleave(samples, 0), filled.values.repeat_interleave(samples, 0))
        return cache
