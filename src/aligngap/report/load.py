"""A result folder as typed frames: `load(folder) -> ReportData`.

The format is described field by field in `docs/results-format.md`. A number that is missing, null, NaN or infinite
becomes a null here and "no data" on the page; nothing turns into 0 on the way.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from aligngap.errors import UserError

SCHEMA = 1

#: Against whose responses the policy's are judged, and by whom.
OPPONENTS = ("golden_policy", "sft")
JUDGES = ("golden", "true", "proxy")
#: Held-out prompts first: where both exist, the page shows them first.
SPLITS = ("held_out", "train")
#: Measures of a checkpoint that results always have, beside its win rates.
MEASURES = ("proxy", "utility", "tokens", "accuracy", "drift", "self_accuracy")
FAMILIES = ("online", "offline", "offline_proxy", "replay", "shuffled", "golden_policy")
VERDICTS = ("supported", "contradicted", "inconclusive")
#: Status of an arm or measure that is still to come, and the verdict of an experiment that waits for one: only seen
#: while a study runs.
PENDING, UNFINISHED = "pending", "unfinished"
#: In a verdict's place: the analysis itself has failed.
FAILED = "failed"

_WIN_FIELDS = ("rate", "se", "n", "ties")
WIN_COLUMNS = tuple(f"{what}_{who}_{judge}" for who in OPPONENTS for judge in JUDGES for what in _WIN_FIELDS)

_RUN_COLUMNS: dict[str, Any] = {
    "task": pl.String,
    "run": pl.Int64,
    "arm": pl.String,
    "family": pl.String,
    "seed": pl.Int64,
    "baseline": pl.Boolean,
    "base": pl.String,
}
_POINT_SCHEMA: dict[str, Any] = (
    _RUN_COLUMNS
    | {"step": pl.Int64, "split": pl.String, "kl": pl.Float64, "kl_se": pl.Float64}
    | dict.fromkeys(WIN_COLUMNS, pl.Float64)
    | dict.fromkeys(MEASURES, pl.Float64)
)
_RUN_SCHEMA: dict[str, Any] = (
    _RUN_COLUMNS
    | {"status": pl.String, "reason": pl.String, "weights_sha256": pl.String}
    | dict.fromkeys(("seconds", "tokens_sampled", "judge_calls", "steps"), pl.Float64)
    | {"peak_step": pl.Int64, "peak_kl": pl.Float64, "peak_rate": pl.Float64}
    | {"end_step": pl.Int64, "end_kl": pl.Float64, "end_rate": pl.Float64, "at_split": pl.String}
)
_SAMPLE_SCHEMA: dict[str, Any] = {
    "task": pl.String,
    "split": pl.String,
    "prompt_number": pl.Int64,
    "prompt": pl.String,
    "who": pl.String,
    "arm": pl.String,
    "seed": pl.Int64,
    "step": pl.Int64,
    "response": pl.String,
    "ended": pl.Boolean,
    "utility": pl.Float64,
    "margin_golden": pl.Float64,
    "margin_proxy": pl.Float64,
    "win_golden_policy_golden": pl.Float64,
}


@dataclass(frozen=True)
class Estimate:
    """One number with its interval, and what the interval covers."""

    key: str
    label: str
    value: float | None
    low: float | None
    high: float | None
    n_seeds: int | None
    n_prompts: int | None
    note: str
    unit: str
    #: The value the verdict's rule holds the interval against, and its p-value; None but where the verdict rests on it.
    null: float | None
    p: float | None


@dataclass(frozen=True)
class Drawing:
    """A figure of an experiment: points of its own, or the win-rate curves of `families`.

    points: rows of series, x (a number, or a name in every row), y, low, high, seed. dropped: how many rows of the
    results had no place in it, for want of a finite x or y, or of a positive x on a log axis.
    """

    experiment: str
    name: str
    title: str
    x: str
    y: str
    mark: Literal["line", "point", "bar"]
    x_log: bool
    families: tuple[str, ...]
    points: tuple[dict[str, Any], ...]
    dropped: int

    @property
    def key(self) -> str:
        return f"{self.experiment}-{self.name}"

    @property
    def named(self) -> bool:
        """Whether x are names."""
        return any(isinstance(point["x"], str) for point in self.points)


@dataclass(frozen=True)
class Experiment:
    """A question on a task, with its verdict; the first estimate is the one the verdict rests on.

    holm: the first estimate's p-value, adjusted for all experiments of the task. power: `seeds` and `prompts` that
    would resolve an effect of the size seen, and a `note` where that cannot be told. inputs: its arms and measures,
    with the seeds that are finished, failed and pending.
    """

    name: str
    title: str
    question: str
    finding: str
    rule: str
    verdict: str
    sentence: str
    estimates: tuple[Estimate, ...]
    figures: tuple[Drawing, ...]
    holm: float | None
    power: dict[str, Any]
    inputs: tuple[dict[str, Any], ...]

    @property
    def main(self) -> Estimate | None:
        return self.estimates[0] if self.estimates else None


@dataclass(frozen=True)
class Task:
    """What is known of a task beside its points."""

    name: str
    arms: tuple[dict[str, Any], ...]
    stages: dict[str, Any]
    experiments: tuple[Experiment, ...]
    #: The experiments' own measures: name, seed, status, reason.
    measures: tuple[dict[str, Any], ...]
    #: KL of the finished golden policy on each split, where the results have it: the budget others are compared at.
    golden_kl: dict[str, float]
    #: Experiments of the study that cannot be asked on this task, and why.
    not_asked: dict[str, str] = field(default_factory=dict)
    #: Identities of what win rates and KL are measured with; empty in results of older versions.
    yardstick: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportData:
    """All that charts and page draw on. `points` holds a row per run, step and split; `runs` a row per arm and seed."""

    study: dict[str, Any]
    smoke: bool
    revision: dict[str, Any] | None
    tasks: tuple[Task, ...]
    points: pl.DataFrame
    runs: pl.DataFrame
    samples: pl.DataFrame
    timings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    #: Further measures that the study asked for, by their column of `points`; the standard error is in COLUMN_se.
    measures: dict[str, str] = field(default_factory=dict)

    @property
    def families(self) -> list[str]:
        """Those the paper compares first and in its order, then the others in order of appearance."""
        present = list(dict.fromkeys(self.runs["family"].to_list()))
        return [f for f in FAMILIES if f in present] + [f for f in present if f not in FAMILIES]

    @property
    def pending(self) -> int:
        """How many arms and measures are still to come, a seed each; 0 but while the study runs."""
        measures = [measure.get("status") for task in self.tasks for measure in task.measures]
        return [*self.runs["status"].to_list(), *measures].count(PENDING)

    @property
    def seeds(self) -> list[int]:
        return sorted(seed for seed in self.runs["seed"].unique().to_list() if seed is not None)


def number(value: object) -> float | None:
    """A finite number, or None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def load(folder: Path) -> ReportData:
    """Read `results.json`, and `samples.parquet` where it exists.

    Raises:
        UserError: the folder holds no results, or none that this version reads.
    """
    return parsed(_read_results(folder / "results.json"), _read_samples(folder / "samples.parquet"))


def parsed(content: dict[str, Any], samples: pl.DataFrame) -> ReportData:
    """What `results.json` holds as typed frames. samples: what `samples.parquet` holds, or an empty frame."""
    raw: dict[str, Any] = _readable(content)
    measures = _measures(raw)
    point_rows: list[dict[str, Any]] = []
    run_rows: list[dict[str, Any]] = []
    tasks = []
    for key, found in _dict(raw.get("tasks")).items():
        name, content = _name(key), _dict(found)
        arms = tuple(_arm(_dict(arm)) for arm in _list(content.get("arms")))
        for arm in arms:
            keys = {
                "task": name,
                "run": len(run_rows),
                "arm": arm["name"],
                "family": arm["family"],
                "seed": arm["seed"],
                "baseline": bool(arm.get("baseline")),
                "base": None if arm.get("base") is None else _name(arm["base"]),
            }
            points = [_point(keys, _dict(point), measures) for point in _list(arm.get("points"))]
            point_rows += points
            run_rows.append(_run(keys, arm, points))
        holm = _dict(content.get("holm"))
        experiments = tuple(
            _experiment(key, _dict(value), number(holm.get(key)))
            for key, value in _dict(content.get("experiments")).items()
        )
        ours = [row for row in run_rows if row["task"] == name]
        stages = _dict(content.get("stages"))
        stage_measures = tuple(_dict(measure) for measure in _list(content.get("measures")))
        golden_kl = _golden_kl(ours, point_rows, name, stages)
        not_asked = {str(key): _line(reason) for key, reason in _dict(content.get("not_asked")).items()}
        yardstick = {key: str(value) for key, value in _dict(content.get("yardstick")).items()}
        tasks.append(Task(name, arms, stages, experiments, stage_measures, golden_kl, not_asked, yardstick))
    return ReportData(
        study=_dict(raw.get("study")),
        smoke=bool(raw.get("smoke")),
        revision=_dict(raw.get("revision")) or None,
        tasks=tuple(tasks),
        points=pl.DataFrame(point_rows, schema=_POINT_SCHEMA | _measure_schema(measures)),
        runs=pl.DataFrame(run_rows, schema=_RUN_SCHEMA),
        samples=_samples(samples),
        timings=_dict(raw.get("timings")),
        versions=_dict(raw.get("versions")),
        measures=measures,
    )


def _measures(raw: dict[str, Any]) -> dict[str, str]:
    """The further measures of any point, in their order, by column: a name could be any text, or another column's."""
    arms = (_dict(arm) for task in _dict(raw.get("tasks")).values() for arm in _list(_dict(task).get("arms")))
    points = (_dict(point) for arm in arms for point in _list(arm.get("points")))
    names = dict.fromkeys(name for point in points for name in _dict(point.get("measures")))
    return {f"measure_{index}": name for index, name in enumerate(names)}


def _measure_schema(measures: Mapping[str, str]) -> dict[str, Any]:
    return {column: pl.Float64 for name in measures for column in (name, f"{name}_se")}


def _read_results(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            "this folder holds no results",
            where=str(path),
            hint="Give the folder of a run that has finished, or finish it with `aligngap run`.",
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"not readable as JSON: {error}", where=str(path), hint="Make the results again.") from error
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or schema != SCHEMA:
        raise UserError(
            f"results of schema {schema!r}, but this version reads schema {SCHEMA}",
            where=str(path),
            hint="Use the version of aligngap that wrote them, or run the study again.",
        )
    return raw


def _read_samples(path: Path) -> pl.DataFrame:
    if not path.exists():
        return pl.DataFrame()
    try:
        return _samples(pl.read_parquet(path))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"not readable: {error}", where=str(path), hint="Make the results again.") from error


def _samples(frame: pl.DataFrame) -> pl.DataFrame:
    schema = _SAMPLE_SCHEMA
    if frame.is_empty():
        return pl.DataFrame(schema=schema)
    # A column that is all null has no type of its own in Parquet, and one that is absent is all null.
    columns = [
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in schema.items()
    ]
    frame = frame.select(columns)
    hidden = _HIDDEN.pattern.replace("\ud800-\udfff", "")  # Parquet holds no lone surrogates
    frame = with_readable_names(frame.with_columns(pl.col(pl.String).str.replace_all(hidden, "\ufffd")))
    floats = [name for name, kind in schema.items() if kind == pl.Float64]
    return frame.with_columns(pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in floats)


#: What no reader sees and some program obeys; lone surrogates, too, which a broken tokenizer can produce and no file
#: in UTF-8 can hold. Marks of direction stay: text that runs from right to left needs them, and the page contains them.
_HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
#: No title, name or reason is longer than this; a trace of an error may be.
_LONGEST, _LONGEST_NAME = 4000, 200


def _readable(value: Any) -> Any:
    """The same, with every text as a reader can take it: hidden characters as �, and no end that nobody reads."""
    if isinstance(value, str):
        return shortened(_HIDDEN.sub("\ufffd", value), _LONGEST)
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    return [_readable(item) for item in value] if isinstance(value, list) else value


def shortened(text: str, longest: int) -> str:
    """Never in silence: what is left out is counted."""
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text) - longest:,} more characters)"


def _name(value: object) -> str:
    """A name on one line, short enough for a legend; two that are long and differ still do."""
    text = _line(value)
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}… ({zlib.crc32(text.encode()):08x})"


def with_readable_names(frame: pl.DataFrame) -> pl.DataFrame:
    """A table whose columns task, arm, family and split, as far as it has them, name things as `ReportData` does."""
    for column in {"task", "arm", "family", "split"} & set(frame.columns):
        known = frame[column].unique().drop_nulls().to_list()
        changed = {name: _name(_readable(name)) for name in known}
        frame = frame.with_columns(pl.col(column).replace(changed))
    return frame


def _arm(content: dict[str, Any]) -> dict[str, Any]:
    names = {"name": _name(content.get("name")) or "no name", "family": _name(content.get("family")) or "other"}
    return content | names | {"seed": _whole(content.get("seed"))}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> int | None:
    plain = number(value)
    return None if plain is None or abs(plain) >= 2**53 else int(plain)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _line(value: object) -> str:
    """On one line: Vega cannot read a name that holds a separator of lines."""
    return " ".join(_text(value).split())


def _point(keys: dict[str, Any], point: dict[str, Any], measures: Mapping[str, str]) -> dict[str, Any]:
    row = keys | {
        "step": _whole(point.get("step")),
        "split": _name(point.get("split")) or "none",
        "kl": number(point.get("kl")),
        "kl_se": number(point.get("kl_se")),
    }
    row |= {measure: number(point.get(measure)) for measure in MEASURES}
    for column, name in measures.items():
        found = _dict(_dict(point.get("measures")).get(name))
        row |= {column: number(found.get("mean")), f"{column}_se": number(found.get("se"))}
    wins = _dict(point.get("wins"))
    for who in OPPONENTS:
        for judge in JUDGES:
            cell = _dict(_dict(wins.get(who)).get(judge))
            row |= {f"{what}_{who}_{judge}": number(cell.get(what)) for what in _WIN_FIELDS}
    if row["rate_sft_proxy"] is None:
        # The proxy's opinion against SFT is also kept as a measure of its own.
        row["rate_sft_proxy"] = row["proxy"]
    return row


def _run(keys: dict[str, Any], arm: dict[str, Any], points: list[dict[str, Any]]) -> dict[str, Any]:
    cost = _dict(arm.get("cost"))
    row = keys | {
        "status": _name(arm.get("status")) or "no status",
        "reason": None if arm.get("reason") is None else str(arm["reason"]),
        "weights_sha256": None if arm.get("weights_sha256") is None else str(arm["weights_sha256"]),
    }
    row |= {name: number(cost.get(name)) for name in ("seconds", "tokens_sampled", "judge_calls", "steps")}
    rate = "rate_golden_policy_golden"
    for split in SPLITS:
        known = [p for p in points if p["split"] == split and p[rate] is not None and p["step"] is not None]
        if known:
            peak, end = max(known, key=lambda p: (p[rate], -p["step"])), max(known, key=lambda p: p["step"])
            row |= {"peak_step": peak["step"], "peak_kl": peak["kl"], "peak_rate": peak[rate]}
            row |= {"end_step": end["step"], "end_kl": end["kl"], "end_rate": end[rate], "at_split": split}
            break
    return row


def _golden_kl(
    runs: list[dict[str, Any]], points: list[dict[str, Any]], task: str, stages: dict[str, Any]
) -> dict[str, float]:
    """Mean over seeds of the last checkpoint's KL; a `golden_policy` stage may state it where no arm does."""
    result = {}
    golden = {row["run"] for row in runs if row["family"] == "golden_policy" and row["status"] == "finished"}
    stated = number(_dict(stages.get("golden_policy")).get("kl"))
    for split in SPLITS:
        last: dict[int, tuple[int, float]] = {}
        for point in points:
            if point["run"] in golden and point["split"] == split and point["kl"] is not None:
                last[point["run"]] = max(last.get(point["run"], (-1, 0.0)), (point["step"] or 0, point["kl"]))
        values = [kl for _, kl in last.values()]
        if values:
            result[split] = sum(values) / len(values)
        elif stated is not None:
            result[split] = stated
    return result


def _experiment(name: str, content: dict[str, Any], holm: float | None) -> Experiment:
    verdict = str(content.get("verdict"))
    return Experiment(
        name=name,
        title=_text(content.get("title")) or name,
        question=_text(content.get("question")),
        finding=_text(content.get("finding")),
        rule=_text(content.get("rule")),
        verdict=verdict if verdict in (*VERDICTS, UNFINISHED, FAILED) else "inconclusive",
        sentence=_text(content.get("sentence")),
        estimates=tuple(_estimate(key, _dict(value)) for key, value in _dict(content.get("estimates")).items()),
        figures=tuple(_drawing(name, _dict(figure)) for figure in _list(content.get("figures"))),
        holm=holm,
        power=_dict(content.get("power")),
        inputs=tuple(_dict(row) for row in content.get("inputs") or []),
    )


def _drawing(experiment: str, content: dict[str, Any]) -> Drawing:
    mark = content.get("mark")
    rows = [_dict(row) for row in _list(content.get("points"))]
    named = any(isinstance(row.get("x"), str) for row in rows)
    log = bool(content.get("x_log")) and not named
    points = []
    for row in rows:
        value = number(row.get("x"))
        x = _name(row.get("x")) if named else value
        y = number(row.get("y"))
        if x is not None and y is not None and not (log and value is not None and value <= 0):
            bounds = {side: number(row.get(side)) for side in ("low", "high")}
            points.append(
                {"series": _name(row.get("series")), "x": x, "y": y, **bounds, "seed": _whole(row.get("seed"))}
            )
    return Drawing(
        experiment=experiment,
        name=_name(content.get("name")) or "figure",
        title=_line(content.get("title")),
        x=_line(content.get("x")),
        y=_line(content.get("y")),
        mark=mark if mark in ("line", "point", "bar") else "point",
        x_log=log,
        families=tuple(_name(family) for family in _list(content.get("families"))),
        points=tuple(points),
        dropped=len(rows) - len(points),
    )


def _estimate(key: str, content: dict[str, Any]) -> Estimate:
    return Estimate(
        key=key,
        label=_text(content.get("label")) or key,
        value=number(content.get("value")),
        low=number(content.get("low")),
        high=number(content.get("high")),
        n_seeds=_whole(content.get("n_seeds")),
        n_prompts=_whole(content.get("n_prompts")),
        note=_text(content.get("note")),
        unit=_text(content.get("unit")),
        null=number(content.get("null")),
        p=number(content.get("p")),
    )
