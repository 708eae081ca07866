"""How alike responses are, token by token."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

import numpy as np

from aligngap.types import TokenIds


def edit_similarity(a: TokenIds, b: TokenIds) -> float:
    """1 - d / max(len(a), len(b)), with d the Levenshtein distance in tokens: 1 for the same tokens, 0 for none in
    common; 1 for two empty ones.
    """
    longest = max(len(a), len(b))
    if longest == 0:
        return 1.0
    row, other = np.arange(len(b) + 1), np.asarray(b, dtype=np.int64)
    column = np.arange(len(b) + 1)
    for at, token in enumerate(a, start=1):
        step = np.concatenate([[at], np.minimum(row[1:] + 1, row[:-1] + (other != token))])
        # Tokens of b inserted after the best place before them.
        row = np.minimum.accumulate(step - column) + column
    return 1.0 - float(row[-1]) / longest


def bigrams(ids: TokenIds) -> list[tuple[int, int]]:
    """Neighbouring tokens, in order; one for each token but the first."""
    return list(pairwise(ids))


def share_within(items: Collection[tuple[int, int]], known: Collection[tuple[int, int]]) -> float:
    """Share of the items, with repetitions, that are among the known; NaN without items."""
    return sum(item in known for item in items) / len(items) if items else float("nan")
