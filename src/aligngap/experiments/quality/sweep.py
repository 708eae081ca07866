"""Online, offline, and for longer: offline on `D_golden` and on pairs of the final online policy (figure 5)."""

from __future__ import annotations

from aligngap.experiments.bench import ArmEntry, Bench, Measure
from aligngap.experiments.dataset.sweep import D_GOLDEN, entry, profiles

FINAL = "final_vs_final"
LONG = (D_GOLDEN, FINAL)
"""The two arms that differ in nothing but their pairs."""


def arms(bench: Bench) -> list[ArmEntry]:
    """Four arms a seed."""
    return [
        arm
        for seed in bench.study.seeds
        for arm in (bench.online(seed), bench.offline(seed), *(entry(bench, seed, family) for family in LONG))
    ]


def measures(bench: Bench) -> list[Measure]:
    """A profile of both sets of pairs."""
    return profiles(bench, LONG)
