"""A run in a folder of its own, put together without running anything: for archives and garbage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from aligngap.pipeline.executors.progress import Ledger
from aligngap.pipeline.graph import Event, Stage, all_stages
from aligngap.pipeline.rundir import RunDirectory
from aligngap.store import Store


def make(store: Store, stage: Stage, *more: str) -> None:
    """A stage's artefact, recorded as the executor does; more: further files in it."""
    record = {
        "kind": stage.kind,
        "version": stage.version,
        "specification": stage.specification,
        "inputs": stage.described["inputs"],
        "seconds": 1.0,
    }
    with store.writing(stage.identity, record) as folder:
        (folder / "times.json").write_text(json.dumps({"name": stage.label}))
        for name in more:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        (folder / "steps").mkdir()
        (folder / "steps" / "000001.safetensors").write_bytes(bytes(700))


def finished(folder: Path, store: Store, *targets: Stage, leave: Sequence[Stage] = ()) -> RunDirectory:
    """A run of these stages; those of `leave` were not finished, and have step checkpoints."""
    stages = all_stages(targets)
    with RunDirectory.use(folder, {"name": "try", "title": "try"}) as run:
        store.register(folder, [stage.identity for stage in stages])
        ledger = Ledger(stages, 1)
        run.begin(ledger, store.root)
        for stage in stages:
            if stage in leave:
                (store.partial(stage.identity) / "state-0.safetensors").write_bytes(bytes(300))
                continue
            make(store, stage)
            ledger.update(Event("finished", stage))
    (folder / "results.json").write_text("{}")
    (folder / "report.html").write_text("<p>")
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / f"{stages[0].identity}.log").write_text("a warning\n")
    return RunDirectory.open(folder)
