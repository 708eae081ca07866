"""A run's folder as a run leaves it, made up: for tests of who watches it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from unit.report.fixture_results import HOSTILE


def stage(identity: str, status: str, **more: Any) -> dict[str, Any]:
    """A stage as status.json lists it."""
    plain = {"label": f"stage {identity}", "kind": "evaluate", "done": 0, "total": 0, "rate": None, "seconds": 0.0}
    return {"identity": identity, **plain, "status": status, "metrics": {}, "reason": "", **more}


def write_run(folder: Path, state: str = "running", stages: list[dict[str, Any]] | None = None, **more: Any) -> Path:
    """study.json and status.json; nobody holds the folder. Without `stages`, two hostile ones."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps({"name": "try", "title": f"Study{HOSTILE}"}))
    made_up = [
        stage("a", "finished", label=f"label{HOSTILE}", seconds=2.0),
        stage(
            "b", "running", label="an arm", kind="arm", done=3, total=12, rate=1.5, seconds=2.0, metrics={"loss": 0.5}
        ),
        stage("c", "failed", reason=f"reason{HOSTILE}", seconds=1.0),
    ]
    status = {"schema": 1, "state": state, "pid": 1, "started": "2026-01-01T00:00:00+00:00", "store": "store"}
    status |= {"updated": "2026-01-01T00:01:00+00:00", "seconds": 60.0, "left": 30.0, "jobs": 2, "fraction": 0.5}
    (folder / "status.json").write_text(json.dumps(status | {"stages": made_up if stages is None else stages} | more))
    (folder / ".lock").touch()
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Everything below a folder: when it was last changed, its size, its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (state.st_mtime_ns, state.st_size, content)
    return found
