"""Prompts, pairs and batches of pairs: always token ids, never text. Imports nothing of the project."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

TokenIds = Sequence[int]


class Prompt(NamedTuple):
    """A prompt of a task. `number` is unique within the task and names the prompt's random streams."""

    number: int
    ids: tuple[int, ...]


class Tokens(NamedTuple):
    """Token sequences of unequal length, side by side.

    ids: int64 [n, width]; what lies outside a row's length is padding. lengths: int64 [n].
    """

    ids: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def collate(cls, rows: Sequence[TokenIds]) -> Tokens:
        """Right-pad to the longest row (at least one column)."""
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        width = max(1, int(lengths.max())) if len(rows) else 1
        result = cls(torch.zeros((len(rows), width), dtype=torch.int64), lengths)
        # At once: a tensor a row takes ten times as long where rows are short.
        result.ids[result.mask()] = torch.tensor(list(itertools.chain.from_iterable(rows)), dtype=torch.int64)
        return result

    @classmethod
    def stack(cls, parts: Sequence[Tokens]) -> Tokens:
        """The rows of several, one below the other."""
        width = max(part.ids.shape[1] for part in parts)
        ids = torch.cat([torch.nn.functional.pad(part.ids, (0, width - part.ids.shape[1])) for part in parts])
        return cls(ids, torch.cat([part.lengths for part in parts]))

    def mask(self) -> torch.Tensor:
        """True on real tokens, bool [n, width]."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    def rows(self) -> list[list[int]]:
        """Without padding, as lists."""
        return [row[:length] for row, length in zip(self.ids.tolist(), self.lengths.tolist(), strict=True)]

    def take(self, index: torch.Tensor) -> Tokens:
        """These rows, trimmed to their longest."""
        lengths = self.lengths[index]
        width = max(1, int(lengths.max())) if len(lengths) else 1
        return Tokens(self.ids[index, :width], lengths)

    def to(self, device: torch.device | str) -> Tokens:
        """The same, on another device."""
        return Tokens(self.ids.to(device), self.lengths.to(device))


@dataclass(frozen=True)
class PairBatch:
    """A batch of labelled pairs, as a source supplies it and the trainer consumes it.

    prompt_numbers: int64 [n]; prompts, first, second: token ids; preference: float32 [n], the probability that the
    first response is preferred (1, 0, or 0.5 for a tie); provenance: where the pairs come from. The trainer and the
    losses never read `provenance`; it is written to the recorded stream. reference: float32 [n, 2], what the reference
    policy gives the first and the second response (log-probability, summed over tokens, nats), where that is known.
    """

    prompt_numbers: torch.Tensor
    prompts: Tokens
    first: Tokens
    second: Tokens
    preference: torch.Tensor
    provenance: tuple[str, ...]
    reference: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompt_numbers)

    def digest(self) -> str:
        """Names what the trainer sees of these pairs: prompts, responses and preferences, not the padding."""
        digest = hashlib.sha256(repr([self.prompt_numbers.tolist(), self.preference.tolist()]).encode())
        for tokens in (self.prompts, self.first, self.second):
            digest.update(repr(tokens.rows()).encode())
        return digest.hexdigest()[:12]

    def take(self, index: torch.Tensor) -> PairBatch:
        """These pairs, in this order, padded no wider than they need."""
        return PairBatch(
            self.prompt_numbers[index],
            self.prompts.take(index),
            self.first.take(index),
            self.second.take(index),
            self.preference[index],
            tuple(self.provenance[i] for i in index.tolist()),
            None if self.reference is None else self.reference[index],
        )

    def to(self, device: torch.device | str) -> PairBatch:
        """The same, on another device."""
        return PairBatch(
            self.prompt_numbers.to(device),
            self.prompts.to(device),
            self.first.to(device),
            self.second.to(device),
            self.preference.to(device),
            self.provenance,
            None if self.reference is None else self.reference.to(device),
        )


def concatenate(batches: Sequence[PairBatch]) -> PairBatch:
    """Several batches as one, in order. What the reference gives is known of all their pairs, or of none."""
    known = [batch.reference for batch in batches if batch.reference is not None]
    return PairBatch(
        torch.cat([batch.prompt_numbers for batch in batches]),
        Tokens.stack([batch.prompts for batch in batches]),
        Tokens.stack([batch.first for batch in batches]),
        Tokens.stack([batch.second for batch in batches]),
        torch.cat([batch.preference for batch in batches]),
        tuple(origin for batch in batches for origin in batch.provenance),
        torch.cat(known) if known and len(known) == len(batches) else None,
    )
