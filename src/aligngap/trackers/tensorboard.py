"""TensorBoard: event files below DIR/tensorboard, a folder a series, for `tensorboard --logdir DIR/tensorboard`."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from aligngap.trackers.base import Series

_BETWEEN_FLUSHES = 2.0


def opened(folder: Path, study: str, token: str) -> TensorBoard:
    """Event files of this run, beside those of earlier ones in the same folder."""
    return TensorBoard(folder / "tensorboard")


class TensorBoard:
    """Writes event files itself: TensorBoard's own writer puts the machine's name into theirs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, RecordWriter] = {}
        self._trained: set[str] = set()
        self._flushed = 0.0

    def log(self, series: Series, step: int, values: Mapping[str, float]) -> None:
        """Values at a step, each under its own name."""
        file = self._file(series)
        if series.key not in self._trained and any(name.startswith("training/") for name in values):
            # Training that was killed goes on from its last checkpoint: what an earlier run wrote after it is void.
            self._trained.add(series.key)
            _write(file, Event(step=step, session_log=SessionLog(status=SessionLog.START)))
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        _write(file, Event(step=step, summary=summary))
        if time.monotonic() - self._flushed > _BETWEEN_FLUSHES:
            for open_file in self._files.values():
                open_file.flush()
            self._flushed = time.monotonic()

    def finish(self, series: Series, failed: bool) -> None:
        """Close the file; what comes later goes into another one beside it."""
        if file := self._files.pop(series.key, None):
            file.close()

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()

    def _file(self, series: Series) -> RecordWriter:
        if series.key not in self._files:
            folder = self._folder.joinpath(*(_plain(part) for part in series.name.split("/")))
            folder.mkdir(parents=True, exist_ok=True)
            # Read in the order of their names.
            handle = open(folder / f"events.out.tfevents.{time.time_ns():020d}", "xb")  # noqa: SIM115
            self._files[series.key] = RecordWriter(handle)
            _write(self._files[series.key], Event(file_version="brain.Event:2"))
        return self._files[series.key]


def _write(file: RecordWriter, event: Event) -> None:
    event.wall_time = time.time()
    file.write(event.SerializeToString())


def _plain(part: str) -> str:
    """A folder's name on every system."""
    return re.sub(r"[^\w .,=+()-]", "_", part).strip(" .")[:120] or "_"
