"""Measured numbers with their intervals over prompts, as values, words and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan

import numpy as np

from aligngap.stats.budget import Floats
from aligngap.stats.intervals import mean_statistics


@dataclass(frozen=True)
class Measurement:
    """A value with its 95% interval over prompts, and how many prompts it rests on; NaN and 0 without data."""

    value: float
    low: float
    high: float
    n: int

    @property
    def known(self) -> bool:
        """Whether there is one."""
        return isfinite(self.value)

    def as_json(self) -> dict[str, float | int | None]:
        """With null for what is not known."""
        value, low, high = (outcome if isfinite(outcome) else None for outcome in (self.value, self.low, self.high))
        return {"value": value, "low": low, "high": high, "n": self.n}


UNKNOWN = Measurement(nan, nan, nan, 0)


@dataclass(frozen=True)
class Ratio:
    """Of two per-prompt values [n], the ratio of their means: per token, or relative to another quantity."""

    top: Floats
    bottom: Floats


def numbers(
    values: Mapping[str, Floats | Ratio], rng: np.random.Generator, replicates: int = 1000
) -> dict[str, Measurement]:
    """Means over prompts of values [n] (NaN: missing), or ratios of such means, with bootstrap intervals. One set of
    resampled prompts serves all.
    """
    rows: list[Floats] = []
    places: list[tuple[int, int | None]] = []
    for value in values.values():
        parts = (value.top, value.bottom) if isinstance(value, Ratio) else (value,)
        places.append((len(rows), len(rows) + 1 if len(parts) == 2 else None))
        rows += parts
    matrix = np.array(rows, dtype=np.float64)

    def statistic(_: int, means: Floats) -> Floats:
        columns = [
            means[:, top] if bottom is None else _divided(means[:, top], means[:, bottom]) for top, bottom in places
        ]
        return np.stack(columns, axis=1)

    outcome = mean_statistics({0: matrix}, statistic, list(values), rng=rng, replicates=replicates)
    result = {}
    for (name, e), (top, bottom) in zip(outcome.items(), places, strict=True):
        known = rows[top][np.isfinite(rows[top])]
        # Draws are centred on the estimate; those of a share must not leave what a share can be.
        share = bottom is None and len(known) > 0 and known.min() >= 0 and known.max() <= 1
        low, high = (max(e.low, 0.0), min(e.high, 1.0)) if share else (e.low, e.high)
        result[name] = Measurement(e.value, low, high, len(known)) if isfinite(e.value) else UNKNOWN
    return result


def _divided(top: Floats, bottom: Floats) -> Floats:
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=np.isfinite(bottom) & (bottom != 0))


def words(number: Measurement, unit: str = "%", *, signed: bool = False) -> str:
    """`96.2% [94.1%, 98.0%]` for shares, else three digits behind the point at most; `-` for what is not known."""
    if not number.known:
        return "-"
    value, low, high = (_plain(outcome, unit, signed) for outcome in (number.value, number.low, number.high))
    return f"{value} [{low}, {high}]"


def _plain(value: float, unit: str, signed: bool) -> str:
    sign = "+" if signed else ""
    if unit == "%":
        return f"{value:{sign}.1%}"
    return f"{value:{sign}.{3 if abs(value) < 10 else 1}f}"
