"""Where a stage's time goes: every second counts once."""

from __future__ import annotations

import pytest

from aligngap import timings
from aligngap.timings import account, spending


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timings.time, "perf_counter", made)
    return made


def test_what_is_inside_counts_as_that_and_the_rest_as_the_stages_own(clock: Clock) -> None:
    @spending("judging")
    def judge() -> None:
        clock.now += 3

    with account("training") as found:
        clock.now += 1
        with spending("sampling"):
            clock.now += 10
            judge()
            clock.now += 20
        judge()
        clock.now += 100
    clock.now += 1000
    assert found == {"training": 101, "sampling": 30, "judging": 6}


def test_outside_an_account_nothing_is_kept_and_an_error_closes_it(clock: Clock) -> None:
    with spending("sampling"):
        clock.now += 5

    @spending("sampling")
    def lose() -> None:
        clock.now += 7
        raise ValueError("lost")

    with account("evaluation") as found, pytest.raises(ValueError, match="lost"):
        lose()
    assert found == {"evaluation": 0, "sampling": 7}
    with account("data") as found:
        clock.now += 2
    assert found == {"data": 2}


def test_an_account_within_an_account_takes_its_time_out_of_it(clock: Clock) -> None:
    with account("data") as outer:
        clock.now += 1
        with account("training") as inner:
            clock.now += 10
        clock.now += 1
    assert (outer, inner) == ({"data": 2}, {"training": 10})
