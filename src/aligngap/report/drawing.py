"""What of the results the charts draw: points whose columns a chart can name, and figures without what has no place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from aligngap.results import SETTINGS, Conclusion, Figure, StudyResults, measure_columns, name_of


@dataclass(frozen=True)
class Drawing:
    """A figure of an experiment: points of its own, or the win-rate curves of `families`.

    key: unique in the task. x_log: whether the x axis is logarithmic. points: rows of series, x (a number, or a name in
    every row), y, low, high, seed. dropped: how many points of the figure have no place in it, for want of a finite x
    or y, or of a positive x on a log axis.
    """

    key: str
    figure: Figure
    x_log: bool
    points: tuple[dict[str, Any], ...]
    dropped: int

    @property
    def named(self) -> bool:
        """Whether x are names."""
        return any(isinstance(point["x"], str) for point in self.points)


def drawings(conclusion: Conclusion) -> list[Drawing]:
    """The figures of an experiment, as they can be drawn."""
    return [_drawing(conclusion.name, figure) for figure in conclusion.figures]


def _drawing(experiment: str, figure: Figure) -> Drawing:
    named = any(isinstance(point.x, str) for point in figure.points)
    log = figure.x_log and not named
    points = []
    for point in figure.points:
        x = str(point.x) if named and point.x is not None else point.x
        if x is None or point.y is None or (log and isinstance(x, float) and x <= 0):
            continue
        points.append(
            {"series": point.series, "x": x, "y": point.y, "low": point.low, "high": point.high, "seed": point.seed}
        )
    return Drawing(f"{experiment}-{figure.name}", figure, log, tuple(points), len(figure.points) - len(points))


def measures(data: StudyResults) -> dict[str, str]:
    """The further measures of the points, by the column that `plotted` gives them: a name could be any text."""
    return {f"measure_{index}": name_of(name) for index, name in enumerate(data.measures)}


def plotted(data: StudyResults) -> pl.DataFrame:
    """The points, with columns that a chart can name and without what only the arm's settings say. The standard error
    of a further measure is in COLUMN_se.
    """
    columns: dict[str, str] = {}
    unused = [*SETTINGS, "pairs"]
    for column, name in zip(measures(data), data.measures, strict=True):
        mean, se, n = measure_columns(name)
        columns |= {mean: column, se: f"{column}_se"}
        unused.append(n)
    return data.points.drop(unused, strict=False).rename(columns)
