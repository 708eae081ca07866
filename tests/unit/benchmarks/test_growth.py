"""Exponents by hand, and points in processes of their own."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from benchmarks import growth
from benchmarks.growth import Curve, exponent, grown
from benchmarks.markdown import quartiles, table


def test_an_exponent_is_the_slope_between_logarithms() -> None:
    slope, error = exponent([1, 2, 4, 8], [3.0, 3.0 * 2**1.5, 3.0 * 4**1.5, 3.0 * 8**1.5])
    assert slope == pytest.approx(1.5)
    assert error == pytest.approx(0, abs=1e-9)
    # Residuals 1, -2, 1 around a flat line: se^2 = 6 / (3 - 2) / sum of squares (2).
    rough = exponent([2.718281828**x for x in (-1, 0, 1)], [2.718281828**y for y in (1, -2, 1)])
    assert rough == (pytest.approx(0, abs=1e-9), pytest.approx(3**0.5, rel=1e-6))


def held(megabytes: int) -> Callable[[], object]:
    def work() -> None:
        kept = bytearray(megabytes * 2**20)
        until = time.process_time() + megabytes / 1000
        while time.process_time() < until:
            kept[-1] = 1

    return work


def test_points_are_processes_of_their_own_so_that_peaks_do_not_add_up() -> None:
    row = grown(Curve("bytes", held, (100, 50, 200)), 1)
    assert row["seconds"][1] < row["seconds"][0] < row["seconds"][2]
    assert row["megabytes"] == pytest.approx([100, 50, 200], rel=0.2)
    assert row["megabytes_exponent"][0] == pytest.approx(1, abs=0.2)
    assert growth.cells({"name": "bytes", **row})[:2] == ("bytes", "100, 50, 200")


def test_a_point_whose_process_dies_is_an_error() -> None:
    with pytest.raises(SystemExit, match="its process died"):
        growth.measured(Curve("nothing", lambda value: exit(3), (1,)), 1)


@pytest.mark.parametrize("name", growth.CURVES)
def test_the_smallest_point_of_every_curve(name: str) -> None:
    curve = growth.CURVES[name]
    seconds, megabytes = growth.measured(curve, curve.values[0])
    assert seconds > 0
    assert megabytes > 1


def test_quartiles_and_tables() -> None:
    assert str(quartiles([1.0, 2.0, 3.0, 4.0, 5.0])) == "3.00 (2.00-4.00)"
    assert quartiles([2.5]) == (2.5, 2.5, 2.5)
    assert table(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |"
