"""The one schema of a result folder, which writes it and reads it: what `results.json` holds, and the columns of the
tables beside it. Every word and number that writers and readers must agree on is here.

A change that would mislead an older reader raises `SCHEMA` and gets a migration; a new field does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

import polars as pl
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from aligngap.results import tables
from aligngap.results._values import ByName, Line, Name, Number, Plain, Text, Whole, place

SCHEMA = 2
"""Version of the format that is written. Version 1 is read, too."""

Verdict = Literal["supported", "contradicted", "inconclusive"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
FINISHED, FAILED, BLOCKED = "finished", "failed", "blocked"
"""Status of an arm or measure. FAILED stands in a verdict's place, too, where the analysis itself has failed."""
PENDING = "pending"
"""Status of an arm or measure that a run has yet to finish; what is missing for another reason will not come."""
UNFINISHED = "unfinished"
"""In a verdict's place while an arm or measure of the experiment is pending: a verdict that is read again and again as
the data come in, until it pleases, is not the one whose rule was fixed before the run.
"""
FAMILIES = ("online", "offline", "offline_proxy", "replay", "shuffled", "golden_policy")
"""Families of arms that the paper compares first, in its order."""

Mark = Literal["line", "point", "bar"]


def _known_verdict(value: object) -> object:
    return value if value in (*VERDICTS, UNFINISHED, FAILED) else "inconclusive"


def _known_mark(value: object) -> object:
    return value if value in get_args(Mark) else "point"


def _known_revision(value: object) -> object:
    return {} if value is None else value


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, arbitrary_types_allowed=True)


_DRAWN = ConfigDict(use_attribute_docstrings=True)


@dataclass(frozen=True, config=_DRAWN)
class FigurePoint:
    """One point of a figure."""

    series: Name
    """line or group that it belongs to"""
    x: Annotated[float | str | None, BeforeValidator(place)] = None
    """a number, or a name"""
    y: Number = None
    """its value; what has none is not drawn, and counted"""
    low: Number = None
    """lower end of the 95% interval, where there is one"""
    high: Number = None
    """upper end"""
    seed: Whole = None
    """null for what is pooled over seeds"""


@dataclass(frozen=True, config=_DRAWN)
class Figure:
    """What the report draws of an experiment, beside its win-rate curves: lines or points over numbers, or bars over
    names.
    """

    name: Name = "figure"
    """unique within the experiment"""
    title: Line = ""
    """of the figure"""
    x: Line = ""
    """title of the x axis, with its unit"""
    y: Line = ""
    """title of the y axis, with its unit"""
    mark: Annotated[Mark, BeforeValidator(_known_mark)] = "line"
    """`line`, `point` or `bar`"""
    points: Sequence[FigurePoint] = ()
    """list of points"""
    x_log: bool = False
    """whether the x axis is logarithmic"""
    families: Sequence[Name] = ()
    """instead of points: win rate over KL of these families of arms"""


class EstimateRecord(_Record):
    """A number with its interval, and what it rests on."""

    name: Name
    """unique within the experiment"""
    label: Text = ""
    """for people"""
    unit: Text = ""
    """of value and interval"""
    value: Number = None
    """null where there is no data"""
    low: Number = None
    """lower end of the 95% interval"""
    high: Number = None
    """upper end"""
    n_seeds: Whole = None
    """seeds that it rests on"""
    n_prompts: Whole = None
    """prompts that it rests on"""
    note: Text = ""
    """what a reader must know of the interval"""
    null: Number = None
    """of the first estimate: the value that the rule holds its interval against; null where the rule is not a test of
    one value, and for all other estimates
    """
    p: Number = None
    """two-sided p-value of `null`, by the interval's own draws"""


class Power(_Record):
    """What would resolve an effect of the size seen in four studies of five."""

    seeds: Whole = None
    """how many, with these prompts"""
    prompts: Whole = None
    """how many at least, were seeds without noise"""
    note: Text = ""
    """why one of them cannot be told"""


class Inputs(_Record):
    """An arm or measure that an experiment rests on, with its seeds by what became of them."""

    what: Text = "arm"
    """`arm` or `measure`"""
    name: Name = ""
    """of the arm or measure"""
    finished: tuple[Whole, ...] = ()
    """seeds that are there"""
    failed: tuple[Whole, ...] = ()
    """seeds that are missing for good"""
    pending: tuple[Whole, ...] = ()
    """seeds that are still to come"""


class Conclusion(_Record):
    """A question on a task, and what is concluded. The verdict rests on the first estimate."""

    name: Name
    """of the experiment"""
    title: Text = ""
    """what is asked, in a few words"""
    question: Text = ""
    """what is asked"""
    finding: Text = ""
    """what the original paper found"""
    rule: Text = ""
    """how the verdict follows from the estimates; fixed before the run"""
    error: str | None = None
    """what the analysis failed with, and where if it is a plugin's"""
    inputs: tuple[Inputs, ...] = ()
    """its arms and measures"""
    verdict: Annotated[str, BeforeValidator(_known_verdict)] = "inconclusive"
    """`supported`, `contradicted` or `inconclusive` (also for anything else); `failed` where the analysis itself
    failed; `unfinished` while an arm or measure is pending
    """
    sentence: Text = ""
    """the same in a sentence"""
    estimates: ByName[EstimateRecord] = ()
    """by name; **the first one is the one that the verdict rests on**"""
    power: Power | None = None
    """null where the first estimate's `null` is"""
    figures: tuple[Figure, ...] = ()
    """what the report draws of it"""
    holm: Number = None
    """p-value of the first estimate, adjusted by Holm's method for all experiments of the task; one that could not be
    tested is null, and counts as a hypothesis all the same
    """

    @property
    def main(self) -> EstimateRecord | None:
        """The estimate that the verdict rests on."""
        return self.estimates[0] if self.estimates else None


class Cost(_Record):
    """What a run alone has cost."""

    seconds: Number = None
    """of the training"""
    tokens_sampled: Number = None
    """by the policy in training"""
    judge_calls: Number = None
    """pairs judged in training"""
    judge_spent: Plain = {}
    """what judges cost beside time, by unit"""
    steps: Number = None
    """optimiser steps"""


class ArmRecord(_Record):
    """An arm under one seed; failed ones are listed, too."""

    name: Name
    """the arm; all seeds of an arm share it"""
    family: Name
    """`online`, `offline`, `offline_proxy` (the proxy's labels), `replay`, `shuffled`, `golden_policy`, or another:
    colour and grouping
    """
    baseline: bool = False
    """the configuration shared with the other families; false for the rest of a sweep"""
    base: Name | None = None
    """the base model that the policy starts from"""
    source: Plain | None = None
    """where pairs come from"""
    loss: Plain | None = None
    """`name`, `beta`, `reduction` and so on"""
    seed: Whole = None
    """of pairs, SFT, golden, proxy, data order and sampling, but for what `shared` in the study names; arms of one seed
    are paired
    """
    settings: Plain | None = None
    """optimiser settings, and `beta`"""
    identity: Text = ""
    """of its stage"""
    status: Name = FINISHED
    """`finished`, `failed` or `blocked`; `pending` while a study runs"""
    reason: str | None = None
    """why it is not finished"""
    parameters: Whole = None
    """number of the policy's weights"""
    weights_sha256: str | None = None
    """digest of the final weights"""
    cost: Cost | None = None
    """of this run alone"""


class MeasureRecord(_Record):
    """What an experiment measured beside the arms, or the study asked of every arm (`NAME of ARM`)."""

    name: Name
    """of the measure"""
    seed: Whole = None
    """whose arms it is of"""
    identity: Text = ""
    """of its stage"""
    status: Name = FINISHED
    """as for arms"""
    reason: str | None = None
    """why it is not finished"""


class Score(_Record):
    """One number that a gate looks at."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    """what it is"""
    value: float | None
    """null where it could not be had, for the reason in `note`"""
    se: float | None = None
    """its standard error"""
    n: int | None = None
    """of how many"""
    at_least: float | None = None
    """what it must reach; it is reported only where this and `at_most` are null"""
    at_most: float | None = None
    """what it must not exceed"""
    note: str = ""
    """what else is to be known"""

    @property
    def gated(self) -> bool:
        """Whether the gate depends on it."""
        return self.at_least is not None or self.at_most is not None

    @property
    def passed(self) -> bool:
        """Whether the estimate is within its bounds; a score that could not be had is not."""
        if not self.gated:
            return True
        if self.value is None:
            return False
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    @property
    def bounds(self) -> str:
        """In words; empty where it is reported only."""
        words = [f"at least {self.at_least:g}"] if self.at_least is not None else []
        return ", ".join([*words, *([f"at most {self.at_most:g}"] if self.at_most is not None else [])])

    def __str__(self) -> str:
        value = "-" if self.value is None else f"{self.value:.4g}"
        error = "" if self.se is None else f" ± {self.se:.2g}"
        bounds = f" ({self.bounds})" if self.gated else ""
        count = "" if self.n is None else f", n {self.n}"
        return f"{self.name}: {value}{error}{bounds}{count}{'; ' + self.note if self.note else ''}"


class GateResult(_Record):
    """What a gate found of what a study stands on."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    gate: str
    """its kind"""
    subject: str
    """of what"""
    identity: str
    """the stage's, which covers all that decided it"""
    scores: tuple[Score, ...]
    """what it looked at"""

    @property
    def passed(self) -> bool:
        """Whether every score that is gated is within its bounds."""
        return all(score.passed for score in self.scores)


class Task(_Record):
    """What is known of a task beside its points."""

    name: Name
    """of the task"""
    yardstick: dict[str, str] = {}
    """identities of what the task's numbers are measured with: `pairs` (raters' pairs and prompts), `golden` (judge),
    `sft` (KL's reference, and an opponent), `golden_policy` (the other opponent). Two runs whose identities agree
    measure on one scale; `aligngap compare` refuses others. Empty in folders of older versions
    """
    arms: tuple[ArmRecord, ...] = ()
    """one entry per arm and seed, in the order of `run` in `points.parquet`"""
    measures: tuple[MeasureRecord, ...] = ()
    """what else was measured"""
    stages: Plain = {}
    """what the stages before the arms measured (below)"""
    gates: tuple[GateResult, ...] = ()
    """what is on record of the gates that the task's data, bases, SFT policy and golden must pass"""
    ungated: tuple[Text, ...] = ()
    """gates of which nothing is on record under these settings"""
    experiments: ByName[Conclusion] = ()
    """by name"""
    not_asked: dict[str, Text] = {}
    """experiments of the study that cannot be asked on this task, and why"""
    golden_kl: Mapping[str, Number] = {}
    """by split, KL of the finished golden policy at its last checkpoint, mean over seeds: the budget that others are
    compared at
    """


class Revision(_Record):
    """Of the code; nothing is known where it is not on record."""

    commit: str | None = None
    """its hash"""
    dirty: bool | None = None
    """whether there were uncommitted changes"""

    def commit_or(self, words: str) -> str:
        """The start of the hash; `words` where it is not known."""
        return (self.commit or words)[:12]


class StageTiming(_Record):
    """A stage, and what it cost."""

    label: Text = ""
    """for people"""
    kind: Text = ""
    """of the stage"""
    identity: Text = ""
    """of its artefact"""
    status: Text = ""
    """what became of it in the latest command"""
    seconds: Number = None
    """of work"""
    spent: Plain | None = None
    """seconds by activity; null for a stage of an older version"""
    judge_spent: Plain = {}
    """what judges cost in it beside time, by unit"""


class Timings(_Record):
    """Where the time went."""

    wall_seconds: Number = None
    """of the latest command that made a stage, up to the results; null where no command made them"""
    jobs: Whole = None
    """stages side by side in that command"""
    core_seconds: Number = None
    """of all stages"""
    activities: Mapping[str, Number] = {}
    """seconds of `sampling`, `judging`, `training`, `evaluation`, `data`, `unknown` (older stages), `waiting` (what is
    left of that command's cores)
    """
    judge_spent: Plain = {}
    """what judges cost in all stages beside time, by unit"""
    stages: tuple[StageTiming, ...] = ()
    """every stage"""


class StudyResults(_Record):
    """What a study has measured and concluded: `results.json`, and the tables beside it."""

    study: Plain = {}
    """every setting as resolved before the run; `name`, `title` and `smoke` are always there"""
    smoke: bool = False
    """shrunk to be quick: its numbers mean nothing, and the report says so in red"""
    revision: Annotated[Revision, BeforeValidator(_known_revision)] = Revision()
    """of the code"""
    tasks: ByName[Task] = ()
    """one entry per task, by name"""
    timings: Timings = Timings()
    """where the time went"""
    versions: Plain = {}
    """Python, this package and what it stands on"""
    points: pl.DataFrame = Field(default_factory=lambda: pl.DataFrame(schema=tables.POINTS), exclude=True)
    """`points.parquet`: one row per arm, seed, step and split"""
    samples: pl.DataFrame = Field(default_factory=lambda: pl.DataFrame(schema=tables.SAMPLES), exclude=True)
    """`samples.parquet`; empty where there are none"""

    @cached_property
    def runs(self) -> pl.DataFrame:
        """A row an arm and seed (`tables.RUNS`): cost, and its best and last checkpoint by the golden judge."""
        rows: list[Mapping[str, Any]] = []
        for task in self.tasks:
            for arm in task.arms:
                known = arm.model_dump(include=set(tables.RUNS)) | {"task": task.name, "arm": arm.name}
                costs = {name: getattr(arm.cost, name, None) for name in tables.COSTS}
                rows.append(known | costs | {"run": len(rows)})
        return tables.with_extremes(rows, self.points)

    @cached_property
    def families(self) -> list[str]:
        """Those the paper compares first and in its order, then the others in order of appearance."""
        present = list(dict.fromkeys(arm.family for task in self.tasks for arm in task.arms))
        return [f for f in FAMILIES if f in present] + [f for f in present if f not in FAMILIES]

    @property
    def measures(self) -> list[str]:
        """The further measures that the study asked of every arm; see `tables.measure_columns`."""
        return tables.measures_of(self.points)

    @property
    def pending(self) -> int:
        """How many arms and measures are still to come, a seed each; 0 but while the study runs."""
        return sum(row.status == PENDING for task in self.tasks for rows in (task.arms, task.measures) for row in rows)

    @property
    def seeds(self) -> list[int]:
        """Of all arms, in order."""
        return sorted({arm.seed for task in self.tasks for arm in task.arms if arm.seed is not None})

    def task(self, name: str) -> Task:
        """Raises StopIteration when there is none of this name."""
        return next(task for task in self.tasks if task.name == name)
