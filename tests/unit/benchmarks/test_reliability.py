"""The measurement of what checkpoints and checksums cost does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks import reliability

from aligngap.store import Store
from unit.pipeline.fake_stages import Fake
from unit.pipeline.runs import finished


def test_a_training_with_checkpoints_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reliability.checkpoints("small", 2, 2, tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    found = re.search(r"a step (\d+) ms, a save of ([\d.]+) MB (\d+) ms,.* every 120 s ([\d.]+)%", printed)
    assert found
    assert float(found[2]) > 0.5
    assert float(found[4]) == pytest.approx(float(found[3]) / 1200, abs=0.001)
    assert (tmp_path / "checkpoint.json").is_file()


def test_a_finished_run_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "run", Store(tmp_path / "store"), Fake(name="b", after=(Fake(name="a"),)))
    reliability.checks(tmp_path / "run")
    printed = capsys.readouterr().out
    assert "all of it: 2 artefacts, 0 MB" in printed
    assert "of the 2 s that all stages took" in printed
