"""Cal-DPO in spirit: DPO whose log-ratios are also pulled to a scale of their own."""

import torch
from torch.nn import functional

from aligngap.losses import LOSSES, LogProbs


def calibrated(winner: LogProbs, loser: LogProbs, beta: float) -> torch.Tensor:
    """DPO, plus squared distances of beta * log-ratio from +1/2 (winner) and -1/2 (loser); one value a pair."""
    up, down = beta * winner.ratio, beta * loser.ratio
    return functional.softplus(down - up) + (up - 0.5) ** 2 + (down + 0.5) ** 2


LOSSES["calibrated"] = calibrated
