"""Online and offline at the baseline configuration, and what each makes of the online stream's pairs."""

from __future__ import annotations

from aligngap.experiments.bench import ArmEntry, Bench, Measure
from aligngap.experiments.classification.measure import StreamAccuracy

TABLE = "stream_accuracy"


def arms(bench: Bench) -> list[ArmEntry]:
    """Two arms a seed, shared with other experiments."""
    return [entry for seed in bench.study.seeds for entry in (bench.online(seed), bench.offline(seed))]


def measures(bench: Bench) -> list[Measure]:
    """One a seed."""
    return [Measure(TABLE, seed, stream_accuracy(bench, seed)) for seed in bench.study.seeds]


def stream_accuracy(bench: Bench, seed: int) -> StreamAccuracy:
    """The measure of a seed."""
    return StreamAccuracy(
        online=bench.online(seed).stage,
        offline=bench.offline(seed).stage,
        golden=bench.golden,
        proxy=bench.proxy(seed),
    )
