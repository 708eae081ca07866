"""The process that writes the report ahead: the same files, and never in the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aligngap.report import images, page, publisher, specs
from aligngap.report.publisher import Publisher
from aligngap.results import read
from unit.report.fixture_results import write_results

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes as Linux lists them")


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "cores", lambda: 2)


def below(pid: int) -> list[int]:
    """The children of a process that live, and theirs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            child = int(path.parent.name)
            found += [child, *below(child)]
    return found


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def arms_of(folder: Path) -> list[tuple[str, int]]:
    return [(row["family"], row["seed"]) for row in read(folder).runs.to_dicts()]


def test_it_writes_what_is_written_without_it(tmp_path: Path) -> None:
    ours, theirs = (write_results(tmp_path / name, tasks=("summarisation", "arena")) for name in ("ours", "theirs"))
    with Publisher(2) as ready:
        ready.start(arms_of(ours))
        assert ready.publish(ours)
    # Of its own: Vega numbers what it draws in a process.
    code = "import sys; from pathlib import Path; from aligngap.report.page import publish; publish(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, theirs], check=True)
    files = sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file())
    assert [file for file in files if (ours / file).read_bytes() != (theirs / file).read_bytes()] == []
    assert Path("report.html") in files
    assert sum(file.suffix == ".png" for file in files) > 10


def test_what_is_done_ahead_is_what_will_be_asked_for(tmp_path: Path) -> None:
    folder = write_results(tmp_path)
    remembered = (specs.win_rate, specs.judges, specs.measure, specs.cost, page._runtime)
    for function in remembered:
        function.cache_clear()
    page.prepare(arms_of(folder))
    made = [function.cache_info().misses for function in remembered]
    assert all(made)
    page.publish(folder, 1)
    assert [function.cache_info().misses for function in remembered] == made


def test_not_started_it_publishes_nothing(tmp_path: Path) -> None:
    with Publisher(2) as ready:
        assert not ready.publish(tmp_path)


def test_an_error_is_left_to_who_asked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Publisher(2) as ready:  # there are no results
        ready.start([])
        assert not ready.publish(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Has something done in the midst of what is done a fifth of a second from now."""
    before = signal.getsignal(signal.SIGALRM)

    def ring(then: Callable[[], None]) -> None:
        signal.signal(signal.SIGALRM, lambda number, frame: then())
        signal.setitimer(signal.ITIMER_REAL, 0.2)

    yield ring
    signal.signal(signal.SIGALRM, before)


def begun(ready: Publisher) -> tuple[int, list[int]]:
    """Its process, and those that paint."""
    ready.start([])
    assert ready._process is not None
    pid = ready._process.pid
    assert pid is not None
    until(lambda: len(below(pid)) >= 2)
    return pid, below(pid)


@needs_proc
def test_killed_before_it_says_that_nothing_is_published(tmp_path: Path) -> None:
    with Publisher(2) as ready:
        pid, painters = begun(ready)
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid))
        assert not ready.publish(write_results(tmp_path))
    until(lambda: all(map(gone, painters)), 5.0)


@needs_proc
def test_killed_meanwhile_it_says_that_nothing_is_published(tmp_path: Path, alarm: Any) -> None:
    with Publisher(2) as ready:
        pid, painters = begun(ready)
        os.kill(pid, signal.SIGSTOP)  # it will not have been done before
        alarm(lambda: os.kill(pid, signal.SIGKILL))
        assert not ready.publish(write_results(tmp_path))
    until(lambda: all(map(gone, painters)), 5.0)


@needs_proc
def test_ctrl_c_ends_it(tmp_path: Path, alarm: Any) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with Publisher(2) as ready:
        pid, painters = begun(ready)
        os.kill(pid, signal.SIGINT)  # which the terminal sends to all; it is not for this one
        time.sleep(0.2)
        assert not gone(pid)
        os.kill(pid, signal.SIGSTOP)
        alarm(interrupt)
        with pytest.raises(KeyboardInterrupt):
            ready.publish(write_results(tmp_path))
    until(lambda: all(map(gone, [pid, *painters])), 5.0)


def test_where_no_process_can_be_had_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(publisher.SpawnProcess, "start", refuse)
    with Publisher(2) as ready:
        ready.start([])
        assert ready.started
        assert not ready.publish(tmp_path)
