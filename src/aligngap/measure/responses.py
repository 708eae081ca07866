"""Measures of responses that a study may ask of every arm, beside those that it always has."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from aligngap.measure.base import Answers

_CHUNK = 32


@torch.no_grad()
def sft_log_prob(answers: Answers) -> torch.Tensor:
    """log pi_sft of each response, summed over its tokens, in nats: how likely SFT is to say what the policy says."""
    device = answers.reference.device
    parts = [
        answers.reference.log_probs(answers.prompts.take(part).to(device), [answers.responses.take(part).to(device)])[0]
        for part in torch.arange(len(answers)).split(_CHUNK)
    ]
    return torch.cat(parts).cpu()


def repetition(answers: Answers) -> list[float]:
    """Share of a response's pairs of neighbouring tokens that it has said before; NaN where it has no such pair."""

    def share(row: list[int]) -> float:
        pairs = list(pairwise(row))
        return 1 - len(set(pairs)) / len(pairs) if pairs else math.nan

    return [share(row) for row in answers.responses.rows()]
