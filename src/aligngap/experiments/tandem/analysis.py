"""Estimates and verdict of the tandem check."""

from __future__ import annotations

from aligngap.experiments.base import Analysis, Figure, Labelled, TaskData
from aligngap.experiments.words import across, interval_words
from aligngap.pipeline.stages import SPLITS
from aligngap.stats.bootstrap import Estimate
from aligngap.stats.verdict import Verdict, all_of, equivalence_verdict

RULE = (
    "Two halves, at the baseline configuration, paired by seed. Exact: holds if for every seed the final weights of "
    "replay and online are identical bit for bit, or, failing that (other hardware), if the 95% interval of their "
    "average gap at equal KL lies within the margin of no difference; refuted if the interval lies wholly beyond the "
    "margin. Mismatched (every response without its end token): it diverges if the interval of its average gap to "
    "online at equal KL, or of the difference of their peaks, lies wholly beyond the margin on either side; refuted if "
    "both lie within the margin. Supported if both halves hold; contradicted if either is refuted; else inconclusive."
)


def analyse(data: TaskData) -> Analysis:
    """Are the weights identical, how far apart are the curves, and how far without end tokens?"""
    weights = [
        {arm.entry.stage.seed: arm.weights_sha256 for arm in data.finished(family, baseline=True)}
        for family in ("online", "replay")
    ]
    shared = sorted(set(weights[0]) & set(weights[1]))
    same = [seed for seed in shared if weights[0][seed] == weights[1][seed]]
    other = next(split for split in SPLITS if split != data.settings.split)

    def gaps(family: str, *purpose: str, split: str | None = None) -> dict[str, Estimate]:
        replay, online = (data.runs(name, baseline=True, split=split) for name in (family, "online"))
        return data.gap(replay, online, "tandem", *purpose)

    gap, mismatched = gaps("replay")["average_gap"], gaps("replay_mismatched", "mismatched")
    identical = bool(shared) and len(same) == len(shared)
    verdicts: list[Verdict] = [
        "supported" if identical else equivalence_verdict(gap, data.settings.margin),
        diverges(mismatched["average_gap"], mismatched["peak_difference"], data.settings.margin),
    ]
    sentence = (
        "Replay in exact order ends with weights identical to the online run's, bit for bit, "
        f"for {len(same)} of {len(shared)} seeds; "
        f"average gap {interval_words(gap, signed=True)}. Without the responses' end tokens the gap is "
        f"{interval_words(mismatched['average_gap'], signed=True)}, and that of the peaks "
        f"{interval_words(mismatched['peak_difference'], signed=True)} ({across(mismatched['peak_difference'])})."
    )
    words = "replay without end tokens minus online"
    elsewhere = gaps("replay_mismatched", "mismatched", other, split=other)["average_gap"]
    estimates = {
        "average_gap": Labelled("average gap at equal KL, replay minus online", gap, null=None),
        "mismatched_average_gap": Labelled(f"average gap at equal KL, {words}", mismatched["average_gap"], null=None),
        "mismatched_peak_difference": Labelled(
            f"difference of the peaks, {words}", mismatched["peak_difference"], null=None
        ),
        f"mismatched_average_gap_{other}": Labelled(
            f"average gap, {words}, {other.replace('_', '-')} prompts", elsewhere, null=None
        ),
    }
    figure = Figure(
        name="curves",
        title="Online, its exact replay, and its replay without end tokens",
        families=("online", "replay", "replay_mismatched"),
    )
    return Analysis(all_of(verdicts), sentence, estimates, [figure])


def diverges(average: Estimate, peak: Estimate, margin: float) -> Verdict:
    """Is either difference wholly beyond +-`margin`? Contradicted when both lie within it."""
    same = [equivalence_verdict(part, margin) for part in (average, peak)]
    if "contradicted" in same:
        return "supported"
    return "contradicted" if same == ["supported", "supported"] else "inconclusive"
