"""Our side of the entries that train or evaluate: the package's own loop. Imports no peer, so that its memory can be
told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import torch

from aligngap.judges.base import decision
from aligngap.judges.model import ModelJudge
from aligngap.measure.classify import pair_log_probs
from aligngap.measure.kl import sequence_kl
from aligngap.pipeline.stages import sample_in_chunks
from aligngap.seeds import uniforms
from aligngap.sources.base import PairSource
from aligngap.sources.order import prompt_schedule
from aligngap.sources.recorded import Recorded
from aligngap.sources.sampled import Sampled
from aligngap.train.loop import LossSpec, train
from aligngap.train.step import OptimSpec
from benchmarks.clock import Work, median_interval
from benchmarks.setting import BATCH, LEARNING_RATE, Setting


def offline(setting: Setting) -> Work:
    """Training on recorded pairs that bring what the reference gives them, as a study's do; IPO averaged over tokens as
    trl's is, so that both do the same arithmetic.
    """
    pairs = replace(setting.pairs, reference=pair_log_probs(setting.reference(), setting.pairs).T.float())
    return _loop(setting, lambda: Recorded(pairs, prompt_schedule(0)), LossSpec(reduction="mean"))


def online(setting: Setting, kind: str = "pairwise") -> Work:
    """Training on two samples a prompt of the policy itself. kind: of the preference model that judges them; a pairwise
    one reads both orders.
    """
    judge, prompts = ModelJudge(setting.preference_model(kind)), setting.prompts()
    return _loop(setting, lambda: Sampled(prompts, judge, 0), LossSpec())


def optim(setting: Setting) -> OptimSpec:
    """Of a round of training."""
    return OptimSpec(lr=LEARNING_RATE, steps=setting.steps, batch=BATCH, warmup_steps=0)


def _loop(setting: Setting, make_source: Callable[[], PairSource], loss: LossSpec) -> Work:
    policy, reference = setting.policy(), setting.reference()

    def work() -> float:
        stamps: list[float] = []
        train(
            policy,
            reference,
            make_source(),
            loss,
            optim(setting),
            keep=(),
            save_policy=lambda step, policy: None,
            progress=lambda done, total, metrics: stamps.append(perf_counter()),
        )
        return median_interval(stamps)

    return work


def evaluation(setting: Setting, prompts: int) -> Callable[[], object]:
    """A response, its KL and its win against a fixed opponent. What our judge has read of prompts and opponents it
    keeps, as from one checkpoint to the next.
    """
    policy, reference, batch = setting.policy(), setting.reference(), setting.batch(prompts)
    noise, every = uniforms(batch.prompt_numbers, 1, setting.limit, "benchmark"), torch.arange(prompts)
    against = ModelJudge(setting.preference_model()).against(batch.prompts, [batch.first])

    def work() -> None:
        responses = sample_in_chunks(policy, batch.prompts, noise)
        sequence_kl(policy, reference, batch.prompts, responses)
        decision(against.margins(every, responses))

    return work


ARMS: dict[str, Callable[[Setting], Work]] = {"offline": offline, "online": online}
