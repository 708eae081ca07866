"""Sampled from weights of growing age, all labelled by the proxy, beside the online stream shuffled."""

from __future__ import annotations

import numpy as np

from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.order.sweep import replays, window
from aligngap.pipeline.stages import Arm
from aligngap.sources.sampled import SampledSpec

PERIODS = {"stale_4": 4, "stale_16": 16, "stale_64": 64, "stale_never": None}
"""Sync period in optimiser steps by family; online has 1, and None never synchronises."""

SHUFFLED = ("window_4", "window_eighth", "shuffled")
"""The same pairs as online's, trained on at other times (figure 13)."""


def arms(bench: Bench) -> list[ArmEntry]:
    """Eight arms a seed."""
    entries = []
    for seed in bench.study.seeds:
        entries.append(bench.online(seed))
        for family, period in PERIODS.items():
            stage = bench.arm(seed=seed, source=SampledSpec(sync_period=period), judge=bench.proxy(seed))
            name = "sampled from SFT, proxy's labels" if period is None else f"synchronised every {period} steps"
            entries.append(ArmEntry(name, family, stage, baseline=True))
        entries += replays(bench, seed, SHUFFLED)
    return entries


def lag(arm: Arm) -> float:
    """Mean distance in optimiser steps, over a run, between the policy that sampled a pair and the policy that is
    trained on it; on a shuffled online stream, which has pairs of later policies too, of either sign.

    Raises:
        ValueError: the arm's pairs are neither sampled nor an online stream.
    """
    steps = arm.optim.steps
    if isinstance(arm.source, SampledSpec):
        return float(np.mean(np.arange(steps) % (arm.source.sync_period or steps)))
    blocks = np.diff([*range(0, steps, max(1, int(window(arm)))), steps])
    # Two places drawn from a block of w batches are (w - 1/w) / 3 apart on average, and w batches are in it.
    return float((blocks**2 - 1).sum() / 3 / steps)
