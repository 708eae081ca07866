"""Named random streams.

Every random number of a study comes from a stream named by what it is for (purpose, seed, step, prompt ...),
never from a global generator. A stream is a pure function of its name, so a run that is killed and resumed, split
over processes, or replayed from a recording draws the very same numbers, and arms of one seed share
prompt schedule, initial weights and evaluation noise.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

Key = str | int


def digest(*key: Key) -> int:
    """A stable 128-bit number for a stream's name (Python's `hash` differs between processes)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def numpy_stream(*key: Key) -> np.random.Generator:
    """The numpy generator of the stream with this name."""
    return np.random.Generator(np.random.Philox(key=digest(*key)))


class _Streams:
    """Gives what `numpy_stream` gives, each until the next is asked for: always one generator, set again. To make one
    costs five times as much, as it asks the system for a seed that a key replaces.
    """

    def __init__(self) -> None:
        self._philox = np.random.Philox(key=0)
        self._generator, self._state = np.random.Generator(self._philox), self._philox.state

    def __call__(self, *key: Key) -> np.random.Generator:
        number = digest(*key)
        self._state["state"]["key"] = np.array([number & (2**64 - 1), number >> 64], np.uint64)
        self._philox.state = self._state
        return self._generator


def torch_seed(*key: Key) -> int:
    """A 63-bit seed, for initial weights drawn by torch."""
    return digest(*key) & (2**63 - 1)


def uniforms(names: torch.Tensor, samples: int, length: int, *key: Key) -> torch.Tensor:
    """Uniform numbers in [0, 1) for sampling, one independent stream per prompt.

    names: integers that name each prompt's stream, [n] or [n, parts] (prompt number, or epoch and number). Returns
    float64, [n * samples, length], rows grouped by prompt. Keyed by prompt so that a batch split over devices, or drawn
    in another order, samples the same responses.
    """
    parts = names[:, None] if names.ndim == 1 else names
    stream = _Streams()
    rows = [stream(*key, *name).random((samples, length)) for name in parts.tolist()]
    return torch.from_numpy(np.concatenate(rows)) if rows else torch.empty((0, length), dtype=torch.float64)
