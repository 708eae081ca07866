"""Points made up for tests: no number here is a measurement."""

from __future__ import annotations

import polars as pl

from aligngap.results import POINTS


def row(run: int, arm: str, **values: object) -> pl.DataFrame:
    """One point; what is not given is null."""
    given = {"run": run, "task": "summarisation", "arm": arm, "family": arm, "seed": 0, "step": 8, "split": "held_out"}
    frame = pl.DataFrame([given | values])
    return frame.with_columns(
        pl.lit(None, kind).alias(name) for name, kind in POINTS.items() if name not in frame.columns
    )
