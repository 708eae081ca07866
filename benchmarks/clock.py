"""Times, the machine's matrix peak, and useful floating-point operations."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from transformers import PreTrainedModel

Work = Callable[[], float]
"""Does the work of one round; returns the median seconds of one call (or step) in it."""


def timed(work: Callable[[], object], seconds: float = 0.5, least: int = 3) -> float:
    """Median seconds of a call, over calls that fill `seconds`; the first call warms up and does not count."""
    work()
    taken: list[float] = []
    while len(taken) < least or sum(taken) < seconds:
        start = perf_counter()
        work()
        taken.append(perf_counter() - start)
    return statistics.median(taken)


def median_interval(stamps: Sequence[float], skip: int = 2) -> float:
    """Median seconds between the ends of consecutive steps, the first `skip` of them left out."""
    return statistics.median(b - a for a, b in zip(stamps[skip - 1 :], stamps[skip:], strict=False))


def matrix_peak(seconds: float = 1.5, size: int = 1024) -> float:
    """Best fp32 FLOP/s of a square matrix product, with the threads torch has now."""
    a, b = (torch.rand(size, size) for _ in range(2))
    best, until = float("inf"), perf_counter() + seconds
    while perf_counter() < until:
        start = perf_counter()
        torch.mm(a, b)
        best = min(best, perf_counter() - start)
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
