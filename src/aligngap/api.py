"""From Python, a notebook say: run a study or diagnose data as the command line does, and take up what comes out as
frames and charts.

`import aligngap` loads none of this; `aligngap.load`, `aligngap.run` and the others do, when they are first named.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import yaml
from pydantic import ValidationError

from aligngap import runner
from aligngap.diagnosis.report import Diagnosis, diagnose_named
from aligngap.errors import UserError, brief
from aligngap.experiments.plan import Plan
from aligngap.experiments.spec import StudySpec
from aligngap.experiments.study import load_study
from aligngap.pipeline import RUNS
from aligngap.pipeline.executors.run import Interrupted
from aligngap.pipeline.rundir import chosen_store
from aligngap.plugins import use_plugins
from aligngap.report.figures import every_figure
from aligngap.report.still import image_spec
from aligngap.report.style import Theme
from aligngap.results import FAILED, FINISHED, OPPONENTS, SPLITS, Conclusion, StudyResults, read, read_per_prompt
from aligngap.tasks.datasets import DatasetSpec
from aligngap.terminal import console
from aligngap.trackers.base import chosen

Settings = Mapping[str, object] | Sequence[str]
"""Dotted keys of a study to their values, or a list of `key=value` as the command line has them."""


@dataclass(frozen=True)
class Results:
    """What a run left in its folder. Nothing that the folder names is imported or run."""

    folder: Path

    @cached_property
    def raw(self) -> dict[str, Any]:
        """`results.json` as it is (docs/results-format.md)."""
        text = (self.folder / "results.json").read_text("utf-8")
        result: dict[str, Any] = json.loads(text, parse_constant=lambda word: None)
        return result

    @cached_property
    def data(self) -> StudyResults:
        """All of it but `per_prompt`, typed (`aligngap.results`). Raises UserError when it cannot be read."""
        return read(self.folder)

    @property
    def points(self) -> pl.DataFrame:
        """A row a task, arm, seed, step and split: KL (nats), win rates with errors and counts, and the rest."""
        return self.data.points

    @cached_property
    def per_prompt(self) -> pl.DataFrame:
        """Every outcome, prompt by prompt: enough to compute every interval anew."""
        return read_per_prompt(self.folder)

    @property
    def samples(self) -> pl.DataFrame:
        """Prompts and responses as text, with their scores."""
        return self.data.samples

    @cached_property
    def estimates(self) -> pl.DataFrame:
        """A row a task, experiment and estimate: label, unit, value, 95% interval, n_seeds, n_prompts, note. The first
        estimate of an experiment is the one that its verdict rests on.
        """
        schema: dict[str, Any] = dict.fromkeys(("task", "experiment", "estimate", "label", "unit"), pl.String)
        schema |= dict.fromkeys(("value", "low", "high"), pl.Float64)
        schema |= dict.fromkeys(("n_seeds", "n_prompts"), pl.Int64) | {"note": pl.String}
        rows = [
            {"task": task, "experiment": result.name, "estimate": row.name, **row.model_dump(include=set(schema))}
            for task, result in self._conclusions()
            for row in result.estimates
        ]
        return pl.DataFrame(rows, schema)

    @cached_property
    def verdicts(self) -> pl.DataFrame:
        """A row a task and experiment: title, verdict, sentence, rule."""
        schema = dict.fromkeys(("task", "experiment", "title", "verdict", "sentence", "rule"), pl.String)
        rows = [
            {"task": task, "experiment": result.name, **result.model_dump(include=set(schema))}
            for task, result in self._conclusions()
        ]
        return pl.DataFrame(rows, schema)

    @cached_property
    def missing(self) -> pl.DataFrame:
        """What was asked for and is not in the results: a row an arm or measure and seed, or an experiment, with its
        task, what it is, its name, seed, status and reason. Empty when all went well.
        """
        rows = [
            (task.name, what, row.name, row.seed, row.status, row.reason)
            for task in self.data.tasks
            for what, listed in (("arm", task.arms), ("measure", task.measures))
            for row in listed
            if row.status != FINISHED
        ]
        rows += [(task, "experiment", x.name, None, FAILED, x.error) for task, x in self._conclusions() if x.error]
        columns: dict[str, Any] = dict.fromkeys(("task", "what", "name", "seed", "status", "reason"), pl.String)
        return pl.DataFrame(rows, columns | {"seed": pl.Int64}, orient="row")

    def charts(self, split: str = "held_out", opponent: str = "golden_policy") -> dict[str, alt.TopLevelMixin]:
        """Every figure of the report that has anything to show, by `TASK-FIGURE`, as Altair charts.

        Raises UserError for an unknown split or opponent.
        """
        for what, value, known in (("split", split, SPLITS), ("opponent", opponent, OPPONENTS)):
            if value not in known:
                raise UserError(f"there is no {what} '{value}'", hint=f"Known: {', '.join(known)}.")
        data = self.data
        theme = Theme.for_images(data)
        return {
            f"{task.name}-{figure.name}": alt.Chart.from_dict(image_spec(data, figure, split=split, opponent=opponent))
            for task in data.tasks
            for figure in every_figure(data, task, theme)
        }

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    def _conclusions(self) -> list[tuple[str, Conclusion]]:
        return [(task.name, result) for task in self.data.tasks for result in task.experiments]

    def _repr_html_(self) -> str:
        """In a notebook: the verdicts, and what is missing."""
        parts = [_table(self.verdicts.select("task", "title", "verdict", "sentence"))]
        if not self.missing.is_empty():
            parts.append(f"<p>Missing from these results:</p>{_table(self.missing)}")
        return "".join(parts)


def _table(frame: pl.DataFrame) -> str:
    """Whole texts, which a frame's own form would cut, and every character of them as text."""

    def row(cells: Sequence[object], tag: str) -> str:
        inner = (f'<{tag} style="text-align:left">{html.escape(str(cell or ""))}</{tag}>' for cell in cells)
        return f"<tr>{''.join(inner)}</tr>"

    return f"<table>{row(frame.columns, 'th')}{''.join(row(cells, 'td') for cells in frame.iter_rows())}</table>"


def open_run(folder: str | Path) -> Results:
    """The results of a run that has been finished. Raises UserError when the folder holds none."""
    place = Path(folder)
    if not (place / "results.json").is_file():
        raise UserError("there are no results here", where=str(place), hint="Give the folder of a finished run.")
    return Results(place)


def load(study: str | Path, settings: Settings = (), *, seeds: int | None = None, smoke: bool = False) -> StudySpec:
    """A shipped study by name, or a YAML file, with some settings changed; its plugins are imported. seeds: how many;
    smoke: shrunk to a try-out, whose numbers mean nothing.

    Raises UserError for an unknown study, key or value.
    """
    if isinstance(settings, Mapping):
        dumped = {key: yaml.safe_dump(value, default_flow_style=True) for key, value in settings.items()}
        settings = [f"{key}={text}" for key, text in dumped.items()]
    return load_study(str(study), settings, seeds, smoke)


def run(
    study: StudySpec | str | Path,
    *,
    out: str | Path | None = None,
    settings: Settings = (),
    seeds: int | None = None,
    jobs: int | None = None,
    smoke: bool = False,
    store: str | Path | None = None,
    checkpoint_seconds: float | None = None,
    track: Sequence[str] = (),
    executor: str = "local",
    address: str | None = None,
) -> Results:
    """Run a study, or go on with it, and return its results; as `aligngap run` does, in this process and those that it
    starts. Needs no guard around it in a script.

    study: as `load` gave it; or as `load` takes it, with settings, seeds and smoke. out: the run's folder, by default
    runs/STUDY; jobs: processes side by side, by default one a core; store: where artefacts are kept, on a cluster also
    a URL; checkpoint_seconds: how much work a kill may cost, by default two minutes; track: names of trackers
    (docs/tracking.md); executor: `local`, or `ray` with the address of a cluster (docs/cluster.md).

    Raises UserError when the study cannot be run, and KeyboardInterrupt when it is stopped: the same call goes on. What
    failed is told on the way, and is in `Results.missing`.
    """
    if not isinstance(study, StudySpec):
        study = load(study, settings, seeds=seeds, smoke=smoke)
    elif settings or seeds is not None or smoke:
        raise UserError("this study has been loaded already", where="settings", hint="Give them to `aligngap.load`.")
    else:  # as their files are now, and without what another study may have brought since
        use_plugins(study.plugins, study.folder)
    plan = Plan(study)
    try:
        ran = runner.run(
            plan,
            Path(out) if out else None,
            console=console(),
            jobs=jobs,
            store=store or None,
            checkpoint_seconds=checkpoint_seconds,
            trackers=chosen(track),
            executor=executor,
            address=address,
        )
    except Interrupted:
        raise KeyboardInterrupt("the run was stopped; what is finished is kept") from None
    return open_run(ran.folder)


def diagnose(
    policy: str | Path,
    data: str | Path,
    judge: str | None = None,
    *,
    prompts: int = 512,
    seed: int = 0,
    device: str = "cpu",
    store: str | Path | None = None,
    **settings: object,
) -> Diagnosis:
    """What preference data are to an SFT policy, before any training, as `aligngap diagnose` says it: `numbers` is a
    frame, `regime` the verdict with its evidence, `as_json()` all of it.

    policy: a base, a folder, a hub id, or a run's folder; data: a file, a folder, a hub set or a built-in world; judge:
    `kind:argument`, or a YAML file. prompts: to look at, at most; store: where a judge keeps answers that cost
    something. settings: of the data set, as a study has them: `split`, `columns`, `max_response_tokens` and so on.

    Raises UserError for whatever is not there, cannot be read, or fails.
    """
    try:
        spec = DatasetSpec.model_validate({"source": str(data), "seed": seed} | settings)
    except ValidationError as error:
        problem = error.errors()[0]
        hint = "Settings of a data set: docs/data.md."
        where = brief(".".join(map(str, problem["loc"])))
        raise UserError(brief(problem["msg"], 400), where=where, hint=hint) from None
    cache = chosen_store(RUNS / "diagnose", Path(store) if store else None)
    return diagnose_named(str(policy), spec, judge, prompts=prompts, seed=seed, device=device, cache=cache)
