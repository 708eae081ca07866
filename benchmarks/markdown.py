"""What the benchmarks print for docs/benchmarks.md: on what they were taken, and tables."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

from aligngap.store.record import environment

_PACKAGES = ("torch", "transformers", "trl")


class Spread(NamedTuple):
    """A median and its quartiles."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f}-{self.high:.2f})"


def quartiles(values: Sequence[float]) -> Spread:
    """Of at least one value. The inclusive kind: on a shared machine the extremes say who else was at work."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, method="inclusive")
    return Spread(middle, low, high)


def heading() -> str:
    """Date, hardware, versions, revision, and the load that was there before."""
    known = environment()
    packages = ", ".join(f"{one.name} {one.version}" for one in distributions() if one.name in _PACKAGES)
    revision = str(known["git_revision"])[:7] + (" with changes" if known["git_dirty"] else "")
    devices = known["devices"]
    assert isinstance(devices, list)
    hardware = ", ".join([f"{known['cpu_count']} cores of {_processor()}", *devices])
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return f"{when}, {hardware}, load before the run {load}, {packages}, revision {revision}."


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    return "\n".join(map(row, [columns, ["---"] * len(columns), *rows]))


def row(cells: Sequence[object]) -> str:
    """A row of one."""
    return f"| {' | '.join(map(str, cells))} |"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown make")
