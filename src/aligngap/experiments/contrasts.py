"""Comparisons of families of arms in three views: the study's own, on the other split, and by the true utility."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from aligngap.experiments.base import Finished, Labelled, TaskData, View
from aligngap.stats.budget import KL, Budget, Run
from aligngap.stats.intervals import Estimate

SWEPT = "offline"
"""The one family with arms at several configurations: contrasts take its arm at the baseline."""


class Contrasts:
    """What one experiment compares in a task's data, over one budget. name: the experiment's, for its streams.
    estimates: what it lists, in the order that they were put; the verdict rests on the first.
    """

    def __init__(self, data: TaskData, name: str, budget: Budget = KL) -> None:
        self._data, self._name = data, name
        self.estimates: dict[str, Labelled] = {}
        self.primary = View(budget=budget)
        self.other = View(data.other_split, split=data.other_split, budget=budget)
        self.truth = View("true", judge="true", budget=budget)

    def put(
        self, key: str, label: str, estimate: Estimate, unit: str = "win rate", null: float | None = 0.0
    ) -> Estimate:
        """List an estimate; it is given back."""
        self.estimates[key] = Labelled(label, estimate, unit, null)
        return estimate

    def arms(self, family: str) -> list[Finished]:
        """A family's arms; of a swept family those at the baseline configuration."""
        return self._data.finished(family, baseline=True if family == SWEPT else None)

    def runs(self, family: str, view: View | None = None) -> list[Run]:
        """The curves of a family's `arms` in a view."""
        return self._data.runs(family, view or self.primary, baseline=True if family == SWEPT else None)

    def pair_outcomes(self, family: str, split: str) -> pl.DataFrame:
        """What a family's `arms` make of the `D_golden` pairs of a split."""
        return self._data.pair_outcomes(family, split, baseline=True if family == SWEPT else None)

    def prompts(self, view: View) -> str:
        """Which prompts a view looks at: `held-out prompts`."""
        return View(split=view.split or self._data.settings.split).words

    def gaps(self, a: str, b: str, view: View | None = None, *purpose: str) -> dict[str, Estimate]:
        """All estimates that compare `a` with `b` in a view; see `stats.estimands.gap_estimates`. purpose: names the
        random stream; by default the two and the view.
        """
        view = view or self.primary
        named = purpose or (a, b, view.split or "", view.judge or "")
        return self._data.gap(self.runs(a, view), self.runs(b, view), self._name, *named)

    def gap(self, a: str, b: str, view: View | None = None, *purpose: str) -> Estimate:
        """The average gap, `a` minus `b`."""
        return self.gaps(a, b, view, *purpose)["average_gap"]

    def compare(
        self, label: str, a: str, b: str, *purpose: str, keys: tuple[str, str] = ("average_gap", "peak_difference")
    ) -> tuple[Estimate, Estimate]:
        """The average gap, `a` minus `b`, and the difference of the peaks, in the primary view; listed under `keys`,
        but for an empty one. label: of both, with {} for which it is.
        """
        result = self.gaps(a, b, None, *purpose)
        both = result["average_gap"], result["peak_difference"]
        for key, words, estimate in zip(
            keys, ("average gap at equal KL", "difference of the peaks"), both, strict=True
        ):
            if key:
                self.put(key, label.format(words), estimate)
        return both

    def share(
        self, family: str, view: View | None = None, *purpose: str, ends: tuple[str, str] = ("offline", "online")
    ) -> Estimate:
        """Share of the gap between two families that a third closes; see `stats.estimands.fraction_closed`."""
        own, offline, online = (self.runs(name, view) for name in (family, *ends))
        return self._data.share_closed(own, offline, online, self._name, *purpose)

    def gap_elsewhere(self, key: str, label: str, a: str, b: str, *purpose: str, part: str = "average_gap") -> None:
        """List one of `gaps` elsewhere; purpose: as there, before the view's name."""
        self.elsewhere(
            key, label, lambda view: self.gaps(a, b, view, *([*purpose, view.name] if purpose else []))[part]
        )

    def elsewhere(self, key: str, label: str, estimate: Callable[[View], Estimate], unit: str = "win rate") -> None:
        """List an estimate on the other split and by truth, as `{key}_{view}` each, to stand beside the primary one."""
        for view in (self.other, self.truth):
            self.put(f"{key}_{view.name}", f"{label}, {view.words}", estimate(view), unit)
