"""SFT on both responses, against arithmetic on the model's own log-probabilities."""

from __future__ import annotations

import pytest
import torch

from aligngap.sources.order import in_sequence
from aligngap.sources.recorded import Recorded
from aligngap.train.step import Diverged, OptimSpec
from aligngap.train.supervised import fit, sft_loss
from fakes import random_pairs, tiny_policy, weights_of

PAIRS = random_pairs(4, 9, 8)


def test_sft_loss_is_the_mean_over_tokens_of_both_responses() -> None:
    policy = tiny_policy(8)
    with torch.no_grad():
        first, second = policy.log_probs(PAIRS.prompts, [PAIRS.first, PAIRS.second])
        expected = -(first.sum() + second.sum()) / (PAIRS.first.lengths.sum() + PAIRS.second.lengths.sum())
        assert sft_loss(policy, PAIRS).item() == pytest.approx(expected.item(), rel=1e-5)


def test_fit_lowers_the_loss_and_counts_steps() -> None:
    policy = tiny_policy(8)
    seen: list[tuple[int, int, float]] = []
    fit(
        policy.model,
        lambda batch, step: sft_loss(policy, batch),
        Recorded(PAIRS, in_sequence),
        OptimSpec(lr=0.01, steps=30, batch=9, warmup_steps=2),
        lambda done, total, metrics: seen.append((done, total, metrics["loss"])),
    )
    assert [(done, total) for done, total, _ in seen] == [(k, 30) for k in range(1, 31)]
    assert seen[-1][2] < 0.6 * seen[0][2]


def test_fit_refuses_to_diverge() -> None:
    policy = tiny_policy(8)
    before = weights_of(policy)
    with pytest.raises(Diverged):
        fit(
            policy.model,
            lambda batch, step: sft_loss(policy, batch) * float("inf"),
            Recorded(PAIRS, in_sequence),
            OptimSpec(lr=0.01, steps=3, batch=4),
            lambda done, total, metrics: None,
        )
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(policy), strict=True))
