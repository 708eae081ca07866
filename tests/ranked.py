"""Stages made by one process and by several, side by side: `python tests/ranked.py FOLDER CASE ...`.

A process of its own, because ranks are copies of a process that has computed nothing yet.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from aligngap.experiments.bench import Bench
from aligngap.experiments.study import load_study
from aligngap.pipeline.executors.together import together
from aligngap.pipeline.graph import Progress, Stage
from aligngap.ranks import Parallel, rank
from aligngap.sources.sampled import SampledSpec
from aligngap.store.store import Store
from aligngap.train.step import OptimSpec
from tiny import SETTINGS, context_of, make

STEPS, BATCH = 6, 32
CASES = {
    "two": Parallel(processes=2),
    "three": Parallel(processes=3),
    "sharded": Parallel(processes=2, sharding="full"),
}


def stages() -> dict[str, Stage]:
    """The stages that several processes make, by name: on the small base, in batches of 32."""
    settings = [f"models.{role}=small" for role in ("policy", "proxy", "golden")]
    settings += ["tasks=[summarisation]", "sft_tasks=[summarisation]", *SETTINGS]
    settings += ["data.train_pairs=96", "data.held_out_pairs=36", "evaluation.prompts=36", "evaluation.pairs=36"]
    settings += [f"baseline.optim.steps={STEPS}", f"baseline.optim.batch={BATCH}", "baseline.optim.lr=0.0003"]
    settings += [f"{which}.batch={BATCH}" for which in ("sft", "golden.optim", "proxy.optim")]
    settings += ["golden.optim.steps=6", "sft.steps=4"]
    bench = Bench(load_study("paper", settings), "summarisation")
    online = bench.online(0)
    offline = bench.offline(0).stage
    return {
        "golden_pairs": bench.golden_pairs,
        "sft": bench.sft,
        "golden": bench.golden,
        "online": online.stage,
        "offline": offline,
        "uneven": offline.model_copy(update={"optim": _of(offline.optim, 33)}),
        "single": offline.model_copy(update={"optim": _of(offline.optim, 1)}),
        "stale": bench.arm(seed=0, source=SampledSpec(sync_period=4), judge=bench.proxy(0)),
        "responses": bench.opponents[0],
        "evaluation": bench.evaluation(online),
        "generated": bench.sampled_pairs(0, None, "final"),
    }


def _of(optim: OptimSpec, batch: int) -> OptimSpec:
    return optim.model_copy(update={"batch": batch, "steps": 4})


def with_one(folder: Path) -> None:
    """Each stage, and all it needs, in the store at `folder`."""
    store = Store(folder)
    for stage in stages().values():
        make(stage, store)


def with_several(device: str, progress: Progress, store: Path, out: Path) -> None:
    """Each stage on the inputs that one process made; of every rank its files, in out/RANK/NAME."""
    for name, stage in stages().items():
        made = out / str(rank()) / name
        made.mkdir(parents=True)
        partial = out / "partial" / name
        partial.mkdir(parents=True, exist_ok=True)
        context = context_of(stage, Store(store), made)
        stage.run(replace(context, device=device, progress=progress, partial=partial))


if __name__ == "__main__":
    given = Path(sys.argv[1])
    for case in sys.argv[2:]:
        together(with_several, (given / "store", given / case), CASES[case], "cpu", forked=True)
