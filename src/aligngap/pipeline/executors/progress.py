"""Where a run stands, and how it is shown: a live display, or lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

from aligngap.pipeline.executors.schedule import estimate
from aligngap.pipeline.graph import Event, Stage

# Ends of a stage; `waiting`, `running` and `interrupted` are the other states.
ENDED = ("finished", "cached", "failed", "blocked")
# Events after which a stage is to be made once more.
AGAIN = ("damaged", "vanished", "waiting")
_EVERY = 15.0  # seconds between two lines about the same stage
_RATE_AFTER = 1.0  # seconds of steps before a rate means something
_PRIOR = 5.0  # seconds for which the estimates are believed before this machine's own pace is
_TOO_LITTLE = 0.05  # seconds of an activity that are not worth a line
# Training metrics (train/loop.py) in the progress line, and what they are called there.
_WATCHED = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
_BETWEEN_ESTIMATES = 2.0  # seconds; a large study's takes some milliseconds


@dataclass
class Entry:
    """Where one stage stands."""

    label: str
    kind: str
    work: float
    status: str = "waiting"
    done: int = 0
    total: int = 0
    rate: float | None = None
    seconds: float = 0.0
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    # Steps and seconds from which the rate counts: a resumed stage starts at a step that it has not just made.
    _since: tuple[int, float] | None = None

    def steps(self, event: Event) -> None:
        if self._since is None or event.done < self.done or event.total != self.total:
            self._since, self.rate = (event.done, event.seconds), None
        elapsed = event.seconds - self._since[1]
        if elapsed > _RATE_AFTER:
            self.rate = (event.done - self._since[0]) / elapsed
        self.done, self.total, self.metrics = event.done, event.total, event.metrics

    @property
    def fraction(self) -> float:
        """Share of it that is behind us."""
        return 1.0 if self.status in ENDED else min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def left(self) -> float | None:
        """Seconds to the end of its steps, when its rate is known."""
        return (self.total - self.done) / self.rate if self.rate else None

    @property
    def pace(self) -> str:
        """`120/400, 5.1 steps/s, 0:55 left, loss 0.243, accuracy 0.61, margin 0.12`, as far as it is known. What is
        watched of a training is as of its last report.
        """
        parts = [f"{self.done}/{self.total}"] if self.total else []
        if self.rate:
            parts.append(f"{self.rate:.3g} steps/s")
        if self.left is not None:
            parts.append(f"{clock(self.left)} left")
        parts += [f"{word} {self.metrics[name]:.3g}" for name, word in _WATCHED.items() if name in self.metrics]
        return ", ".join([*parts, self.reason] if self.reason else parts)


class Ledger:
    """Where all stages of a run stand, kept up to date by its events."""

    def __init__(self, stages: Sequence[Stage], jobs: int) -> None:
        self.entries = {stage.identity: Entry(stage.label, stage.kind, stage.work) for stage in stages}
        self.jobs = jobs
        self._stages = stages
        self._start = time.monotonic()
        self._left: tuple[float, float] | None = None  # the estimate, and when it was made

    def add(self, stage: Stage) -> None:
        """One more, which could not be known before the others were made."""
        self._stages = [*self._stages, stage]
        self.entries[stage.identity] = Entry(stage.label, stage.kind, stage.work)

    def update(self, event: Event) -> None:
        """Take in an event."""
        entry = self.entries[event.stage.identity]
        entry.reason = event.reason
        if event.kind == "progress":
            entry.status, entry.seconds = "running", event.seconds
            entry.steps(event)
        elif event.kind == "started":
            entry.status = "running"
        elif event.kind in AGAIN:
            entry.status, entry.done, entry._since = "waiting", 0, None
        else:
            entry.status, entry.seconds = event.kind, event.seconds or entry.seconds

    def count(self, *status: str) -> int:
        """Stages that are in one of these states."""
        return sum(entry.status in status for entry in self.entries.values())

    @property
    def elapsed(self) -> float:
        """Seconds since the ledger was opened."""
        return time.monotonic() - self._start

    @property
    def fraction(self) -> float:
        """Share of the estimated work that is behind us; what was in the store already is none of it."""
        ours = [entry for entry in self.entries.values() if entry.status != "cached"]
        total = sum(entry.work for entry in ours)
        return sum(entry.work * entry.fraction for entry in ours) / total if total else 1.0

    @property
    def left(self) -> float:
        """Seconds to the end: the estimates of what is left, at the pace that this machine has shown so far."""
        now = time.monotonic()
        if self._left is None or now - self._left[1] > _BETWEEN_ESTIMATES:
            self._left = (self._estimate(), now)
        return self._left[0]

    def _estimate(self) -> float:
        seen = [entry for entry in self.entries.values() if entry.status in ("running", "finished") and entry.fraction]
        pace = (sum(entry.seconds for entry in seen) + _PRIOR) / (
            sum(entry.work * entry.fraction for entry in seen) + _PRIOR
        )
        ended = {name for name, entry in self.entries.items() if entry.status in ENDED}
        begun = {name: entry.work * (1 - entry.fraction) for name, entry in self.entries.items() if entry.fraction}
        return pace * estimate(self._stages, ended, self.jobs, begun)

    @property
    def overall(self) -> str:
        """`12 of 37 stages, 3:20 left`."""
        return f"{self.count(*ENDED)} of {len(self.entries)} stages, about {clock(self.left)} left"


@dataclass(frozen=True)
class KindTime:
    """Where time went: stages of a kind, how many of them have their time on record, and seconds in all."""

    kind: str
    stages: int
    timed: int
    seconds: float


def time_by_kind(stages: Iterable[tuple[str, float | None]]) -> list[KindTime]:
    """By kind of stage, the dearest first. stages: kind, and seconds or None where they are not known."""
    kinds: dict[str, list[float | None]] = {}
    for kind, seconds in stages:
        kinds.setdefault(kind, []).append(seconds)
    rows = [
        KindTime(kind, len(values), sum(value is not None for value in values), sum(value or 0.0 for value in values))
        for kind, values in kinds.items()
    ]
    return sorted(rows, key=lambda row: -row.seconds)


def activities(
    stages: Iterable[tuple[Mapping[str, float] | None, float | None]], core_seconds: float, made: float
) -> dict[str, float]:
    """Seconds by activity, the dearest first: sampling, judging, training, evaluation, data; `unknown` for stages that
    have no record (they run still, or an older version made them); `waiting` for what is left of the cores: start-up,
    stages that wait for others, results and report.

    stages: the seconds by activity that each has recorded, and its seconds. core_seconds: of all cores since the
    command began, 0 where that is not known; made: seconds of the stages that it has made so far.
    """
    totals = {"unknown": 0.0, "waiting": max(0.0, core_seconds - made) if core_seconds else 0.0}
    for recorded, seconds in stages:
        for name, part in (recorded or {}).items():
            totals[name] = totals.get(name, 0.0) + part
        totals["unknown"] += max(0.0, (seconds or 0.0) - sum((recorded or {}).values()))
    dearest = sorted(totals.items(), key=lambda item: -item[1])
    return {name: part for name, part in dearest if part >= _TOO_LITTLE}


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours when there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def display(console: Console, ledger: Ledger) -> Iterator[Callable[[Event], None]]:
    """What is to be called with each event, after the ledger has taken it in."""
    if not console.is_terminal:
        yield _Lines(console, ledger)
        return
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20),
        TextColumn("{task.fields[pace]}", markup=False), console=console, transient=True,
    ) as progress:  # fmt: skip
        yield _Bars(progress, ledger)


class _Lines:
    def __init__(self, console: Console, ledger: Ledger) -> None:
        self._console, self._ledger = console, ledger
        self._shown: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        name, now = event.stage.identity, time.monotonic()
        entry = self._ledger.entries[name]
        if event.kind == "cached":
            if name in self._shown:  # it waited for another run that has made it
                self._print("finished", entry.label, "another run has made it")
        elif event.kind == "started":
            self._shown[name] = now
            self._print("started", entry.label)
        elif event.kind == "progress":
            if now - self._shown[name] >= _EVERY:
                self._shown[name] = now
                self._print("running", entry.label, f"{entry.pace}; {self._ledger.overall}")
        elif event.kind == "finished":
            self._print("finished", entry.label, f"{entry.seconds:.1f} s; {self._ledger.overall}")
        else:
            self._print(event.kind.upper(), entry.label, _reason(event))

    def _print(self, word: str, label: str, detail: str = "") -> None:
        line = f"[{clock(self._ledger.elapsed):>7}] {word:<8}  {label}" + (f": {detail}" if detail else "")
        # No markup, no wrapping: a line is a line, for those who read them with a program.
        self._console.print(Text(line), soft_wrap=True)


class _Bars:
    def __init__(self, progress: Progress, ledger: Ledger) -> None:
        self._progress, self._ledger = progress, ledger
        self._overall = progress.add_task("all", total=1.0, pace=ledger.overall)
        self._bars: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        name = event.stage.identity
        entry = self._ledger.entries[name]
        if event.kind == "started":
            self._bars[name] = self._progress.add_task(entry.label, total=None, pace="")
        elif event.kind == "progress":
            self._progress.update(self._bars[name], completed=entry.done, total=entry.total or None, pace=entry.pace)
        else:
            if name in self._bars:
                self._progress.remove_task(self._bars.pop(name))
            if event.kind in ("failed", "blocked", *AGAIN):
                self._progress.console.print(Text(f"{event.kind}: {entry.label}: {_reason(event)}", style="red"))
        self._progress.update(self._overall, completed=self._ledger.fraction, pace=self._ledger.overall)


def _reason(event: Event) -> str:
    """On one line. Why what a blocked stage needs has failed was shown when it did."""
    words = " ".join(event.reason.split())
    return words.partition(", which failed")[0] if event.kind == "blocked" else words
