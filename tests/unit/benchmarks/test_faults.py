"""The door to the fault campaigns: a command in the docs that cannot be given is worse than none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.faults import CAMPAIGNS, main


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_each_campaign_starts_from_the_checkout_alone(name: str) -> None:
    """Without the paths that pytest adds."""
    root = Path(__file__).resolve().parents[3]
    given = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-m", "benchmarks.faults", name, "--help"]
    done = subprocess.run(command, cwd=root, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--seed" in done.stdout


def test_an_unknown_name_is_told_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nosuch"]) == 2
    assert all(f"benchmarks.faults {name}" in capsys.readouterr().out for name in [next(iter(CAMPAIGNS))])
