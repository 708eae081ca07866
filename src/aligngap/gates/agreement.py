"""How far a judge agrees with the true sign: balanced, so that a judge that always says the same is no good one."""

from __future__ import annotations

import math

import torch

from aligngap.gates.record import Score


def balanced_agreement(says: torch.Tensor, difference: torch.Tensor) -> tuple[float | None, float | None]:
    """Mean of sensitivity and specificity, and its standard error: of the pairs whose first response is truly better,
    the share in which the judge says so, and the like of those whose second is; a tie of the judge's counts one half.

    says: 1, 0 or 0.5, [n]; difference: true utility of the first less the second, not 0, [n]. None where one of the
    signs has no pair.
    """
    sides = [says[difference > 0].double(), 1 - says[difference < 0].double()]
    if not all(len(side) for side in sides):
        return None, None
    means = [float(side.mean()) for side in sides]
    variances = [float(side.var(unbiased=False)) / len(side) for side in sides]
    return sum(means) / 2, math.sqrt(sum(variances)) / 2


def first_of_each_sign(difference: torch.Tensor, least: float, most: int) -> torch.Tensor:
    """Indices of the first `most` pairs of each true sign that differ by more than `least`, int64 [m]."""
    clear = [torch.nonzero(sign * difference > least).squeeze(1)[:most] for sign in (1, -1)]
    return torch.cat(clear).sort().values


def agreement_score(
    name: str, says: torch.Tensor, difference: torch.Tensor, bound: float, wanted: int, note: str
) -> Score:
    """The balanced agreement on pairs, gated where the rarer true sign has as many pairs as are wanted."""
    value, error = balanced_agreement(says, difference)
    rarer = min(int((difference > 0).sum()), int((difference < 0).sum()))
    enough = rarer >= wanted
    note = note if enough else f"{note}; reported only: the rarer true sign has {rarer} of {wanted} pairs"
    return Score(
        name=name,
        value=None if value is None else round(value, 4),
        se=None if error is None else round(error, 4),
        n=len(says),
        at_least=bound if enough else None,
        note=note,
    )
