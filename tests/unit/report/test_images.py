"""Figures as files, painted here or in processes side by side."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from aligngap.errors import UserError
from aligngap.report import images
from aligngap.report.images import Format, Images

_SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="9"><rect width="{0}" height="5"/></svg>'


def kill(svg: str, form: Format, path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(svg: str, form: Format, path: Path) -> None:
    raise OSError(28, "No space left on device", str(path))


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "cores", lambda: 2)


def test_side_by_side_gives_the_same_files(tmp_path: Path) -> None:
    for processes in (1, 2):
        with Images(tmp_path / str(processes), ("png", "svg", "pdf"), processes) as into:
            for width in (5, 6, 7):
                into.add(f"of-{width}", _SVG.format(width))
        assert [path.name for path in into.written[:3]] == ["of-5.png", "of-5.svg", "of-5.pdf"]
    ours, theirs = ({p.name: p.read_bytes() for p in (tmp_path / str(n)).iterdir()} for n in (1, 2))
    pdfs = [ours.pop(f"of-{width}.pdf") + theirs.pop(f"of-{width}.pdf") for width in (5, 6, 7)]
    assert all(pdf.startswith(b"%PDF") for pdf in pdfs)  # which may hold the time of day
    assert ours == theirs
    assert len(ours) == 6
    assert ours["of-5.png"].startswith(b"\x89PNG")
    assert ours["of-5.png"] != ours["of-6.png"]


def test_a_process_that_is_killed_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "paint", kill)
    with pytest.raises(UserError, match="was killed"), Images(tmp_path, ("png",)) as into:
        into.add("one", _SVG.format(5))


def test_errors_come_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "paint", refuse)
    with pytest.raises(OSError, match="No space left") as found, Images(tmp_path, ("png",)) as into:
        into.add("one", _SVG.format(5))
    assert found.value.errno == 28
