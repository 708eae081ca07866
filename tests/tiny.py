"""Real stages on settings so small that they take a second: for tests of single stages."""

from __future__ import annotations

from pathlib import Path

from aligngap.experiments.bench import Bench
from aligngap.experiments.study import load_study
from aligngap.models.build import Architecture, random_model, word_tokenizer
from aligngap.pipeline.graph import Context, Stage, all_stages
from aligngap.store.store import Store
from aligngap.tasks.worlds import WORLDS

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
        for stage in all_stages([target]):
            if not self.store.has(stage.identity):
                self._make(stage)
        return self.store.get(target.identity).path

    def _make(self, stage: Stage) -> None:
        with self.store.writing(stage.identity, {"kind": stage.kind}) as out:
            stage.run(self.context(stage, out))

    def context(self, stage: Stage, out: Path) -> Context:
        """What a stage is given to write into `out`; its inputs must have been made."""
        inputs: dict[str, Path | list[Path]] = {
            name: [self.store.get(part.identity).path for part in value]
            if isinstance(value, tuple)
            else self.store.get(value.identity).path
            for name, value in stage.inputs.items()
        }
        return Context(inputs, out, self.store.partial(stage.identity), lambda done, total, metrics: None)
