"""Real stages on settings so small that they take a second: for tests of single stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligngap.experiments.bench import Bench
from aligngap.experiments.gather import collect
from aligngap.experiments.plan import Plan
from aligngap.experiments.spec import StudySpec
from aligngap.experiments.study import load_study
from aligngap.models.build import Architecture, random_model
from aligngap.models.tokenizer import word_tokenizer
from aligngap.pipeline.graph import Context, Outcome, Stage, all_stages
from aligngap.store.disk import read_json
from aligngap.store.store import Store
from aligngap.tasks.worlds import WORLDS
from aligngap.timings import account

STEPS, TRAIN, HELD_OUT, PROMPTS = 6, 64, 16, 10
SETTINGS = [
    f"data.train_pairs={TRAIN}",
    f"data.held_out_pairs={HELD_OUT}",
    "sft.steps=2",
    "golden.optim.steps=3",
    "proxy.optim.steps=2",
    "proxy.train_pairs=16",
    f"baseline.optim.steps={STEPS}",
    "baseline.optim.batch=4",
    "baseline.optim.warmup_steps=1",
    "baseline.optim.lr=0.01",
    f"evaluation.prompts={PROMPTS}",
    "evaluation.pairs=8",
    "evaluation.checkpoints=2",
]


def make(stage: Stage, store: Store) -> Path:
    """The folder of a stage's artefact, made in this process with all it needs, unless it is there."""
    for part in all_stages([stage]):
        if not store.has(part.identity):
            record = part.described
            with store.writing(part.identity, record) as out:
                with account(part.activity) as spent:
                    part.run(context_of(part, store, out))
                record |= {"spent": spent, "seconds": sum(spent.values())}
    return store.get(stage.identity).path


def context_of(stage: Stage, store: Store, out: Path) -> Context:
    """What a stage is given to write into `out`; its inputs must have been made."""
    folders = {parent.identity: store.get(parent.identity).path for parent in stage.parents}
    return Context(folders, out, store.partial(stage.identity), lambda done, total, metrics: None)


def make_study(study: StudySpec, folder: Path) -> dict[str, Any]:
    """Everything a study wants, and its results, in `folder`; what results.json holds."""
    plan, store, outcome = Plan(study), Store(folder / "store"), Outcome()
    for stage in plan.targets:
        make(stage, store)
    outcome.status |= {stage.identity: "finished" for stage in plan.stages}
    collect(plan, store, outcome, folder)
    found: dict[str, Any] = read_json(folder / "results.json")
    return found


class Tiny:
    """A bench on random bases in a folder, and a store there."""

    def __init__(self, folder: Path, task: str = "summarisation") -> None:
        tokenizer = word_tokenizer([word for place in WORLDS.values() for word in place().words()])
        model = random_model(Architecture(hidden=16, layers=1, heads=2, intermediate=16), len(tokenizer), 0)
        model.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        settings = [f"models.{role}={folder}/base" for role in ("policy", "proxy", "golden")]
        settings += [f"tasks=[{task}]", f"sft_tasks=[{task}]"]
        self.bench = Bench(load_study("paper", [*settings, *SETTINGS]), task)
        self.store = Store(folder / "store")

    def made(self, target: Stage) -> Path:
        """The folder of a stage's artefact, made with all it needs unless it is there."""
        return make(target, self.store)

    def context(self, stage: Stage, out: Path) -> Context:
        """What a stage is given to write into `out`; its inputs must have been made."""
        return context_of(stage, self.store, out)
