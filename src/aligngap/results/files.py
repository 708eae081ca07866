"""The files of a result folder: written whole, read with one UserError for each thing that is wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from aligngap.errors import UserError, brief
from aligngap.results import _migrations
from aligngap.results._values import readable
from aligngap.results.schema import SCHEMA, StudyResults
from aligngap.results.tables import typed_points, typed_samples, with_readable_names
from aligngap.store.disk import write_bytes_atomic
from aligngap.store.reading import check_plain, parse_json, read_file

RESULTS, POINTS, SAMPLES, PER_PROMPT = "results.json", "points.parquet", "samples.parquet", "per_prompt.parquet"
_AGAIN = "Give the `aligngap run` command again: what is in the store is not made again."


def write(results: StudyResults, per_prompt: pl.DataFrame, folder: Path) -> None:
    """Write the four files, `results.json` last: whoever finds it finds what belongs to it. Raises DiskError."""
    for name, frame in ((POINTS, results.points), (PER_PROMPT, per_prompt), (SAMPLES, results.samples)):
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        write_bytes_atomic(folder / name, buffer.getvalue())
    write_bytes_atomic(folder / RESULTS, (json.dumps(content(results), indent=2, allow_nan=False) + "\n").encode())


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


def read_samples(folder: Path) -> pl.DataFrame:
    """Prompts and responses, as they are shown. Raises UserError when the table is not there or cannot be read."""
    return _table(folder / SAMPLES, typed_samples, "it has not been written yet")


def parse(raw: Mapping[str, Any], points: pl.DataFrame, samples: pl.DataFrame, where: str) -> StudyResults:
    """Results from what `results.json` holds. where: the file. Raises UserError, which names the key, for a value that
    cannot be.
    """
    try:
        return StudyResults.model_validate({**raw, "points": points, "samples": samples})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        what = f"{brief(_key(raw, problem['loc']))}: {brief(problem['msg'], 400)}"
        raise UserError(what, where=where, hint="Make the results again.") from None


def for_readers(results: StudyResults) -> StudyResults:
    """The same as they would be read from a file."""
    return parse(readable(content(results)), typed_points(results.points), typed_samples(results.samples), RESULTS)


def _key(value: Any, place: Sequence[str | int]) -> str:
    """The dotted key of a place, with the name of what is listed by name."""
    result = []
    for part in place:
        known = list(value)[part] if isinstance(value, Mapping) and isinstance(part, int) else part
        try:
            value = value[known]
        except (LookupError, TypeError):  # a key that is missing, or a branch of a choice between types
            result.append(f".{known}")
            break
        result.append(f"[{known}]" if isinstance(known, int) else f".{known}")
    return "".join(result).lstrip(".")


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = parse_json(read_file(path), finite=False)
    except FileNotFoundError:
        raise UserError(
            "this folder holds no results",
            where=str(path),
            hint="Give the folder of a run that has finished, or finish it with `aligngap run`.",
        ) from None
    except (ValueError, RecursionError) as error:
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
    try:
        check_plain(path)
        return typed(pl.read_parquet(path))
    except FileNotFoundError:
        raise UserError(missing or "there is no such file", where=str(path), hint=_AGAIN) from None
    # A panic is what Polars makes of some damaged files, and no Exception.
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(f"not readable: {error}", where=str(path), hint=_AGAIN) from error
