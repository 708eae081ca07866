"""Whose timings a command that makes nothing leaves in results.json."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from aligngap.experiments.timings import latest
from aligngap.pipeline.graph import Outcome
from aligngap.results import StageTiming, StudyResults, Timings, content, write
from aligngap.store import write_json


def timings(wall: float, **seconds: float) -> Timings:
    stages = tuple(StageTiming(identity=name, seconds=s) for name, s in seconds.items())
    return Timings(wall_seconds=wall, stages=stages)


def test_they_are_of_the_last_command_that_made_a_stage(tmp_path: Path) -> None:
    before, now = timings(100.0, a=1.0, b=2.0), timings(5.0, a=1.0, b=2.0)
    nothing, something = Outcome(status={"a": "cached"}), Outcome(seconds={"b": 2.0})
    assert latest(now, nothing, tmp_path) == now  # no results yet
    write(StudyResults(timings=before), pl.DataFrame(), tmp_path)
    assert latest(now, nothing, tmp_path) == before
    assert latest(now, something, tmp_path) == now
    elsewhere = timings(5.0, a=1.0, b=3.0)  # another run has made b anew in the same store
    assert latest(elsewhere, nothing, tmp_path) == elsewhere
    whole = content(StudyResults(timings=before))
    for other in ({}, whole | {"timings": None}, whole | {"timings": {"stages": [1]}}, []):
        write_json(tmp_path / "results.json", other)
        assert latest(now, nothing, tmp_path) == now
    (tmp_path / "results.json").write_text("{", "utf-8")
    assert latest(now, nothing, tmp_path) == now
