"""The policy as a classifier of preferences, and what training does to the winners' log-probability."""

from __future__ import annotations

import torch

from aligngap.models.policy import Policy
from aligngap.types import PairBatch


@torch.no_grad()
def log_ratios(
    policy: Policy, reference: Policy, pairs: PairBatch, chunk: int = 128
) -> tuple[torch.Tensor, torch.Tensor]:
    """log pi/pi_sft of the first and the second response of each pair, summed over tokens; float64 [n] each, nats."""
    parts = []
    for index in torch.arange(len(pairs)).split(chunk):
        part = pairs.take(index).to(policy.device)
        responses = [part.first, part.second]
        live, fixed = (model.log_probs(part.prompts, responses) for model in (policy, reference))
        parts.append(torch.stack([a.double() - b.double() for a, b in zip(live, fixed, strict=True)]).cpu())
    first, second = torch.cat(parts, 1)
    return first, second


def correct(first: torch.Tensor, second: torch.Tensor, preference: torch.Tensor) -> torch.Tensor:
    """Does the sign of the log-ratio margin predict the label? 1, 0, or 0.5 when either is a tie; [n] (section 5.3)."""
    agreement = (first - second).sign() * (2 * preference.double() - 1).sign()
    return (agreement + 1) / 2


def winner_drift(first: torch.Tensor, second: torch.Tensor, preference: torch.Tensor) -> torch.Tensor:
    """log pi/pi_sft of the preferred response, nats; ties have no winner and are NaN; [n]."""
    winner = torch.where(preference > 0.5, first, second)
    return torch.where(preference == 0.5, torch.nan, winner)
