"""Numbers as a sentence says them."""

from __future__ import annotations

from math import isnan

from aligngap.stats.intervals import Estimate


def interval_words(estimate: Estimate, *, signed: bool = False) -> str:
    """`12.3% [8.1%, 16.0%]`, `12.3% [no interval]` where it was withheld, or `(no data)`."""
    if isnan(estimate.value):
        return "(no data)"
    sign = "+" if signed else ""
    interval = "no interval" if isnan(estimate.low) else f"{estimate.low:{sign}.1%}, {estimate.high:{sign}.1%}"
    return f"{estimate.value:{sign}.1%} [{interval}]"


def across(estimate: Estimate, items: str = "prompts") -> str:
    """What the interval covers; `items`: what the estimate counts as its prompts."""
    if estimate.n_seeds == 1:
        return f"1 seed: the interval covers the {estimate.n_prompts} {items} only, not another training run"
    note = ", few: read the interval with care" if estimate.n_seeds < 5 else ""
    return f"{estimate.n_seeds} seeds{note}, {estimate.n_prompts} {items}"
