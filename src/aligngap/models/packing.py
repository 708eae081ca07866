"""Several responses behind one prompt, in one row.

Every scoring job here reads continuations of a shared prompt: a policy scores both responses of a pair, a preference
model reads the pair in both orders. Packed as `[prompt | segment 1 | segment 2 ...]` with a mask that hides the
segments from each other and positions that restart behind the prompt, the prompt is computed once and the result
equals that of separate rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from aligngap.types import Tokens


class Packed(NamedTuple):
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


def pack(prompts: Tokens, segments: Sequence[Tokens]) -> Packed:
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
    return Packed(torch.cat(ids, 1), torch.cat(positions, 1).clamp(min=0), mask[:, None], width, tuple(starts))
