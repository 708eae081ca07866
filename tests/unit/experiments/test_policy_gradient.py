"""RLOO beside IPO, on made-up runs whose truth is known; and that the arm meant as a check is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aligngap.experiments.base import Analysis
from aligngap.experiments.policy_gradient import ONLINE
from aligngap.experiments.study import load_study
from aligngap.sources.base import Ingredients
from aligngap.sources.sampled import SampledSpec
from aligngap.train.loop import train
from fakes import TablePolicy, likes_token, prompts_of, same_weights, weights_of
from made_up import HALFWAY, LOW, RISING, analysed, entries, finished

IPO = {"online": RISING, "offline": LOW}


def concluded(soft: list[float], seeds: int = 3, **others: list[float]) -> Analysis:
    curves = IPO | dict.fromkeys(ONLINE, RISING) | {"online_rloo_soft": soft} | others
    found = entries("policy_gradient", seeds).items()
    return analysed("policy_gradient", [finished(entry, curves[family]) for (family, _), entry in found])


@pytest.mark.parametrize(
    ("soft", "offline", "verdict"),
    [
        (RISING, LOW, "supported"),
        ([0.1, 0.3, 0.4, 0.5, 0.6, 0.7], LOW, "supported"),  # better than IPO is no worse
        (HALFWAY, LOW, "contradicted"),  # above offline, but far below online IPO
        (RISING, RISING, "contradicted"),  # as online IPO, but then no better than offline either
        (RISING, [0.3, 0.45, 0.25, 0.45, 0.25, 0.4], "inconclusive"),  # the higher peak alone
    ],
)
def test_no_worse_than_online_and_above_offline(soft: list[float], offline: list[float], verdict: str) -> None:
    found = concluded(soft, offline=offline)
    assert found.verdict == verdict
    assert next(iter(found.estimates)) == "online_rloo_soft_average_gap_online"


@pytest.mark.parametrize("family", ["online_rloo", "online_rloo_weak"])
def test_the_other_forms_do_not_touch_the_verdict(family: str) -> None:
    found = concluded(RISING, **{family: LOW})
    assert found.verdict == "supported"
    assert found.estimates[f"{family}_peak_difference_online"].estimate.value == pytest.approx(-0.4)
    assert ("a difference that should not be" in found.sentence) == (family == "online_rloo")


def test_without_its_arm_there_is_no_verdict() -> None:
    arms = [finished(entry, RISING) for (family, _), entry in entries("policy_gradient", 2).items() if family in IPO]
    found = analysed("policy_gradient", arms)
    assert found.verdict == "inconclusive"
    assert all(np.isnan(one.estimate.value) for one in found.estimates.values())


def test_arms_differ_in_what_they_say() -> None:
    arms = {family: entry.stage for (family, _), entry in entries("policy_gradient", 1).items()}
    assert set(arms) == {*IPO, *ONLINE}
    beta = arms["online"].loss.beta
    assert {family: arms[family].loss.beta for family in ONLINE} == {
        "online_rloo": 2 * beta,
        "online_rloo_soft": 2 * beta,
        "online_rloo_weak": beta,
    }
    assert arms["online_rloo"].source == arms["online"].source
    assert arms["online_rloo_soft"].source == SampledSpec(labels="probability")
    assert {arms[family].judge for family in ONLINE} == {arms["online"].judge}


@pytest.mark.parametrize("clip", [1.0, 0.05])
def test_rloo_on_hard_labels_trains_as_ipo_does(clip: float) -> None:
    """The whole loop: same samples, same weights up to rounding, also where the gradient's norm is clipped."""
    arms = {family: entry.stage for (family, _), entry in entries("policy_gradient", 1).items()}
    prompts, responses = [[1, 5], [1, 6]], [[3, 2], [4, 2], [3, 3, 2], [4, 3, 2]]

    def trained(family: str, tighten: float = clip) -> list[torch.Tensor]:
        arm = arms[family]
        optim = arm.optim.model_copy(
            update={"steps": 40, "lr": 0.05, "batch": 8, "max_grad_norm": arm.optim.max_grad_norm * tighten}
        )
        policy, reference = (TablePolicy(prompts, responses, torch.zeros(2, 4, dtype=torch.float64)) for _ in range(2))
        source = arm.source.build(Ingredients(0, 8, prompts_of(prompts), likes_token(3)))
        train(policy, reference, source, arm.loss, optim, keep=(), save_policy=lambda step, p: None)
        return weights_of(policy)

    (ipo,), (rloo,), (weak,) = (trained(family) for family in ("online", "online_rloo", "online_rloo_weak"))
    assert ipo.abs().max() > 0.5  # it has moved
    torch.testing.assert_close(rloo, ipo, rtol=1e-4, atol=1e-4)
    assert (weak - ipo).abs().max() > 1e-2
    assert not same_weights([ipo], trained("online", 2e-3))  # clipping at all matters to AdamW


def test_the_shipped_study_runs_it() -> None:
    assert load_study("policy-gradient", seeds=1).experiments == ("policy_gradient",)
