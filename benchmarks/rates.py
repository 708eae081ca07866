"""Seconds per unit of each stage kind's work, on one thread, as `pipeline/stages/` counts it in `work`.

    python -m benchmarks.rates [--seconds S]

Counted is the processor time of the thread, which on an idle core is the time that passes, and on a busy machine is
nearer to it than the clock on the wall.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModel

from aligngap.judges.base import Judge
from aligngap.judges.model import ModelJudge, separator_of
from aligngap.judges.true_utility import TrueUtilityJudge
from aligngap.measure.classify import pair_log_probs
from aligngap.measure.kl import sequence_kl
from aligngap.models.build import base_path, load_language_model
from aligngap.models.policy import Policy
from aligngap.models.preference import PairwiseModel, build_preference_model
from aligngap.models.tokenizer import load_tokenizer
from aligngap.pipeline.stages import sample_in_chunks
from aligngap.seeds import uniforms
from aligngap.sources.order import prompt_schedule
from aligngap.sources.recorded import Recorded
from aligngap.sources.sampled import Sampled
from aligngap.tasks.spec import TaskSpec, make_pairs
from aligngap.tasks.worlds import world
from aligngap.train.loop import LossSpec, batch_loss
from aligngap.train.step import Optimiser, OptimSpec
from aligngap.train.supervised import preference_loss, sft_loss
from aligngap.types import PairBatch, Prompt
from benchmarks.setting import BATCH

SAMPLE = 256
"""Prompts or pairs of a call where work is counted by the prompt or pair."""

WORLD = "summarisation"


def processor_time(work: Callable[[], object], seconds: float) -> float:
    """Median seconds of a call on this thread, the first not counted."""
    work()
    found: list[float] = []
    while len(found) < 5 or sum(found) < seconds:
        start = time.thread_time()
        work()
        found.append(time.thread_time() - start)
    return statistics.median(found)


def units() -> dict[str, tuple[Callable[[], object], int, str]]:
    """Name -> (a call, how many units it does, the unit)."""
    path = base_path("small")
    tokenizer = load_tokenizer(path)
    data = make_pairs(TaskSpec(world=WORLD, train_pairs=1024, held_out_pairs=SAMPLE), tokenizer)
    pairs, held_out = data.train, data.held_out
    spec = OptimSpec(lr=1e-6, steps=1_000_000)
    found: dict[str, tuple[Callable[[], object], int, str]] = {}

    def policy(name: str = "small") -> Policy:
        return Policy(load_language_model(base_path(name)), int(tokenizer.eos_token_id), data.max_new_tokens)

    def step(
        module: torch.nn.Module, loss: Callable[[PairBatch], torch.Tensor], source: Recorded | Sampled
    ) -> Callable[[], object]:
        optimiser = Optimiser(module.parameters(), spec)
        return lambda: optimiser.step(loss(source.next_batch(BATCH)))

    def recorded() -> Recorded:
        return Recorded(pairs, prompt_schedule(0))

    found["Pairs: a pair"] = (
        lambda: make_pairs(TaskSpec(world=WORLD, train_pairs=SAMPLE, held_out_pairs=1), tokenizer),
        SAMPLE + 1,
        "pair",
    )
    judges: dict[str, Judge] = {"true utility": TrueUtilityJudge(world(WORLD), tokenizer)}
    for size in ("small", "medium"):
        learner = policy(size)
        found[f"Sft: step, {size}"] = (step(learner.model, lambda b, p=learner: sft_loss(p, b), recorded()), 1, "step")
        model = build_preference_model("pairwise", base_path(size), separator_of(tokenizer))
        found[f"Preference: step, {size}"] = (
            step(model, lambda b, m=model: preference_loss(m, b, 0, 0), recorded()),
            1,
            "step",
        )
        fixed = PairwiseModel(AutoModel.from_pretrained(base_path(size), dtype=torch.float32), separator_of(tokenizer))
        judges[size] = ModelJudge(fixed.eval().requires_grad_(False))
        judge = judges[size]
        found[f"Relabel: a pair, {size} judge"] = (
            lambda j=judge: j.compare(held_out.prompts, held_out.first, held_out.second),
            SAMPLE,
            "pair",
        )
    reference = policy()
    reference.model.requires_grad_(False)

    def arm(learner: Policy, source: Recorded | Sampled) -> Callable[[], object]:
        source.observe(0, learner)
        return step(learner.model, lambda b: batch_loss(learner, reference, b, LossSpec()), source)

    prompts = [
        Prompt(number, tuple(ids))
        for number, ids in zip(pairs.prompt_numbers.tolist(), pairs.prompts.rows(), strict=True)
    ]
    found["Arm: offline step"] = (arm(policy(), recorded()), 1, "step")
    for size in ("small", "medium"):
        found[f"Arm: online step, {size} judge"] = (arm(policy(), Sampled(prompts, judges[size], 0)), 1, "step")

    learner, asked = policy(), held_out.prompts
    noise = uniforms(held_out.prompt_numbers, 1, data.max_new_tokens, "rates")
    responses = sample_in_chunks(learner, asked, noise)
    found["Responses: a prompt"] = (lambda: sample_in_chunks(learner, asked, noise), SAMPLE, "prompt")
    found["Evaluate: KL of a prompt"] = (lambda: sequence_kl(learner, reference, asked, responses), SAMPLE, "prompt")
    found["Evaluate: true utility of a response"] = (
        lambda: judges["true utility"].utilities(asked, responses),
        SAMPLE,
        "response",
    )
    found["Evaluate: log-probs of a pair"] = (lambda: pair_log_probs(learner, held_out), SAMPLE, "pair")

    golden = judges["medium"].against(asked, [held_out.first, held_out.second])
    proxy = judges["small"].against(asked, [held_out.first])
    every = torch.arange(len(held_out))

    def checkpoint() -> None:
        """As the stage, of responses that are all new: two splits, two opponents by golden (medium), one by the proxy
        (small), the true utility. What the judges keep of prompts and opponents is there.
        """
        for _ in range(2):
            drawn = sample_in_chunks(learner, asked, noise)
            sequence_kl(learner, reference, asked, drawn)
            judges["true utility"].utilities(asked, drawn)
            golden.margins(every, drawn)
            proxy.margins(every, drawn)
            pair_log_probs(learner, held_out)

    found[f"Evaluate: a checkpoint, {SAMPLE} prompts and pairs a split"] = (checkpoint, 1, "checkpoint")
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rates", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="processor time spent on each row")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load before the run {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    print("| work | seconds a unit | unit |\n|---|---|---|", flush=True)
    for name, (work, count, unit) in units().items():
        print(f"| {name} | {processor_time(work, given.seconds) / count:.2g} | {unit} |", flush=True)


if __name__ == "__main__":
    main()
