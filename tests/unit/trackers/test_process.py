"""A tracker's process: nobody waits, whatever the tracker does."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aligngap.trackers import process
from aligngap.trackers.base import Series
from aligngap.trackers.process import TrackerProcess

pytest.importorskip("tensorboard")

SERIES = Series("key", "task/arm/seed 0", {})


def line(folder: Path) -> TrackerProcess:
    return TrackerProcess("tensorboard", folder, "study", folder / "log")


def on_record(folder: Path) -> list[int]:
    sent: list[int] = json.loads((folder / "tracked-tensorboard.json").read_text())["sent"].get("key", [])
    return sent


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.02)


def test_a_tracker_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_WAITING", 500)
    tracker = line(tmp_path)
    assert tracker._child.pid is not None
    os.kill(tracker._child.pid, signal.SIGSTOP)
    start = time.monotonic()
    for step in range(10_000):
        tracker.log(SERIES, step, {f"value {name}": 1.0 for name in range(20)})
    assert tracker.problem == "it cannot keep up with the run"
    tracker.close(5.0)
    assert time.monotonic() - start < 5.0  # one that is off is not waited for
    assert tracker._child.pid is None


def test_one_that_does_not_end_is_ended(tmp_path: Path) -> None:
    tracker = line(tmp_path)
    tracker.log(SERIES, 1, {"value": 1.0}, evaluated=True)
    until(lambda: on_record(tmp_path))
    assert tracker._child.pid is not None
    os.kill(tracker._child.pid, signal.SIGSTOP)
    tracker.close(0.3)
    assert tracker.problem == "it had not ended after 0 seconds, and what it had not written is lost"
    assert tracker._child.pid is None


def test_a_tracker_that_dies_is_off(tmp_path: Path) -> None:
    tracker = line(tmp_path)
    tracker._child.kill()

    def told() -> bool:
        tracker.log(SERIES, 1, {"value": 1.0})
        return tracker.problem is not None

    until(told)
    assert tracker.problem == "its process ended without a word"
    tracker.log(SERIES, 1, {"value": 1.0})
    tracker.close(10.0)


def test_what_was_evaluated_goes_on_record_in_order(tmp_path: Path) -> None:
    tracker = line(tmp_path)
    for step in (3, 1, 2):
        tracker.log(SERIES, step, {"value": 1.0}, evaluated=True)
    tracker.log(SERIES, 4, {"value": 1.0})
    tracker.close(60.0)
    assert tracker.problem is None
    assert on_record(tmp_path) == [3, 1, 2]
    again = line(tmp_path)
    again.close(60.0)
    assert again.sent == {("key", 3), ("key", 1), ("key", 2)}


def test_ctrl_c_does_not_reach_the_tracker(tmp_path: Path) -> None:
    tracker = line(tmp_path)
    assert tracker._child.pid is not None
    os.kill(tracker._child.pid, signal.SIGINT)
    tracker.log(SERIES, 1, {"value": 1.0}, evaluated=True)
    until(lambda: on_record(tmp_path))
    tracker.close(60.0)
    assert tracker.problem is None
