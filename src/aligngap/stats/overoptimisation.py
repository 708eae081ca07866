"""The over-optimisation law of Gao et al. (2210.10760, section 3, RL form): gain = d (a - b ln d), d = sqrt(KL).

`a` is the initial gain for each unit of d, `b` the rate at which optimisation turns against itself. The form has
infinite slope at d = 0 and fails near it, so points with d below `MIN_DISTANCE` are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np

from aligngap.stats.budget import Floats, Run, curve
from aligngap.stats.intervals import Estimate, Resampling, Seed, intervals

MIN_DISTANCE = 0.3  # square root of nats


@dataclass(frozen=True)
class Fit:
    """Least-squares fit; NaN with a note if it is not determined. `peak_d` in sqrt(nats) is NaN unless b > 0."""

    a: float
    b: float
    peak_d: float
    r2: float
    n_points: int
    note: str = ""


def fit(kl: Floats, gain: Floats, min_distance: float = MIN_DISTANCE) -> Fit:
    """Fit gain [k] over SFT (any unit) to KL [k] in nats: linear least squares on the columns d and -d ln d.

    NaN pairs and points with d < `min_distance` are dropped; `n_points` counts the rest, and fewer than 3 (or fewer
    than 2 different KLs) give NaN. The peak is at d = exp(a/b - 1), which may lie beyond the points fitted: compare
    before believing it. `r2` is relative to the mean gain, and may be negative because the form has no constant.

    Raises:
        ValueError: shapes differ.
    """
    if kl.shape != gain.shape or kl.ndim != 1:
        raise ValueError(f"expected kl [k] and gain [k]; got {kl.shape} and {gain.shape}")
    keep = np.isfinite(kl) & np.isfinite(gain) & (kl >= max(min_distance, 0.0) ** 2) & (kl > 0)
    d, y = np.sqrt(kl[keep]), gain[keep]
    n = len(d)
    if n < 3 or len(set(d.tolist())) < 2:
        note = f"{n} point(s) with d >= {min_distance:g}: need 3, at 2 or more different KLs"
        return Fit(np.nan, np.nan, np.nan, np.nan, n, note)
    design = np.column_stack((d, -d * np.log(d)))
    (a, b), *_ = np.linalg.lstsq(design, y, rcond=None)
    residual, spread = y - design @ (a, b), y - y.mean()
    total = float(spread @ spread)
    r2 = 1 - float(residual @ residual) / total if total > 0 else np.nan
    # A flat line fitted with a tiny positive b would put the peak at infinity.
    log_peak = a / b - 1 if b > 0 else np.nan
    peak_d = float(np.exp(log_peak)) if log_peak < 700 else np.nan
    return Fit(float(a), float(b), peak_d, r2, n)


@dataclass(frozen=True)
class Overoptimisation:
    """Seed means of the fit's numbers with intervals; `n_points` is the total over seeds of the points fitted."""

    a: Estimate
    b: Estimate
    peak_d: Estimate
    r2: Estimate
    n_points: int


def overoptimisation(
    runs: Sequence[Run],
    rng: np.random.Generator,
    *,
    reference: float = 0.5,
    min_distance: float = MIN_DISTANCE,
    **how: Unpack[Resampling],
) -> Overoptimisation:
    """Fit the law to each seed (all its runs together, over KL) and average; gain = win rate - `reference`.

    `reference` is .5 when the opponent is the SFT policy, otherwise SFT's own win rate against that opponent. Intervals
    are those of `intervals`. `peak_d` is averaged as ln d, and only over seeds whose b is positive: the note counts the
    others, and the interval is withheld when b <= 0 in more than 10% of the replicates.
    """

    def of_seed(seed: Seed) -> dict[str, float]:
        kl = np.concatenate([np.exp(c.x) for c in seed["arm"]])
        gain = np.concatenate([c.win for c in seed["arm"]]) - reference
        f = fit(kl, gain, min_distance)
        # A peak that underflows to 0 lies before anything measured: a fall from the start, not a peak.
        ln_d = float(np.log(f.peak_d)) if f.peak_d > 0 else np.nan
        return {"a": f.a, "b": f.b, "ln_d": ln_d, "r2": f.r2}

    result = intervals({"arm": runs}, of_seed, ("a", "b", "ln_d", "r2"), rng=rng, **how)
    distances = np.concatenate([np.exp(curve(run).x / 2) for run in runs]) if runs else np.empty(0)
    furthest = float(distances.max()) if len(distances) else np.nan
    peak = result["ln_d"].exponential()
    if peak.value > furthest:
        peak = peak.noted(f"beyond the largest d seen ({furthest:.3g})")
    n_points = int((distances >= min_distance).sum())
    return Overoptimisation(result["a"], result["b"], peak, result["r2"], n_points)
