"""Runs stages in processes of this machine, as many side by side as there are cores.

One process a stage, so that a stage that dies takes nothing with it, and one thread a process, so that sums are added
in the same order whatever the number of jobs is: results are bit-identical for every `--jobs`.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from aligngap.errors import UserError
from aligngap.pipeline.executors.schedule import Schedule
from aligngap.pipeline.graph import CHECKPOINT_SECONDS, Context, Event, Outcome, Stage, all_stages
from aligngap.plugins import load_plugins, loaded
from aligngap.store.contents import Problem, all_but_weights
from aligngap.store.record import environment
from aligngap.store.store import DiskError, Store, disk_errors

# A stage that is told to stop gets this long to put its files away.
GRACE = 5.0
_BETWEEN_MESSAGES = 0.2
# How often a stage is started whose process is lost; the last time alone, in case memory ran out.
_TRIES = 3
# How often one artefact is made anew in a run before its disk is held to be failing.
_REPAIRS = 3
_VARIABLES = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Interrupted(Exception):
    """The user stopped the run. `outcome` is what had come of it; a second run goes on from there."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        super().__init__("interrupted")


def default_jobs(device: str) -> int:
    """Processes side by side when the user does not say: a core each; on an accelerator one, for its memory's sake."""
    if device != "cpu":
        return 1
    # What this process may use, which in a container is less than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_graph(
    stages: Sequence[Stage],
    store: Store,
    *,
    jobs: int | None,
    device: str,
    on_event: Callable[[Event], None],
    log_folder: Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Outcome:
    """Make these stages and all they need. One that fails stops only what needs it. One whose process is lost is tried
    again; an artefact that is found damaged is set aside and made anew.

    jobs: processes side by side; None: `default_jobs`. on_event: called in this thread. log_folder: where each stage's
    output and traceback go (a file an identity, none for a silent stage); None leaves them on this process's streams.
    checkpoint_seconds: how much work a kill may cost.

    Raises Interrupted on SIGINT (Ctrl-C) and SIGTERM, and DiskError when the store's disk is full or fails: every other
    stage would fail alike. Both after all processes have ended.
    """
    store.sweep()
    if log_folder is not None:
        log_folder.mkdir(parents=True, exist_ok=True)
    run = _Run(all_stages(stages), store, device, on_event, log_folder, checkpoint_seconds)
    with _variables(), run.signals():
        run.work(jobs or default_jobs(device))
    if run.stops:
        raise Interrupted(run.outcome)
    return run.outcome


@dataclass
class _Worker:
    stage: Stage
    process: BaseProcess
    messages: Connection
    started: float
    # The last word of the process, see `_work`.
    result: tuple[str, Any] | None = None


class _Run:
    """The parent's side."""

    def __init__(
        self,
        stages: list[Stage],
        store: Store,
        device: str,
        on_event: Callable[[Event], None],
        log_folder: Path | None,
        checkpoint_seconds: float,
    ) -> None:
        self.stages, self.store, self.device, self.emit, self.log_folder = stages, store, device, on_event, log_folder
        self.checkpoint_seconds = checkpoint_seconds
        self.outcome = Outcome()
        self.by_name = {stage.identity: stage for stage in stages}
        self.tries: Counter[str] = Counter()
        self.repairs: Counter[str] = Counter()
        self.alone: list[Stage] = []
        self.running: dict[Connection, _Worker] = {}
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

    def work(self, jobs: int) -> None:
        self.jobs = jobs
        done = set()
        for stage in self.stages:
            # Weights are many and large: whoever reads them compares their checksum first.
            if not (problems := self.store.verify([stage.identity], all_but_weights)):
                done.add(stage.identity)
                self._note(stage, "cached")
            elif (self.store.root / stage.identity).exists():
                self._note(stage, "damaged", _make_anew(problems))
        if len(done) == len(self.stages):
            return
        self.schedule = Schedule(self.stages, done, jobs)
        self.context = _process_context(self.stages)
        try:
            while not self.stops:
                while len(self.running) < jobs and (ready := self.schedule.take()):
                    self._start(ready)
                if not self.running:
                    if not self.alone:
                        return
                    self._start(self.alone.pop())
                self._listen()
        finally:
            self._stop()

    def _start(self, stage: Stage) -> None:
        receive, send = self.context.Pipe(duplex=False)
        log = self.log_folder / f"{stage.identity}.log" if self.log_folder else None
        self.emit(Event("started", stage))
        try:
            given = (_packed(stage), self.store.root, self.device, self.checkpoint_seconds, send, log)
            process = self.context.Process(target=_work, args=given, name=stage.identity)
            with _without_main():
                process.start()
        except Exception as error:  # a stage that cannot be pickled, or no process to be had
            receive.close()
            self._fail(stage, _describe(error))
        else:
            self.running[receive] = _Worker(stage, process, receive, time.monotonic())
        finally:
            # The child's end must be open in the child only, or its death would go unseen.
            send.close()

    def _listen(self) -> None:
        for ready in wait(list(self.running), timeout=_BETWEEN_MESSAGES):
            assert isinstance(ready, Connection)
            worker = self.running[ready]
            try:
                word, *rest = ready.recv()
            except (EOFError, OSError):
                self._end(worker)
                continue
            if word == "progress":
                done, total, metrics, note = rest
                seconds = time.monotonic() - worker.started
                self.emit(Event("progress", worker.stage, done, total, metrics, seconds, note))
            else:
                worker.result = (word, rest[0] if rest else None)

    def _end(self, worker: _Worker) -> None:
        """A process has closed its end: it is dead or about to be."""
        del self.running[worker.messages]
        worker.messages.close()
        worker.process.join(GRACE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        code = worker.process.exitcode
        worker.process.close()
        self._drop_empty_log(worker.stage)
        given: tuple[str, Any] = worker.result or ("vanished", _death(code))
        word, detail = given
        stage = worker.stage
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
        elif word == "vanished":
            self._try_again(stage, str(detail))
        elif word == "memory" and self.jobs > 1 and self.tries[stage.identity] < _TRIES - 1:
            self.tries[stage.identity] = _TRIES - 2
            self._try_again(stage, str(detail))
        else:
            if word == "mistake":
                self.outcome.mistakes[stage.identity] = detail
            self._fail(stage, str(detail))

    def _try_again(self, stage: Stage, reason: str) -> None:
        self.store.sweep()  # the dead process could not
        self.tries[stage.identity] += 1
        left = _TRIES - self.tries[stage.identity]
        if not left:
            self._fail(stage, f"{reason}; trying it again did not help")
        elif left == 1:
            self._note(stage, "vanished", f"{reason}; it is tried once more when nothing else runs")
            self.alone.append(stage)
        else:
            self._note(stage, "vanished", f"{reason}; it is tried again")
            self.schedule.again(stage.identity)

    def _repair(self, stage: Stage, problems: Sequence[Problem]) -> None:
        """Make a stage's damaged inputs anew, then itself."""
        names = list(dict.fromkeys(problem.identity for problem in problems))
        for name in names:
            made = self.by_name[name]
            if self.outcome.status.get(name) in ("failed", "blocked"):
                return self._fail(stage, _needs(made, self.outcome.reasons[name]), "blocked")
            if self.repairs[name] == _REPAIRS:
                return self._fail(
                    stage,
                    f"its input '{made.label}' was made {_REPAIRS} times anew and is damaged again, as happens when a "
                    f"disk fails: {problems[0]}",
                )
        for name in names:
            if self.schedule.lost(name):
                self.repairs[name] += 1
                self._note(self.by_name[name], "damaged", _make_anew([p for p in problems if p.identity == name]))
        self.schedule.again(stage.identity)
        self._note(stage, "waiting", "for an input that is made anew")

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
        """End all processes: gently, then by force at the deadline or at a second signal."""
        if not self.running:
            return
        self.stops = max(self.stops, 1)
        for worker in self.running.values():
            worker.process.terminate()
        deadline = time.monotonic() + GRACE
        while self.running and self.stops < 2 and time.monotonic() < deadline:
            self._listen()
        for worker in list(self.running.values()):
            worker.process.kill()
            self._end(worker)

    def _drop_empty_log(self, stage: Stage) -> None:
        if self.log_folder is None:
            return
        log = self.log_folder / f"{stage.identity}.log"
        with suppress(OSError):
            if log.stat().st_size == 0:
                log.unlink()


def _make_anew(problems: Sequence[Problem]) -> str:
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{problems[0]}{more}; what is left of it is set aside in the store's .aside, and it is made anew"


def _needs(stage: Stage, reason: str) -> str:
    return f"needs '{stage.label}', which failed: {reason}"


def _process_context(stages: Sequence[Stage]) -> ForkServerContext | SpawnContext:
    """A fork server imports torch and the stages' code once; without one (Windows) each process does."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", *sorted({type(stage).__module__ for stage in stages} - {"__main__"})])
    resource_tracker.ensure_running()  # by itself: it would lift the block below
    # Ctrl-C reaches every process of the terminal. Blocked here, it is blocked in each of them from its first moment,
    # and only the parent acts on it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def _without_main() -> Iterator[None]:
    """A process that starts runs the main program again, to have what is defined there. No stage needs that, and a
    script without a guard around `aligngap.run` would start the study once more in every process.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _variables() -> Iterator[None]:
    """Set for the processes to inherit: the thread pools read them when torch is imported, before any code of ours."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(_VARIABLES)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its process ended with exit code {code} and without a word"
    with suppress(ValueError):
        name = signal.Signals(-code).name
        hint = ", as happens when memory runs out (fewer --jobs need less)" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}"
    return f"its process was killed by signal {-code}"


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class _Stopped(BaseException):
    """SIGTERM, in a stage's process. Not an Exception, so that no stage's own code can swallow it."""


Packed = tuple[list[tuple[str, Path | None]], bytes]


def _packed(stage: Stage) -> Packed:
    """A stage for another process, and the plugins that must be there before it can be unpacked."""
    return loaded(), pickle.dumps(stage)


def _work(
    packed: Packed, root: Path, device: str, checkpoint_seconds: float, messages: Connection, log: Path | None
) -> None:
    """The child's side. Its last word is one of ("finished", seconds), ("cached",), ("damaged", problems of inputs),
    ("disk", error), ("mistake", error), ("memory", reason), ("vanished", reason) and ("failed", reason).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _raise_stopped)
    send = _Sender(messages)
    try:
        if log is not None:
            # The streams themselves: what native code prints cannot disturb the display, and a crash leaves a trace.
            with disk_errors(log.parent, strict=True):
                descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.close(descriptor)
        faulthandler.enable(2)
        _die_with_parent()
        if torch := sys.modules.get("torch"):  # imported before the fork; a later import reads the variables
            torch.set_num_threads(1)
        plugins, pickled = packed
        for name, search in plugins:
            load_plugins([name], search)
        stage: Stage = pickle.loads(pickled)
        send.last(_make(stage, Store(root), device, checkpoint_seconds, send))
    except _Stopped:
        send.last(("vanished", "its process was told to stop (SIGTERM)"))
    except DiskError as error:
        send.last(("disk", error))
    except UserError as error:
        send.last(("mistake", UserError(error.what, where=error.where, mend=error.mend)))
    except BaseException as error:
        with suppress(OSError):  # the log's disk is full
            traceback.print_exc()
        send.last(("memory" if _is_memory(error) else "failed", _describe(error)))


def _is_memory(error: BaseException) -> bool:
    # On the CPU, torch says so in words only.
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "allocate memory" in str(error)


def _make(
    stage: Stage, store: Store, device: str, checkpoint_seconds: float, send: _Sender
) -> tuple[str, ...] | tuple[str, float] | tuple[str, list[Problem]]:
    with ExitStack() as stack:
        try:
            stack.enter_context(store.lock(stage.identity, timeout=1.0))
        except UserError:
            send.progress(0, 0, {}, "another run is making it")
            stack.enter_context(store.lock(stage.identity))
        store.set_aside(stage.identity)
        if store.has(stage.identity):
            return ("cached",)
        parents = list(dict.fromkeys(parent.identity for parent in stage.parents))
        if damaged := store.verify(parents):
            return ("damaged", damaged)
        start = time.perf_counter()
        record = {**stage.described, "environment": environment()}
        inputs = {
            name: [store.get(part.identity).path for part in value]
            if isinstance(value, tuple)
            else store.get(value.identity).path
            for name, value in stage.inputs.items()
        }
        try:
            with store.writing(stage.identity, record) as out:
                partial = store.partial(stage.identity)
                stage.run(Context(inputs, out, partial, send, device, checkpoint_seconds, store.cache))
                # The record is written when this block ends.
                record["seconds"] = seconds = round(time.perf_counter() - start, 3)
        except DiskError:
            raise
        except Exception:
            if damaged := store.verify(parents):  # no wonder that it failed
                return ("damaged", damaged)
            raise
        return ("finished", seconds)


class _Sender:
    """The stage's `progress`: called at every step, it speaks a few times a second."""

    def __init__(self, messages: Connection) -> None:
        self._messages = messages
        self._at = -1.0
        self._said = (-1, -1)

    def __call__(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - self._at < _BETWEEN_MESSAGES and (done < total or self._said == (done, total)):
            return
        self._at, self._said = now, (done, total)
        self.progress(done, total, {name: float(value) for name, value in metrics.items()}, "")

    def progress(self, done: int, total: int, metrics: dict[str, float], note: str) -> None:
        with suppress(OSError):  # the parent is gone; the watch on it ends this process
            self._messages.send(("progress", done, total, metrics, note))

    def last(self, message: tuple[object, ...]) -> None:
        with suppress(OSError):
            self._messages.send(message)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would break into the clearing up
    raise _Stopped


def _die_with_parent() -> None:
    """However the parent ends, its stages end: nobody would read their results, and they would keep their locks."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
