"""Differences between runs that share prompts but no seed, such as two studies made with different seeds.

A statistic compares a run of the one side with a run of the other, and is averaged over all pairs of such runs (a
two-sample U-statistic). Its variance over seeds is that of the mean over either side's runs (Hoeffding's projections);
each side then adds a t distribution with its own degrees of freedom, as Welch's test does, and what the prompts do to
all runs alike is added as in `stats.intervals`, whose bootstrap over prompts this shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aligngap.stats.budget import Curve, Floats, Run, curves
from aligngap.stats.intervals import MAX_UNDEFINED, Estimate, Resampler


def unpaired_estimates(
    first: Sequence[Run],
    second: Sequence[Run],
    statistic: Callable[[Curve, Curve], Mapping[str, float]],
    names: Sequence[str],
    *,
    rng: np.random.Generator,
    replicates: int = 1000,
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Mean of `statistic(a, b)` over all pairs of a run `a` of `first` and a run `b` of `second`, with an interval.

    One run a seed on either side. A side with one run adds nothing for its seed, and the note says so. `n_seeds` of the
    answer is the smaller side's.

    Raises:
        ValueError: runs with different numbers of prompts, or a bad `replicates` or `level`.
    """
    resampler = Resampler(rng, replicates, level)
    weights = resampler.prompts({run.n_prompts for run in (*first, *second)})
    n = weights.shape[1]
    if n == 0 or not first or not second:
        return {name: Estimate(np.nan, np.nan, np.nan, 0, n, 0, "no data") for name in names}
    drawn = [[curves(run, weights) for run in side] for side in (first, second)]
    rows = [[[statistic(*pair) for pair in zip(a, b, strict=True)] for b in drawn[1]] for a in drawn[0]]
    values = np.array([[[[row[name] for name in names] for row in cell] for cell in line] for line in rows])
    prompts = int(np.any([np.isfinite(run.win).any(axis=0) for run in (*first, *second)], axis=0).sum())
    return {name: _estimated(values[..., m], prompts, resampler) for m, name in enumerate(names)}


def _estimated(values: Floats, prompts: int, resampler: Resampler) -> Estimate:
    """Values of one statistic, [first, second, 1 + replicates], those of the prompts as observed at index 0."""
    defined = np.isfinite(values[..., 0])
    sides = [defined.any(axis=1 - side) for side in (0, 1)]
    counts = [int(side.sum()) for side in sides]
    if not defined.any():
        return Estimate(np.nan, np.nan, np.nan, 0, prompts, 0, "no data: undefined for every pair of seeds")
    notes = [f"seeds not shared: {counts[0]} against {counts[1]}, compared all with all"]
    if min(counts) == 1:
        which = "each side: interval covers prompts only" if max(counts) == 1 else "a side: its seed is not covered"
        notes.append(f"1 seed on {which}")
    elif min(counts) < 5:
        notes.append("fewer than 5 seeds on a side: interval rests on near-normal seed effects")
    if not defined.all():
        notes.append(f"undefined for {int((~defined).sum())} of {defined.size} pairs of seeds")
    values = np.where(defined[..., None], values, 0.0)
    mean = values.sum(axis=(0, 1)) / defined.sum()
    observed, resampled = float(mean[0]), mean[1:]
    usable = np.isfinite(resampled)
    prompt_se = float(resampled[usable].std(ddof=1)) if usable.sum() > 1 else np.nan
    undefined = int((~usable).sum())
    if undefined:
        notes.append(f"{undefined} of {len(usable)} replicates undefined")
    if undefined > MAX_UNDEFINED * len(usable):
        notes[-1] += ": no interval"
        return Estimate(observed, np.nan, np.nan, min(counts), prompts, len(usable) - undefined, "; ".join(notes))
    from scipy import stats

    draws, counted = np.full(int(usable.sum()), observed), 0.0
    for side, present in enumerate(sides):
        size = counts[side]
        if size == 1:
            continue
        means = (values.sum(axis=1 - side) / np.maximum(defined.sum(axis=1 - side), 1)[:, None])[present]
        quantiles = (resampler.rng.permutation(len(draws)) + 0.5) / len(draws)
        draws += stats.t.ppf(quantiles, size - 1) * means[:, 0].std(ddof=1) / np.sqrt(size)
        # The seeds' scatter already holds the noise of the prompts that each seed has for itself.
        alone = means[:, 1:][:, usable].var(axis=1, ddof=1).mean()
        counted += (alone - prompt_se**2) / (size - 1)
    share = float(np.clip(1 - counted / prompt_se**2, 0, 1)) if prompt_se > 0 else 0.0
    draws += np.sqrt(share) * (resampled[usable] - resampled[usable].mean())
    low, high = resampler.quantiles(draws)
    note = "; ".join(notes)
    return Estimate(observed, low, high, min(counts), prompts, len(draws), note, draws, prompt_se=prompt_se)


def difference_of_intervals(first: Estimate, second: Estimate) -> tuple[float, float, float]:
    """(value, low, high) of second - first from their two intervals alone, taken as independent.

    The method of variance estimates recovery (Zou and Donner 2008, "Construction of confidence intervals about effect
    measures"). Where the two share prompts, whose luck moves both the same way, it is too wide rather than too narrow.
    NaNs where an interval is missing.
    """
    value = second.value - first.value
    below = np.hypot(second.value - second.low, first.high - first.value)
    above = np.hypot(second.high - second.value, first.value - first.low)
    return value, float(value - below), float(value + above)
