"""Mutated files of a run in short; the long one is `python -m tests.faults.fuzz_run --limit 1000`."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.fuzz_run import COMMANDS, PLACES, READ, files_of, fuzz, made_up, put_back, put_in_place, tried

MADE_UP = [name for name in COMMANDS if name not in ("compare", "export")]
"""Commands that read a run of which nothing was trained."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made_up(tmp_path)


@pytest.mark.parametrize("command", MADE_UP)
def test_a_run_is_read_as_it_is(run: Path, tmp_path: Path, command: str) -> None:
    """Else nothing would be tried but the first complaint."""
    assert tried(command, run, run / "study.json", tmp_path / "out") == ("read", "")


@pytest.mark.parametrize("command", MADE_UP)
@pytest.mark.parametrize("limit", [25, pytest.param(300, marks=pytest.mark.slow)])
def test_mutated_files_of_a_run_are_read_or_refused_by_name(
    run: Path, tmp_path: Path, command: str, limit: int
) -> None:
    counts, findings = fuzz(run, command, limit, 7, tmp_path)
    assert findings == []
    assert counts["refused"] > 0


@pytest.mark.parametrize("command", MADE_UP)
def test_what_is_in_a_files_place_is_named_and_not_waited_for(run: Path, tmp_path: Path, command: str) -> None:
    for path in {path.name: path for path in files_of(run, command)}.values():
        for what in PLACES:
            with put_back(path):
                put_in_place(path, what)
                result, why = tried(command, run, path, tmp_path / "out")
            assert result in ("read", "refused"), f"{path}, {what}: {why}"


def test_every_command_has_its_files() -> None:
    assert READ.keys() == COMMANDS.keys()
