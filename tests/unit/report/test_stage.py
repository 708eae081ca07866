"""The report as a stage: the files that `aligngap report` writes, made once for the same results, and nothing left over
of its processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aligngap.pipeline.executors.local import LocalExecutor
from aligngap.pipeline.executors.run import run_stages
from aligngap.pipeline.graph import Event
from aligngap.report.stage import Report, deliver
from aligngap.store import Store
from unit.report.fixture_results import write_results

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes as Linux lists them")


def below(pid: int) -> Iterator[int]:
    """The children of a process that live, and theirs."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            yield int(path.parent.name)
            yield from below(int(path.parent.name))


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def made(report: Report, store: Store, on_event: Callable[[Event], None] = lambda event: None) -> str:
    with LocalExecutor(store, jobs=1, device="cpu") as executor:
        return run_stages([report], executor, on_event).status[report.identity]


def files_of(folder: Path) -> dict[Path, bytes]:
    found = [folder / "report.html", *(folder / "charts").iterdir()]
    return {path.relative_to(folder): path.read_bytes() for path in found}


def test_its_files_are_those_of_the_command(tmp_path: Path) -> None:
    ours, theirs = (write_results(tmp_path / name, tasks=("summarisation", "arena")) for name in ("ours", "theirs"))
    store, report = Store(tmp_path / "store"), Report.of(ours)
    assert made(report, store) == "finished"
    assert deliver(store.get(report.identity).path, ours) == ours / "report.html"
    # Of its own: Vega numbers what it draws in a process.
    code = "import sys; from pathlib import Path; from aligngap.report.page import publish; publish(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, theirs], check=True)
    assert files_of(ours) == files_of(theirs)
    assert sum(path.suffix == ".png" for path in files_of(ours)) > 10
    assert not [path for path in ours.rglob(".*") if path.is_file()]
    assert made(Report.of(ours), store) == "cached"


def test_results_and_code_decide_it_and_nothing_else_does(tmp_path: Path) -> None:
    one, same = (write_results(tmp_path / name, seeds=(0,), prompts=2) for name in ("one", "same"))
    report = Report.of(one)
    assert Report.of(same, 3).identity == report.identity
    drawn_otherwise = Report(results=report.results, drawn_by="other code", folder=one)
    assert drawn_otherwise.identity != report.identity
    (same / "results.json").write_text((same / "results.json").read_text() + " ")
    assert Report.of(same).identity != report.identity
    (same / "results.json").write_bytes((one / "results.json").read_bytes())
    (same / "samples.parquet").unlink()
    assert Report.of(same).identity != report.identity


def test_a_page_is_delivered_whole_and_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artefact, folder = tmp_path / "artefact", tmp_path / "run"
    (artefact / "charts").mkdir(parents=True)
    folder.mkdir()
    (folder / "report.html").write_text("old")
    (artefact / "charts" / "a.svg").write_text("<svg>")
    (artefact / "report.html").write_text("new")
    seen = []
    replace = os.replace

    def watched(draft: Path, target: Path) -> None:
        seen.append((target.name, (folder / "report.html").read_text()))
        replace(draft, target)

    monkeypatch.setattr(os, "replace", watched)
    deliver(artefact, folder)
    assert seen == [("a.svg", "old"), ("report.html", "old")]
    assert (folder / "report.html").read_text() == "new"


@needs_proc
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="on one core a report is painted by its own process")
def test_where_those_who_paint_are_killed_one_line_says_so(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "run", tasks=("summarisation", "arena"))
    store, report = Store(tmp_path / "store"), Report.of(folder)
    # The stage's process is a child of the fork server, and has these of its own, which are started afresh.
    painters = [pid for pid in below(os.getpid()) if "spawn_main" in command_of(pid)]

    def kill() -> bool:
        found = [pid for pid in below(os.getpid()) if "spawn_main" in command_of(pid) and pid not in painters]
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return bool(found)

    thread = threading.Thread(target=lambda: until(kill))
    thread.start()
    reasons: list[str] = []
    assert made(report, store, lambda event: reasons.append(event.reason)) == "failed"
    thread.join()
    assert "a process that paints figures was killed" in reasons[-1]
    assert "aligngap report DIR" in reasons[-1]
    assert not store.has(report.identity)
    until(lambda: not [pid for pid in below(os.getpid()) if "spawn_main" in command_of(pid) and pid not in painters])
