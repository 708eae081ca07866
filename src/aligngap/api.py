"""From Python, a notebook say: run a study as the command line does, and take up results as frames and charts.

`import aligngap` loads none of this; `aligngap.run` and `aligngap.open_run` do, when they are first named.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from aligngap.errors import UserError
from aligngap.pipeline.rundir import RUNS
from aligngap.report import charts
from aligngap.report.load import OPPONENTS, ReportData, load


@dataclass(frozen=True)
class Results:
    """What a run left in its folder. Nothing that the folder names is imported or run."""

    folder: Path

    @cached_property
    def raw(self) -> dict[str, Any]:
        """`results.json` as it is (docs/results-format.md)."""
        text = (self.folder / "results.json").read_text("utf-8")
        found: dict[str, Any] = json.loads(text, parse_constant=lambda word: None)
        return found

    @cached_property
    def points(self) -> pl.DataFrame:
        """A row a task, arm, seed, step and split: KL (nats), win rates with errors and counts, and the rest."""
        return pl.read_parquet(self.folder / "points.parquet")

    @cached_property
    def per_prompt(self) -> pl.DataFrame:
        """Every outcome, prompt by prompt: enough to compute every interval anew."""
        return pl.read_parquet(self.folder / "per_prompt.parquet")

    @cached_property
    def samples(self) -> pl.DataFrame:
        """Prompts and responses as text, with their scores."""
        return pl.read_parquet(self.folder / "samples.parquet")

    @cached_property
    def estimates(self) -> pl.DataFrame:
        """A row a task, experiment and estimate: label, value, 95% interval, n_seeds, n_prompts, unit, note. The first
        estimate of an experiment is the one that its verdict rests on.
        """
        names = ("label", "value", "low", "high", "n_seeds", "n_prompts", "unit", "note")
        rows = [
            {"task": task, "experiment": name, "estimate": key} | {column: found.get(column) for column in names}
            for task, content in self.raw["tasks"].items()
            for name, experiment in content["experiments"].items()
            for key, found in experiment["estimates"].items()
        ]
        return pl.DataFrame(rows, infer_schema_length=None)

    @cached_property
    def verdicts(self) -> pl.DataFrame:
        """A row a task and experiment: title, verdict, sentence, rule."""
        rows = [
            {"task": task, "experiment": name, **{key: found[key] for key in ("title", "verdict", "sentence", "rule")}}
            for task, content in self.raw["tasks"].items()
            for name, found in content["experiments"].items()
        ]
        return pl.DataFrame(rows, infer_schema_length=None)

    def charts(self, split: str = "held_out", opponent: str = "golden_policy") -> dict[str, alt.TopLevelMixin]:
        """Every figure of the report that has anything to show, by `TASK-FIGURE`, as Altair charts.

        Raises UserError for an unknown split or opponent.
        """
        for what, value, known in (("split", split, ("held_out", "train")), ("opponent", opponent, OPPONENTS)):
            if value not in known:
                raise UserError(f"there is no {what} '{value}'", mend=f"Known: {', '.join(known)}.")
        data: ReportData = load(self.folder)
        look = charts.Look.for_images(data)
        return {
            f"{task.name}-{figure.name}": alt.Chart.from_dict(
                charts.image_spec(data, figure, split=split, opponent=opponent)
            )
            for task in data.tasks
            for figure in charts.every_figure(data, task, look)
        }

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    def _repr_html_(self) -> str:
        """In a notebook: the verdicts."""
        table: str = self.verdicts.select("task", "title", "verdict", "sentence")._repr_html_()
        return table


def open_run(folder: str | Path) -> Results:
    """The results of a run that has been finished. Raises UserError when the folder holds none."""
    place = Path(folder)
    if not (place / "results.json").is_file():
        raise UserError("there are no results here", where=str(place), mend="Give the folder of a finished run.")
    return Results(place)


def run(
    study: str | Path,
    *,
    out: str | Path | None = None,
    settings: Sequence[str] = (),
    seeds: int | None = None,
    jobs: int | None = None,
    smoke: bool = False,
) -> Results:
    """Run a study, or go on with it, and return its results; as `aligngap run` does, in a process whose output
    is passed on line by line. study: a shipped one, or a YAML file; settings: `key=value`.

    Raises UserError when the study cannot be run; arms that failed are in the results, and are said on the way.
    """
    name = Path(study).stem if str(study).endswith((".yaml", ".yml")) else str(study)
    folder = Path(out) if out is not None else RUNS / (f"{name}-smoke" if smoke else name)
    words = [str(study), "--out", str(folder)] if out is not None else [str(study)]
    words += [word for setting in settings for word in ("--set", setting)]
    words += ["--seeds", str(seeds)] if seeds is not None else []
    words += ["--jobs", str(jobs)] if jobs is not None else []
    words += ["--smoke"] if smoke else []
    lines = []
    # A process of its own: a script without a main guard, or a notebook, would be run again in every worker.
    with subprocess.Popen(
        [sys.executable, "-m", "aligngap", "run", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            print(line, end="", flush=True)
    if process.returncode not in (0, 1):
        raise UserError("\n".join(lines[-3:]) or f"exit code {process.returncode}", where=f"study '{study}'")
    return open_run(folder)
