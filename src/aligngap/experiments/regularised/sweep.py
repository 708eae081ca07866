"""Offline losses with and without what holds the winners' log-probability up, beside online with the same losses."""

from __future__ import annotations

import torch

from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.losses import LogProbs, pair_loss
from aligngap.train.loop import LossSpec

SHARE, LENGTH = 0.5, 8
"""At the start of training the SFT term lifts a winner of `LENGTH` tokens by `SHARE` of what the preference loss does.

Fixed from the losses' slopes, before any run: strong enough to be felt, weaker than what it accompanies. The built-in
tasks' responses have 8 to 12 tokens on average.
"""


def arms(bench: Bench) -> list[ArmEntry]:
    """Seven arms a seed."""
    own, dpo, positive = bench.study.baseline.loss, bench.loss(name="dpo"), bench.loss(name="dpo_positive")
    offline = {
        "offline_sft": ("offline + SFT term", with_sft(own)),
        "offline_dpo": ("offline DPO", dpo),
        "offline_dpo_sft": ("offline DPO + SFT term", with_sft(dpo)),
        "offline_dpo_positive": ("offline DPO-positive", positive),
    }
    entries = []
    for seed in bench.study.seeds:
        entries += [
            bench.online(seed),
            bench.offline(seed),
            bench.online(seed, "online_dpo", "online DPO", loss=dpo),
            *(
                bench.recorded(seed, family, bench.golden_pairs, name=name, loss=loss)
                for family, (name, loss) in offline.items()
            ),
        ]
    return entries


def with_sft(loss: LossSpec) -> LossSpec:
    """The loss with an SFT term in proportion to its own slope.

    The slope is the loss's derivative in the winner's summed log-probability where the policy is the SFT policy: beta
    for IPO and beta / 2 for DPO when summed over tokens. So the weight is 4 beta for IPO, 2 beta for DPO.
    """
    winner = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    zero, length = torch.zeros_like(winner, requires_grad=False), torch.full_like(winner, LENGTH, requires_grad=False)
    one = torch.ones_like(zero)
    value = pair_loss(
        loss.name, LogProbs(winner, zero, length), LogProbs(zero, zero, length), one, loss.beta, loss.reduction
    )
    (slope,) = torch.autograd.grad(value, winner)
    return loss.model_copy(update={"sft": round(SHARE * LENGTH * abs(float(slope)), 6)})
