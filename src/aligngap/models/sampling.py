"""Sampling token by token, whatever predicts the next one: n responses, V tokens in the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from aligngap import ranks
from aligngap.types import Tokens

Choose = Callable[[torch.Tensor, int], torch.Tensor]
"""(logits [n, V], number of the token) -> token ids [n]."""


def by_noise(noise: torch.Tensor, device: torch.device) -> Choose:
    """Tokens at temperature 1, by inverting the cumulative distribution.

    noise: uniform numbers in [0, 1), one row a response, one column a token. Common random numbers (the same noise)
    make the samples of two policies as alike as the policies are.
    """
    drawn = noise.to(exact_device(device))
    return lambda logits, at: _invert(logits, drawn[:, at])


def decoded(
    logits: torch.Tensor,
    following: Callable[[torch.Tensor, int], torch.Tensor],
    limit: int,
    choose: Choose,
    ends: Sequence[int],
) -> Tokens:
    """Responses token by token until all have ended. logits: for the first token, [n, V]; following: those for the next
    one, given a token of each response, [n], and its number.
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


def ended(ids: torch.Tensor, ends: Sequence[int], limit: int) -> Tokens:
    """Rows cut behind their first end; generation stops short of the limit when all rows have one."""
    last = among(ids, ends)
    lengths = torch.where(last.any(1), last.int().argmax(1) + 1, limit)
    tokens = Tokens(ids, lengths)
    return Tokens((ids * tokens.mask())[:, : int(lengths.max())], lengths)


def among(token: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
    """True where a token is one of `ends`."""
    if not ends:
        return torch.zeros_like(token, dtype=torch.bool)
    matches = token == ends[0]
    for end in ends[1:]:
        matches |= token == end
    return matches


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
