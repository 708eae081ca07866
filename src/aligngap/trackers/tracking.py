"""What of a run is tracked, and under which names: the training of every stage, and each arm as it is evaluated."""

from __future__ import annotations

import math
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from aligngap.errors import UserError
from aligngap.experiments.gather import point
from aligngap.experiments.plan import Plan
from aligngap.pipeline.graph import Event, all_stages
from aligngap.pipeline.stages import Arm, Evaluate
from aligngap.results import COMPARISONS, MEASURES, SPLITS
from aligngap.store.store import Store
from aligngap.trackers.base import Series
from aligngap.trackers.process import TrackerProcess

_TRACKED = {name: name for name in ("kl", *MEASURES)} | {
    f"rate_{opponent}_{judge}": f"win_rate_over_{opponent}_by_{judge}"
    for opponent, judges in COMPARISONS.items()
    for judge in judges
}
"""What is tracked of a checkpoint: columns of points, and their names in a tracker."""
_AT_THE_END = 20.0  # seconds that trackers get, when all else is done, to bring everything home
_INTERRUPTED = 5.0


def series_of(plan: Plan) -> dict[str, Series]:
    """By identity of each stage, what it is tracked as. An arm and its evaluation are one; names are unique."""
    named: dict[str, Series] = {}
    evaluations: dict[str, str] = {}
    tasks: dict[str, list[str]] = {}
    for name, task in plan.tasks.items():
        for entry in (planned.entry for planned in task.arms):
            arm = entry.stage
            about = {"study": plan.name, "task": name, "arm": entry.name, "family": entry.family, "seed": arm.seed}
            settings = {**arm.specification, **about, "identity": arm.identity}
            title = f"{_part(name)}/{_part(entry.name)}/seed {arm.seed}"
            named.setdefault(arm.identity, Series(arm.identity, title, settings))
        for stage in all_stages(task.targets):
            tasks.setdefault(stage.identity, []).append(name)
    for stage in plan.stages:
        if isinstance(stage, Evaluate):
            evaluations[stage.identity] = stage.arm.identity
            continue
        identity = stage.identity
        place = tasks[identity][0] if len(tasks[identity]) == 1 else "shared"
        settings = {**stage.specification, "study": plan.name, "stage": stage.kind, "identity": identity}
        named.setdefault(identity, Series(identity, f"{_part(place)}/{_part(stage.label)}", settings))
    count = Counter(series.name for series in named.values())
    for key, series in named.items():
        if count[series.name] > 1:
            named[key] = Series(key, f"{series.name} ({key[-6:]})", series.settings)
    return named | {name: named[arm] for name, arm in evaluations.items()}


def _part(text: str) -> str:
    return text.replace("/", "_")


def values_of(points: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """A checkpoint's numbers by name, `on_SPLIT_prompts/WHAT`, from its rows of points; what was not measured is left
    out.
    """
    values = {
        f"on_{row['split']}_prompts/{name}": row[column]
        for row in points
        for column, name in _TRACKED.items()
        if row.get(column) is not None
    }
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


@contextmanager
def tracking(
    names: Sequence[str], plan: Plan, store: Store, folder: Path, logs: Path, warn: Callable[[str], None]
) -> Iterator[Callable[[Event], None]]:
    """What is to be called with each event of the run, from one thread; returns at once, whatever becomes of trackers.

    names: as `base.chosen` gave them. folder: the run's. logs: where what trackers print goes. warn: told once of a
    tracker that is off. When the block ends, trackers have some seconds to end too.
    """
    if not names:
        yield lambda event: None
        return
    logs.mkdir(parents=True, exist_ok=True)
    trackers = [TrackerProcess(name, folder, plan.name, logs / f"{name}.log") for name in names]
    tracked = _Tracking(series_of(plan), store, trackers, warn)
    seconds = _INTERRUPTED
    try:
        yield tracked.note
        seconds = _AT_THE_END
    finally:
        tracked.close(seconds)


class _Tracking:
    def __init__(
        self,
        series: Mapping[str, Series],
        store: Store,
        trackers: Sequence[TrackerProcess],
        warn: Callable[[str], None],
    ) -> None:
        self._series, self._store, self._trackers, self._warn = series, store, trackers, warn
        self._warned: set[str] = set()
        self._problem: str | None = None
        # Reading what was measured takes its time, so it is done beside the run.
        self._todo: queue.SimpleQueue[tuple[Evaluate, str] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="tracked-evaluations", daemon=True)
        self._reader.start()

    def note(self, event: Event) -> None:
        stage = event.stage
        series = self._series.get(stage.identity)
        if series is None:  # a measure: it trains nothing, and is no arm's evaluation
            return
        if isinstance(stage, Evaluate):
            if event.kind != "started":
                self._todo.put((stage, event.kind))
        elif event.kind == "progress" and event.metrics:
            values = {f"training/{name}": value for name, value in event.metrics.items()}
            for tracker in self._trackers:
                tracker.log(series, event.done, values)
        elif event.kind in ("finished", "failed") and not isinstance(stage, Arm):  # an arm's evaluation is to come
            for tracker in self._trackers:
                tracker.finish(series, event.kind == "failed")
        self._warn_of_problems()

    def close(self, seconds: float) -> None:
        self._todo.put(None)
        self._reader.join(seconds)
        for tracker in self._trackers:
            tracker.close(seconds)
        self._warn_of_problems()

    def _warn_of_problems(self) -> None:
        problems = {f"Tracking with {tracker.name} is off": tracker.problem for tracker in self._trackers}
        for what, problem in (problems | {"Evaluations are not tracked": self._problem}).items():
            if problem is not None and what not in self._warned:
                self._warned.add(what)
                self._warn(f"{what}: {problem}. The run goes on.")

    def _read(self) -> None:
        """The reader's thread: what has been evaluated, as it is evaluated."""
        while item := self._todo.get():
            try:
                self._evaluated(*item)
            except (OSError, KeyError, UserError, pl.exceptions.PolarsError) as error:  # swept away meanwhile, say
                self._problem = f"{type(error).__name__}: {error}"

    def _evaluated(self, stage: Evaluate, kind: str) -> None:
        series = self._series[stage.identity]
        if kind in ("progress", "finished", "cached"):
            for step in stage.arm.keep:
                missing = [tracker for tracker in self._trackers if (series.key, step) not in tracker.sent]
                frames = self._frames(stage, step) if missing else None
                if frames is None:
                    continue
                values = values_of([point(*frames, step, split) for split in SPLITS])
                for tracker in missing:
                    tracker.log(series, step, values, evaluated=True)
                    tracker.sent.add((series.key, step))
        if kind != "progress":
            for tracker in self._trackers:
                tracker.finish(series, kind in ("failed", "blocked"))

    def _frames(self, stage: Evaluate, step: int) -> tuple[pl.DataFrame, pl.DataFrame] | None:
        """What was measured of a checkpoint, per prompt and per pair; None before it has been."""
        if self._store.has(stage.identity):
            result = self._store.get(stage.identity)
            prompts, pairs = (pl.read_parquet(result.file(f"per_{what}.parquet")) for what in ("prompt", "pair"))
            return prompts, pairs
        folder = self._store.unfinished(stage.identity)
        try:
            pairs, prompts = (pl.read_parquet(Evaluate.file(folder, kind, step)) for kind in ("pairs", "prompts"))
        except FileNotFoundError:  # not measured yet; or finished just now, which the next event says
            return None
        return prompts, pairs
