"""Online, and its recorded stream replayed in order: as recorded, and after a trip through text."""

from __future__ import annotations

from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.sources.recorded import RecordedSpec


def arms(bench: Bench) -> list[ArmEntry]:
    """Three arms a seed. Text does not show whether a response ended, so its last token is lost on the way back."""
    exact, mismatched = RecordedSpec(order="sequence"), RecordedSpec(order="sequence", ends="dropped")
    return [
        entry
        for seed in bench.study.seeds
        for entry in (
            bench.online(seed),
            bench.on_stream(seed, "replay", exact),
            bench.on_stream(seed, "replay_mismatched", mismatched, name="replay, end tokens dropped"),
        )
    ]
