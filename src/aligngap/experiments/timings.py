"""Where the time of a study went, for its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligngap.errors import UserError
from aligngap.pipeline.executors.progress import activities
from aligngap.pipeline.graph import Outcome, Stage
from aligngap.results import StageTiming, Timings, read
from aligngap.store.disk import read_json
from aligngap.store.store import Store


def timings(stages: Sequence[Stage], store: Store, outcome: Outcome) -> Timings:
    """Of these stages, and of the command whose outcome it is."""
    listed = tuple(_timing(stage, store, outcome) for stage in stages)
    judging: Counter[str] = Counter()
    for stage in listed:
        judging.update(stage.judge_spent)
    core_seconds = outcome.wall * outcome.jobs
    return Timings(
        wall_seconds=outcome.wall or None,
        jobs=outcome.jobs or None,
        core_seconds=sum(stage.seconds or 0.0 for stage in listed),
        activities=activities(
            ((stage.spent, stage.seconds) for stage in listed), core_seconds, sum(outcome.seconds.values())
        ),
        judge_spent=dict(judging),
        stages=listed,
    )


def latest(now: Timings, outcome: Outcome, folder: Path) -> Timings:
    """Timings of the last command that made a stage: those that are on record, where this one has made none."""
    if outcome.seconds:
        return now
    try:
        earlier = read(folder).timings
    except UserError:  # none, or damaged
        return now
    before, after = ([(stage.identity, stage.seconds) for stage in result.stages] for result in (earlier, now))
    return earlier if before == after else now


def _timing(stage: Stage, store: Store, outcome: Outcome) -> StageTiming:
    there = store.has(stage.identity)
    artefact = store.get(stage.identity) if there else None
    record: dict[str, Any] = artefact.record() if artefact else {}
    cost = artefact.file("cost.json") if artefact and artefact.has("cost.json") else None
    return StageTiming(
        label=stage.label,
        kind=stage.kind,
        identity=stage.identity,
        status=outcome.status.get(stage.identity, "finished" if there else "missing"),
        seconds=record.get("seconds"),
        spent=record.get("spent"),
        judge_spent=read_json(cost).get("judge_spent", {}) if cost else {},
    )
