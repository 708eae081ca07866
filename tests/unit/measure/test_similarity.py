"""Likeness of responses, against the textbook's definition."""

from __future__ import annotations

from math import isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligngap.measure.similarity import bigrams, edit_similarity, share_within

ROWS = st.lists(st.integers(0, 3), max_size=7)


def levenshtein(a: list[int], b: list[int]) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(levenshtein(a[1:], b) + 1, levenshtein(a, b[1:]) + 1, levenshtein(a[1:], b[1:]) + (a[0] != b[0]))


@given(ROWS, ROWS)
def test_it_is_one_minus_the_distance_by_the_longer(a: list[int], b: list[int]) -> None:
    longest = max(len(a), len(b))
    expected = 1 - levenshtein(a, b) / longest if longest else 1.0
    assert edit_similarity(a, b) == pytest.approx(expected)
    assert edit_similarity(b, a) == edit_similarity(a, b)


def test_bigrams_and_their_share() -> None:
    assert bigrams([1, 2, 2, 2]) == [(1, 2), (2, 2), (2, 2)]
    assert share_within(bigrams([1, 2, 2, 2]), {(2, 2)}) == pytest.approx(2 / 3)
    assert isnan(share_within(bigrams([1]), {(2, 2)}))
