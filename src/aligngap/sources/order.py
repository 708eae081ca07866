"""In which order a fixed list is gone through: pure permutations of (length, epoch), from named streams."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from aligngap.seeds import Key, numpy_stream

Order = Callable[[int, int], torch.Tensor]
"""(length, epoch) -> a permutation of range(length), int64 [length]."""


def in_sequence(length: int, epoch: int) -> torch.Tensor:
    """As recorded: a recorded online stream in this order is tandem replay (Tang et al. 2024, appendix F)."""
    return torch.arange(length)


def uniform(*key: Key) -> Order:
    """Uniformly shuffled, differently in each epoch."""
    return lambda length, epoch: torch.from_numpy(numpy_stream(*key, epoch).permutation(length))


def windowed(window: int, *key: Key) -> Order:
    """Shuffled within consecutive windows of `window` items (figure 13). Windows of one item keep the sequence."""
    if window < 1:
        raise ValueError(f"a shuffle window holds at least one item, not {window}")

    def order(length: int, epoch: int) -> torch.Tensor:
        rng = numpy_stream(*key, epoch)
        starts = range(0, length, window)
        parts = [start + rng.permutation(min(window, length - start)) for start in starts]
        return torch.from_numpy(np.concatenate(parts)) if parts else torch.empty(0, dtype=torch.int64)

    return order


def prompt_schedule(seed: int) -> Order:
    """The order in which the arms of one seed go through the prompts, whatever their source."""
    return uniform("schedule", seed)


class Walk:
    """Goes through range(length) in a given order, epoch after epoch, and knows where it is."""

    def __init__(self, length: int, order: Order) -> None:
        if length < 1:
            raise ValueError("there is nothing to go through: the list of pairs or prompts is empty")
        self.length, self.order, self.position = length, order, 0
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def take(self, n: int) -> torch.Tensor:
        """The next n indices, int64 [n]; crosses into the next epoch where need be."""
        parts = []
        while n:
            epoch, offset = divmod(self.position, self.length)
            if epoch != self._epoch:
                self._epoch, self._permutation = epoch, self.order(self.length, epoch)
            part = self._permutation[offset : offset + n]
            parts.append(part)
            self.position += len(part)
            n -= len(part)
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
