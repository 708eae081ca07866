"""Appendix F: offline on the online run's pairs in their exact order is the online run, if their token ids match."""

from __future__ import annotations

from aligngap.experiments.base import Analysis, Experiment, Figure, TaskData, each_seed
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.contrasts import Contrasts
from aligngap.sources.recorded import RecordedSpec
from aligngap.stats.intervals import Estimate
from aligngap.stats.verdict import Verdict, all_of, equivalence_verdict


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """Online, and its stream replayed: as recorded, and after a trip through text. Text does not show whether a
    response ended, so its last token is lost on the way back.
    """
    exact, mismatched = RecordedSpec(order="sequence"), RecordedSpec(order="sequence", ends="dropped")
    return [
        bench.online(seed),
        bench.on_stream(seed, "replay", exact),
        bench.on_stream(seed, "replay_mismatched", mismatched, name="replay, end tokens dropped"),
    ]


def analyse(data: TaskData) -> Analysis:
    """Are the weights identical, how far apart are the curves, and how far without end tokens?"""
    weights = [
        {arm.entry.stage.seed: arm.weights_sha256 for arm in data.finished(family, baseline=True)}
        for family in ("online", "replay")
    ]
    shared = sorted(set(weights[0]) & set(weights[1]))
    same = [seed for seed in shared if weights[0][seed] == weights[1][seed]]
    contrasts = Contrasts(data, "tandem")
    other, words = contrasts.other, "replay without end tokens minus online"
    gap = data.gap(contrasts.runs("replay"), contrasts.runs("online"), "tandem")["average_gap"]
    contrasts.put("average_gap", "average gap at equal KL, replay minus online", gap, null=None)
    keys = ("mismatched_average_gap", "mismatched_peak_difference")
    between, peaks = contrasts.compare("{}, " + words, "replay_mismatched", "online", "mismatched", keys=keys)
    elsewhere = contrasts.gap("replay_mismatched", "online", other, "mismatched", other.name)
    contrasts.put(f"mismatched_average_gap_{other.name}", f"average gap, {words}, {other.words}", elsewhere)
    identical = bool(shared) and len(same) == len(shared)
    verdicts: list[Verdict] = [
        "supported" if identical else equivalence_verdict(gap, data.settings.margin),
        diverges(between, peaks, data.settings.margin),
    ]
    sentence = (
        "Replay in exact order ends with weights identical to the online run's, bit for bit, "
        f"for {len(same)} of {len(shared)} seeds; average gap {gap:+.1%}. Without the responses' end tokens the gap is "
        f"{between:+.1%}, and that of the peaks {peaks:+.1%} ({peaks.across()})."
    )
    figure = Figure(
        name="curves",
        title="Online, its exact replay, and its replay without end tokens",
        families=("online", "replay", "replay_mismatched"),
    )
    return Analysis(all_of(verdicts), sentence, contrasts.estimates, [figure])


def diverges(average: Estimate, peak: Estimate, margin: float) -> Verdict:
    """Is either difference wholly beyond +-`margin`? Contradicted when both lie within it."""
    same = [equivalence_verdict(part, margin) for part in (average, peak)]
    if "contradicted" in same:
        return "supported"
    return "contradicted" if same == ["supported", "supported"] else "inconclusive"


EXPERIMENT = Experiment(
    name="tandem",
    title="Tandem replay",
    question="Does replaying the online run's pairs in their exact order give the online run, and does it still when "
    "every response has lost its end token, as on a trip through text?",
    finding="Equal up to numerical noise, if and only if the token ids match exactly; a slight mismatch diverges "
    "drastically (Tang et al. 2024, appendix F).",
    rule="Two halves, at the baseline configuration, paired by seed. Exact: holds if for every seed the final weights "
    "of replay and online are identical bit for bit, or, failing that (other hardware), if the 95% interval of their "
    "average gap at equal KL lies within the margin of no difference; refuted if the interval lies wholly beyond the "
    "margin. Mismatched (every response without its end token): it diverges if the interval of its average gap to "
    "online at equal KL, or of the difference of their peaks, lies wholly beyond the margin on either side; refuted if "
    "both lie within the margin. Supported if both halves hold; contradicted if either is refuted; else inconclusive.",
    arms=arms,
    analyse=analyse,
)
