"""The arms of figure 1 and the shuffled stream, and what online and offline make of their own samples."""

from __future__ import annotations

from aligngap.experiments import coverage as coverage
from aligngap.experiments import goodhart as goodhart
from aligngap.experiments.bench import ArmEntry, Bench, Measure
from aligngap.experiments.discrimination.measure import SelfAccuracy

FAMILIES = ("online", "offline", "shuffled")
SELF_FAMILIES = ("online", "offline")
"""Those whose own samples are looked at, at the baseline configuration."""


def arms(bench: Bench) -> list[ArmEntry]:
    """Online, the offline sweep and the shuffled stream of every seed, all shared with other experiments."""
    entries = [entry for entry in (*goodhart.arms(bench), *coverage.arms(bench)) if entry.family in FAMILIES]
    return list({(entry.family, entry.stage.identity): entry for entry in entries}.values())


def measures(bench: Bench) -> list[Measure]:
    """Self-classification of the baseline arms of `SELF_FAMILIES`, a seed each."""
    return [
        Measure(table_name(entry.family), entry.stage.seed, self_accuracy(bench, entry))
        for entry in arms(bench)
        if entry.baseline and entry.family in SELF_FAMILIES
    ]


def table_name(family: str) -> str:
    """Under which `TaskData.table` finds the self-classification of a family."""
    return f"self_accuracy {family}"


def self_accuracy(bench: Bench, entry: ArmEntry) -> SelfAccuracy:
    """The measure of an arm, on as many prompts as `D_golden` pairs are looked at."""
    return SelfAccuracy(arm=entry.stage, golden=bench.golden, prompts=bench.study.evaluation.pairs)
