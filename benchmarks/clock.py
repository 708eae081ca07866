"""Clocks, the machine's matrix peak, and useful floating-point operations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

READINGS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""`cpu` is the processor time of this process, all threads: on one thread what an idle core would take, near enough,
when others are at work on the machine. With more threads waiting counts too, so it says nothing."""

_reading = READINGS["wall"]


def use(name: str) -> None:
    """Which clock `now` reads from here on."""
    global _reading
    _reading = READINGS[name]


def now() -> float:
    """Seconds, on the clock in use."""
    return _reading()


def timed(work: Callable[[], object], seconds: float = 0.5, least: int = 3) -> float:
    """Median seconds of a call, over calls that fill `seconds`; the first call warms up and does not count."""
    work()
    found: list[float] = []
    while len(found) < least or sum(found) < seconds:
        start = now()
        work()
        found.append(now() - start)
    return statistics.median(found)


def median_interval(stamps: Sequence[float], skip: int = 2) -> float:
    """Median seconds between the ends of consecutive steps, the first `skip` of them left out."""
    return statistics.median(b - a for a, b in zip(stamps[skip - 1 :], stamps[skip:], strict=False))


def matrix_peak(seconds: float = 1.5, size: int = 1024) -> float:
    """Best fp32 FLOP/s of a square matrix product, with the threads torch has now."""
    a, b = (torch.rand(size, size) for _ in range(2))
    best, until = float("inf"), now() + seconds
    while now() < until:
        start = now()
        torch.mm(a, b)
        best = min(best, now() - start)
    return 2 * size**3 / best


def forward_flops(model: PreTrainedModel, read: float, predicted: float) -> float:
    """Useful operations of a forward pass: two per weight and token.

    read: tokens that go through the layers; predicted: tokens for which the head is needed. Embedding look-ups are
    free, attention's own products are not counted (short sequences).
    """
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings().weight
    weights = sum(parameter.numel() for parameter in model.parameters()) - embedding.numel()
    if head is not None and head.weight is not embedding:
        weights -= head.weight.numel()
    return 2 * (weights * read + embedding.numel() * predicted)
