"""Work that a process of its own is to do and to be killed at: in a module of its own, because processes import it."""

from __future__ import annotations

from pathlib import Path

from aligngap.experiments.gather import collect
from aligngap.experiments.plan import Plan
from aligngap.experiments.spec import StudySpec
from aligngap.pipeline.graph import Outcome, Stage
from aligngap.store import Store
from tiny import context_of


def make_stage(stage: Stage, root: Path) -> None:
    """What a process of the executor does, with a checkpoint at every step."""
    store = Store(root)
    if store.has(stage.identity):
        return
    with store.writing(stage.identity, {}) as out:
        context = context_of(stage, store, out)
        context.checkpoint_seconds = 0
        stage.run(context)


def make_results(study: StudySpec, root: Path, outcome: Outcome, folder: Path) -> None:
    """What comes after the last stage."""
    collect(Plan(study), Store(root), outcome, folder)
