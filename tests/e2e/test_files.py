"""Commands on a run's files that its user may not read, may not write, or did not expect: what is said, and nothing
else.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

import aligngap
from aligngap.cli import main
from aligngap.pipeline.rundir import RunDirectory
from faults.fuzz_run import made_up
from unprivileged import shared_folder, unprivileged

CONTROL = "\x1b[31m\x1b]0;owned\x07\x9b2J\u202e\x08"
OBEYED = set("\x1b\x07\x9b\u202e\x08")


@pytest.fixture
def run() -> Iterator[Path]:
    """A made-up run where everybody may read, and its store, beside it."""
    with shared_folder() as folder:
        yield made_up(folder)


@pytest.fixture(autouse=True)
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that paint images would be nobody's, too, and may not read Python itself."""
    monkeypatch.setattr("aligngap.report.page.Images", lambda *_: nullcontext())
    monkeypatch.setattr("aligngap.report.page.draw", lambda *_, **__: None)


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code and all that a command prints; in this process, so that an exception is one of the test's."""
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out + err


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in [folder, *folder.rglob("*")]}


def test_reading_needs_no_right_to_write(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with shared_folder() as out:
        out.chmod(0o777)
        commands = [
            ("status", run),
            ("samples", run),
            ("verify", run),
            ("pack", run, out / "packed.tar"),
            ("gc", run, "--dry-run"),
            ("report", run, "--out", out / "report"),
        ]
        for words in commands:  # with all rights, so that all is imported
            assert main([str(word) for word in words]) == 0
        for path in list(out.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        capsys.readouterr()
        before = snapshot(run.parent)
        with unprivileged():
            for words in commands:
                code, text = said(capsys, *words)
                assert code == 0, text
        assert snapshot(run.parent) == before
        assert (out / "report" / "report.html").stat().st_size > 1000
        with unprivileged():  # in the run's own folder there is no right to write
            code, text = said(capsys, "report", run)
        assert (code, "cannot be written" in text, str(run) in text) == (2, True, True)
        with unprivileged():
            code, text = said(capsys, "gc", run)
        assert (code, "cannot be written" in text) == (2, True)


@pytest.mark.parametrize("closed", ["run", "store", "results.json", "status.json", "study.json", "artefact", "weights"])
def test_what_may_not_be_read_is_said_with_the_right_hint(
    run: Path, closed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = RunDirectory.open(run).store_path().resolve()
    artefact = next(path for path in sorted(store.iterdir()) if path.name.startswith("fake-"))
    places = {"run": run, "store": store, "artefact": artefact, "weights": artefact / "steps" / "000001.safetensors"}
    place = places.get(closed, run / closed)
    commands = [
        ("status", run),
        ("verify", run),
        ("gc", run, "--dry-run"),
        ("gc", store, "--dry-run"),
        ("pack", run, run.parent / "packed.tar"),
        ("report", run),
        ("samples", run),
    ]
    for words in commands[:-2]:
        main([str(word) for word in words])
    (run.parent / "packed.tar").unlink()
    capsys.readouterr()
    mode = place.stat().st_mode
    place.chmod(0)
    met = 0
    with unprivileged():
        for words in commands:
            code, text = said(capsys, *words)
            assert code in (0, 2), text
            if code and words[0] not in ("report", "pack"):
                met += 1
                assert str(place) in text
                assert "See to its permissions." in text
            assert "make the results again" not in text.lower()
            assert "run the same command again" not in text.lower()
    place.chmod(mode)
    assert met or closed == "results.json"


def test_no_text_of_a_run_moves_the_cursor(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    escaped = json.dumps(CONTROL)[1:-1]
    for name in ("study.json", "status.json"):
        text = (run / name).read_text().replace("fake [", f"fake{escaped} [")
        (run / name).write_text(text.replace('"title": "try"', f'"title": "try{escaped}"'))
    code, text = said(capsys, "status", run)
    assert code == 0
    assert text.count("�") > 5
    assert not set(text) & OBEYED


def test_no_error_moves_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / f"run{CONTROL}"
    code, text = said(capsys, "status", place)
    assert (code, "where: " in text, "�" in text) == (2, True, True)
    assert not set(text) & OBEYED


def command(*words: object, site: Path | None = None, **more: str) -> subprocess.Popen[bytes]:
    """A real command, in a process group of its own."""
    paths = os.pathsep.join(str(path) for path in (site, Path(aligngap.__file__).parents[1]) if path)
    return subprocess.Popen(
        [sys.executable, "-m", "aligngap", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths} | more,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_no_encoding_ends_in_a_traceback(run: Path, encoding: str) -> None:
    path = run / "status.json"
    path.write_text(path.read_text().replace("fake [", "Σ 漢字 ✓ ["))
    for words in (("status", run), ("status", run.parent / "Σ漢字")):
        out, err = command(*words, PYTHONIOENCODING=encoding).communicate(timeout=300)
        assert b"Traceback" not in err
        assert b"?" in out + err


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.1, 0.2, 0.4, 0.8, 1.5, 3.0])
def test_ctrl_c_in_the_first_moments_says_how_to_go_on(tmp_path: Path, after: float) -> None:
    (tmp_path / "site").mkdir()
    begun = tmp_path / "begun"
    (tmp_path / "site" / "sitecustomize.py").write_text(f"open({str(begun)!r}, 'w').close()")  # Python itself is up
    started = command("run", "quick", "--smoke", "--out", tmp_path / "run", site=tmp_path / "site")
    while not begun.exists():
        time.sleep(0.01)
    time.sleep(after)
    os.killpg(started.pid, signal.SIGINT)
    _, err = started.communicate(timeout=300)
    # Python ends by the signal where it has met one in a text that was executed; a shell says 130 of either.
    assert started.returncode in (130, -signal.SIGINT), err
    assert b"To go on:\n  aligngap run quick --smoke" in err
    assert b"Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_among_temporary_files(tmp_path: Path, number: signal.Signals) -> None:
    """After a kill of the command alone; of what a kill of all its processes leaves, the next command is rid."""
    shared = set(os.listdir("/dev/shm"))
    (tmp_path / "tmp").mkdir()
    leftover = tmp_path / "tmp" / "aligngap-run-killed"
    leftover.mkdir()
    (leftover / ".lock").touch()
    started = command("run", "quick", "--smoke", "--out", tmp_path / "run", TMPDIR=str(tmp_path / "tmp"))
    wait_for(lambda: (tmp_path / "run" / "status.json").exists())
    time.sleep(1.0)
    assert not leftover.exists()
    assert list((tmp_path / "tmp").iterdir())
    started.send_signal(number)
    started.communicate(timeout=300)
    wait_for(lambda: not list((tmp_path / "tmp").iterdir()))
    assert set(os.listdir("/dev/shm")) <= shared


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)
