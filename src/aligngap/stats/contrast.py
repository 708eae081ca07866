"""Means over seeds, and over worlds, with their t intervals, p-values and power (docs/statistics.md, "Intervals").

**Seeds.** The values of S seeds scatter with the seed and with the part of the prompts' noise that is each seed's own;
both are in s^2 / S. What prompts do to all seeds alike is not, and is added: the mean covariance of two seeds'
influences. The interval is t with S - 1 degrees of freedom on the sum. No resampling, no variance borrowed elsewhere.

**Worlds** are fixed: equal weights, variances added, degrees of freedom by Satterthwaite (1946, Biometrics Bulletin 2).
An interval over worlds speaks of these worlds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaincinv, ndtr, stdtr, stdtrit

from aligngap.stats.budget import Floats
from aligngap.stats.intervals import Estimate, few_seeds
from aligngap.stats.seedvalue import SeedValue

Asked = tuple[int, int]
LEVEL = 0.95
POWER = 0.8
FLIPS = 16
"""Seeds up to which all sign flips are gone through, 2 to their number."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """A mean with its variance, in the statistic's own unit; NaN where a seed (or a world) lacks it.

    variance: of the mean. df: degrees of freedom of its t. n_seeds: seeds of the mean; over worlds, those of the world
    with the fewest, and `most_seeds` of the one with the most. reached: (n, S), seeds that have the statistic, of those
    asked. values: what each seed (or world) says, NaN where it lacks it. shared_se: the part of the standard error that
    prompts have in common for all seeds.
    """

    value: float
    variance: float
    df: float
    n_seeds: int
    reached: Asked
    values: Floats = field(repr=False)
    n_prompts: int = 0
    shared_se: float = 0.0
    most_seeds: int = 0
    note: str = ""

    @property
    def defined(self) -> bool:
        return bool(np.isfinite(self.value))

    @property
    def se(self) -> float:
        return float(np.sqrt(self.variance))

    def half_width(self, level: float = LEVEL) -> float:
        """Of the `level` interval."""
        return critical(self.df, level) * self.se if self.defined else np.nan

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        half = self.half_width(level)
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided, of no difference."""
        return float(p_different(self.value, self.variance, self.df))

    def p_inside(self, margin: float) -> float:
        """Of a difference of `margin` or more, on either side (two one-sided tests, Schuirmann 1987): below .05 where
        the 90% interval lies inside the margin.
        """
        return float(p_inside(self.value, self.variance, self.df, margin))

    @property
    def p_flip(self) -> float:
        """Exact two-sided sign-flip p over seeds; NaN without a value, or with more than `FLIPS` seeds."""
        return sign_flip(self.values)

    def detectable(self, power: float = POWER, level: float = LEVEL) -> float:
        """The smallest difference that such an interval would have excluded 0 for with probability `power`."""
        return self.se * noncentrality(self.df, power, level) if self.defined else np.nan

    def estimate(self, level: float = LEVEL) -> Estimate:
        """As `Estimate`, which reports read: no draws."""
        low, high = self.interval(level)
        of_seeds = self.values[np.isfinite(self.values)]
        note = "; ".join(filter(None, [*(few_seeds(self.n_seeds) if self.defined else ["no data"]), self.note]))
        n = self.n_seeds if self.defined else 0
        return Estimate(
            self.value, low, high, n, self.n_prompts, 0, note, seed_values=of_seeds, prompt_se=self.shared_se
        )


def critical(df: float, level: float) -> float:
    """Two-sided critical value of t; of the normal distribution for infinite df. NaN df gives NaN."""
    return float(stdtrit(min(df, 1e9), (1 + level) / 2))


def p_different(value: ArrayLike, variance: ArrayLike, df: ArrayLike) -> Floats:
    """Two-sided p of a mean of 0, elementwise; 1 for a value of exactly 0, 0 for another without variance."""
    value, variance = np.asarray(value, dtype=np.float64), np.asarray(variance, dtype=np.float64)
    return np.where(value == 0, 1.0, 2 * _tail(np.abs(value), variance, df))


def p_inside(value: ArrayLike, variance: ArrayLike, df: ArrayLike, margin: float) -> Floats:
    """The larger p of the two one-sided tests of |mean| >= margin, elementwise."""
    value, variance = np.asarray(value, dtype=np.float64), np.asarray(variance, dtype=np.float64)
    return _tail(margin - np.abs(value), variance, df)


def _tail(away: Floats, variance: Floats, df: ArrayLike) -> Floats:
    """P(t > away / sqrt(variance)); of no variance, whether `away` is above 0."""
    away, variance, df = np.broadcast_arrays(away, variance, np.asarray(df, dtype=np.float64))
    t = np.where(away > 0, np.inf, np.where(away < 0, -np.inf, 0.0))
    t = np.where(np.isfinite(away) & np.isfinite(variance), t, np.nan)
    np.divide(away, np.sqrt(variance), out=t, where=variance > 0)
    return np.asarray(stdtr(np.minimum(df, 1e9), -t))


def noncentrality(df: float, power: float = POWER, level: float = LEVEL) -> float:
    """How many standard errors from 0 a mean must be for a two-sided t test to say so with probability `power`.

    Raises:
        ValueError: `power` not between 1 - level and 1.
    """
    from scipy.optimize import brentq

    if not 1 - level < power < 1:
        raise ValueError(f"power must lie between {1 - level:.3g} and 1, got {power}")
    # Given the estimated standard error the mean is normal; averaged over that error's quantiles. (scipy's noncentral t
    # is NaN at shifts that two or three seeds need.)
    df = min(df, 1e6)
    quantiles = (np.arange(2000) + 0.5) / 2000
    bound = critical(df, level) * np.sqrt(2 * gammaincinv(df / 2, quantiles) / df)
    far = float(bound[-1]) + 10.0
    return float(brentq(lambda shift: (ndtr(shift - bound) + ndtr(-shift - bound)).mean() - power, 0, far))


def _undefined(values: Floats, n_prompts: int) -> Contrast:
    n = int(np.isfinite(values).sum())
    note = f"reached by {n} of {len(values)}"
    return Contrast(np.nan, np.nan, np.nan, len(values), (n, len(values)), values, n_prompts, np.nan, 0, note)


def over_seeds(seeds: Sequence[SeedValue]) -> Contrast:
    """Mean over seeds. A seed that lacks the statistic leaves the mean undefined: none is dropped.

    With one seed the variance is the prompts' alone, and the note says so.

    Raises:
        ValueError: seeds over different numbers of prompts.
    """
    values = np.array([one.value for one in seeds], dtype=np.float64)
    n = len(values)
    if n == 0:
        return _undefined(values, 0)
    if len({len(one.influence) for one in seeds}) > 1:
        raise ValueError(f"seeds over different lists of prompts: {sorted({len(one.influence) for one in seeds})}")
    influence = np.array([one.influence for one in seeds])
    asked = int((influence != 0).any(axis=0).sum())
    if not np.isfinite(values).all():
        return _undefined(values, asked)
    squares = float((influence**2).sum())
    if n == 1:
        return Contrast(float(values[0]), squares, max(asked - 1, 1), 1, (1, 1), values, asked, np.sqrt(squares), 1)
    total = influence.sum(axis=0)
    shared = max(0.0, (float(total @ total) - squares) / (n * (n - 1)))
    variance = float(values.var(ddof=1)) / n + shared
    return Contrast(float(values.mean()), variance, n - 1, n, (n, n), values, asked, float(np.sqrt(shared)), n)


def over_worlds(worlds: Sequence[Contrast]) -> Contrast:
    """Mean over worlds, equal weights. A world that lacks the statistic leaves it undefined: none is dropped.

    Raises:
        ValueError: no worlds.
    """
    if not worlds:
        raise ValueError("a mean over worlds needs a world")
    values = np.array([world.value for world in worlds])
    fewest, most = min(w.n_seeds for w in worlds), max(w.n_seeds for w in worlds)
    prompts = sum(w.n_prompts for w in worlds)
    if not np.isfinite(values).all():
        n = int(np.isfinite(values).sum())
        note = f"reached in {n} of {len(worlds)} worlds"
        return replace(_undefined(values, prompts), n_seeds=fewest, most_seeds=most, note=note)
    variance, df = satterthwaite([w.variance for w in worlds], [w.df for w in worlds])
    shared = float(np.sqrt(sum(w.shared_se**2 for w in worlds))) / len(worlds)
    return Contrast(
        float(values.mean()),
        float(variance),
        float(df),
        fewest,
        (len(worlds), len(worlds)),
        values,
        prompts,
        shared,
        most,
        f"in these {len(worlds)} worlds",
    )


def satterthwaite(variances: ArrayLike, df: ArrayLike) -> tuple[Floats, Floats]:
    """Variance of the plain mean of W independent means, and its degrees of freedom; [..., W] -> [...], [...]."""
    parts = np.asarray(variances, dtype=np.float64)
    parts = parts / parts.shape[-1] ** 2
    total, lost = parts.sum(axis=-1), (parts**2 / df).sum(axis=-1)
    least = np.broadcast_to(np.asarray(df, dtype=np.float64), parts.shape).min(axis=-1)
    return total, np.divide(total**2, lost, out=np.array(least), where=lost > 0)


def heterogeneity(worlds: Sequence[Contrast]) -> tuple[float, float]:
    """Cochran's Q over worlds and the p of no difference between them.

    With a handful of seeds a world Q is no chi square: its weights are estimated. The p is Welch's (1951, Biometrika
    38), an F whose degrees of freedom allow for it. NaNs where a world lacks the statistic or there is only one.
    """
    values, variances = np.array([w.value for w in worlds]), np.array([w.variance for w in worlds])
    n = len(worlds)
    if n < 2 or not np.isfinite(values).all() or not (variances > 0).all():
        return np.nan, np.nan
    from scipy import stats

    weights = 1 / variances
    q = float((weights * (values - weights @ values / weights.sum()) ** 2).sum())
    loss = float(((1 - weights / weights.sum()) ** 2 / np.array([w.df for w in worlds])).sum())
    f = q / (n - 1) / (1 + 2 * (n - 2) / (n**2 - 1) * loss)
    return q, float(stats.f.sf(f, n - 1, (n**2 - 1) / (3 * loss)))


def sign_flip(values: Floats) -> float:
    """Exact two-sided p of values symmetric about 0, over all sign flips (Fisher 1935). [S]; at least 2 / 2^S."""
    n = len(values)
    if n == 0 or n > FLIPS or not np.isfinite(values).all():
        return np.nan
    signs = np.array(list(product((1.0, -1.0), repeat=n)))
    means = np.abs(signs @ values)
    seen = abs(values.sum())
    return float((means >= seen - 1e-12 * max(1.0, seen)).mean())


def simultaneous(rows: Sequence[Sequence[SeedValue]], level: float = LEVEL, draws: int = 20_000) -> float:
    """Critical value of a band over M statistics of the same S seeds: the `level` quantile of the largest |t| (max-t).

    Each statistic has the standard error of its own seeds, so the largest t is simulated as that of S draws from a
    normal distribution with the statistics' correlation. That of S seeds is drawn half-way towards none, for S seeds
    span S - 1 directions only (docs/statistics.md has the coverage). Never below the critical value of one statistic.
    rows: M statistics of S seeds each; statistics that a seed lacks are to be left out. NaN with fewer than 2 seeds.
    The draws have a fixed seed: the same rows, the same value.
    """
    values = np.array([[one.value for one in row] for row in rows]).reshape(len(rows), -1)
    n = values.shape[1]
    if n < 2 or not np.isfinite(values).all():
        return np.nan
    return max_t(correlation(values.T), n, level, draws)


SHRINK = 0.5


def correlation(values: Floats) -> Floats:
    """Correlation of M statistics over S seeds, [S, M] -> [M, M], drawn half-way towards none."""
    centred = values - values.mean(axis=0)
    spread = np.sqrt((centred**2).sum(axis=0))
    centred = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    own = np.eye(values.shape[1])
    return np.asarray(SHRINK * (centred.T @ centred) * (1 - own) + own)


def max_t(correlated: Floats, n_seeds: int, level: float = LEVEL, draws: int = 20_000) -> float:
    """Quantile of the largest |t| of M correlated means of n_seeds draws, each with its own standard error."""
    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(correlated)
    sample = rng.standard_normal((draws, n_seeds, len(correlated))) @ root.T
    t = sample.mean(axis=1) / (sample.std(axis=1, ddof=1) / np.sqrt(n_seeds))
    return max(float(np.quantile(np.abs(t).max(axis=1), level)), critical(n_seeds - 1, level))


def benjamini_hochberg(pvalues: ArrayLike) -> Floats:
    """Benjamini and Hochberg's adjusted p-values [m] in the order given (1995, JRSS B 57), for a page of claims. A NaN
    stays NaN and still counts.

    Raises:
        ValueError: not one-dimensional, or a value outside [0, 1].
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if p.ndim != 1 or np.any((p < 0) | (p > 1)):
        raise ValueError("p-values must be one-dimensional and lie in [0, 1]")
    order = np.argsort(p)
    stepped = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.where(
        np.isnan(stepped), np.nan, np.minimum.accumulate(np.nan_to_num(stepped, nan=1.0)[::-1])[::-1]
    )
    return np.minimum(adjusted, 1)


def upper_sd(sd: float, n_seeds: int, level: float = 0.8) -> float:
    """One-sided upper `level` limit of a standard deviation seen in n_seeds normal values: what registrations plan for.

    Raises:
        ValueError: fewer than two seeds.
    """
    if n_seeds < 2:
        raise ValueError(f"a standard deviation needs two seeds, got {n_seeds}")
    from scipy import stats

    return sd * float(np.sqrt((n_seeds - 1) / stats.chi2.ppf(1 - level, n_seeds - 1)))
