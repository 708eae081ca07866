"""Estimates as a sentence has them."""

from __future__ import annotations

from math import nan

import pytest

from aligngap.stats.intervals import Estimate


@pytest.mark.parametrize(
    ("numbers", "plain", "signed"),
    [
        ((0.123, 0.08, 0.16), "12.3% [8.0%, 16.0%]", "+12.3% [+8.0%, +16.0%]"),
        ((0.123, nan, nan), "12.3% [no interval]", "+12.3% [no interval]"),
        ((nan, nan, nan), "(no data)", "(no data)"),
    ],
)
def test_what_is_not_there_is_told_and_never_a_number(
    numbers: tuple[float, float, float], plain: str, signed: str
) -> None:
    found = Estimate(*numbers, 3, 100, 0, "")
    assert (f"{found:.1%}", f"{found:+.1%}") == (plain, signed)


@pytest.mark.parametrize(("seeds", "words"), [(1, "not another training run"), (4, "few"), (5, "5 seeds, 100 prompts")])
def test_what_an_interval_covers(seeds: int, words: str) -> None:
    assert words in Estimate(0.1, 0.0, 0.2, seeds, 100, 0, "").across()
