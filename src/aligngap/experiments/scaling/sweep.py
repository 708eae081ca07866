"""Online, offline and the shuffled online stream, for policies of several sizes under the same proxy."""

from __future__ import annotations

from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.sources.recorded import RecordedSpec

METHODS = ("online", "offline", "shuffled")


def family(method: str, base: str) -> str:
    """Family of a method's arms at a size that is not the study's own."""
    return f"{method}_{base}"


def obstacle(bench: Bench) -> str:
    """At least two sizes, the study's own among them."""
    models = bench.study.models
    if models.policy in models.sizes and len(set(models.sizes)) > 1:
        return ""
    return "models.sizes names no policies of other sizes beside the study's own, models.policy."


def arms(bench: Bench) -> list[ArmEntry]:
    """Three arms a seed and size, all at the baseline configuration; at the study's own size the ones that other
    experiments have too. Each size replays its own online stream.
    """
    entries = []
    for seed in bench.study.seeds:
        for size in bench.study.models.sizes:
            sized = bench.at_size(size)
            online, offline, shuffled = (family(method, size.name) if sized.size else method for method in METHODS)
            entries += [
                sized.online(seed, online),
                sized.recorded(seed, offline, sized.golden_pairs) if sized.size else sized.offline(seed),
                sized.on_stream(seed, shuffled, RecordedSpec(order="uniform")),
            ]
    return entries
