"""Win rate along the KL path of a run (protocol, "Estimating the gap"; figure 1 of Tang et al. 2405.08448).

KL is in nats, kappa = ln KL, win rates lie in [0, 1] with a tie counting one half. Missing is NaN, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Run:
    """One arm under one seed, one prompt split, one opponent, one judge: win rate along the KL path.

    Runs that are compared share the same N prompts in the same order.

    Raises:
        ValueError: shapes disagree, a step appears twice, an outcome lies outside [0, 1], or a KL is infinite.
    """

    arm: str
    seed: int
    steps: NDArray[np.int64]  # [K] checkpoints, optimiser steps
    kl: Floats  # [K, N] per-prompt KL(pi || pi_sft) in nats, NaN = missing
    win: Floats  # [K, N] per-prompt outcome: 1 win, .5 tie, 0 loss, NaN = missing

    def __post_init__(self) -> None:
        name = f"run {self.arm!r} seed {self.seed}"
        if self.kl.ndim != 2 or self.kl.shape != self.win.shape or self.steps.shape != self.kl.shape[:1]:
            shapes = f"steps {self.steps.shape}, kl {self.kl.shape}, win {self.win.shape}"
            raise ValueError(f"{name}: expected steps [K], kl [K, N], win [K, N]; got {shapes}")
        if len(set(self.steps.tolist())) != len(self.steps):
            raise ValueError(f"{name}: a checkpoint step appears twice")
        if np.any((self.win < 0) | (self.win > 1)):
            raise ValueError(f"{name}: outcomes must lie in [0, 1]")
        if np.any(np.isinf(self.kl)):
            raise ValueError(f"{name}: a KL is infinite; record it as NaN if it could not be measured")

    @property
    def n_prompts(self) -> int:
        return int(self.win.shape[1])

    def on(self, prompts: NDArray[np.bool_]) -> Run:
        """The same run restricted to the prompts marked in `prompts` [N]."""
        return Run(self.arm, self.seed, self.steps, self.kl[:, prompts], self.win[:, prompts])


@dataclass(frozen=True, eq=False)
class Curve:
    """Piecewise-linear win rate over kappa = ln KL; `kappa` [k] strictly increasing, `win` [k], k <= K.

    `end` is the win rate at the last training step (NaN if it was not measured): the end of training
    need not be the right end of the curve, because KL may shrink again.
    """

    kappa: Floats
    win: Floats
    end: float


def weighted_means(values: Floats, weights: Floats) -> Floats:
    """[K, N] values under [B, N] weights -> [B, K] means over the prompts that are present."""
    present = np.isfinite(values)
    total = weights @ np.where(present, values, 0.0).T
    weight = weights @ present.T.astype(np.float64)
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def curves(run: Run, weights: Floats) -> list[Curve]:
    """`curve` for each row of `weights` [B, N] at once; the bootstrap's hot path."""
    if weights.ndim != 2 or weights.shape[1] != run.n_prompts:
        raise ValueError(f"weights {weights.shape} do not match {run.n_prompts} prompts")
    kl, win = weighted_means(run.kl, weights), weighted_means(run.win, weights)
    end = win[:, int(np.argmax(run.steps))] if len(run.steps) else np.full(len(weights), np.nan)
    kappa = np.log(kl, out=np.full_like(kl, np.nan), where=(kl > 0) & np.isfinite(win))
    order = np.argsort(kappa, axis=1, kind="stable")  # NaN, the unusable points, sort last
    kappa, win = np.take_along_axis(kappa, order, 1), np.take_along_axis(win, order, 1)
    usable = np.isfinite(kappa).sum(axis=1).tolist()
    tied = (np.diff(kappa, axis=1) == 0).any(axis=1).tolist()
    rows = []
    for x, y, k, tie, last in zip(kappa, win, usable, tied, end.tolist(), strict=True):
        x, y = x[:k], y[:k]
        if tie:
            x, group = np.unique(x, return_inverse=True)
            y = np.bincount(group, y) / np.bincount(group)
        rows.append(Curve(x, y, last))
    return rows


def curve(run: Run, weights: Floats | None = None) -> Curve:
    """The curve of one run: mean KL and mean win rate over prompts at each checkpoint, kappa = ln(mean KL).

    `weights` [N] are resampling weights over prompts, at least 0 (default: all equal). A prompt missing at a checkpoint
    is left out of that checkpoint's mean only. Checkpoints whose mean KL is not positive, or that lack KL or outcomes,
    have no place on a log axis and are dropped; step 0 has KL 0 exactly and is always among them.

    **Non-monotone KL.** Every checkpoint is a policy with a KL spent and a win rate reached. The curve orders policies
    by the KL they spent, not by step: if KL shrinks during training, a later policy stands left of an earlier one.
    Checkpoints of equal KL are averaged. Between checkpoints it is linear in kappa; it is never extrapolated.

    Raises:
        ValueError: `weights` does not have length N.
    """
    return curves(run, np.ones((1, run.n_prompts)) if weights is None else weights[None, :])[0]


def common_range(group: Iterable[Curve]) -> tuple[float, float]:
    """(low, high) of kappa that every curve covers; (NaN, NaN) when there is none, or a curve has no point."""
    group = list(group)
    if not group or any(len(c.kappa) == 0 for c in group):
        return np.nan, np.nan
    low = max(float(c.kappa[0]) for c in group)
    high = min(float(c.kappa[-1]) for c in group)
    return (low, high) if low <= high else (np.nan, np.nan)


def interpolate(curve: Curve, grid: Floats) -> Floats:
    """Win rate at each kappa of `grid` [G]; NaN outside the curve's own range."""
    if len(curve.kappa) == 0:
        return np.full(grid.shape, np.nan)
    return np.asarray(np.interp(grid, curve.kappa, curve.win, left=np.nan, right=np.nan), dtype=np.float64)


def average_gap(a: Curve, b: Curve, within: tuple[float, float] | None = None) -> float:
    """Mean over kappa of Delta(kappa) = a - b on the common range; win-rate units, positive when `a` is ahead.

    Exact: the difference of two piecewise-linear curves is linear between the union of their knots. The mean is uniform
    in ln KL, so each doubling of the budget counts alike. `within` (low, high) narrows the range, for a comparison that
    must also be common to a third curve. A range of one point gives the difference there; an empty one gives NaN.

    It is a gap between lines: two runs on one bent curve, with few checkpoints at different places, differ by some
    tenths of a point of win rate (docs/statistics.md).
    """
    low, high = common_range((a, b))
    if within is not None:
        low, high = max(low, within[0]), min(high, within[1])
        if np.isnan(within[0]) or np.isnan(within[1]):
            return np.nan
    if not low <= high:
        return np.nan
    knots = np.concatenate((a.kappa, b.kappa))
    knots.sort()
    knots = knots.clip(low, high)  # knots outside become zero-width pieces at the ends
    gap = np.interp(knots, a.kappa, a.win) - np.interp(knots, b.kappa, b.win)
    if low == high:
        return float(gap[0])
    return float(np.dot(knots[1:] - knots[:-1], gap[1:] + gap[:-1]) / (2 * (high - low)))


def peak(curve: Curve) -> tuple[float, float]:
    """(win rate, KL in nats) of the best checkpoint; the cheaper one in KL on a tie; NaNs for an empty curve.

    The maximum of noisy points leans upwards, more so with more checkpoints and fewer prompts: compare peaks of runs
    with equally many checkpoints, and see `bootstrap.select_best` for choosing between arms.
    """
    if len(curve.kappa) == 0:
        return np.nan, np.nan
    best = int(curve.win.argmax())
    return float(curve.win[best]), float(np.exp(curve.kappa[best]))


def fall(curve: Curve) -> float:
    """Peak win rate minus the win rate at the last training step: what over-optimisation cost."""
    return peak(curve)[0] - curve.end


def peak_difference(a: Curve, b: Curve) -> float:
    """Peak win rate of `a` minus that of `b`, wherever on the KL axis each lies."""
    return peak(a)[0] - peak(b)[0]
