"""What one seed says of a statistic, and how far each prompt moves it.

Every estimand here is, for one seed, a mean over prompts or a smooth function of such means. Its *influence* is the
first-order effect of each prompt on it (the infinitesimal jackknife; Efron and Tibshirani 1993, chapter 21). Sums,
differences and averages of statistics are sums of influences, so that differences are paired prompt by prompt, and what
prompts do to all seeds alike is the product of two seeds' influences: no resampling is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from aligngap.stats.budget import Floats


@dataclass(frozen=True, eq=False)
class SeedValue:
    """A statistic of one seed.

    influence: [N] over the list of prompts that all runs share, 0 for a prompt that was not asked. Scaled so that the
    sum of its squares is the squared standard error that the prompts give the value, without bias.
    """

    value: float
    influence: Floats

    @property
    def prompt_se(self) -> float:
        """Standard error over prompts, the seed as given."""
        return float(np.sqrt(self.influence @ self.influence))

    @property
    def defined(self) -> bool:
        return bool(np.isfinite(self.value))

    def __add__(self, other: SeedValue) -> SeedValue:
        return SeedValue(self.value + other.value, self.influence + other.influence)

    def __sub__(self, other: SeedValue) -> SeedValue:
        return self + -1.0 * other

    def __rmul__(self, factor: float) -> SeedValue:
        return SeedValue(factor * self.value, factor * self.influence)

    def __truediv__(self, other: SeedValue) -> SeedValue:
        """Ratio, by the delta method; undefined where the denominator is 0."""
        if other.value == 0:
            return undefined(len(self.influence))
        ratio = self.value / other.value
        return SeedValue(ratio, (self.influence - ratio * other.influence) / other.value)


def undefined(n_prompts: int) -> SeedValue:
    """What a seed says of a statistic that it does not have."""
    return SeedValue(np.nan, np.zeros(n_prompts))


def constant(value: float, n_prompts: int) -> SeedValue:
    """A number that no prompt moves."""
    return SeedValue(value, np.zeros(n_prompts))


def prompt_mean(values: Floats) -> SeedValue:
    """Mean over the prompts that are present. values: [N], NaN = missing. Of one prompt there is no standard error:
    its influence is 0, as is that of none, whose mean is undefined.
    """
    present = np.isfinite(values)
    n = int(present.sum())
    if n == 0:
        return undefined(len(values))
    mean = float(values[present].mean())
    scale = 1 / np.sqrt(n * (n - 1)) if n > 1 else 0.0
    return SeedValue(mean, np.where(present, values - mean, 0.0) * scale)


def average(values: Iterable[SeedValue]) -> SeedValue:
    """Plain mean of at least one; undefined where any of them is."""
    values = list(values)
    total = values[0]
    for one in values[1:]:
        total = total + one
    return (1 / len(values)) * total
