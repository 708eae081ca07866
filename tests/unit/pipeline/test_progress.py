from __future__ import annotations

import io

import pytest
from rich.console import Console

from aligngap.pipeline.executors.progress import KindTime, Ledger, activities, clock, display, time_by_kind
from aligngap.pipeline.graph import Event
from unit.pipeline.fake_stages import Fake


def test_a_rate_counts_only_the_steps_seen() -> None:
    stage = Fake(name="a")
    ledger = Ledger([stage], 1)
    entry = ledger.entries[stage.identity]
    ledger.update(Event("started", stage))
    ledger.update(Event("progress", stage, 100, 200, {}, 3.0))  # resumed at step 100
    assert entry.rate is None
    ledger.update(Event("progress", stage, 120, 200, {}, 7.0))
    assert entry.rate == 5.0
    assert entry.left == 16.0
    assert entry.pace == "120/200, 5 steps/s, 0:16 left"
    metrics = {"loss": 0.24321, "rewards/margins": -0.125, "rewards/accuracies": 0.625, "grad_norm": 3.0}
    ledger.update(Event("progress", stage, 130, 200, metrics, 9.0))
    assert entry.pace == "130/200, 5 steps/s, 0:14 left, loss 0.243, accuracy 0.625, margin -0.125"
    ledger.update(Event("progress", stage, 1, 10, {}, 8.0))  # another phase of the same stage
    assert entry.rate is None


def test_the_share_of_the_work_leaves_out_what_was_there() -> None:
    stages = [Fake(name="old", cost=50), Fake(name="half", cost=8), Fake(name="ready", cost=2)]
    ledger = Ledger(stages, 1)
    ledger.update(Event("cached", stages[0]))
    ledger.update(Event("finished", stages[2]))
    ledger.update(Event("progress", stages[1], 5, 10))
    assert ledger.fraction == pytest.approx(0.6)
    assert ledger.count("cached", "finished") == 2
    assert Ledger([], 1).fraction == 1.0


def test_left_follows_the_estimates_at_first_and_this_machines_pace_then() -> None:
    a, b = Fake(name="a", cost=60), Fake(name="b", cost=60)
    assert Ledger([a, b], 2).left == 60
    ledger = Ledger([a, b], 2)
    ledger.update(Event("finished", a, seconds=185))
    ledger.update(Event("progress", b, 1, 2, {}, 92.5))
    assert ledger.left == pytest.approx(30 * (185 + 92.5 + 5) / (60 + 30 + 5))


def test_time_by_kind_by_kind_the_dearest_first() -> None:
    given = [("sft", 2.0), ("arm", 5.0), ("arm", None), ("sft", 1.0), ("pairs", None)]
    assert time_by_kind(given) == [KindTime("arm", 2, 1, 5.0), KindTime("sft", 2, 2, 3.0), KindTime("pairs", 1, 0, 0.0)]
    assert time_by_kind([]) == []


def test_time_by_activity_adds_up_to_the_cores_time() -> None:
    arm, old, running = ({"training": 4.0, "sampling": 5.0}, 9.5), (None, 7.0), (None, 2.5)
    found = activities([arm, old, running, (None, None)], core_seconds=2 * 20.0, made=9.5 + 2.5)
    assert found == {"waiting": 28.0, "unknown": 10.0, "sampling": 5.0, "training": 4.0}
    # Made by this command: all but the old stage.
    assert sum(found.values()) == 2 * 20.0 + 7.0
    assert activities([arm], 0.0, 0.0) == {"sampling": 5.0, "training": 4.0, "unknown": 0.5}


def test_what_is_to_be_made_again_counts_as_not_begun() -> None:
    stage = Fake(name="a", cost=10)
    ledger = Ledger([stage], 1)
    ledger.update(Event("started", stage))
    ledger.update(Event("progress", stage, 5, 10, {}, 2.0))
    ledger.update(Event("vanished", stage, reason="killed"))
    entry = ledger.entries[stage.identity]
    assert (entry.status, entry.fraction, entry.reason) == ("waiting", 0.0, "killed")
    ledger.update(Event("started", stage))
    ledger.update(Event("progress", stage, 5, 10, {}, 0.1))
    ledger.update(Event("progress", stage, 7, 10, {}, 2.1))
    assert entry.rate == 1.0
    ledger.update(Event("finished", stage))
    assert (entry.status, entry.reason) == ("finished", "")


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]


@pytest.mark.parametrize("terminal", [False, True])
def test_both_displays_take_all_events(terminal: bool) -> None:
    stages = [Fake(name=name) for name in "abc"]
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    ledger = Ledger(stages, 1)
    with display(console, ledger) as show:
        for event in (
            Event("cached", stages[0]),
            Event("started", stages[1]),
            Event("progress", stages[1], 0, 0, {}, 0.1, "another run is making it"),
            Event("progress", stages[1], 5, 10, {}, 0.5),
            Event("vanished", stages[1], reason="killed"),
            Event("started", stages[1]),
            Event("failed", stages[1], reason="RuntimeError: [bold]no markup[/bold]"),
            Event("blocked", stages[2], reason="needs it"),
        ):
            ledger.update(event)
            show(event)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "fake [b]: RuntimeError: [bold]no markup[/bold]" in printed
    if not terminal:
        assert [line.split("] ", 1)[1] for line in printed.splitlines()] == [
            "started   fake [b]",
            "VANISHED  fake [b]: killed",
            "started   fake [b]",
            "FAILED    fake [b]: RuntimeError: [bold]no markup[/bold]",
            "BLOCKED   fake [c]: needs it",
        ]
