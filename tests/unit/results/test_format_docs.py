"""docs/results-format.md says what the schema says."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from aligngap.results import POINTS, SAMPLES, SCHEMA, Figure, FigurePoint, measure_columns, schema
from unit.results.format_tables import PAGE, described, filled

TEXT = PAGE.read_text("utf-8")


def test_every_record_has_its_table_as_the_schema_has_it() -> None:
    records = {name for name, kind in vars(schema).items() if isinstance(kind, type) and issubclass(kind, BaseModel)}
    records = {name for name in records if not name.startswith("_") and name != "BaseModel"}
    assert described(TEXT) == records | {Figure.__name__, FigurePoint.__name__}
    assert filled(TEXT) == TEXT, "write the tables anew: python -m unit.results.format_tables"
    assert f"| `schema` | {SCHEMA} |" in TEXT


@pytest.mark.parametrize(("heading", "columns"), [("points", POINTS), ("samples", SAMPLES)])
def test_every_column_of_a_table_is_described(heading: str, columns: dict[str, object]) -> None:
    section = TEXT.split(f"## `{heading}.parquet`")[1].split("\n## ")[0]
    said = set(re.findall(r"`([^`]+)`", "".join(line.split("|")[1] for line in section.splitlines() if "|" in line)))
    wins = {name for name in columns if re.match(r"(rate|se|n|ties)_(golden_policy|sft)_", name)}
    patterns = {"rate_OPPONENT_JUDGE", "se_OPPONENT_JUDGE", "n_OPPONENT_JUDGE", "ties_OPPONENT_JUDGE"}
    expected = (set(columns) - wins) | (patterns | set(measure_columns("NAME")) if wins else set())
    assert said == expected
