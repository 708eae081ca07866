"""Making the page of what is finished so far: in a process of its own, because it takes seconds to a minute of work,
and gently, because the run needs the cores.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from aligngap.errors import UserError
from aligngap.live.folder import Look, Watched
from aligngap.pipeline.executors.progress import ENDED
from aligngap.pipeline.processes import GRACE, Child

if TYPE_CHECKING:
    from aligngap.experiments.gather import Gathered
    from aligngap.experiments.plan import Plan
    from aligngap.pipeline.graph import Outcome, Stage
    from aligngap.results import StudyResults
    from aligngap.store import Store

_NICENESS = 5  # beside a run on all cores, about a quarter of one
_BETWEEN_LOOKS = 1.0
_GLANCE = 1.5
_AFTER_A_DEATH = 30.0
#: Seconds of rest for each core second of work, so that watching costs a run at most a quarter of a core. Not for each
#: second on the clock: beside a busy run, that would make it wait for having had to wait.
_REST = 3.0


@dataclass(frozen=True)
class LivePage:
    """A page and the policy that it obeys. final: whether it is of all that the run will have. arms, of: how many are
    evaluated, how many wanted. seconds: of work.
    """

    html: bytes
    policy: str
    final: bool
    arms: int
    of: int
    seconds: float


@dataclass(frozen=True)
class NoPage:
    """Nothing new, nothing yet, or a problem, which is said."""

    problem: str | None = None
    seconds: float = 0.0


class Maker:
    """Makes pages of a run, and remembers what the last one was made of, and of each task what it has gathered: most of
    the time only one has changed.
    """

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._last: object = None
        self._gathered: dict[str, tuple[object, Gathered]] = {}

    def make(self, look: Look) -> LivePage | NoPage:
        """A page of the run as a look has shown it, unless it would be made of what the last one was made of. Reads
        only.
        """
        start = time.process_time()
        try:
            final = self._watched.results_are_current(look)
            there, data = self._finished() if final else self._unfinished(look)
            if data is None:
                return NoPage()
            page = _page(data, final, start)
        except UserError as error:
            return NoPage(str(error), time.process_time() - start)
        # The store may be swept while it is read, and what another version wrote may hold anything: the last page
        # stands, and the reader is told.
        except Exception as error:
            traceback.print_exc()
            return NoPage(f"{type(error).__name__}: {error}", time.process_time() - start)
        self._last = there
        return page

    def _finished(self) -> tuple[object, StudyResults | None]:
        from aligngap.results import read

        folder = self._watched.folder
        state = (folder / "results.json").stat()
        stamp = state.st_mtime_ns, state.st_size
        return stamp, None if stamp == self._last else read(folder)

    def _unfinished(self, look: Look) -> tuple[object, StudyResults | None]:
        from aligngap.experiments.gather import assemble, gather
        from aligngap.results import for_readers
        from aligngap.store import Store

        store, outcome = Store(look.store, reading=True), _outcome(look)
        there = {name: _there(task.reads, store, outcome) for name, task in self.plan.tasks.items()}
        if there == self._last or not any(visible for visible, _ in there.values()):
            return there, None
        for task, state in there.items():
            if task not in self._gathered or self._gathered[task][0] != state:
                self._gathered[task] = (state, gather(self.plan.tasks[task], store, outcome))
        gathered = [self._gathered[task][1] for task in there]
        return there, for_readers(assemble(self.plan, store, outcome, gathered))

    @cached_property
    def plan(self) -> Plan:
        """The study's. Raises UserError where it cannot be read."""
        from aligngap.experiments.plan import Plan
        from aligngap.experiments.study import load_study

        file = self._watched.file
        # What a folder names is not imported: it may be anyone's. A file that the user gives is the user's own.
        place = load_study(str(file)).folder if file else None
        try:
            return Plan.recorded(_without_trust(self._watched.study), place)
        except UserError as error:
            hint = "Watch with the version of aligngap that runs it" + (
                "." if file else "; if it has plugins or judges of its own, say --study FILE."
            )
            raise UserError(f"the study cannot be read: {error.what}", hint=hint) from error


def _without_trust(given: Mapping[str, object]) -> dict[str, object]:
    """The study without leave to run code that comes with a model: who watches a folder has not given any."""

    def without(value: object) -> object:
        if isinstance(value, dict):
            return {key: without(part) for key, part in value.items() if key != "trust_remote_code"}
        return [without(part) for part in value] if isinstance(value, list) else value

    return {**given, "models": without(given.get("models", {}))}


def _outcome(look: Look) -> Outcome:
    """What became of the stages that the store does not have."""
    from aligngap.pipeline.graph import Outcome
    from aligngap.results import PENDING

    outcome = Outcome()
    for stage in look.stages:
        status, reason = stage["status"], stage["reason"]
        if status not in ENDED:
            status, reason = PENDING, "not finished yet"
        elif status not in ("failed", "blocked"):  # what the run says it has, and the store may have lost since
            status, reason = "missing", "it is not in the store any more"
        outcome.status[stage["identity"]], outcome.reasons[stage["identity"]] = status, reason
    return outcome


def _there(stages: Sequence[Stage], store: Store, outcome: Outcome) -> tuple[bool, tuple[object, ...]]:
    """Whether there is anything to draw, and what there is to gather: while that stays the same, so does the page."""
    visible, result = False, []
    for stage in stages:
        name = stage.identity
        if store.has(name):
            state: tuple[object, ...] = (name,)
            visible |= stage.kind == "evaluate"
        else:
            begun = sorted(path.name for path in store.unfinished(name).glob("pairs-*.parquet"))
            state = (name, *begun, outcome.status.get(name), outcome.reasons.get(name))
            visible |= bool(begun)
        result.append(state)
    return visible, tuple(result)


def _page(data: StudyResults, final: bool, start: float) -> LivePage:
    from aligngap.report.page import content_policy, render

    arms = [arm.status for task in data.tasks for arm in task.arms]
    html = render(data).encode()
    return LivePage(html, content_policy(), final, arms.count("finished"), len(arms), time.process_time() - start)


def serve(connection: Connection, folder: Path, file: Path | None) -> None:
    """The process that makes pages of a run: answers each look, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end ends this
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # a folder must not make anyone's machine fetch
    # What is imported once is neither held back nor counted as work that asks for rest.
    for module in ("aligngap.experiments.gather", "aligngap.report.page", "altair", "vl_convert"):
        importlib.import_module(module)
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    maker = Maker(Watched(folder, file))
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(maker.make(connection.recv()))


class Renewal:
    """The latest page of a run, renewed in the background whenever something new has been finished.

    `tick` is to be called about once a second, by one thread; the attributes may be read by any.
    """

    def __init__(self, watched: Watched) -> None:
        self.page: LivePage | None = None
        self.made = 0.0
        self.version = 0
        self.problem: str | None = None
        self.making = False
        self._watched = watched
        self._child: Child | None = None
        self._next = self._asked = 0.0

    @property
    def at_work(self) -> bool:
        """Whether a page is being made: to see that nothing is new takes less than this."""
        return self.making and time.monotonic() - self._asked > _GLANCE

    def tick(self, look: Look) -> None:
        """Take what has been made, and ask for more when it is time."""
        if self.making:
            self._take()
        if not self.making and time.monotonic() >= self._next and look.status and not look.closing:
            self._ask(look)

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.end()

    def _ask(self, look: Look) -> None:
        try:
            if self._child is None:
                given = self._watched.folder, self._watched.file
                self._child = Child(serve, *given, name="aligngap-watch-pages", daemon=True)
            self._child.pipe.send(look)
        except OSError:
            self._died()
        else:
            self.making, self._asked = True, time.monotonic()

    def _take(self) -> None:
        assert self._child is not None
        try:
            if not self._child.pipe.poll():
                return
            answer = self._child.pipe.recv()
        except (EOFError, OSError):
            self._died()
            return
        self.making = False
        self._next = time.monotonic() + max(_BETWEEN_LOOKS, _REST * answer.seconds)
        if isinstance(answer, LivePage):
            self.page, self.made, self.version, self.problem = answer, time.time(), self.version + 1, None
        elif isinstance(answer, NoPage):
            self.problem = answer.problem

    def _died(self) -> None:
        assert self._child is not None
        self.problem = f"the process that makes the figures was lost ({self._child.end(GRACE)}); it is started again"
        self.making, self._child = False, None
        self._next = time.monotonic() + _AFTER_A_DEATH
