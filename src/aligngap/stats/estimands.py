"""What is estimated of runs over a budget: gap, peaks, falls, share closed, best of a sweep (protocol, "Estimating the
gap").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from aligngap.stats.budget import KL, Curve, Floats, Run, common_range, curve, interpolate
from aligngap.stats.intervals import (
    MAX_UNDEFINED,
    Estimate,
    Resampler,
    Resampling,
    Sample,
    Seed,
    few_seeds,
    intervals,
)


def average_gap(a: Curve, b: Curve, within: tuple[float, float] | None = None) -> float:
    """Mean of a - b over the budget's axis, on the common range; win-rate units, positive when `a` is ahead.

    Exact: the difference of two piecewise-linear curves is linear between the union of their knots. The mean is uniform
    on the axis: in ln KL, so that each doubling of KL counts alike, or in judge calls, so that each call does. `within`
    (low, high) narrows the range, for a comparison that must also be common to a third curve. A range of one point
    gives the difference there; an empty one gives NaN.

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
    knots = np.concatenate((a.x, b.x))
    knots.sort()
    knots = knots.clip(low, high)  # knots outside become zero-width pieces at the ends
    gap = np.interp(knots, a.x, a.win) - np.interp(knots, b.x, b.win)
    if low == high:
        return float(gap[0])
    return float(np.dot(knots[1:] - knots[:-1], gap[1:] + gap[:-1]) / (2 * (high - low)))


def peak(curve: Curve) -> tuple[float, float]:
    """(win rate, amount of the budget) of the best checkpoint; the cheaper one on a tie; NaNs for an empty curve.

    The maximum of noisy points leans upwards, more so with more checkpoints and fewer prompts: compare peaks of runs
    with equally many checkpoints, and see `select_best` for choosing between arms.
    """
    if len(curve.x) == 0:
        return np.nan, np.nan
    best = int(curve.win.argmax())
    return float(curve.win[best]), curve.budget.amount(float(curve.x[best]))


def fall(curve: Curve) -> float:
    """Peak win rate minus the win rate at the last training step: what over-optimisation cost."""
    return peak(curve)[0] - curve.end


def peak_difference(a: Curve, b: Curve) -> float:
    """Peak win rate of `a` minus that of `b`, wherever on the axis each lies."""
    return peak(a)[0] - peak(b)[0]


@dataclass(frozen=True, eq=False)
class Band:
    """Simultaneous band for a difference curve: all of it lies in [low, high]. x: places on the budget's axis. [G]."""

    x: Floats
    value: Floats
    low: Floats
    high: Floats
    n_seeds: int
    note: str


def _mean(values: Sequence[float]) -> float:
    """Mean of the defined values, NaN if none is."""
    defined = [v for v in values if v == v]
    return sum(defined) / len(defined) if defined else np.nan


def _gap(seed: Seed) -> dict[str, float]:
    online, offline = seed["online"], seed["offline"]
    row = {"average_gap": _mean([average_gap(a, b) for a in online for b in offline])}
    for name, group in (("online", online), ("offline", offline)):
        peaks = [peak(c) for c in group]
        row[f"{name}_peak"] = _mean([win for win, _ in peaks])
        places = [c.budget.axis(np.array([amount])) for c, (_, amount) in zip(group, peaks, strict=True)]
        row[f"{name}_at_peak"] = _mean([float(place[0]) for place in places])
        row[f"{name}_fall"] = _mean([fall(c) for c in group])
    row["peak_difference"] = row["online_peak"] - row["offline_peak"]
    return row


GAP_NAMES = (
    "average_gap",
    "peak_difference",
    "online_peak",
    "offline_peak",
    "online_at_peak",
    "offline_at_peak",
    "online_fall",
    "offline_fall",
)
PLACES = ("online_at_peak", "offline_at_peak")
# What benchmarks/coverage.py measured; docs/statistics.md has all of it.
LEANS_UP = "the highest of noisy checkpoints leans upwards: 95% intervals held the truth in 88-99% of simulations"
PLACE = "rough where several checkpoints are about as high: 95% intervals held the truth in 84-97% of simulations"


def gap_estimates(
    online: Sequence[Run], offline: Sequence[Run], rng: np.random.Generator, **how: Unpack[Resampling]
) -> dict[str, Estimate]:
    """The reported measures of figure 1, over the budget that the runs are along: average gap, peaks, amounts of the
    budget at the peaks, falls; keys `GAP_NAMES`.

    Estimand (a), same configuration: pass one run for each seed on either side. A side with several runs for a seed is
    a pooled sweep, and its measures are the *mean over configurations* (pairs without a common range are left out of
    the mean), never the maximum over noisy points. For estimand (b), best of sweep, pass what `select_best` returns.

    An amount on a log axis, KL, is averaged as its logarithm (a geometric mean over seeds), so that its interval stays
    positive. Notes say of which estimates the intervals are the least exact (docs/statistics.md).
    """
    groups = {"online": online, "offline": offline}
    result = intervals(groups, _gap, GAP_NAMES, rng=rng, places=PLACES, **how)
    along = next((run.along for run in (*online, *offline)), KL)
    if along.log:
        result |= {name: result[name].exponential() for name in PLACES}
    for name in GAP_NAMES:
        caution = PLACE if name in PLACES else LEANS_UP if name.endswith(("_peak", "_fall")) else ""
        if result[name].n_seeds:
            result[name] = result[name].noted(caution)
    pairs = [common_range((curve(a), curve(b)))[0] for a in online for b in offline if a.seed == b.seed]
    apart = int(np.isnan(pairs).sum())
    if apart:
        result["average_gap"] = result["average_gap"].noted(
            f"{apart} of {len(pairs)} pairs of runs share no {along.title} range"
        )
    return result


@dataclass(frozen=True, eq=False)
class Best:
    """The arm a sweep chose, its runs on the *other* prompts, and every arm's mean peak on the selection prompts."""

    arm: str
    runs: list[Run]
    selection_peaks: dict[str, float]


def split_prompts(n_prompts: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A random half of the prompts [N] to select on; the rest is for reporting."""
    chosen = np.zeros(n_prompts, dtype=np.bool_)
    chosen[rng.permutation(n_prompts)[: n_prompts // 2]] = True
    return chosen


def select_best(sweeps: Mapping[str, Mapping[str, Sequence[Run]]], selection: NDArray[np.bool_]) -> dict[str, Best]:
    """Estimand (b): in each method's sweep `{method: {arm: runs}}`, the arm with the highest peak, averaged over seeds.

    Peaks are taken on the prompts marked in `selection` [N]; the runs returned hold only the others, so the choice
    cannot profit from the noise it is reported on. All methods are passed together because a larger sweep has more
    tries at a high peak: equal budgets are checked, not assumed. An arm whose peak is NaN is never chosen.

    Raises:
        ValueError: "sweep budgets must be equal" - different numbers of arms or of runs; or no arm has a peak.
    """
    budgets = {m: (len(arms), sum(len(runs) for runs in arms.values())) for m, arms in sweeps.items()}
    if len(set(budgets.values())) > 1:
        raise ValueError(f"sweep budgets must be equal; got (arms, runs): {budgets}")
    best = {}
    for method, arms in sweeps.items():
        peaks = {arm: _mean([peak(curve(run.on(selection)))[0] for run in runs]) for arm, runs in arms.items()}
        known = {arm: value for arm, value in peaks.items() if value == value}
        if not known:
            raise ValueError(f"sweep {method!r}: no arm has a peak on the selection prompts")
        arm = max(known, key=lambda name: known[name])
        best[method] = Best(arm, [run.on(~selection) for run in arms[arm]], peaks)
    return best


def gap_band(
    online: Sequence[Run],
    offline: Sequence[Run],
    rng: np.random.Generator,
    *,
    grid_points: int = 25,
    **how: Unpack[Resampling],
) -> Band:
    """Simultaneous max-t band for online - offline, the seed mean, on a grid over their common range of the budget.

    The half-width at each point is one critical value times a standard error: the prompts' there, and the seeds', half
    from that point and half from the whole grid. The critical value is the `level` quantile, over draws, of the largest
    standardised deviation on the grid. Every seed contributes at every point, and the grid stops where resampled
    ranges would end in more than 10% of the replicates. Empty when there is no such range.

    The construction is the plug-in sup-t band of Montiel Olea and Plagborg-Moller (2019, "Simultaneous confidence
    bands", Journal of Applied Econometrics 34). It is wider than it need be with few seeds (docs/statistics.md).
    """
    resampler = Resampler(rng, **how)
    sample = Sample.of({"online": online, "offline": offline}, resampler)
    n_seeds = len(sample.seeds)
    along = next((run.along for run in (*online, *offline)), KL)
    empty, note = np.empty(0), "; ".join([f"no common {along.title} range", *sample.notes])
    nothing = Band(empty, empty, empty, empty, n_seeds, note)
    ends = np.array(
        [
            common_range(c for s in range(n_seeds) for g in sample.at(s, b).values() for c in g)
            for b in range(sample.replicates + 1)
        ]
    )
    defined = np.isfinite(ends[:, 0])
    if n_seeds == 0 or not defined[0] or (~defined).sum() > MAX_UNDEFINED / 2 * sample.replicates:
        return nothing
    # A quarter of the allowance on either side, half for replicates that have no common range at all.
    low = float(max(np.quantile(ends[defined, 0], 1 - MAX_UNDEFINED / 4), ends[0, 0]))
    high = float(min(np.quantile(ends[defined, 1], MAX_UNDEFINED / 4), ends[0, 1]))
    if not low < high:
        return nothing
    grid = np.linspace(low, high, grid_points)

    def difference(seed: Seed) -> Floats:
        mean = {name: np.mean([interpolate(c, grid) for c in group], axis=0) for name, group in seed.items()}
        return np.asarray(mean["online"] - mean["offline"])

    values = sample.values(difference, grid_points)
    observed, (draws, errors) = values[:, 0], resampler.joint_draws(values)
    draws = draws[np.isfinite(draws).all(axis=1)]
    value = observed.mean(axis=0)
    # Few seeds coincide by chance somewhere on the grid, and a scale of each point's own seeds would pinch the band
    # there (measured: 81% coverage with 3 seeds). Half-way to the grid's mean variance it is not pinched.
    own = observed.var(axis=0, ddof=1) / n_seeds if n_seeds > 1 else np.zeros(grid_points)
    scale = np.sqrt((own + own.mean()) / 2 + errors**2)
    deviation = np.divide(np.abs(draws - value), scale, out=np.zeros_like(draws), where=scale > 0)
    half = np.quantile(deviation.max(axis=1), resampler.level) * scale
    notes = "; ".join([*few_seeds(n_seeds, resampler.interval), *sample.notes])
    return Band(grid, value, value - half, value + half, n_seeds, notes)


def fraction_closed(
    x: Sequence[Run],
    offline: Sequence[Run],
    online: Sequence[Run],
    rng: np.random.Generator,
    **how: Unpack[Resampling],
) -> Estimate:
    """Share of the online-offline gap that arm `x` closes: 0 is offline, 1 is online; not confined to [0, 1].

    Average gap of x over offline divided by that of online over offline, both over the range common to all three, as a
    ratio of seed means (a mean of ratios would be ruled by the seed with the smallest gap). NaN, with a note, when the
    interval of the denominator contains 0: there is then no gap of which to close a share.
    """

    def both(seed: Seed) -> dict[str, float]:
        rows = [
            (average_gap(a, b, within), average_gap(c, b, within))
            for a in seed["x"]
            for b in seed["offline"]
            for c in seed["online"]
            for within in (common_range((a, b, c)),)
        ]
        return {"top": _mean([top for top, _ in rows]), "bottom": _mean([bottom for _, bottom in rows])}

    groups = {"x": x, "offline": offline, "online": online}
    top, bottom = intervals(groups, both, ("top", "bottom"), rng=rng, **how).values()
    if not (bottom.low > 0 or bottom.high < 0):
        reason = "gap between online and offline not distinguishable from 0: fraction undefined"
        note = bottom.note if bottom.n_seeds == 0 else "; ".join(filter(None, [bottom.note, reason]))
        return Estimate(np.nan, np.nan, np.nan, bottom.n_seeds, bottom.n_prompts, 0, note)
    # Either is undefined where the range is, so the draws that are left belong together.
    ratio = top.draws / bottom.draws
    ratio = ratio[np.isfinite(ratio)]
    low, high = Resampler(rng, **how).quantiles(ratio)
    return Estimate(top.value / bottom.value, low, high, top.n_seeds, top.n_prompts, len(ratio), top.note, ratio)
