"""A tracker's process, and the line to it, which never makes anyone wait."""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import threading
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aligngap.pipeline.processes import Child, redirect
from aligngap.store.disk import read_json, write_json
from aligngap.trackers.base import Series, opened

_WAITING = 20_000
"""Messages that may wait for a tracker that is slow for a while."""
_AFTER_THE_RUN = 10.0
"""Seconds for which a tracker outlives a run that was killed, to write what it has been given."""


class TrackerProcess:
    """Feeds a tracker in a process of its own. No method waits for it but `close`; after a failure all do nothing.

    log_file: where what the tracker prints goes. sent: the evaluated checkpoints (key of the series, step) that it had
    taken when this began, so that none is given twice; they stand in the folder's tracked-NAME.json, with a token that
    tells this folder's runs from another's.
    """

    def __init__(self, name: str, folder: Path, study: str, log_file: Path) -> None:
        self.name, self._log_file = name, log_file
        self.problem: str | None = None
        path = folder / f"tracked-{name}.json"
        record = _read_record(path)
        self.sent = {(key, step) for key, steps in record["sent"].items() for step in steps}
        self._messages: queue.Queue[tuple[object, ...]] = queue.Queue(_WAITING)
        given = (name, folder, study, path, record, log_file)
        self._child = Child(_serve, *given, name=f"aligngap-{name}", daemon=True)
        self._feeder = threading.Thread(target=self._feed, name=f"{name}-messages", daemon=True)
        self._feeder.start()

    def log(self, series: Series, step: int, values: Mapping[str, float], evaluated: bool = False) -> None:
        """Values at a step. evaluated: it goes on record when the tracker has taken it."""
        self._put("log", series, step, dict(values), evaluated)

    def finish(self, series: Series, failed: bool) -> None:
        """Nothing more comes of this series, for now."""
        self._put("finish", series, failed)

    def close(self, seconds: float) -> None:
        """Give the tracker so long to bring everything home."""
        self._put("close")
        self._feeder.join(0.0 if self.problem else seconds)
        if self._feeder.is_alive():
            self._fail(f"it had not ended after {seconds:.0f} seconds, and what it had not written is lost")
        self._child.kill()
        self._feeder.join(1.0)
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
        self.problem = self.problem or reason

    def _feed(self) -> None:
        """The thread that sends, until the tracker has ended, which says in its one message what went wrong, if
        anything did.
        """
        message: tuple[object, ...] = ()
        with contextlib.suppress(OSError):  # it is gone
            while message != ("close",):
                message = self._messages.get()
                self._child.pipe.send(message)
        try:
            if reason := self._child.pipe.recv():
                self._fail(reason)
        except (EOFError, OSError):
            self._fail("its process ended without a word")


def _read_record(path: Path) -> dict[str, Any]:
    record = read_json(path) if path.is_file() else None
    if isinstance(record, dict) and isinstance(record.get("token"), str) and isinstance(record.get("sent"), dict):
        return record
    record = {"token": secrets.token_hex(4), "sent": {}}
    write_json(path, record)
    return record


def _serve(
    messages: Connection, name: str, folder: Path, study: str, path: Path, record: dict[str, Any], log_file: Path
) -> None:
    """The tracker's side: until it is told to close, the run dies, or something goes wrong."""
    redirect(log_file)
    reason = ""
    try:
        tracker = opened(name, folder, study, record["token"])
        while True:
            try:
                word, *rest = messages.recv()
            except (EOFError, OSError):  # the run was killed
                timer = threading.Timer(_AFTER_THE_RUN, os._exit, (1,))
                timer.daemon = True
                timer.start()
                word = "close"
            if word == "log":
                series, step, values, evaluated = rest
                tracker.log(series, step, values)
                if evaluated:
                    record["sent"].setdefault(series.key, []).append(step)
                    write_json(path, record)
            elif word == "finish":
                tracker.finish(*rest)
            else:
                tracker.close()
                break
    except BaseException as error:
        traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
    with contextlib.suppress(OSError):
        messages.send(reason)
    os._exit(bool(reason))  # not by way of what a tracker does at the end of a process: W&B may wait for the network
