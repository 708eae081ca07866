"""The over-optimisation law of Gao et al. (2210.10760, section 3, RL form): gain = d (a - b ln d), d = sqrt(KL).

`a` is the initial gain for each unit of d, `b` the rate at which optimisation turns against itself. The form has
infinite slope at d = 0 and fails near it, so points with d below `MIN_DISTANCE` are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Unpack

import numpy as np

from aligngap.stats.budget import Floats, Run
from aligngap.stats.intervals import Estimate, Resampling, Seed, intervals

MIN_DISTANCE = 0.3  # square root of nats


class Fit(NamedTuple):
    """Least-squares fit; NaN if it is not determined."""

    a: float
    b: float


def fit(kl: Floats, gain: Floats) -> Fit:
    """Fit gain [k] over SFT (any unit) to KL [k] in nats: linear least squares on the columns d and -d ln d.

    NaN pairs and points with d < `MIN_DISTANCE` are dropped; fewer than 3 others (or fewer than 2 different KLs) give
    NaN.

    Raises:
        ValueError: shapes differ.
    """
    if kl.shape != gain.shape or kl.ndim != 1:
        raise ValueError(f"expected kl [k] and gain [k]; got {kl.shape} and {gain.shape}")
    keep = np.isfinite(kl) & np.isfinite(gain) & (kl >= MIN_DISTANCE**2)
    d, y = np.sqrt(kl[keep]), gain[keep]
    if len(d) < 3 or len(set(d.tolist())) < 2:
        return Fit(np.nan, np.nan)
    (a, b), *_ = np.linalg.lstsq(np.column_stack((d, -d * np.log(d))), y, rcond=None)
    return Fit(float(a), float(b))


def overoptimisation(runs: Sequence[Run], rng: np.random.Generator, **how: Unpack[Resampling]) -> dict[str, Estimate]:
    """`a` and `b` of the law fitted to each seed (all its runs together, over KL), averaged, with the intervals of
    `intervals`; gain = win rate - 1/2, for the opponent is the SFT policy.
    """

    def of_seed(seed: Seed) -> dict[str, float]:
        kl = np.concatenate([np.exp(c.x) for c in seed["arm"]])
        gain = np.concatenate([c.win for c in seed["arm"]]) - 0.5
        return fit(kl, gain)._asdict()

    return intervals({"arm": runs}, of_seed, Fit._fields, rng=rng, **how)
