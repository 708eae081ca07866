"""A tracker's process, and the line to it, which never makes anyone wait."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from aligngap.pipeline.processes import Child, redirect
from aligngap.trackers.base import Series, opened

_KEPT = 20_000
"""Messages that may wait for a tracker that is slow for a while."""


class Line:
    """Feeds a tracker in a process of its own. No method waits for it but `close`; after a failure all do nothing.

    log_file: where what the tracker prints goes.
    """

    def __init__(self, name: str, folder: Path, study: str, token: str, log_file: Path) -> None:
        self.name, self._log_file = name, log_file
        self._sent: deque[tuple[str, int]] = deque()
        self.problem: str | None = None
        self._messages: queue.Queue[tuple[object, ...]] = queue.Queue(_KEPT)
        self._child = Child(_serve, name, folder, study, token, log_file, name=f"aligngap-{name}", daemon=True)
        self._ears = threading.Thread(target=self._hear, name=f"{name}-answers", daemon=True)
        self._ears.start()
        threading.Thread(target=self._feed, name=f"{name}-messages", daemon=True).start()

    def log(self, series: Series, step: int, values: Mapping[str, float], evaluated: bool = False) -> None:
        """Values at a step. evaluated: to be confirmed."""
        self._put("log", series, step, dict(values), evaluated)

    def finish(self, series: Series, failed: bool) -> None:
        """Nothing more comes of this series, for now."""
        self._put("finish", series, failed)

    def confirmed(self) -> tuple[str, int] | None:
        """The next evaluated checkpoint (key of the series, step) that the tracker has taken, if there is one."""
        return self._sent.popleft() if self._sent else None

    def close(self, seconds: float) -> None:
        """Give the tracker so long to bring everything home."""
        self._put("close")
        if not self._child.wait(0.0 if self.problem else seconds):
            self._fail(f"it had not ended after {seconds:.0f} seconds, and what it had not written is lost")
            self._child.kill()
        self._ears.join(1.0)
        self._child.end()
        with contextlib.suppress(OSError):  # one that had nothing to say leaves none
            if self._log_file.stat().st_size == 0:
                self._log_file.unlink()

    def _put(self, *message: object) -> None:
        if self.problem is None:
            try:
                self._messages.put_nowait(message)
            except queue.Full:
                self._fail("it cannot keep up with the run")

    def _fail(self, reason: str) -> None:
        if self.problem is None:
            self.problem = reason

    def _feed(self) -> None:
        with contextlib.suppress(OSError):  # it is gone, which `_hear` has seen
            while True:
                self._child.pipe.send(self._messages.get())

    def _hear(self) -> None:
        try:
            while True:
                word, *rest = self._child.pipe.recv()
                if word == "closed":
                    return
                if word == "failed":
                    self._fail(str(rest[0]))
                    return
                self._sent.append((str(rest[0]), int(rest[1])))
        except (EOFError, OSError):
            self._fail("its process ended without a word")


def _serve(messages: Connection, name: str, folder: Path, study: str, token: str, log_file: Path) -> None:
    """The tracker's side: until it is told to close, the run dies, or something goes wrong."""
    redirect(log_file)
    try:
        tracker = opened(name, folder, study, token)
        while True:
            try:
                word, *rest = messages.recv()
            except (EOFError, OSError):  # the run was killed: keep what has come, but do not outlive it for long
                threading.Thread(target=_end, daemon=True).start()
                word = "close"
            if word == "log":
                series, step, values, evaluated = rest
                tracker.log(series, step, values)
                if evaluated:
                    messages.send(("sent", series.key, step))
            elif word == "finish":
                tracker.finish(*rest)
            else:
                tracker.close()
                with contextlib.suppress(OSError):
                    messages.send(("closed",))
                os._exit(0)  # not by way of what a tracker does at the end of a process: W&B may wait for the network
    except BaseException as error:
        traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        with contextlib.suppress(OSError):
            messages.send(("failed", reason))
        os._exit(1)


def _end() -> None:
    time.sleep(10.0)
    os._exit(1)
