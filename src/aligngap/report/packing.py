"""Data as a page holds it: JSON that ends no element, and a task's tables and specifications, compressed."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from aligngap.report.figures import Chart, tables
from aligngap.report.still import changed
from aligngap.results import StudyResults, Task


def json_in_html(value: object) -> str:
    """JSON that no HTML or script parser can be led out of, with null for what is not a finite number."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate, which a broken tokenizer can produce, has no UTF-8.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def packed(value: Any) -> str:
    """JSON, compressed, in letters that HTML gives no meaning to; the page unpacks a task's when it is looked at."""
    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("ascii"), compresslevel=6, mtime=0)).decode("ascii")


def _columns(rows: list[dict[str, Any]], without: Collection[str] = ()) -> dict[str, Any]:
    """Names once instead of in every row. A column of nulls stays: specifications compare with null, and a field that
    is not there is something else.
    """
    names = [name for name in rows[0] if name not in without] if rows else []
    return {"columns": names, "rows": [[row[name] for name in names] for row in rows]}


def _without_legend(node: dict[str, Any]) -> dict[str, Any]:
    """The page has its own legend, which a keyboard can reach."""
    return node | {"legend": None} if "legend" in node else node


def drawable(data: StudyResults, task: Task, figures: list[Chart]) -> dict[str, Any]:
    """What the script draws a task's figures from: each table and each specification once, figures by reference."""
    rows_of = tables(data, task)
    of_run = ("arm", "family", "seed", "baseline", "base")
    panels = [panel for figure in figures for panel in figure.panels]
    return {
        # The script gives each point what its run says.
        "tables": {name: _columns(rows, of_run if name == "points" else ()) for name, rows in rows_of.items()},
        "specs": {panel.key: changed(panel.build(), _without_legend) for panel in {p.key: p for p in panels}.values()},
        "figures": {
            figure.name: {
                "panels": [{"spec": panel.key, "params": panel.params} for panel in figure.panels],
                "shown": figure.shown,
                "span": figure.span,
                "against": figure.against,
            }
            for figure in figures
        },
    }
