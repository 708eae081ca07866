"""Online, and its recorded stream shuffled within windows from none to the whole run."""

from __future__ import annotations

from collections.abc import Sequence

from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.pipeline.stages import Arm
from aligngap.sources.recorded import RecordedSpec

SMALL, PART = 4, 8
"""Batches of the small window that the verdict rests on, as in the paper; the large one is an eighth of the run, as
500 batches are of the paper's 4,000.
"""

LABELS = {
    "replay": "exact order",
    "window_1": "windows of 1 batch",
    "window_4": f"windows of {SMALL} batches",
    "window_eighth": "windows of an eighth of the run",
    "shuffled": "wholly shuffled",
}


def replays(bench: Bench, seed: int, families: Sequence[str] = tuple(LABELS)) -> list[ArmEntry]:
    """Offline on the online stream of a seed in each of these orders; exact and wholly shuffled are the arms of the
    tandem and coverage experiments.
    """
    eighth = max(1, bench.study.baseline.optim.steps // PART)
    orders = {
        "replay": RecordedSpec(order="sequence"),
        **{
            family: RecordedSpec(order="window", window=batches)
            for family, batches in (("window_1", 1), ("window_4", SMALL), ("window_eighth", eighth))
        },
        "shuffled": RecordedSpec(order="uniform"),
    }
    names = {
        family: f"stream, windows of {order.window}" for family, order in orders.items() if order.order == "window"
    }
    return [bench.on_stream(seed, family, orders[family], name=names.get(family)) for family in families]


def arms(bench: Bench) -> list[ArmEntry]:
    """Six arms a seed."""
    return [entry for seed in bench.study.seeds for entry in (bench.online(seed), *replays(bench, seed))]


def window(arm: Arm) -> float:
    """Batches within which an arm's recorded pairs are shuffled: the whole run where the order is uniform, a single
    pair where they come in sequence.

    Raises:
        ValueError: the arm's pairs are not recorded.
    """
    if not isinstance(arm.source, RecordedSpec):
        raise ValueError(f"only recorded pairs have a shuffle window: {arm.label}")
    if arm.source.order == "window":
        return arm.source.window
    return 1 / arm.optim.batch if arm.source.order == "sequence" else arm.optim.steps
