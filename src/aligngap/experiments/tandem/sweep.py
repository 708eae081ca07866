"""Online, and its recorded stream replayed in order."""

from __future__ import annotations

from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.sources.recorded import RecordedSpec


def arms(bench: Bench) -> list[ArmEntry]:
    """Two arms a seed."""
    replay = RecordedSpec(order="sequence")
    return [
        entry for seed in bench.study.seeds for entry in (bench.online(seed), bench.on_stream(seed, "replay", replay))
    ]
