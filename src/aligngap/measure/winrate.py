"""Win rates from per-prompt outcomes. Ties count one half; no data is NaN with a count, never 0. Knows no judge."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class WinRate(NamedTuple):
    """Share of prompts won, its standard error over prompts, prompts judged, and how many were ties."""

    rate: float
    se: float
    n: int
    ties: int


def win_rate(outcomes: NDArray[np.float64]) -> WinRate:
    """From outcomes 1, 0, 0.5 (tie) or NaN (not judged), [n]."""
    known = outcomes[~np.isnan(outcomes)]
    ties = int((known == 0.5).sum())
    return WinRate(*mean_se(known), len(known), ties)


def mean_se(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and its standard error over what is not NaN (ddof 1; NaN with fewer than one or two values)."""
    known = values[~np.isnan(values)]
    mean = float(known.mean()) if len(known) else float("nan")
    se = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else float("nan")
    return mean, se
