"""Win rate along a budget of a run (protocol, "Estimating the gap"; figure 1 of Tang et al. 2405.08448).

A budget is what a policy has cost by a checkpoint: KL from the SFT policy, optimiser steps, judge calls, labels, tokens
sampled, seconds. A curve is the win rate over the values of one of them; win rates lie in [0, 1] with a tie counting
one half. Missing is NaN, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Budget:
    """What a policy may cost, and the axis that curves over it have.

    log: the axis is the natural logarithm, on which each doubling counts alike and 0 has no place; else it is the
    amount itself. Of checkpoints with equal amounts a curve takes the mean where `pooled`, else the last one in
    training: training that goes on at no further cost is what the amount buys.
    """

    name: str
    title: str
    unit: str
    log: bool = False
    pooled: bool = False

    def axis(self, amount: Floats) -> Floats:
        """Places on the axis; NaN for what has none."""
        if not self.log:
            return amount
        return np.log(amount, out=np.full_like(amount, np.nan), where=amount > 0)

    def amount(self, place: float) -> float:
        """The amount at a place of the axis, in `unit`."""
        return float(np.exp(place)) if self.log else place


KL = Budget("kl", "KL", "nats", log=True, pooled=True)
"""Mean over prompts of the KL of the policy from the SFT policy, along the policy's own responses; 0 at step 0."""
STEPS = Budget("steps", "optimiser steps", "steps")
"""Optimiser steps of the arm from the SFT policy on; those of SFT, judges and other arms are not counted."""
JUDGE_CALLS = Budget("judge_calls", "judge calls", "pairs")
"""Pairs that a judge has labelled for what the arm has trained on, from step 0 on. A live source asks its judge about
each pair. A recorded pair was labelled once, when the data were made, and counts when it is first used, be
its labels golden's, a proxy's or raters'; seen again it costs nothing. Evaluation's calls are not counted.
"""
LABELS = Budget("labels", "labels", "pairs")
"""Labels of golden (or of raters, where golden labels nothing) that the arm rests on. Where golden itself labels the
pairs they are its judge calls. Where a proxy does, they are the pairs that the proxy was trained on, all of them from
step 0 on. Labels behind golden, and behind the SFT policy, are not counted: all arms share them.
"""
TOKENS_SAMPLED = Budget("tokens_sampled", "tokens sampled", "tokens")
"""Tokens of the responses that the arm's own source has sampled, end tokens included, from step 0 on. What other arms,
evaluation and the making of recorded pairs sampled is not counted.
"""
SECONDS = Budget("seconds", "run time", "seconds")
"""Run time of the arm's own stage, its start and its saving included. Only the total is on record, and is spread evenly
over the steps: exact at the last step alone. What the arm stands on is not counted.
"""

BUDGETS = {budget.name: budget for budget in (KL, STEPS, JUDGE_CALLS, LABELS, TOKENS_SAMPLED, SECONDS)}


@dataclass(frozen=True, eq=False)
class Run:
    """One arm under one seed, one prompt split, one opponent, one judge: wins along its training.

    Runs that are compared share the same N prompts in the same order. budgets: by name, the amount at each
    checkpoint; what differs from prompt to prompt, as KL does, a value a prompt. along: the budget that its curve is
    over. Without any, it has its steps.

    Raises:
        ValueError: shapes disagree, a step appears twice, an outcome lies outside [0, 1], an amount is infinite, or the
            budget `along` is unknown.
    """

    arm: str
    seed: int
    steps: NDArray[np.int64]  # [K] checkpoints, optimiser steps
    win: Floats  # [K, N] per-prompt outcome: 1 win, .5 tie, 0 loss, NaN = missing
    budgets: Mapping[str, Floats]  # [K] or [K, N] in the budget's unit, NaN = missing
    along: Budget = KL

    def __post_init__(self) -> None:
        name = f"run {self.arm!r} seed {self.seed}"
        shapes = {budget: amount.shape for budget, amount in self.budgets.items()}
        allowed = (self.win.shape[:1], self.win.shape)
        if self.win.ndim != 2 or self.steps.shape != allowed[0] or not set(shapes.values()) <= set(allowed):
            result = f"steps {self.steps.shape}, win {self.win.shape}, budgets {shapes}"
            raise ValueError(f"{name}: expected steps [K], win [K, N], budgets [K] or [K, N]; got {result}")
        if len(set(self.steps.tolist())) != len(self.steps):
            raise ValueError(f"{name}: a checkpoint step appears twice")
        if np.any((self.win < 0) | (self.win > 1)):
            raise ValueError(f"{name}: outcomes must lie in [0, 1]")
        for budget, amount in self.budgets.items():
            if np.any(np.isinf(amount)):
                raise ValueError(f"{name}: a value of {budget} is infinite; record it as NaN if it was not measured")

    @property
    def n_prompts(self) -> int:
        return int(self.win.shape[1])

    @property
    def amount(self) -> Floats:
        """The amounts of the budget that the curve is over, [K] or [K, N]; NaN where it is not known."""
        if self.along is STEPS:
            return self.steps.astype(np.float64)
        return self.budgets.get(self.along.name, np.full(len(self.steps), np.nan))

    def over(self, budget: Budget) -> Run:
        """The same run, along another budget."""
        return replace(self, along=budget)

    def on(self, prompts: NDArray[np.bool_]) -> Run:
        """The same run restricted to the prompts marked in `prompts` [N]."""
        of_prompts = {name: amount[:, prompts] if amount.ndim == 2 else amount for name, amount in self.budgets.items()}
        return replace(self, win=self.win[:, prompts], budgets=of_prompts)


@dataclass(frozen=True, eq=False)
class Curve:
    """Piecewise-linear win rate over a budget's axis; `x` [k] strictly increasing, `win` [k], k <= K.

    `end` is the win rate at the last training step (NaN if it was not measured): the end of training need not be the
    right end of the curve, because KL may shrink again.
    """

    x: Floats
    win: Floats
    end: float
    budget: Budget = KL


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
    win = weighted_means(run.win, weights)
    end = win[:, int(np.argmax(run.steps))] if len(run.steps) else np.full(len(weights), np.nan)
    amount = run.amount
    means = weighted_means(amount, weights) if amount.ndim == 2 else np.broadcast_to(amount, win.shape)
    place = np.where(np.isfinite(win), run.along.axis(means), np.nan)
    order = np.argsort(place, axis=1, kind="stable")  # NaN, the unusable points, sort last
    place, win = np.take_along_axis(place, order, 1), np.take_along_axis(win, order, 1)
    usable = np.isfinite(place).sum(axis=1).tolist()
    tied = (np.diff(place, axis=1) == 0).any(axis=1).tolist()
    rows = []
    for x, y, k, tie, last in zip(place, win, usable, tied, end.tolist(), strict=True):
        x, y = x[:k], y[:k]
        if tie and run.along.pooled:
            x, group = np.unique(x, return_inverse=True)
            y = np.bincount(group, y) / np.bincount(group)
        elif tie:
            latest = np.append(np.diff(x) > 0, True)
            x, y = x[latest], y[latest]
        rows.append(Curve(x, y, last, run.along))
    return rows


def curve(run: Run, weights: Floats | None = None) -> Curve:
    """The curve of one run over its budget: mean amount and mean win rate over prompts at each checkpoint. Over KL the
    axis is kappa = ln(mean KL).

    `weights` [N] are resampling weights over prompts, at least 0 (default: all equal). A prompt missing at a checkpoint
    is left out of that checkpoint's mean only. Checkpoints that lack an amount or outcomes are dropped; so are those
    whose mean KL is not positive, for they have no place on a log axis: step 0 has KL 0 exactly and is always among
    them.

    **A budget that shrinks**, as KL can. Every checkpoint is a policy with an amount and a win rate. The
    curve orders policies by the amount, not by step: if KL shrinks during training, a later policy stands left of an
    earlier one. Between checkpoints it is linear in the axis; it is never extrapolated.

    Raises:
        ValueError: `weights` does not have length N.
    """
    return curves(run, np.ones((1, run.n_prompts)) if weights is None else weights[None, :])[0]


def common_range(group: Iterable[Curve]) -> tuple[float, float]:
    """(low, high) of the axis that every curve covers; (NaN, NaN) when there is none, or a curve has no point.

    Raises:
        ValueError: the curves are over different budgets.
    """
    group = list(group)
    if len({c.budget.name for c in group}) > 1:
        raise ValueError(f"curves over different budgets: {sorted({c.budget.name for c in group})}")
    if not group or any(len(c.x) == 0 for c in group):
        return np.nan, np.nan
    low = max(float(c.x[0]) for c in group)
    high = min(float(c.x[-1]) for c in group)
    return (low, high) if low <= high else (np.nan, np.nan)


def interpolate(curve: Curve, grid: Floats) -> Floats:
    """Win rate at each place of `grid` [G]; NaN outside the curve's own range."""
    if len(curve.x) == 0:
        return np.full(grid.shape, np.nan)
    return np.asarray(np.interp(grid, curve.x, curve.win, left=np.nan, right=np.nan), dtype=np.float64)
