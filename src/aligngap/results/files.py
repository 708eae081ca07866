"""The files of a result folder: written whole, read with one UserError for each thing that is wrong."""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from aligngap.errors import UserError
from aligngap.results import _migrations
from aligngap.results._values import readable
from aligngap.results.schema import SCHEMA, StudyResults
from aligngap.results.tables import typed_points, typed_samples, with_readable_names

RESULTS, POINTS, SAMPLES, PER_PROMPT = "results.json", "points.parquet", "samples.parquet", "per_prompt.parquet"
_AGAIN = "Run the study again, with the same command: what is in the store is not made again."


def write(results: StudyResults, per_prompt: pl.DataFrame, folder: Path) -> None:
    """Write the four files, `results.json` last: whoever finds it finds what belongs to it. Raises OSError."""
    for name, frame in ((POINTS, results.points), (PER_PROMPT, per_prompt), (SAMPLES, results.samples)):
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        _put(folder / name, buffer.getvalue())
    _put(folder / RESULTS, (json.dumps(content(results), indent=2, allow_nan=False) + "\n").encode())


def content(results: StudyResults) -> dict[str, Any]:
    """What `results.json` holds, as plain values."""
    return {"schema": SCHEMA, **results.model_dump(mode="json")}


def read(folder: Path) -> StudyResults:
    """The results in a folder, without `per_prompt.parquet`.

    Raises:
        UserError: the folder holds no results, none that this version reads, or a value that cannot be.
    """
    path = folder / RESULTS
    raw = readable(_json(path))
    if raw["schema"] == 1:
        raw, points = _migrations.from_schema_1(raw)
    else:
        points = _table(folder / POINTS, typed_points, "the points are missing")
    samples = _table(folder / SAMPLES, typed_samples) if (folder / SAMPLES).exists() else typed_samples(pl.DataFrame())
    return parse(raw, points, samples, str(path))


def read_per_prompt(folder: Path) -> pl.DataFrame:
    """Every outcome, prompt by prompt. Raises UserError when the table is not there or cannot be read."""

    def typed(frame: pl.DataFrame) -> pl.DataFrame:
        if frame.is_empty():
            return frame
        return with_readable_names(frame.with_columns(pl.col("prompt_number", "seed", "step").cast(pl.Int64)))

    missing = "the outcomes prompt by prompt are missing, and no interval can be made without them"
    return _table(folder / PER_PROMPT, typed, missing)


def parse(raw: Mapping[str, Any], points: pl.DataFrame, samples: pl.DataFrame, where: str) -> StudyResults:
    """Results from what `results.json` holds. where: the file. Raises UserError, which names the key, for a value that
    cannot be.
    """
    try:
        return StudyResults.model_validate({**raw, "points": points, "samples": samples})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        what = f"{_key(raw, problem['loc'])}: {problem['msg']}"
        raise UserError(what, where=where, hint="Make the results again.") from None


def for_readers(results: StudyResults) -> StudyResults:
    """The same as they would be read from a file."""
    return parse(readable(content(results)), typed_points(results.points), typed_samples(results.samples), RESULTS)


def _key(value: Any, place: Sequence[str | int]) -> str:
    """The dotted key of a place, with the name of what is listed by name."""
    found = []
    for part in place:
        known = list(value)[part] if isinstance(value, Mapping) and isinstance(part, int) else part
        try:
            value = value[known]
        except (LookupError, TypeError):  # a key that is missing, or a branch of a choice between types
            found.append(f".{known}")
            break
        found.append(f"[{known}]" if isinstance(known, int) else f".{known}")
    return "".join(found).lstrip(".")


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            "this folder holds no results",
            where=str(path),
            hint="Give the folder of a run that has finished, or finish it with `aligngap run`.",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"not readable as JSON: {error}", where=str(path), hint="Make the results again.") from error
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or schema not in (1, SCHEMA) or isinstance(schema, bool):
        raise UserError(
            f"results of schema {schema!r}, but this version reads schema {SCHEMA}, and 1",
            where=str(path),
            hint="Use the version of aligngap that wrote them, or run the study again.",
        )
    return raw


def _table(path: Path, typed: Callable[[pl.DataFrame], pl.DataFrame], missing: str = "") -> pl.DataFrame:
    if not path.is_file():
        raise UserError(missing or "there is no such file", where=str(path), hint=_AGAIN)
    try:
        return typed(pl.read_parquet(path))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"not readable: {error}", where=str(path), hint=_AGAIN) from error


def _put(path: Path, data: bytes) -> None:
    """Put a file in place whole, through a temporary one beside it; on disk when this returns."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
