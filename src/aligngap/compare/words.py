"""A comparison in words and tables, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aligngap.compare.differences import ArmPair, Comparison, Interval, Quantity, TaskComparison
from aligngap.report.style import OPPONENT_NAMES, SPLIT_NAMES
from aligngap.report.text import text_of_number, text_of_share

RATIO = "kl_at_peak_ratio"
HEADLINES = ("peak_difference", "average_gap", RATIO)
"""Of an arm's rows, those that a table of all arms shows."""


@dataclass(frozen=True)
class Sheet:
    """A table; columns that begin with > are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def value_words(value: float | None, unit: str, *, signed: bool = False) -> str:
    """Win rates in percent, all else with three digits."""
    sign = "+" if signed and value is not None and value > 0 else ""
    text = text_of_share(value) if unit == "win rate" else text_of_number(value)
    return sign + text.replace("\u202f", " ")  # not every terminal has the narrow space


def interval_words(number: Interval, unit: str, *, signed: bool = False) -> str:
    """`+3.1% [−1.2%, +7.4%]`, `+3.1%, no interval`, or `no data`."""
    value = value_words(number.value, unit, signed=signed)
    if number.value is None:
        return value
    if number.low is None or number.high is None:
        return f"{value}, no interval"
    ends = (value_words(end, unit, signed=signed) for end in (number.low, number.high))
    return f"{value} [{', '.join(ends)}]"


def difference_words(row: Quantity) -> str:
    """The difference with its sign; a ratio as a factor."""
    if row.key == RATIO:
        return ("× " if row.difference.value is not None else "") + interval_words(row.difference, row.unit)
    return interval_words(row.difference, row.unit, signed=True)


def setting_words(value: Any) -> str:
    """A setting in full."""
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def basis(row: Quantity) -> str:
    """How the interval was made, and what it covers."""
    return "; ".join(part for part in (row.how, row.note) if part)


def arm_words(pair: ArmPair) -> str:
    """The arm's name; both where they differ."""
    return pair.first if pair.first == pair.second else f"{pair.first} → {pair.second}"


def scale_words(task: TaskComparison) -> str:
    """What the win rates of a task are by."""
    split = SPLIT_NAMES.get(task.split, task.split)
    return f"{split}, golden judge, win rates against the responses of {OPPONENT_NAMES[task.opponent]}"


def sections(comparison: Comparison) -> Iterator[str | Sheet]:
    """Lines and tables, in reading order."""
    for which, side in (("first ", comparison.first), ("second", comparison.second)):
        yield f"{which}  {side.title} ({side.folder})"
    yield from comparison.notes
    rows = [[key, setting_words(a), setting_words(b)] for key, a, b in comparison.settings]
    yield Sheet("What differs", ("setting", "first", "second"), rows) if rows else "No setting differs."
    for task, reason in comparison.refused.items():
        yield f"{task}: not compared: {reason}"
    for task_comparison in comparison.tasks:
        yield from _of_task(task_comparison)


def _of_task(task: TaskComparison) -> Iterator[str | Sheet]:
    yield f"\n{task.task}, second minus first: {scale_words(task)}."
    yield from task.notes
    bases: dict[str, None] = {}
    rows = []
    for pair in task.arms:
        result = {row.key: row for row in pair.rows.get("golden", ())}
        if not result:
            continue
        shown = [result[key] for key in HEADLINES]
        levels = [number.value if number else None for number in (shown[0].first, shown[0].second)]
        cells = [value_words(level, "win rate") for level in levels] + [difference_words(row) for row in shown]
        rows.append([arm_words(pair), pair.seeds, *cells])
        bases |= dict.fromkeys(basis(row) for row in shown if row.difference.value is not None)
    columns = ("arm", "seeds", ">first's peak", ">second's", ">difference", ">gap at equal KL", ">KL at the peak")
    yield Sheet("Arms", columns, rows) if rows else "No arm has numbers by the golden judge in both runs."
    rows = []
    for question in task.experiments:
        cells = [question.title, " → ".join(dict.fromkeys(question.verdicts))]
        for row in question.rows[:1]:
            numbers = [interval_words(number, row.unit) for number in (row.first, row.second) if number]
            cells += [row.label, *numbers, difference_words(row)]
            bases |= dict.fromkeys([basis(row)] if row.difference.value is not None else [])
        rows.append([*cells, *["no data"] * (6 - len(cells))])
    if rows:
        yield Sheet("Experiments", ("question", "verdict", "estimate", ">first", ">second", ">difference"), rows)
    yield from (f"Intervals: {words}." for words in bases)
    yield from task.missing
