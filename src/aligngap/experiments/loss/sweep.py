"""Best-of-2 online, offline and on its own shuffled stream, with the baseline's loss online and offline behind it."""

from __future__ import annotations

from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.sources.recorded import RecordedSpec


def arms(bench: Bench) -> list[ArmEntry]:
    """Five arms a seed; all at the baseline's learning rate and steps."""
    imitate = bench.loss(name="best_of_2")
    entries = []
    for seed in bench.study.seeds:
        online = bench.online(seed, "online_bo2", "online, Best-of-2", loss=imitate)
        entries += [
            bench.online(seed),
            bench.offline(seed),
            online,
            bench.recorded(seed, "offline_bo2", bench.golden_pairs, name="offline, Best-of-2", loss=imitate),
            bench.on_stream(
                seed,
                "shuffled_bo2",
                RecordedSpec(order="uniform"),
                of=online,
                name="shuffled stream, Best-of-2",
                loss=imitate,
            ),
        ]
    return entries
