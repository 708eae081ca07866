"""What becomes of a graph of stages, on every executor: order, failures, tries, repairs, stopping.

An executor starts stages, passes on their messages and stops them, and knows nothing else; so a rule that is here holds
on this machine and on a cluster alike.
"""

from __future__ import annotations

import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from aligngap.errors import UserError
from aligngap.pipeline.executors.schedule import Schedule
from aligngap.pipeline.graph import Event, Outcome, Stage, all_stages
from aligngap.pipeline.processes import GRACE, Message
from aligngap.store.contents import Problem, all_but_weights
from aligngap.store.store import Store

_BETWEEN_MESSAGES = 0.2
# How often a stage is started whose process is lost (the last time alone, in case memory ran out), and whose machine is
# lost, which is seldom the stage's fault.
_TRIES = {"vanished": 3, "lost": 10}
# How often one artefact is made again in a run before its disk is held to be failing.
_REPAIRS = 3


class Interrupted(Exception):
    """The user stopped the run; a second one goes on from there."""


class Executor(ABC):
    """Starts stages, each in a process of its own, and listens to them. To be used in a `with` block.

    store: where this process finds what stages have made.

    A running stage reports ("progress", done, total, metrics, note) any number of times, then one last message:
    ("finished", seconds), ("cached",), ("damaged", problems of inputs), ("disk", error), ("memory", reason),
    ("mistake", error) of the user's, ("vanished", reason) when its process was lost, ("lost", reason) when the machine
    was, or ("failed", reason).
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stack = ExitStack()

    @property
    @abstractmethod
    def jobs(self) -> int:
        """How many stages may run side by side, now."""

    @abstractmethod
    def start(self, stage: Stage) -> None:
        """Start a stage. Raises any Exception when this stage cannot be started."""

    @abstractmethod
    def listen(self, seconds: float) -> Iterable[tuple[str, Message]]:
        """The messages of stages, by identity; waits for up to `seconds` for one. After a last
        message nothing of the stage runs any more.

        Raises UserError when no stage can be run any longer; from then on the last words of all are here.
        """

    @abstractmethod
    def stop(self) -> None:
        """Tell all stages to put their files away and end."""

    @abstractmethod
    def kill(self) -> None:
        """End all stages at once; their last words can be listened to without waiting."""

    def close(self) -> None:
        """Give back what the executor holds; all stages have ended."""
        self.stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def run_stages(stages: Sequence[Stage], executor: Executor, on_event: Callable[[Event], None]) -> Outcome:
    """Make these stages and all they need. One that fails stops only what needs it. One whose process is lost is tried
    again; a damaged artefact is set aside and made again.

    on_event: called in this thread.

    Raises Interrupted on SIGINT (Ctrl-C) and SIGTERM, DiskError when the store's disk is full or fails (every other
    stage would fail alike), and what the executor raises when it can run nothing any longer; after all has ended.
    """
    executor.store.sweep()
    run = _Run(all_stages(stages), executor, on_event)
    with run.signals():
        run.work()
    executor.store.sweep()  # a process on a lost machine may have lived on for a while, and held what it wrote
    if run.stops:
        raise Interrupted
    return run.outcome


class _Run:
    def __init__(self, stages: list[Stage], executor: Executor, on_event: Callable[[Event], None]) -> None:
        self.stages, self.executor, self.store, self.emit = stages, executor, executor.store, on_event
        self.outcome = Outcome()
        self.by_name = {stage.identity: stage for stage in stages}
        self.tries: Counter[tuple[str, str]] = Counter()
        self.repairs: Counter[str] = Counter()
        self.alone: list[Stage] = []
        self.running: dict[str, float] = {}  # since when
        self.stops = 0

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Signals are counted, not raised: an exception in the midst of starting a process would lose track of it."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers, and only it is interrupted
            return

        def count(number: int, frame: FrameType | None) -> None:
            self.stops += 1

        before = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def work(self) -> None:
        done = set()
        for stage in self.stages:
            # Weights are many and large: their readers compare their checksums first.
            if not (problems := self.store.verify([stage.identity], all_but_weights)):
                done.add(stage.identity)
                self._note(stage, "cached")
            elif (self.store.root / stage.identity).exists():
                self._note(stage, "damaged", _made_again(problems))
        if len(done) == len(self.stages):
            return
        self.schedule = Schedule(self.stages, done, self.executor.jobs)
        try:
            while not self.stops:
                while len(self.running) < self.executor.jobs and (ready := self.schedule.take()):
                    self._start(ready)
                if not self.running:
                    if self.alone:
                        self._start(self.alone.pop())
                    elif not self.schedule.ready:  # as it may be where there is no room for anything, just now
                        return
                self._listen()
        finally:
            self._stop()

    def _start(self, stage: Stage) -> None:
        self.emit(Event("started", stage))
        try:
            self.executor.start(stage)
        except Exception as error:  # a stage that cannot be pickled, or no process to be had
            self._fail(stage, describe(error))
        else:
            self.running[stage.identity] = time.monotonic()

    def _listen(self) -> None:
        for identity, (word, *rest) in self.executor.listen(_BETWEEN_MESSAGES):
            stage = self.by_name[identity]
            if word == "progress":
                done, total, metrics, note = rest
                seconds = time.monotonic() - self.running[identity]
                self.emit(Event("progress", stage, done, total, metrics, seconds, note))
            else:
                del self.running[identity]
                self._end(stage, word, rest[0] if rest else None)

    def _end(self, stage: Stage, word: str, detail: Any) -> None:
        if word in ("finished", "cached"):
            if word == "finished":
                self.outcome.seconds[stage.identity] = detail
            self._note(stage, word, seconds=detail or 0.0)
            self.schedule.finish(stage.identity)
        elif self.stops:
            pass  # it was told to stop, which is not its failure
        elif word == "disk":
            raise detail
        elif word == "damaged":
            self._repair(stage, detail)
        elif word in _TRIES:
            self._try_again(stage, word, str(detail))
        elif word == "memory" and self.executor.jobs > 1 and self._left(stage, "vanished") > 1:
            self.tries[stage.identity, "vanished"] = _TRIES["vanished"] - 2  # alone next
            self._try_again(stage, "vanished", str(detail))
        else:
            if word == "mistake":
                self.outcome.mistakes[stage.identity] = detail
            self._fail(stage, str(detail))

    def _left(self, stage: Stage, word: str) -> int:
        return _TRIES[word] - self.tries[stage.identity, word]

    def _try_again(self, stage: Stage, word: str, reason: str) -> None:
        self.store.sweep()  # the dead process could not
        self.tries[stage.identity, word] += 1
        left = self._left(stage, word)
        if not left:
            self._fail(stage, f"{reason}; trying it {_TRIES[word] - 1} times again did not help")
        elif left == 1 and word == "vanished":
            self._note(stage, "vanished", f"{reason}; it is tried once more when nothing else runs")
            self.alone.append(stage)
        else:
            self._note(stage, "vanished", f"{reason}; it is tried again")
            self.schedule.again(stage.identity)

    def _repair(self, stage: Stage, problems: Sequence[Problem]) -> None:
        """Make a stage's damaged inputs again, then itself."""
        names = list(dict.fromkeys(problem.identity for problem in problems))
        for name in names:
            made = self.by_name[name]
            if self.outcome.status.get(name) in ("failed", "blocked"):
                return self._fail(stage, _needs(made, self.outcome.reasons[name]), "blocked")
            if self.repairs[name] == _REPAIRS:
                return self._fail(
                    stage,
                    f"its input '{made.label}' was made {_REPAIRS} times and is damaged again, as happens when a "
                    f"disk fails: {problems[0]}",
                )
        for name in names:
            if self.schedule.lost(name):
                self.repairs[name] += 1
                self._note(self.by_name[name], "damaged", _made_again([p for p in problems if p.identity == name]))
        self.schedule.again(stage.identity)
        self._note(stage, "waiting", "for an input that is made again")

    def _fail(self, stage: Stage, reason: str, status: str = "failed") -> None:
        self._note(stage, status, reason)
        for blocked in self.schedule.fail(stage.identity):
            self._note(blocked, "blocked", _needs(stage, reason))

    def _note(self, stage: Stage, status: str, reason: str = "", seconds: float = 0.0) -> None:
        self.outcome.status[stage.identity] = status
        self.outcome.reasons.pop(stage.identity, None)
        if reason:
            self.outcome.reasons[stage.identity] = reason
        self.emit(Event(status, stage, seconds=seconds, reason=reason))

    def _stop(self) -> None:
        """End all stages: gently, then by force at the deadline or at a second signal."""
        if not self.running:
            return
        self.stops = max(self.stops, 1)
        self.executor.stop()
        deadline = time.monotonic() + GRACE
        while self.running and self.stops < 2 and time.monotonic() < deadline:
            self._listen()
        if self.running:
            self.executor.kill()
        while self.running:
            self._listen()


def describe(error: BaseException) -> str:
    """An error in one line, for people."""
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _made_again(problems: Sequence[Problem]) -> str:
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{problems[0]}{more}; what is left of it is set aside in the store's .aside, and it is made again"


def _needs(stage: Stage, reason: str) -> str:
    return f"needs '{stage.label}', which failed: {reason}"
