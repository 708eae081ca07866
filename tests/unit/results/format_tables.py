"""The tables of docs/results-format.md, made from the schema. To write them anew after a change, with this folder's
parent on the path: `python -m unit.results.format_tables`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from aligngap.results import schema

PAGE = Path(__file__).parents[3] / "docs" / "results-format.md"
_MARKED = re.compile(r"(<!-- fields: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_WORDS = {"string": "text", "number": "number", "integer": "int", "boolean": "bool", "array": "list", "null": "null"}


def table(record: str) -> str:
    """The fields of one record of the schema: name, type and meaning."""
    found = TypeAdapter(getattr(schema, record)).json_schema(mode="serialization")
    named = {key: field for key, field in found["properties"].items() if (record, key) not in _KEYS}
    rows = [f"| `{key}` | {_type(field)} | {' '.join(field['description'].split())} |" for key, field in named.items()]
    return "\n".join(["| field | type | meaning |", "|---|---|---|", *rows, ""])


_KEYS = {(record, "name") for record in ("Task", "Conclusion", "EstimateRecord")}
"""Fields that are the key of their record in the file."""


def _type(field: dict[str, Any]) -> str:
    parts = field.get("anyOf", [field])
    words = [_WORDS.get(part.get("type", ""), "object") for part in parts]
    return ", ".join(words[:-1]) + (" or " if words[:-1] else "") + words[-1]


def filled(page: str) -> str:
    """The page with every table as it should be."""
    return _MARKED.sub(lambda found: found[1] + table(found[2]) + found[3], page)


def described(page: str) -> set[str]:
    """The records that the page has a table of."""
    return {found[2] for found in _MARKED.finditer(page)}


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8")), "utf-8")
