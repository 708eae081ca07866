"""Older result files as today's. Schema 1 nested points in arms, and win rates in points by opponent and judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from aligngap.results._values import number
from aligngap.results.tables import (
    JUDGES,
    MEASURES,
    OPPONENTS,
    POINTS,
    SPLITS,
    golden_kl,
    measure_columns,
    typed_points,
)


def from_schema_1(raw: Mapping[str, Any]) -> tuple[dict[str, Any], pl.DataFrame]:
    """What `results.json` would hold today, and the table of points. What is no number is null there; what is wrong
    otherwise is left for the schema to name.
    """
    tasks = _mapping(raw.get("tasks"))
    numbered = list(_numbered(tasks))
    rows = [row for run, task, arm in numbered for row in _points(run, task, _mapping(arm))]
    further = dict.fromkeys(column.removesuffix(".mean") for row in rows for column in row if column.endswith(".mean"))
    schema = POINTS | {column: kind for name in further for column, kind in measure_columns(name).items()}
    points = typed_points(pl.DataFrame(rows, schema))
    golden = [
        (run, task)
        for run, task, arm in numbered
        if (_mapping(arm).get("family"), _mapping(arm).get("status")) == ("golden_policy", "finished")
    ]
    changed = {
        name: _task(content, golden_kl(points, [run for run, task in golden if task == name]))
        for name, content in tasks.items()
    }
    return {**raw, "tasks": changed or raw.get("tasks", {})}, points


def _numbered(tasks: Mapping[str, Any]) -> Iterator[tuple[int, str, Any]]:
    """(run, task, arm) of every arm, in order."""
    arms = ((name, arm) for name, content in tasks.items() for arm in _list(_mapping(content).get("arms")))
    yield from ((run, name, arm) for run, (name, arm) in enumerate(arms))


def _task(content: Any, golden: Mapping[str, float]) -> Any:
    if not isinstance(content, Mapping):
        return content
    adjusted = _mapping(content.get("holm"))
    experiments = content.get("experiments", {})
    if isinstance(experiments, Mapping):
        experiments = {
            name: {**result, "holm": adjusted.get(name), "power": result.get("power") or None}
            if isinstance(result, Mapping)
            else result
            for name, result in experiments.items()
        }
    # A stage may state the golden policy's KL where no arm does.
    stated = number(_mapping(_mapping(content.get("stages")).get("golden_policy")).get("kl"))
    known = {split: golden.get(split, stated) for split in SPLITS}
    return {**content, "experiments": experiments, "golden_kl": {s: kl for s, kl in known.items() if kl is not None}}


def _points(run: int, task: str, arm: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    settings, loss = _mapping(arm.get("settings")), _mapping(arm.get("loss"))
    about = {"run": run, "task": task, "arm": _text(arm.get("name")), "baseline": bool(arm.get("baseline"))}
    about |= {name: _text(arm.get(name)) for name in ("family", "base", "identity")}
    about |= {"seed": _whole(arm.get("seed")), "loss": _text(loss.get("name"))}
    about |= {"lr": number(settings.get("lr")), "beta": number(settings.get("beta", loss.get("beta")))}
    for point in map(_mapping, _list(arm.get("points"))):
        row = about | {"step": _whole(point.get("step")), "split": _text(point.get("split"))}
        row |= {name: number(point.get(name)) for name in ("kl", "kl_se", *MEASURES)}
        row |= {"pairs": _whole(point.get("pairs"))}
        for name, result in _mapping(point.get("measures")).items():
            cell = _mapping(result)
            values = (number(cell.get("mean")), number(cell.get("se")), _whole(cell.get("n")))
            row |= dict(zip(measure_columns(name), values, strict=True))
        wins = _mapping(point.get("wins"))
        for opponent in OPPONENTS:
            for judge in JUDGES:
                cell = _mapping(_mapping(wins.get(opponent)).get(judge))
                row |= {f"{what}_{opponent}_{judge}": number(cell.get(what)) for what in ("rate", "se")}
                row |= {f"{what}_{opponent}_{judge}": _whole(cell.get(what)) for what in ("n", "ties")}
        if row["rate_sft_proxy"] is None:  # the proxy's opinion against SFT was also kept by itself
            row["rate_sft_proxy"] = number(point.get("proxy"))
        yield row


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _whole(value: object) -> int | None:
    result = number(value)
    return None if result is None or abs(result) >= 2**53 else int(result)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
