"""The entries: for each, our work and the peer's as two functions that run it and say how long it took."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import torch

from aligngap.judges.base import decision
from aligngap.judges.model import ModelJudge
from aligngap.measure.kl import sequence_kl
from aligngap.models.build import load_language_model
from aligngap.models.tokenizer import load_tokenizer
from aligngap.pipeline.stages import sample_in_chunks
from aligngap.seeds import uniforms
from aligngap.tasks.datasets import DatasetSpec
from aligngap.tasks.encode import make_dataset_pairs
from aligngap.types import PairBatch, Tokens
from benchmarks import ours, peers
from benchmarks.clock import forward_flops, median_interval, timed
from benchmarks.setting import BATCH, Setting

EVALUATION_PROMPTS = 256

Work = Callable[[], float]
"""Does the work of one round; returns the median seconds of one call (or step) in it."""


@dataclass(frozen=True)
class Contest:
    """units: how many of `unit` a call does; flops: useful operations of a call, None where they are not the work."""

    ours: Work
    peer: Work | None
    peer_name: str
    unit: str
    units: int
    flops: float | None


def offline_step(setting: Setting, *, known: bool = False) -> Contest:
    """Batch, loss, update: our loop on recorded pairs against trl's trainer on the same pairs. known: both have asked
    the reference before.
    """
    stamps = peers.Stamps()
    trainer = peers.dpo_trainer(setting, stamps, known=known)
    work = ours.offline(setting, known=known)
    read, predicted = _tokens(setting.pairs)
    return Contest(
        work,
        lambda: _trainer_round(trainer, stamps),
        "trl DPOTrainer (ipo)",
        "step",
        1,
        (3 if known else 4) * forward_flops(setting.make_model(), BATCH * read, BATCH * predicted),
    )


def online_step(setting: Setting, kind: str = "pairwise") -> Contest:
    """Sample two responses a prompt, judge, reference, loss, update: our loop against trl's experimental trainer, whose
    reward model reads each response once. kind: of our judge; a pointwise one does the same.
    """
    stamps = peers.Stamps()
    trainer = peers.online_dpo_trainer(setting, stamps)
    work = ours.online(setting, kind)
    model = setting.make_model()
    prompt, length = _mean(setting.pairs.prompts), _sampled_length(setting)
    flops = (
        forward_flops(model, prompt + 2 * (length - 1), 2 * length)  # sampling
        + forward_flops(model, prompt + (4 * (length + 1) if kind == "pairwise" else 2 * length), 0)  # judging
        + 4 * forward_flops(model, prompt + 2 * length, 2 * length)  # reference, and the update's three
    )
    return Contest(
        work,
        lambda: _trainer_round(trainer, stamps),
        "trl OnlineDPOTrainer (ipo, scalar reward model)",
        "step",
        1,
        BATCH * flops,
    )


def sampling(setting: Setting) -> Contest:
    """Two responses a prompt, all of the length limit."""
    policy, model, prompts = setting.policy(ends=False), setting.make_model(), setting.batch().prompts
    noise = uniforms(setting.batch().prompt_numbers, 2, setting.limit, "benchmark")
    flops = forward_flops(model, _mean(prompts) + 2 * (setting.limit - 1), 2 * setting.limit)
    return Contest(
        lambda: timed(lambda: policy.sample(prompts, 2, noise)),
        lambda: timed(lambda: peers.generate(setting, model, prompts)),
        "transformers generate()",
        "token",
        2 * BATCH * setting.limit,
        BATCH * flops,
    )


def judging(setting: Setting) -> Contest:
    """Both orders of a pair: packed behind one prompt in one pass, against two passes of the same model."""
    model, batch = setting.preference_model(), setting.batch()
    judge = ModelJudge(model)
    read, responses = _tokens(batch)
    prompt = read - responses
    return Contest(
        lambda: timed(lambda: judge.compare(batch.prompts, batch.first, batch.second)),
        lambda: timed(lambda: two_passes(model, batch)),
        "own: two unpacked passes",
        "pair",
        BATCH,
        BATCH * forward_flops(setting.make_model(), prompt + 2 * (responses + 2), 0),
    )


@torch.no_grad()
def two_passes(model: torch.nn.Module, batch: PairBatch) -> torch.Tensor:
    """r(x, y1, y2) - r(x, y2, y1), one pass an order."""
    forward = model.logit(batch.prompts, batch.first, batch.second)
    backward = model.logit(batch.prompts, batch.second, batch.first)
    return forward.sigmoid() - backward.sigmoid()


def log_probs(setting: Setting) -> Contest:
    """Log-probabilities of both responses with their gradient: packed, against one sequence a response."""
    policy, batch = setting.policy(), setting.batch()
    read, predicted = _tokens(batch)

    def packed() -> None:
        first, second = policy.log_probs(batch.prompts, [batch.first, batch.second])
        (first - second).sum().backward()

    prompts, both = unpacked(batch)

    def apart() -> None:
        first, second = policy.log_probs(prompts, [both])[0].chunk(2)
        (first - second).sum().backward()

    return Contest(
        lambda: timed(packed),
        lambda: timed(apart),
        "own: one sequence a response",
        "pair",
        BATCH,
        3 * forward_flops(policy.model, BATCH * read, BATCH * predicted),
    )


def unpacked(batch: PairBatch) -> tuple[Tokens, Tokens]:
    """Prompts twice over, and first responses followed by second ones."""
    twice = torch.arange(len(batch)).repeat(2)
    return batch.prompts.take(twice), Tokens.collate(batch.first.rows() + batch.second.rows())


def evaluation(setting: Setting) -> Contest:
    """A response, its KL and its win against a fixed opponent, for 256 prompts: against `generate()`, padded scoring
    and the judge in two passes. What our judge has read of prompts and opponents it keeps, as from one checkpoint to
    the next.
    """
    policy, reference, scorer = setting.policy(), setting.reference(), setting.preference_model()
    judge, batch = ModelJudge(scorer), setting.batch(EVALUATION_PROMPTS)
    noise = uniforms(batch.prompt_numbers, 1, setting.limit, "benchmark")
    every = torch.arange(len(batch))
    against, chunks = judge.against(batch.prompts, [batch.first]), [batch.take(index) for index in every.split(BATCH)]
    model, base = setting.make_model(), setting.make_model()

    def peer() -> None:
        for chunk in chunks:
            responses = peers.sampled(setting, model, chunk.prompts)
            peers.padded_kl(model, base, chunk.prompts, responses)
            two_passes(scorer, replace(chunk, first=responses, second=chunk.first)).sign()

    def work() -> None:
        responses = sample_in_chunks(policy, batch.prompts, noise)
        sequence_kl(policy, reference, batch.prompts, responses)
        decision(against.margins(every, responses))

    prompt, length = _mean(batch.prompts), _sampled_length(setting)
    flops = (
        forward_flops(model, prompt + length - 1, length)
        + 2 * forward_flops(model, prompt + length, length)
        + forward_flops(model, 2 * (length + 1) + _mean(batch.first) + 1, 0)
    )
    return Contest(
        lambda: timed(work),
        lambda: timed(peer),
        "generate(), padded scoring, judge in two passes",
        "prompt",
        len(batch),
        len(batch) * flops,
    )


def loading(setting: Setting) -> Contest:
    """From a folder and a file to a model, its tokenizer and pairs of token ids: against the Auto classes and
    `datasets`, both reading the file for the first time.
    """
    folder = Path(mkdtemp(prefix="aligngap-benchmark-"))
    setting.make_model().save_pretrained(folder / "model")
    setting.tokenizer.save_pretrained(folder / "model")
    file = write_preferences(setting, folder / "pairs.jsonl")

    def work() -> None:
        load_language_model(str(folder / "model"))
        make_dataset_pairs(preferences(file), load_tokenizer(str(folder / "model")))

    def peer() -> None:
        peers.load(folder / "model", file)

    return Contest(
        lambda: timed(work), lambda: timed(peer), "from_pretrained, datasets", "pair", len(setting.pairs), None
    )


def preferences(file: Path) -> DatasetSpec:
    """How we read the file that `write_preferences` wrote."""
    return DatasetSpec(source=str(file), format="preference", held_out_pairs=1)


def write_preferences(setting: Setting, file: Path) -> Path:
    """The setting's pairs as JSON Lines of prompt, chosen and rejected; the prompt without the begin token, which
    tokenizers put back.
    """
    pairs = setting.pairs
    sides = zip(pairs.first.rows(), pairs.second.rows(), pairs.preference.tolist(), strict=True)
    with file.open("w", encoding="utf-8") as out:
        for prompt, (first, second, preference) in zip(pairs.prompts.rows(), sides, strict=True):
            chosen, rejected = (first, second) if preference > 0.5 else (second, first)
            texts = {"prompt": prompt[1:], "chosen": chosen[:-1], "rejected": rejected[:-1]}
            out.write(json.dumps({name: setting.text(ids) for name, ids in texts.items()}) + "\n")
    return file


ENTRIES: dict[str, Callable[[Setting], Contest]] = {
    "offline_step": offline_step,
    "offline_step_known": partial(offline_step, known=True),
    "online_step": online_step,
    "online_step_pointwise": partial(online_step, kind="pointwise"),
    "sampling": sampling,
    "judging": judging,
    "log_probs": log_probs,
    "evaluation": evaluation,
    "loading": loading,
}


def _trainer_round(trainer: object, stamps: peers.Stamps) -> float:
    stamps.times.clear()
    trainer.train()
    return median_interval(stamps.times)


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
