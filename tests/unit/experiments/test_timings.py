"""Whose timings a command that makes nothing leaves in results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligngap.experiments.results import _latest
from aligngap.pipeline.graph import Outcome
from aligngap.store import write_json


def timings(wall: float, **seconds: float) -> dict[str, Any]:
    return {"wall_seconds": wall, "stages": [{"identity": name, "seconds": s} for name, s in seconds.items()]}


def test_they_are_of_the_last_command_that_made_a_stage(tmp_path: Path) -> None:
    before, now = timings(100.0, a=1.0, b=2.0), timings(5.0, a=1.0, b=2.0)
    nothing, something = Outcome(status={"a": "cached"}), Outcome(seconds={"b": 2.0})
    assert _latest(now, nothing, tmp_path) == now  # no results yet
    write_json(tmp_path / "results.json", {"timings": before})
    assert _latest(now, nothing, tmp_path) == before
    assert _latest(now, something, tmp_path) == now
    elsewhere = timings(5.0, a=1.0, b=3.0)  # another run has made b anew in the same store
    assert _latest(elsewhere, nothing, tmp_path) == elsewhere
    for other in ({}, {"timings": None}, {"timings": {"stages": [1]}}, []):
        write_json(tmp_path / "results.json", other)
        assert _latest(now, nothing, tmp_path) == now
    (tmp_path / "results.json").write_text("{", "utf-8")
    assert _latest(now, nothing, tmp_path) == now
