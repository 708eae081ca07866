"""A diagnosis as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from aligngap.diagnosis.findings import Findings, Row, Section
from aligngap.diagnosis.numbers import Measurement, words
from aligngap.diagnosis.regime import Regime

WIDTH = 118
_SIGNED = ("excess", "lead", "chosen_longer_by")


def cell(row: Row[Measurement], column: str) -> str:
    """A number as people read it."""
    number = row.numbers.get(column)
    return "" if number is None else words(number, row.unit, signed=row.key.startswith(_SIGNED))


def label(row: Row[Measurement]) -> str:
    """With its unit, if it has one."""
    return row.label if row.unit == "%" else f"{row.label}, {row.unit}"


def lines(about: Mapping[str, Any], findings: Findings, regime: Regime) -> Iterator[str]:
    """The whole of it: what was looked at, every section, the regime."""
    yield from facts(about, findings.counts)
    for section in findings.sections:
        yield ""
        yield section.title.upper()
        yield from _table(section)
        for note in section.notes:
            yield from _wrapped(note, "  ")
    yield ""
    yield from verdict(regime)


def facts(about: Mapping[str, Any], counts: Mapping[str, Any]) -> Iterator[str]:
    """What was looked at."""
    yield f"policy {about['policy']}, taken to be the SFT policy; data {about['data']} ({about['format']})"
    prompts = about["prompts"]
    yield (
        f"{about['pairs']} pairs of {prompts} prompts ({about['pairs'] / prompts:.2f} a prompt), "
        f"{about['repeated_pairs']} pairs repeat an earlier one"
    )
    cut = [f"{about[key]} {key.removeprefix('cut_')} cut" for key in ("cut_prompts", "cut_responses") if about.get(key)]
    looked = f"looked at: one pair of each of {counts['prompts']} prompts, {counts['own_responses']} responses sampled"
    yield ", ".join([looked, *cut])
    if counts["ties"]:
        yield f"{counts['ties']} of them ties, left out where labels count"
    if "judge_calls" in counts:
        spent = ", ".join(f"{name} {value:g}" for name, value in counts["judge_spent"].items())
        yield f"judge {about['judge']}: asked about {counts['judge_calls']} pairs{f' ({spent})' if spent else ''}"
    yield "intervals are 95%, over prompts"


def verdict(regime: Regime) -> Iterator[str]:
    """The regime with its evidence."""
    yield f"REGIME: {regime.title}"
    yield from _wrapped(f"resembles: {regime.resembles}", "  ")
    for heading, result in (("for it", regime.evidence), ("against it", regime.against), ("beside it", regime.beside)):
        if result:
            yield f"  {heading}:"
            for line in result:
                yield from _wrapped(f"- {line}", "    ")
    yield from _wrapped(f"what it may mean: {regime.meaning}", "  ")
    yield "  limits:"
    for line in regime.limits:
        yield from _wrapped(f"- {line}", "    ")


def _table(section: Section[Measurement]) -> Iterator[str]:
    table = [["", *section.columns.values()]]
    table += [[label(row), *(cell(row, column) for column in section.columns)] for row in section.rows]
    first, *widths = (max(map(len, column)) for column in zip(*table, strict=True))
    for name, *cells in table:
        yield f"  {name:<{first}}" + "".join(f"  {text:>{width}}" for text, width in zip(cells, widths, strict=True))


def _wrapped(text: str, indent: str) -> Iterator[str]:
    yield from textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")
