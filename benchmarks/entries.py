"""The entries: for each, our work and the peer's as two functions that run it and say what it took."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from time import perf_counter
from typing import Any

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainerCallback

from aligngap.models.build import load_language_model
from aligngap.models.packing import left_pad
from aligngap.models.tokenizer import load_tokenizer
from aligngap.seeds import uniforms
from aligngap.tasks.datasets import DatasetSpec
from aligngap.tasks.encode import make_dataset_pairs
from aligngap.types import PairBatch, Tokens
from benchmarks import memory, ours, peer_trl
from benchmarks.clock import Work, forward_flops, median_interval, timed
from benchmarks.setting import BATCH, Setting, write_preferences

EVALUATION_PROMPTS = 256
BETA = 0.1


@dataclass(frozen=True)
class Contest:
    """ours, peer: seconds of a call, or megabytes where that is the `unit`. units: how many of `unit` a call does;
    flops: useful operations of a call, None where they are not the work.
    """

    ours: Work
    peer: Work
    peer_name: str
    unit: str
    units: int = 1
    flops: float | None = None


class Stamps(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(perf_counter())


def plan_of(setting: Setting, folder: Path) -> dict[str, Any]:
    """The setting as files in a folder and a plan of them, for a peer that knows nothing of it."""
    _saved(setting, folder)
    file = str(write_preferences(setting.pairs, setting.tokenizer, folder / "pairs.jsonl"))
    return {
        "out": str(folder),
        "data": {"train": file, "held_out": file},
        "models": {"policy": str(folder / "model")},
        "max_new_tokens": setting.limit,
        "arm": ours.optim(setting).model_dump(),
        "beta": BETA,
    }


def trained_by_peer(setting: Setting, arm: str) -> tuple[Any, Work]:
    """The peer's trainer of an arm, and rounds of it."""
    stamps = Stamps()
    trainer = peer_trl.arm_alone(plan_of(setting, _folder()), arm, stamps)

    def work() -> float:
        stamps.times.clear()
        trainer.train()
        return median_interval(stamps.times)

    return trainer, work


def offline_step(setting: Setting) -> Contest:
    """Batch, loss, update: our loop on recorded pairs against trl's trainer on the same pairs. Both have asked the
    reference before.
    """
    read, predicted = _tokens(setting.pairs)
    flops = 3 * forward_flops(setting.make_model(), BATCH * read, BATCH * predicted)
    _, peer = trained_by_peer(setting, "offline")
    return Contest(ours.offline(setting), peer, "trl DPOTrainer (ipo)", "step", flops=flops)


def online_step(setting: Setting, kind: str = "pairwise") -> Contest:
    """Sample two responses a prompt, judge, reference, loss, update: our loop against trl's experimental trainer, whose
    reward model reads each response once. kind: of our judge; a pointwise one does the same.
    """
    model = setting.make_model()
    prompt, length = _mean(setting.pairs.prompts), _sampled_length(setting)
    flops = (
        forward_flops(model, prompt + 2 * (length - 1), 2 * length)  # sampling
        + forward_flops(model, prompt + (4 * (length + 1) if kind == "pairwise" else 2 * length), 0)  # judging
        + 4 * forward_flops(model, prompt + 2 * length, 2 * length)  # reference, and the update's three
    )
    _, peer = trained_by_peer(setting, "online")
    name = "trl OnlineDPOTrainer (ipo, scalar reward model)"
    return Contest(ours.online(setting, kind), peer, name, "step", flops=BATCH * flops)


def sampling(setting: Setting) -> Contest:
    """Two responses a prompt, all of the length limit."""
    policy, model, prompts = replace(setting, ends=False).policy(), setting.make_model(), setting.batch().prompts
    noise = uniforms(setting.batch().prompt_numbers, 2, setting.limit, "benchmark")
    flops = forward_flops(model, _mean(prompts) + 2 * (setting.limit - 1), 2 * setting.limit)
    return Contest(
        lambda: timed(lambda: policy.sample(prompts, 2, noise)),
        lambda: timed(lambda: generated(setting, model, prompts, None, 2)),
        "transformers generate()",
        "token",
        2 * BATCH * setting.limit,
        BATCH * flops,
    )


def generated(setting: Setting, model: PreTrainedModel, prompts: Tokens, end: int | None, each: int) -> torch.Tensor:
    """New tokens by `generate()`; without an end token all of the setting's length limit."""
    ids, real = left_pad(prompts)
    return peer_trl.generated(model, ids, real.long(), setting.limit, end, each)


@torch.no_grad()
def two_passes(model: torch.nn.Module, batch: PairBatch) -> torch.Tensor:
    """r(x, y1, y2) - r(x, y2, y1), one pass an order."""
    forward = model.logit(batch.prompts, batch.first, batch.second)
    backward = model.logit(batch.prompts, batch.second, batch.first)
    return forward.sigmoid() - backward.sigmoid()


def evaluation(setting: Setting) -> Contest:
    """256 prompts: against `generate()`, padded scoring and the judge in two passes, in chunks of 32."""
    batch, scorer = setting.batch(EVALUATION_PROMPTS), setting.preference_model()
    chunks = [batch.take(index) for index in torch.arange(len(batch)).split(BATCH)]
    model, base = setting.make_model(), setting.make_model()

    def peer() -> None:
        for chunk in chunks:
            responses = peer_evaluated(setting, model, base, chunk.prompts)[0]
            two_passes(scorer, replace(chunk, first=responses, second=chunk.first)).sign()

    prompt, length = _mean(batch.prompts), _sampled_length(setting)
    flops = (
        forward_flops(model, prompt + length - 1, length)
        + 2 * forward_flops(model, prompt + length, length)
        + forward_flops(model, 2 * (length + 1) + _mean(batch.first) + 1, 0)
    )
    work = ours.evaluation(setting, EVALUATION_PROMPTS)
    name = "generate(), padded scoring, judge in two passes"
    return Contest(
        lambda: timed(work), lambda: timed(peer), name, "prompt", EVALUATION_PROMPTS, EVALUATION_PROMPTS * flops
    )


def peer_evaluated(
    setting: Setting, model: PreTrainedModel, base: PreTrainedModel, prompts: Tokens
) -> tuple[Tokens, torch.Tensor]:
    """A response a prompt by `generate()`, up to its end token or the limit, and its KL from `base`; [n]."""
    drawn = generated(setting, model, prompts, setting.end_token, 1)
    real, (ids, mask) = peer_trl.up_to_end(drawn, setting.end_token), left_pad(prompts)
    return Tokens(drawn, real.sum(1)), peer_trl.padded_kl(model, base, (ids, mask.long()), (drawn, real))


def loading(setting: Setting) -> Contest:
    """From a folder and a file to a model, its tokenizer and pairs of token ids: against the Auto classes and
    `datasets`, both reading the file for the first time.
    """
    folder = _folder()
    model = _saved(setting, folder)
    file = write_preferences(setting.pairs, setting.tokenizer, folder / "pairs.jsonl")

    def work() -> None:
        load_language_model(str(model))
        make_dataset_pairs(preferences(file), load_tokenizer(str(model)))

    peer = partial(loaded_by_peer, model, file)
    name = "from_pretrained, datasets"
    return Contest(lambda: timed(work), lambda: timed(peer), name, "pair", len(setting.pairs))


def preferences(file: Path) -> DatasetSpec:
    """How we read the file that `write_preferences` wrote."""
    return DatasetSpec(source=str(file), format="preference", held_out_pairs=1)


def loaded_by_peer(folder: Path, file: Path) -> tuple[PreTrainedModel, datasets.Dataset]:
    """A model, its tokenizer and a preference file as token ids, the file not read before: `datasets` keeps what it
    has read.
    """
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        columns = {"prompt_ids": tokenizer(rows["prompt"])["input_ids"]}
        for side in ("chosen", "rejected"):
            encoded = tokenizer(rows[side], add_special_tokens=False)["input_ids"]
            columns[f"{side}_ids"] = [[*row, tokenizer.eos_token_id] for row in encoded]
        return columns

    with TemporaryDirectory() as cache:
        data = datasets.load_dataset("json", data_files=str(file), cache_dir=cache, split="train")
        return model, data.map(ids, batched=True, keep_in_memory=True)


def peak_memory(setting: Setting, arm: str) -> Contest:
    """Peak memory of a process of its own that trains an arm, or that has imported what training one takes."""
    plan = _folder() / "plan.json"
    plan.write_text(json.dumps(plan_of(setting, plan.parent)))
    return Contest(
        lambda: memory.measured("ours", arm, setting.name),
        lambda: memory.measured("peer", arm, str(plan)),
        "trl",
        "MB",
    )


ENTRIES: dict[str, Callable[[Setting], Contest]] = {
    "offline_step": offline_step,
    "online_step": online_step,
    "online_step_pointwise": partial(online_step, kind="pointwise"),
    "sampling": sampling,
    "evaluation": evaluation,
    "loading": loading,
    **{f"{arm}_memory": partial(peak_memory, arm=arm) for arm in ("imports", *ours.ARMS)},
}


def _folder() -> Path:
    return Path(mkdtemp(prefix="aligngap-benchmark-"))


def _saved(setting: Setting, folder: Path) -> Path:
    """Model and tokenizer in a folder."""
    model = setting.make_model()
    model.config.pad_token_id = setting.tokenizer.pad_token_id
    for part in (model, setting.tokenizer):
        part.save_pretrained(folder / "model")
    return folder / "model"


def _sampled_length(setting: Setting) -> float:
    batch = setting.batch(4 * BATCH)
    noise = uniforms(batch.prompt_numbers, 1, setting.limit, "benchmark", "length")
    return _mean(setting.policy().sample(batch.prompts, 1, noise))


def _mean(tokens: Tokens) -> float:
    return float(tokens.lengths.double().mean())


def _tokens(pairs: PairBatch) -> tuple[float, float]:
    """Mean tokens of a pair, the prompt once; and those of its responses."""
    responses = _mean(pairs.first) + _mean(pairs.second)
    return _mean(pairs.prompts) + responses, responses
