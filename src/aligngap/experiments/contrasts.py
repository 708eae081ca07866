"""Comparisons of families of arms in three views: the study's own, on the other split, and by the true utility."""

from __future__ import annotations

from collections.abc import Callable

from aligngap.experiments.base import Labelled, TaskData, View
from aligngap.stats.budget import KL, Budget, Run
from aligngap.stats.intervals import Estimate

SWEPT = "offline"
"""The one family with arms at several configurations: contrasts take its arm at the baseline."""


class Contrasts:
    """What one experiment compares in a task's data, over one budget. name: the experiment's, for its streams."""

    def __init__(self, data: TaskData, name: str, budget: Budget = KL) -> None:
        self._data, self._name = data, name
        self.primary = View(budget=budget)
        self.other = View(data.other_split, split=data.other_split, budget=budget)
        self.truth = View("true", judge="true", budget=budget)

    def runs(self, family: str, view: View | None = None) -> list[Run]:
        """A family's curves in a view; of a swept family those at the baseline configuration."""
        return self._data.runs(family, view or self.primary, baseline=True if family == SWEPT else None)

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

    def share(
        self, family: str, view: View | None = None, *purpose: str, ends: tuple[str, str] = ("offline", "online")
    ) -> Estimate:
        """Share of the gap between two families that a third closes; see `stats.estimands.fraction_closed`."""
        own, offline, online = (self.runs(name, view) for name in (family, *ends))
        return self._data.share_closed(own, offline, online, self._name, *purpose)

    def gap_elsewhere(
        self,
        key: str,
        label: str,
        a: str,
        b: str,
        *purpose: str,
        part: str = "average_gap",
        null: float | None = 0.0,
    ) -> dict[str, Labelled]:
        """One of `gaps`, elsewhere; purpose: as there, before the view's name."""

        def estimate(view: View) -> Estimate:
            return self.gaps(a, b, view, *([*purpose, view.name] if purpose else []))[part]

        return self.elsewhere(key, label, estimate, null=null)

    def elsewhere(
        self,
        key: str,
        label: str,
        estimate: Callable[[View], Estimate],
        unit: str = "win rate",
        null: float | None = 0.0,
    ) -> dict[str, Labelled]:
        """An estimate on the other split and by truth, as `{key}_{view}` each, to stand beside the primary one."""
        return {
            f"{key}_{view.name}": Labelled(f"{label}, {view.words}", estimate(view), unit, null)
            for view in (self.other, self.truth)
        }
