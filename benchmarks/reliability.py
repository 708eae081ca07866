"""What it costs never to lose a run: step checkpoints of a training, and checksums of what a run reads.

    python -m benchmarks.reliability [--base small|medium|large] [--steps N] [--saves N] [--run DIR]

An online arm (IPO, batches of 32 pairs, judged by a preference model of its own size) is trained for some steps with a
checkpoint after every few of them, and everything is timed in that one run: the share of a checkpoint every two
minutes is the time of a save over those two minutes. The recorded stream is as long as after N steps, because a
checkpoint holds all of it. With --run, the artefacts of a finished run are checked as a run does at its start, and as
the stages do that read them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from aligngap.judges.model import ModelJudge
from aligngap.models.build import base_path, load_language_model
from aligngap.models.policy import Policy
from aligngap.models.preference import build_preference_model
from aligngap.models.tokenizer import load_tokenizer
from aligngap.pipeline.graph import CHECKPOINT_SECONDS
from aligngap.pipeline.rundir import RunDirectory
from aligngap.sources.base import Ingredients
from aligngap.sources.recording import Recording
from aligngap.sources.sampled import SampledSpec
from aligngap.store.contents import all_but_weights
from aligngap.store.store import Store
from aligngap.tasks.pairs import pack_pairs
from aligngap.tasks.spec import TaskSpec, make_pairs
from aligngap.train.checkpoint import Checkpointer, Stateful
from aligngap.train.loop import LossSpec, train
from aligngap.train.step import OptimSpec
from aligngap.types import Prompt

BATCH, BETWEEN = 32, 3


class Timed(Checkpointer):
    """Saves at every third step, and knows how long each save took."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 0)
        self.seconds: list[float] = []
        self.calls = 0

    def maybe_save(self, **parts: Stateful) -> None:
        self.calls += 1
        if self.calls % BETWEEN == 0:
            start = time.perf_counter()
            self.save(**parts)
            self.seconds.append(time.perf_counter() - start)


def checkpoints(base: str, steps: int, saves: int, folder: Path) -> None:
    """Train, save, print."""
    path = base_path(base)
    tokenizer = load_tokenizer(path)
    data = make_pairs(TaskSpec(world="summarisation", train_pairs=512, held_out_pairs=1), tokenizer)
    end = int(tokenizer.eos_token_id)
    policy = Policy(load_language_model(path), end, data.max_new_tokens)
    judge = build_preference_model("pairwise", path, int(tokenizer.sep_token_id)).eval().requires_grad_(False)
    rows = zip(data.train.prompt_numbers.tolist(), data.train.prompts.rows(), strict=True)
    prompts = [Prompt(number, tuple(ids)) for number, ids in rows]
    source = Recording(SampledSpec().build(Ingredients(0, BATCH, prompts, ModelJudge(judge))))
    # As if so many steps had been recorded already.
    stream = data.train.take(torch.arange(steps * BATCH) % len(data.train))
    source.load_state_dict({f"stream.{name}": value for name, value in pack_pairs(stream).items()} | _at(0))
    timed = Timed(folder)
    optim = OptimSpec(lr=1e-4, steps=BETWEEN * saves, batch=BATCH)
    start = time.perf_counter()
    train(
        policy, policy.frozen_copy(), source, LossSpec(), optim, keep=(), save_policy=lambda step, p: None,
        checkpointer=timed,
    )  # fmt: skip
    total = time.perf_counter() - start
    save, share = statistics.median(timed.seconds), sum(timed.seconds) / total
    step = (total - sum(timed.seconds)) / optim.steps
    size = sum(file.stat().st_size for file in folder.iterdir())
    times = f"a step {1e3 * step:.0f} ms, a save of {size / 1e6:.1f} MB {1e3 * save:.0f} ms"
    spacing = f"every {CHECKPOINT_SECONDS:.0f} s {save / CHECKPOINT_SECONDS:.3%}"
    print(
        f"{base}, stream of {steps} steps: {times}, "
        f"one every {BETWEEN} steps {share:.1%} of the run, {spacing}; 3% at one every {save / 0.03:.1f} s"
    )


def _at(position: int) -> dict[str, torch.Tensor]:
    values = {"position": torch.tensor(position), "synced_at": torch.tensor(0), "cost": torch.tensor([0, 0])}
    return {f"source.{name}": value for name, value in values.items()}


def checks(directory: Path) -> None:
    """Check a finished run's artefacts, from the page cache as a run that follows another finds them."""
    run = RunDirectory.open(directory)
    store, status = Store(run.store_path()), run.status()
    names = [str(stage["identity"]) for stage in status["stages"] if store.has(str(stage["identity"]))]
    size = sum(file.stat().st_size for name in names for file in store.get(name).path.rglob("*") if file.is_file())
    store.verify(names)
    found = {}
    for label, which in (("at the start of a run", all_but_weights), ("all of it", None)):
        start = time.perf_counter()
        problems = store.verify(names, which) if which else store.verify(names)
        found[label] = time.perf_counter() - start
        print(f"{label}: {len(names)} artefacts, {size / 1e6:.0f} MB, {found[label]:.2f} s, {len(problems)} problems")
    reads = made = 0.0
    for name in names:
        record = store.get(name).record()
        inputs: object = record["inputs"]
        assert isinstance(inputs, dict)
        parents = [part for value in inputs.values() for part in (value if isinstance(value, list) else [value])]
        start = time.perf_counter()
        store.verify(dict.fromkeys(parents))
        reads += time.perf_counter() - start
        seconds = record["seconds"]
        assert isinstance(seconds, float)
        made += seconds
    print(f"by the stages that read them: {reads:.2f} s of the {made:.0f} s that all stages took, {reads / made:.2%}")


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--base", choices=["small", "medium", "large"], action="append")
    parser.add_argument("--steps", type=int, action="append", help="recorded by then  [500 and 4000]")
    parser.add_argument("--saves", type=int, default=10)
    parser.add_argument("--run", type=Path, metavar="DIR", help="a finished run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for base in given.base or ["small", "medium", "large"]:
        for steps in given.steps or [500, 4000]:
            with tempfile.TemporaryDirectory(dir=".") as folder:
                checkpoints(base, steps, given.saves, Path(folder))
    if given.run:
        checks(given.run)


if __name__ == "__main__":
    main()
