"""Online, offline, and offline on the shuffled online stream, all at the baseline configuration."""

from __future__ import annotations

from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.sources.recorded import RecordedSpec


def arms(bench: Bench) -> list[ArmEntry]:
    """Three arms a seed."""
    shuffled = RecordedSpec(order="uniform")
    return [
        entry
        for seed in bench.study.seeds
        for entry in (bench.online(seed), bench.offline(seed), bench.on_stream(seed, "shuffled", shuffled))
    ]
