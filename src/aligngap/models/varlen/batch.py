"""A batch as one list of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from aligngap.types import Tokens

_ATTRIBUTE = "_aligngap_varlen"


@dataclass(frozen=True)
class VarlenBatch:
    """B prompts and S segments behind each as one list of N tokens: all prompts, then each segment of all rows, then
    one that stands for all padding.

    ids, positions: int64 [N]. lengths: of the prompts, int64 [B]. prompts, segments: where in the list each token of
    a grid is, int64 [B, P] and [S, B, T]; N - 1 at padding. first: where the segments begin. plans: how attention is
    computed (`attention.plan_for`), made once for all models that read the batch.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    lengths: torch.Tensor
    prompts: torch.Tensor
    segments: torch.Tensor
    first: int
    plans: dict[Any, Any] = field(default_factory=dict)

    @property
    def prompt_ends(self) -> torch.Tensor:
        """Where in the list each prompt's last token is, int64 [B]."""
        return (self.lengths.cumsum(0) - 1).clamp(min=0)


def varlen_batch(prompts: Tokens, segments: Sequence[Tokens]) -> VarlenBatch:
    """Lay out prompts (B rows) and segments (B rows each) without padding.

    A policy, its reference and a point-wise judge read the very same tensors: the batch is kept on the first segment's
    `ids`, and given again for as long as all tensors are the same objects. They must not be changed in place.
    """
    if not segments:
        return _lay_out(prompts, segments)
    owner = segments[0].ids
    others = [part for tokens in (prompts, *segments) for part in tokens if part is not owner]
    kept = getattr(owner, _ATTRIBUTE, None)
    if kept is not None and len(kept[0]) == len(others) and all(a is b for a, b in zip(kept[0], others, strict=True)):
        return kept[1]  # type: ignore[no-any-return]
    batch = _lay_out(prompts, segments)
    setattr(owner, _ATTRIBUTE, (others, batch))
    return batch


def _lay_out(prompts: Tokens, segments: Sequence[Tokens]) -> VarlenBatch:
    device = prompts.ids.device
    width = max((part.ids.shape[1] for part in segments), default=0)
    real = prompts.mask()  # [B, P]
    column = torch.arange(max(real.shape[1], width), device=device)
    ids, positions, masks = [prompts.ids[real]], [column[: real.shape[1]].expand_as(real)[real]], [real.flatten()]
    for part in segments:
        inside, columns = part.mask(), part.ids.shape[1]
        ids.append(part.ids[inside])
        positions.append((prompts.lengths[:, None] + column[:columns])[inside])
        masks.append(functional.pad(inside, (0, width - columns)).flatten())
    padding = torch.zeros(1, dtype=torch.int64, device=device)
    listed, flat = torch.cat([*ids, padding]), torch.cat(masks)
    index = torch.where(flat, flat.cumsum(0) - 1, len(listed) - 1)
    in_prompts, in_segments = index.split([real.numel(), len(index) - real.numel()])
    return VarlenBatch(
        listed,
        torch.cat([*positions, padding]),
        prompts.lengths,
        in_prompts.view_as(real),
        in_segments.view(len(segments), len(prompts.ids), width),
        len(ids[0]),
    )


def segment_grids(rows: torch.Tensor, batch: VarlenBatch, segments: Sequence[Tokens]) -> list[torch.Tensor]:
    """What belongs to the segments' tokens and the padding token, [N - first, X], on a grid for each segment,
    [B, T of the segment, X]; anything at padding.
    """
    return [
        rows.index_select(0, index[:, : part.ids.shape[1]].flatten()).view(*part.ids.shape, rows.shape[1])
        for index, part in zip(batch.segments - batch.first, segments, strict=True)
    ]
