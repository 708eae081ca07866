"""Estimates and verdict of the tandem check."""

from __future__ import annotations

from aligngap.experiments.base import Analysis, Labelled, TaskData
from aligngap.experiments.words import interval_words
from aligngap.stats.verdict import equivalence_verdict

RULE = (
    "Supported if for every seed the final weights of replay and online are identical bit for bit, or, failing that "
    "(other hardware), if the 95% interval of their average gap at equal KL lies within the margin of no difference; "
    "contradicted if the interval lies wholly beyond the margin; else inconclusive."
)


def analyse(data: TaskData) -> Analysis:
    """Are the weights identical, and how far apart are the curves?"""
    weights = [
        {arm.entry.stage.seed: arm.weights_sha256 for arm in data.finished(family, baseline=True)}
        for family in ("online", "replay")
    ]
    shared = sorted(set(weights[0]) & set(weights[1]))
    same = [seed for seed in shared if weights[0][seed] == weights[1][seed]]
    replay, online = (data.runs(family, baseline=True) for family in ("replay", "online"))
    gap = data.gap(replay, online, "tandem")["average_gap"]
    identical = bool(shared) and len(same) == len(shared)
    verdict = "supported" if identical else equivalence_verdict(gap, data.settings.margin)
    sentence = (
        "Replay in exact order ends with weights identical to the online run's, bit for bit, "
        f"for {len(same)} of {len(shared)} seeds; "
        f"average gap {interval_words(gap, signed=True)}."
    )
    return Analysis(verdict, sentence, {"average_gap": Labelled("average gap at equal KL, replay minus online", gap)})
