"""Our side of the training entries: the package's own loop. Imports no peer, so that its memory can be told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from aligngap.judges.model import ModelJudge
from aligngap.measure.classify import pair_log_probs
from aligngap.sources.base import PairSource
from aligngap.sources.order import prompt_schedule
from aligngap.sources.recorded import Recorded
from aligngap.sources.sampled import Sampled
from aligngap.train.loop import LossSpec, train
from aligngap.train.step import OptimSpec
from benchmarks.clock import median_interval, now
from benchmarks.setting import BATCH, LEARNING_RATE, Setting

Work = Callable[[], float]
"""Does the work of one round; returns the median seconds of one call (or step) in it."""


def offline(setting: Setting, *, known: bool = False) -> Work:
    """Training on recorded pairs; IPO averaged over tokens as trl's is, so that both do the same arithmetic.

    known: the pairs bring what the reference gives them, as a study's do.
    """
    pairs = setting.pairs
    if known:
        pairs = replace(pairs, reference=pair_log_probs(setting.reference(), pairs).T.float())
    return _loop(setting, lambda: Recorded(pairs, prompt_schedule(0)), LossSpec(reduction="mean"))


def online(setting: Setting, kind: str = "pairwise") -> Work:
    """Training on two samples a prompt of the policy itself. kind: of the preference model that judges them; a pairwise
    one reads both orders.
    """
    judge, prompts = ModelJudge(setting.preference_model(kind)), setting.prompts()
    return _loop(setting, lambda: Sampled(prompts, judge, 0), LossSpec())


def _loop(setting: Setting, make_source: Callable[[], PairSource], loss: LossSpec) -> Work:
    policy, reference = setting.policy(), setting.reference()
    optim = OptimSpec(lr=LEARNING_RATE, steps=setting.steps, batch=BATCH, warmup_steps=0)

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


ARMS: dict[str, Callable[[Setting], Work]] = {"offline": offline, "online": online}
