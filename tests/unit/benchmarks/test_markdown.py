"""Medians with quartiles, and tables."""

from __future__ import annotations

from benchmarks.markdown import quartiles, table


def test_quartiles_and_tables() -> None:
    assert str(quartiles([1.0, 2.0, 3.0, 4.0, 5.0])) == "3.00 (2.00-4.00)"
    assert quartiles([2.5]) == (2.5, 2.5, 2.5)
    assert table(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |"
