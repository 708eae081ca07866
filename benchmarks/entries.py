"""The entries: for each, our work and the peer's as two functions that run it and say how long it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from aligngap.judges.model import ModelJudge
from aligngap.measure.kl import sequence_kl
from aligngap.pipeline.stages import sample_in_chunks
from aligngap.seeds import uniforms
from aligngap.sources.base import PairSource
from aligngap.sources.order import prompt_schedule
from aligngap.sources.recorded import Recorded
from aligngap.sources.sampled import Sampled
from aligngap.train.loop import LossSpec, train
from aligngap.train.step import OptimSpec
from aligngap.types import PairBatch, Tokens
from benchmarks import peers
from benchmarks.clock import forward_flops, median_interval, now, timed
from benchmarks.setting import BATCH, Setting

EVALUATION_PROMPTS = 256

Work = Callable[[], float]
"""Does the work of one round; returns the median seconds of one call (or step) in it."""


@dataclass(frozen=True)
class Contest:
    """units: how many of `unit` a call does; flops: useful operations of a call."""

    ours: Work
    peer: Work | None
    peer_name: str
    unit: str
    units: int
    flops: float


def offline_step(setting: Setting) -> Contest:
    """Batch, loss, update: our loop on recorded pairs against trl's trainer on the same pairs."""
    stamps = peers.Stamps()
    trainer = peers.dpo_trainer(setting, stamps)
    # Averaged over tokens as trl's IPO is, so that both do the same arithmetic.
    ours = _our_loop(setting, lambda: Recorded(setting.pairs, prompt_schedule(0)), LossSpec(reduction="mean"))
    read, predicted = _tokens(setting.pairs)
    return Contest(
        ours,
        lambda: _trainer_round(trainer, stamps),
        "trl DPOTrainer (ipo)",
        "step",
        1,
        4 * forward_flops(setting.make_model(), BATCH * read, BATCH * predicted),
    )


def online_step(setting: Setting) -> Contest:
    """Sample two responses a prompt, judge, reference, loss, update: our loop against trl's experimental trainer."""
    stamps = peers.Stamps()
    trainer = peers.online_dpo_trainer(setting, stamps)
    judge, prompts = ModelJudge(setting.preference_model()), setting.prompts()
    ours = _our_loop(setting, lambda: Sampled(prompts, judge, 0), LossSpec())
    model = setting.make_model()
    prompt, length = _mean(setting.pairs.prompts), _sampled_length(setting)
    flops = (
        forward_flops(model, prompt + 2 * (length - 1), 2 * length)  # sampling
        + forward_flops(model, prompt + 4 * (length + 1), 0)  # judging, both orders
        + 4 * forward_flops(model, prompt + 2 * length, 2 * length)  # reference, and the update's three
    )
    return Contest(
        ours,
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
    """A response, its KL and its win against a fixed opponent, for 256 prompts. No peer."""
    policy, reference, judge = setting.policy(), setting.reference(), ModelJudge(setting.preference_model())
    batch = setting.batch(EVALUATION_PROMPTS)
    noise = uniforms(batch.prompt_numbers, 1, setting.limit, "benchmark")

    def ours() -> None:
        responses = sample_in_chunks(policy, batch.prompts, noise)
        sequence_kl(policy, reference, batch.prompts, responses)
        judge.prefer(batch.prompts, responses, batch.first)

    model, prompt, length = policy.model, _mean(batch.prompts), _sampled_length(setting)
    flops = (
        forward_flops(model, prompt + length - 1, length)
        + 2 * forward_flops(model, prompt + length, length)
        + forward_flops(model, prompt + 2 * (length + _mean(batch.first) + 2), 0)
    )
    return Contest(lambda: timed(ours), None, "none", "prompt", len(batch), len(batch) * flops)


ENTRIES: dict[str, Callable[[Setting], Contest]] = {
    "offline_step": offline_step,
    "online_step": online_step,
    "sampling": sampling,
    "judging": judging,
    "log_probs": log_probs,
    "evaluation": evaluation,
}


def _our_loop(setting: Setting, make_source: Callable[[], PairSource], loss: LossSpec) -> Work:
    policy, reference = setting.policy(), setting.reference()
    optim = OptimSpec(lr=peers.LEARNING_RATE, steps=setting.steps, batch=BATCH, warmup_steps=0)

    def work() -> float:
        stamps: list[float] = []
        train(
            policy,
            reference,
            make_source(),
            loss,
            optim,
            keep=(),
            save_policy=lambda step, policy: None,
            progress=lambda done, total, metrics: stamps.append(now()),
        )
        return median_interval(stamps)

    return work


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
