"""Two processes a stage, one of which is killed in the midst of an arm: the run goes on by itself to the same end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aligngap.store import Store
from faults.campaign import STUDY, contents, descendants, difference, results, servers
from tiny import Tiny

pytestmark = pytest.mark.faults

SETTINGS = ["experiments=[tandem]", "baseline.optim.steps=20", "parallel.processes=2"]


def command(folder: Path, out: str) -> subprocess.Popen[str]:
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    line = ["run", "study.yaml", "--out", out, "--jobs", "1", "--checkpoint-seconds", "0", *settings]
    return subprocess.Popen(
        [sys.executable, "-m", "aligngap", *line],
        cwd=folder,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def kill_a_rank(process: int, store: Path, which: int, spared: str) -> str:
    """Kill the first or the second rank of the next arm that has a step checkpoint; returns the arm's identity."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for path in store.glob(".partial/arm-*/checkpoint.json"):
            ranks = sorted(
                rank for server in servers(process) for stage in descendants(server) for rank in descendants(stage)
            )
            if len(ranks) == 2 and path.parent.name != spared:
                os.kill(ranks[which], signal.SIGKILL)
                return path.parent.name
        time.sleep(0.002)
    raise AssertionError("no arm has come so far")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes where Linux lists them")
def test_a_killed_rank_costs_nothing(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    Tiny(tmp_path)  # its base
    (tmp_path / "study.yaml").write_text(STUDY)
    undisturbed = command(tmp_path, "undisturbed")
    said, _ = undisturbed.communicate(timeout=600)
    assert undisturbed.returncode == 0, said

    disturbed = command(tmp_path, "disturbed")
    try:
        store = tmp_path / "disturbed/store"
        first = kill_a_rank(disturbed.pid, store, 1, spared="")
        kill_a_rank(disturbed.pid, store, 0, spared=first)
        said, _ = disturbed.communicate(timeout=600)
    finally:
        disturbed.kill()
    assert disturbed.returncode == 0, said
    assert "Traceback" not in said
    assert (
        said.count("killed by SIGKILL, as happens when memory runs out (fewer --jobs need less); it is tried again")
        == 2
    )
    assert "rank 1 of 2: its process was killed" in said
    assert "rank 0 of 2: its process was killed" in said

    before, after = (results(tmp_path / name) for name in ("undisturbed", "disturbed"))
    assert after == before, difference(before, after)
    assert contents(tmp_path / "disturbed/store") == contents(tmp_path / "undisturbed/store")
    kept = Store(store)
    assert not list((store / ".temporary").iterdir())
    assert not list((store / ".partial").iterdir())
    records = {name: json.loads((store / name / "record.json").read_text()) for name in kept.identities()}
    several = {record["kind"] for record in records.values() if "parallel" in record}
    assert several == {
        "sft",
        "preference",
        "relabel",
        "agreement",
        "arm",
        "responses",
        "evaluate",
        "reference",
        "start",
    }
    assert all(record.get("parallel", {}).get("processes", 2) == 2 for record in records.values())
