"""Processes of this machine: how they are started, how they end with their parent, how their deaths are told.

Light to import: some of these processes are to be there before the libraries that they load.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import wait
from multiprocessing.context import ForkContext, ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

# A process that is told to stop gets this long to put its files away.
GRACE = 5.0


class Child:
    """A process with a pipe to it. It does not run the main program, is not reached by Ctrl-C (its parent decides what
    that means), and alone holds its end of the pipe, so that its death is seen as the pipe's end.

    target: called in the process with its end of the pipe and with `given`; picklable, as `given` is, unless `context`
    forks. context: how it is started; None: afresh. daemon: to be killed where this process ends without ending it.

    Raises OSError when no process is to be had, and what pickling raises.
    """

    def __init__(
        self,
        target: Callable[..., None],
        *given: object,
        name: str,
        context: ForkContext | ForkServerContext | SpawnContext | None = None,
        daemon: bool = False,
    ) -> None:
        context = context or multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=target, args=(theirs, *given), name=name, daemon=daemon)
        forked = context.get_start_method() == "fork"
        try:
            with without_interrupts(), nullcontext() if forked else without_main():
                _start(self._process)
        except BaseException:
            self.pipe.close()
            raise
        finally:
            theirs.close()

    @property
    def pid(self) -> int | None:
        """Its number among the system's processes, while it lives."""
        return self._process.pid if self._process.is_alive() else None

    def terminate(self) -> None:
        """Tell it to put its files away and end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def end(self, seconds: float = 0.0) -> str:
        """Give it so long to end, then kill it, and close the pipe. What its end says, for a process that ended without
        a word.
        """
        self._process.join(seconds)
        self._process.kill()
        self._process.join()
        self.pipe.close()
        return death(self._process.exitcode or 0)


Message = tuple[Any, ...]
"""What a process reports: a word, and what belongs to it."""


class Reporter(Child):
    """A child that sends ("progress", ...) any number of times and then one last message."""

    _last: Message | None = None

    @property
    def ended(self) -> bool:
        """Whether the last message has been read."""
        return self.pipe.closed

    def read(self, seconds: float = 0.0) -> Message | None:
        """The next message, or None when there is none within this time. The last one comes when the process has ended;
        it is ("vanished", how it died) of one that ended without it.
        """
        if not self.pipe.poll(seconds):
            return None
        try:
            message: Message = self.pipe.recv()
        except (EOFError, OSError):  # it has closed its end: it is dead or about to be
            died = self.end(GRACE)
            return self._last or ("vanished", died)
        if message[0] == "progress":
            return message
        self._last = message
        return None


def _start(process: BaseProcess) -> None:
    """Start it; again where the server that forks it is lost in that very moment, because there is a new one then, once
    the system has noticed: a process that is killed closes its connections a little before it counts as dead.
    """
    for pause in (0.02, 0.2, 2.0):
        try:
            process.start()
        except (EOFError, ConnectionError):
            time.sleep(pause)
        else:
            return
    process.start()


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal. Blocked here, it is blocked from its first moment in a process that
    is started here, and only the parent acts on it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def without_main() -> Iterator[None]:
    """A process that starts runs the main program again, to have what is defined there. No process of ours needs that,
    and a script without a guard around `aligngap.run` would start the study once more in every one.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def die_with_parent() -> None:
    """However the parent ends, this process ends: nobody would read its results, and it would keep its locks."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def redirect(log: Path) -> None:
    """This process's output goes to a file. The streams themselves: what native code prints cannot disturb a display,
    and a crash leaves a trace. Raises DiskError.
    """
    from aligngap.store.disk import disk_errors

    with disk_errors(log.parent, strict=True):
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def death(code: int) -> str:
    """What an exit code says of a process that ended without a word."""
    if code >= 0:
        return f"its process ended with exit code {code} and without a word"
    with suppress(ValueError):
        name = signal.Signals(-code).name
        hint = ", as happens when memory runs out (fewer --jobs need less)" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}"
    return f"its process was killed by signal {-code}"
