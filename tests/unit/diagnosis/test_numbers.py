"""Numbers with intervals."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest

from aligngap.diagnosis.numbers import UNKNOWN, Measurement, Ratio, numbers, words


def test_means_and_ratios_of_means() -> None:
    top, bottom = np.array([1.0, 2.0, 6.0]), np.array([1.0, 1.0, 2.0])
    found = numbers({"mean": top, "ratio": Ratio(top, bottom)}, np.random.default_rng(0), 200)
    assert found["mean"].value == pytest.approx(3)
    assert found["ratio"].value == pytest.approx(9 / 4)  # not the mean of ratios, which is 2
    assert (found["mean"].n, found["ratio"].n) == (3, 3)


def test_what_is_missing_is_left_out_and_no_data_is_unknown() -> None:
    some, none = np.array([np.nan, 1.0, 3.0]), np.full(3, np.nan)
    found = numbers({"some": some, "none": none, "by 0": Ratio(some, np.zeros(3))}, np.random.default_rng(0), 200)
    assert (found["some"].value, found["some"].n) == (2, 2)
    assert isnan(found["none"].value)
    assert found["none"].n == found["by 0"].n == 0
    assert found["none"].as_json() == {"value": None, "low": None, "high": None, "n": 0}


def test_the_interval_of_a_share_is_one_of_shares() -> None:
    found = numbers({"rare": np.eye(1, 60)[0], "sum": np.eye(1, 60)[0] * 2}, np.random.default_rng(0), 200)
    assert found["rare"].low == 0
    assert 0 < found["rare"].value < found["rare"].high < 1
    assert found["sum"].high > 0


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = dict.fromkeys(("mean", "ratio"), 0)
    for _ in range(300):
        length = rng.integers(1, 9, 120).astype(np.float64)
        total = length * 0.5 + rng.standard_normal(120)
        found = numbers({"mean": total, "ratio": Ratio(total, length)}, rng, 200)
        for name, truth in (("mean", 2.25), ("ratio", 0.5)):  # lengths 1 to 8: 4.5 in the mean
            held[name] += found[name].low <= truth <= found[name].high
    assert all(272 <= count <= 297 for count in held.values()), held


@pytest.mark.parametrize(
    ("number", "unit", "signed", "text"),
    [
        (Measurement(0.5, 0.25, 1.0, 9), "%", False, "50.0% [25.0%, 100.0%]"),
        (Measurement(-0.5, -1.25, 0.25, 9), "nats", True, "-0.500 [-1.250, +0.250]"),
        (Measurement(12.34, 10.0, 15.0, 9), "tokens", False, "12.3 [10.0, 15.0]"),
        (UNKNOWN, "%", False, "-"),
    ],
)
def test_words(number: Measurement, unit: str, signed: bool, text: str) -> None:
    assert words(number, unit, signed=signed) == text
