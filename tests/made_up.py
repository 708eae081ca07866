"""Finished arms whose truth is known, for tests of analyses. The numbers are test data, not results."""

from __future__ import annotations

from aligngap.testing.experiments import (
    HALFWAY,
    KL,
    LOW,
    PAIRS,
    PROMPTS,
    RISING,
    analysed,
    bench,
    entries,
    finished,
    per_pair,
)

__all__ = [
    "BENCH",
    "HALFWAY",
    "KL",
    "LOW",
    "PAIRS",
    "PROMPTS",
    "RISING",
    "analysed",
    "bench",
    "entries",
    "finished",
    "per_pair",
]

BENCH = bench()
