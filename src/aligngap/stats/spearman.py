"""Rank correlation of many rows at once."""

from __future__ import annotations

import numpy as np

from aligngap.stats.budget import Floats


def spearman(x: Floats, y: Floats) -> Floats:
    """Rank correlation of each row, [B, K] -> [B]; NaN for fewer than three places, or where either does not vary."""
    if x.shape[1] < 3:
        return np.full(len(x), np.nan)
    from scipy import stats

    a, b = (stats.rankdata(part, axis=1) for part in (x, y))
    a, b = (part - part.mean(axis=1, keepdims=True) for part in (a, b))
    spread = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    product_sum = (a * b).sum(axis=1)
    return np.asarray(np.divide(product_sum, spread, out=np.full(len(x), np.nan), where=spread > 0))
