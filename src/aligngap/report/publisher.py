"""The process that writes a run's report when all is made: started before, it has by then done what needs no results,
while cores were idle or at least without standing in the way of stages.

Light to import: the process is to be there before the libraries that it loads.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Sequence
from contextlib import closing, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from aligngap.pipeline.executors.process import GRACE, die_with_parent
from aligngap.pipeline.executors.server import without_interrupts, without_main
from aligngap.report.images import Painters

#: Beside stages on all cores it gets about a tenth of one. Not less: other programs may want the cores when stages have
#: ended, and nobody can take it back.
_NICENESS = 10


class Publisher:
    """To be used in a `with` block, at whose end the process has ended. It is a help and no more: where it is lost or
    fails, whoever asked it publishes, and finds whatever error there is.

    processes: how many paint side by side, as `Painters` takes them. started: whether `start` was called.
    """

    def __init__(self, processes: int | None) -> None:
        self.started = False
        self._processes = processes
        self._process: SpawnProcess | None = None

    def start(self, arms: Sequence[tuple[str, int]]) -> None:
        """Start the process, once. arms: as `report.page.prepare` takes them."""
        self.started = True
        context = get_context("spawn")
        with suppress(OSError):  # there is no process to be had
            self._connection, theirs = context.Pipe()
            with theirs:
                process = context.Process(
                    target=_serve, args=(theirs, self._processes, arms), name="aligngap-publisher"
                )
                with without_interrupts(), without_main():
                    process.start()
            self._process = process

    def publish(self, folder: Path) -> bool:
        """Have the report written as `report.page.publish` does; whether it has been."""
        if self._process is None:
            return False
        with suppress(EOFError, OSError):  # it is gone
            self._connection.send(folder)
            self._connection.recv()
            return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._connection.close()
            self._process.terminate()
            self._process.join(GRACE)
            self._process.kill()
            self._process.join()
            self._process.close()


def _serve(connection: Connection, processes: int | None, arms: Sequence[tuple[str, int]]) -> None:
    signal.signal(signal.SIGTERM, _stop)
    die_with_parent()
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    # Without a word: the command will find the same error, and tell it.
    with suppress(BaseException), connection, closing(Painters(processes)) as painters:
        painters.warm()
        from aligngap.report.page import prepare, publish

        prepare(arms)
        publish(connection.recv(), painters=painters)
        connection.send("published")
        os._exit(0)  # those who paint have ended, and to clear up would take a while
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends
    gc.freeze()  # as at the end of a command


def _stop(number: int, frame: FrameType | None) -> None:
    """Those who paint are ended, and their semaphores given back."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit
