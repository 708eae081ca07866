"""A child process: what is said to it and by it, and how it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from aligngap.pipeline.processes import Child, redirect

CONTEXTS = [name for name in ("spawn", "fork", "forkserver") if name in multiprocessing.get_all_start_methods()]


def twice(pipe: Connection) -> None:
    while (value := pipe.recv()) is not None:
        pipe.send(2 * value)


def sleep(pipe: Connection) -> None:
    pipe.send(os.getpid())
    time.sleep(600)


def say_main(pipe: Connection) -> None:
    pipe.send(getattr(sys.modules["__main__"], "__file__", None))


def write(pipe: Connection, log: Path) -> None:
    redirect(log)
    os.write(1, b"native")
    os.write(2, b" streams")


def leave(pipe: Connection, code: int) -> None:
    raise SystemExit(code)


def child(target: Callable[..., None], *given: object, method: str = "fork") -> Child:
    context: Any = multiprocessing.get_context(method)
    return Child(target, *given, name="child", context=context)


@pytest.mark.parametrize("method", CONTEXTS)
def test_it_hears_and_answers_and_its_end_is_the_pipe_s(method: str) -> None:
    made = child(twice, method=method)
    made.pipe.send(21)
    assert made.pipe.recv() == 42
    made.pipe.send(None)
    with pytest.raises(EOFError):
        made.pipe.recv()
    made.end(10.0)
    assert made.pid is None


def test_the_main_program_is_not_run_in_it() -> None:
    made = child(say_main, method="spawn")
    assert made.pipe.recv() is None
    made.end(10.0)


def test_ctrl_c_is_for_the_parent_alone() -> None:
    made = child(twice)
    assert made.pid is not None
    os.kill(made.pid, signal.SIGINT)
    made.pipe.send(1)
    assert made.pipe.recv() == 2
    assert "SIGKILL" in made.end()


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (Child.terminate, "its process was killed by SIGTERM"),
        (Child.kill, "its process was killed by SIGKILL, as happens when memory runs out (fewer --jobs need less)"),
    ],
)
def test_how_it_died_is_said(end: Callable[[Child], None], words: str) -> None:
    made = child(sleep)
    pid = made.pipe.recv()
    assert pid == made.pid
    end(made)
    assert made.end(10.0) == words
    end(made)  # of one that has ended there is nothing left to end
    assert made.end() == words
    assert made.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_exit_code_is_said() -> None:
    assert child(leave, 3).end(10.0) == "its process ended with exit code 3 and without a word"


def test_one_that_takes_too_long_is_killed() -> None:
    made = child(sleep)
    made.pipe.recv()
    assert "SIGKILL" in made.end(0.05)


def test_what_it_prints_goes_to_its_log(tmp_path: Path) -> None:
    child(write, tmp_path / "log").end(10.0)
    assert (tmp_path / "log").read_text() == "native streams"


def test_where_no_process_can_be_had_nothing_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    context: Any = multiprocessing.get_context("fork")
    monkeypatch.setattr(context.Process, "start", refuse)
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else set()
    with pytest.raises(BlockingIOError):
        child(sleep)
    if before:
        assert set(os.listdir("/proc/self/fd")) == before
