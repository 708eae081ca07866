"""Where a run stands, as plain values for the page."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from aligngap.errors import UserError
from aligngap.pipeline import REPORT
from aligngap.pipeline.executors.progress import ENDED
from aligngap.pipeline.rundir import RunDirectory
from aligngap.store.reading import is_file, is_there

_KEYS = ("identity", "label", "kind", "status", "reason", "done", "total", "rate", "seconds")
STARTING, UNREADABLE = "starting", "unreadable"
"""States beside those of status.json: no stage has been listed yet; the folder cannot be read."""


@dataclass(frozen=True)
class Look:
    """What one look at the folder has shown. message: why it could not be read."""

    state: str
    status: Mapping[str, Any] = field(default_factory=dict)
    store: Path = Path()
    message: str | None = None

    @property
    def stages(self) -> list[dict[str, Any]]:
        """All stages, as status.json lists them."""
        return list(self.status.get("stages") or [])

    @property
    def over(self) -> bool:
        """Whether the run has come to its own end, be it with failures."""
        return self.state in ("finished", "failed")

    @property
    def closing(self) -> bool:
        """Whether a run that goes on has no stage left but the report, and is writing its results."""
        made = [stage for stage in self.stages if stage["kind"] != REPORT]
        return self.state == "running" and bool(made) and all(stage["status"] in ENDED for stage in made)


class Watched:
    """A run's folder that is looked at again and again. Raises UserError when it is none.

    file: the study's own file, where the user gave it.
    """

    def __init__(self, folder: Path, file: Path | None = None) -> None:
        self._run = RunDirectory.open(folder)
        self.folder, self.file = folder, file

    @property
    def study(self) -> dict[str, Any]:
        """The study as resolved."""
        return self._run.study

    def look(self) -> Look:
        """The folder as it is now; whatever is wrong with it is in the message."""
        try:
            if not is_file(self.folder / "status.json"):
                gone = None if is_there(self.folder) else f"The folder {self.folder} is not there any more."
                return Look(UNREADABLE if gone else STARTING, message=gone)
            status = self._run.status()
        except UserError as error:
            return Look(UNREADABLE, message=f"The run's state cannot be read: {error}")
        return Look(str(status.get("state")), status, self._run.store_path())

    def results_are_current(self, look: Look) -> bool:
        """Whether results.json is what the run that was looked at has written at its end."""
        try:
            written = (self.folder / "results.json").stat().st_mtime
            return look.over and written >= datetime.fromisoformat(look.status["started"]).timestamp()
        except (OSError, KeyError, ValueError):
            return False

    def summary(self, look: Look) -> dict[str, Any]:
        """What the page asks for every second: small, however many stages there are."""
        states = [stage["status"] for stage in look.stages]
        return {
            "title": str(self.study.get("title") or self.study.get("name") or self.folder),
            "state": look.state,
            "closing": look.closing,
            "message": look.message,
            **{key: look.status.get(key) for key in ("started", "updated", "seconds", "left", "jobs", "fraction")},
            "counts": {state: states.count(state) for state in dict.fromkeys(states)},
            "running": [stage for stage in self.table(look) if stage["status"] in ("running", "interrupted")],
            "times": [asdict(row) for row in self._run.time_by_kind(look.status)] if states else [],
            # The page asks for the table of all stages again when this changes.
            "stages": hashlib.sha256(repr(states).encode()).hexdigest()[:12],
        }

    def table(self, look: Look) -> list[dict[str, Any]]:
        """Every stage: label, kind, status, reason, done of total, rate, seconds left, seconds, latest metrics."""
        rows = []
        for stage in look.stages:
            row = {key: stage[key] for key in _KEYS if key != "identity"} | {"metrics": stage.get("metrics")}
            rate, todo = row["rate"], (row["total"] or 0) - (row["done"] or 0)
            rows.append(row | {"left": todo / rate if rate and row["status"] == "running" else None})
        return rows
