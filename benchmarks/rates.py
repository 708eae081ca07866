"""What the stages of a study took beside the estimates of `aligngap plan`, which are rates measured so.

    python -m benchmarks.rates STUDY STORE [--set KEY=VALUE ...]

By kind of stage: how many of the study's stages the store holds, their estimates in seconds on one core of the
reference machine, the seconds that they took there (`--jobs 1` on an idle machine), and the ratio of the two.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from aligngap.experiments.plan import Plan
from aligngap.experiments.study import load_study
from aligngap.store import Store
from benchmarks.markdown import heading, table


def rows(study: str, store: Path, settings: list[str]) -> list[tuple[str, int, str, str, str]]:
    """A row a kind of stage."""
    read = Store(store, reading=True)
    times = defaultdict[str, list[tuple[float, float]]](list)
    for stage in Plan(load_study(study, settings)).stages:
        if read.has(stage.identity):
            times[stage.kind].append((stage.work, float(str(read.get(stage.identity).record()["seconds"]))))
    sums = {kind: [sum(column) for column in zip(*pairs, strict=True)] for kind, pairs in times.items()}
    return [
        (kind, len(times[kind]), f"{work:.1f}", f"{taken:.1f}", f"{taken / work:.2f}")
        for kind, (work, taken) in sums.items()
    ]


def main(study: str, store: Path, settings: Annotated[list[str] | None, typer.Option("--set")] = None) -> None:
    """What the stages of a study took beside their estimates."""
    print(heading())
    print(table(("stage", "made", "estimate, s", "took, s", "took / estimate"), rows(study, store, settings or [])))


if __name__ == "__main__":
    typer.run(main)
