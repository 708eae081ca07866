"""Stages made by one process and by several, side by side: `python tests/ranked.py FOLDER CASE`.

A process of its own, because ranks are copies of a process that has computed nothing yet.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BloomConfig, BloomForCausalLM, T5Config, T5ForConditionalGeneration

from aligngap.errors import UserError
from aligngap.experiments.bench import Bench
from aligngap.experiments.study import load_study
from aligngap.measure.classify import pair_log_probs
from aligngap.models.build import load_language_model
from aligngap.models.layout import Layout
from aligngap.models.policy import Policy
from aligngap.models.spec import Checkpoint
from aligngap.pipeline.executors.together import together
from aligngap.pipeline.graph import Progress, Stage
from aligngap.ranks import Parallel, first, rank, sharded
from aligngap.sources.sampled import SampledSpec
from aligngap.store.store import Store
from aligngap.train.step import OptimSpec
from fakes import END, random_pairs
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
    settings[0] = "models.policy={path: small, lora: {r: 2}}"
    adapters = Bench(load_study("paper", settings), "summarisation").offline(0).stage
    return {
        "golden_pairs": bench.golden_pairs,
        "sft": bench.sft,
        "golden": bench.golden,
        "online": online.stage,
        "offline": offline,
        "uneven": offline.model_copy(update={"optim": _of(offline.optim, 33)}),
        "single": offline.model_copy(update={"optim": _of(offline.optim, 1)}),
        "stale": bench.arm(seed=0, source=SampledSpec(sync_period=4), judge=bench.proxy(0)),
        "resumed": offline,
        "adapters": adapters.model_copy(update={"optim": _of(adapters.optim, 33)}),
        "responses": bench.opponents[0],
        "evaluation": bench.evaluation(online),
        "generated": bench.sampled_pairs(0, None, "final"),
    }


def _of(optim: OptimSpec, batch: int) -> OptimSpec:
    return optim.model_copy(update={"batch": batch, "steps": 4})


def with_one(folder: Path) -> None:
    """Each stage, and all it needs, in folder/store; and in folder/begun what is left of `resumed` when it is stopped
    behind its third step.
    """
    store = Store(folder / "store")
    for stage in stages().values():
        make(stage, store)

    def stop(done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done == 3:
            raise InterruptedError

    stage = stages()["resumed"]
    context = context_of(stage, store, folder / "nowhere")
    with suppress(InterruptedError):
        stage.run(replace(context, partial=folder / "begun", progress=stop, checkpoint_seconds=0))


def with_several(device: str, progress: Progress, store: Path, out: Path) -> None:
    """Each stage on the inputs that one process made; of every rank its files, in out/RANK/NAME. Adapters are not
    divided. out/steps.json: the first step of each that was done here.
    """
    steps: dict[str, int] = {}
    for name, stage in stages().items():
        if sharded() and name == "adapters":
            continue
        made = out / str(rank()) / name
        made.mkdir(parents=True)
        partial = out / "partial" / name
        partial.mkdir(parents=True, exist_ok=True)
        if name == "resumed" and first():
            shutil.copytree(store.parent / "begun", partial, dirs_exist_ok=True)

        def note(done: int, total: int, metrics: Mapping[str, float], name: str = name) -> None:
            steps.setdefault(name, done)

        context = context_of(stage, Store(store), made)
        stage.run(replace(context, device=device, progress=note, partial=partial))
    if first():
        (out / "steps.json").write_text(json.dumps(steps))


PAIRS = random_pairs(0, 5, 24, 8)
NOISE = torch.rand(10, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def save_alibi(folder: Path) -> None:
    """A decoder that cannot be packed, sharp enough that what it samples depends on what it reads; and a T5."""
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=24, hidden_size=16, n_layer=2, n_head=2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(12 if weight.ndim > 1 else 1)
    model.save_pretrained(folder / "alibi")
    T5ForConditionalGeneration(
        T5Config(vocab_size=24, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ).save_pretrained(folder / "t5")


def alibi(folder: Path) -> dict[str, torch.Tensor]:
    """What it samples in either way of sampling it, whose rows end at different times, and the log-probabilities."""
    policy = Policy(load_language_model(Checkpoint(path=str(folder / "alibi"))), range(END, 8), NOISE.shape[1])
    assert policy.layout == Layout(packed=False, generates=True)
    found = {}
    for generates in (True, False):
        reader = Policy(policy.model, policy.ends, policy.max_new_tokens, Layout(packed=False, generates=generates))
        drawn = reader.sample(PAIRS.prompts, 2, NOISE)
        found |= {f"ids {generates}": drawn.ids, f"lengths {generates}": drawn.lengths}
    found["log_probs"] = pair_log_probs(policy, PAIRS, chunk=2)
    return found


def alibi_with_several(device: str, progress: Progress, folder: Path) -> None:
    """The same of a model that is divided; and what is said of one that cannot be."""
    found = alibi(folder)
    if first():
        save_file(found, folder / "alibi.safetensors")
    try:
        load_language_model(Checkpoint(path=str(folder / "t5")))
    except UserError as error:
        (folder / "refusal.txt").write_text(str(error))


if __name__ == "__main__":
    given = Path(sys.argv[1])
    if sys.argv[2] == "alibi":
        together(alibi_with_several, (given,), CASES["sharded"], "cpu", forked=True)
    else:
        case = sys.argv[2]
        together(with_several, (given / "store", given / case), CASES[case], "cpu", forked=True)
