"""The policy as a classifier of preferences, and what training does to the winners' log-probability."""

from __future__ import annotations

import torch

from aligngap import ranks
from aligngap.models.policy import Policy
from aligngap.types import PairBatch


@torch.no_grad()
def pair_log_probs(policy: Policy, pairs: PairBatch, chunk: int = 32) -> torch.Tensor:
    """log pi of the first and the second response of each pair, summed over tokens; float64 [2, n], nats, on the CPU.

    Two policies' difference is the pairs' log-ratios; the SFT policy's part is the same at every checkpoint.
    """

    def scored(index: torch.Tensor) -> torch.Tensor:
        part = pairs.take(index).to(policy.device)
        return torch.stack(policy.log_probs(part.prompts, [part.first, part.second])).cpu().double()

    return torch.cat(ranks.map_chunks(scored, len(pairs), chunk), 1)


def correct(first: torch.Tensor, second: torch.Tensor, preference: torch.Tensor) -> torch.Tensor:
    """Does the sign of the log-ratio margin predict the label? 1, 0, or 0.5 when either is a tie; [n] (section 5.3)."""
    agreement = (first - second).sign() * (2 * preference.double() - 1).sign()
    return (agreement + 1) / 2


def winner_drift(first: torch.Tensor, second: torch.Tensor, preference: torch.Tensor) -> torch.Tensor:
    """log pi/pi_sft of the preferred response, nats; ties have no winner and are NaN; [n]."""
    winner = torch.where(preference > 0.5, first, second)
    return torch.where(preference == 0.5, torch.nan, winner)
