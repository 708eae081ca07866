"""Second run minus first, with the interval of the difference: of every arm that both have, and of every experiment.

Runs of one seed share prompts, order of data and noise of evaluation, so where both runs have a seed they are compared
under it, and under the same resampled prompts (`stats.intervals`). Where they share no seed, all seeds of the one are
compared with all of the other under the same resampled prompts (`stats.unpaired`).

An experiment's estimates are made again for both runs, by its own analysis, on what both have. Its random streams are
named by task and purpose, so the draws of the two runs resample the same prompts and the same seeds, and their
differences are draws of the difference. What rests on tables that a result folder does not hold is taken as
published, with an interval from the two published ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aligngap.compare.comparable import Side, ground, settings_that_differ
from aligngap.compare.matching import Matched, MatchedArm
from aligngap.errors import UserError
from aligngap.experiments.base import Finished, TaskData
from aligngap.experiments.curves import runs_of
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.experiments.spec import AnalysisSpec
from aligngap.results import EstimateRecord
from aligngap.seeds import numpy_stream
from aligngap.stats.budget import Curve, Run
from aligngap.stats.estimands import average_gap, fall, peak
from aligngap.stats.intervals import Estimate, Seed, intervals
from aligngap.stats.unpaired import difference_of_intervals, unpaired_estimates

PAIRED = "paired by seed and prompt"
PROMPTS_SHARED = "same prompts, seeds not shared"
INDEPENDENT = "from the two intervals, taken as independent: rather too wide"
PUBLISHED = f"as published, {INDEPENDENT}"
IDENTICAL = "identical: every outcome that is compared is the same"
JUDGES = ("golden", "true")


@dataclass(frozen=True)
class Interval:
    """A value with its 95% interval; None where there is no data."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, estimate: Estimate) -> Interval:
        """An estimate without its draws; None for what is not finite."""
        return cls(*(v if math.isfinite(v) else None for v in (estimate.value, estimate.low, estimate.high)))


@dataclass(frozen=True)
class Quantity:
    """One quantity in both runs. first, second: None where it is a quantity of the two together. difference: second
    minus first; for a ratio, second over first. how: the design of its interval; note: what it rests on.
    """

    key: str
    label: str
    unit: str
    first: Interval | None
    second: Interval | None
    difference: Interval
    n_seeds: int
    n_prompts: int
    how: str
    note: str


@dataclass(frozen=True)
class ArmPair:
    """An arm of the first run and the one in its place in the second; `rows` by judge."""

    family: str
    first: str
    second: str
    seeds: str
    identical: bool
    rows: dict[str, tuple[Quantity, ...]]


@dataclass(frozen=True)
class Question:
    """An experiment that both runs asked; the first row is the one that the verdicts rest on."""

    name: str
    title: str
    verdicts: tuple[str, str]
    rows: tuple[Quantity, ...]


@dataclass(frozen=True)
class TaskComparison:
    """What was compared on a task. opponents: those whose responses the runs share; opponent: the one that win rates
    are against. missing: what only one run has, or neither finished, and why.
    """

    task: str
    opponents: tuple[str, ...]
    opponent: str
    split: str
    notes: tuple[str, ...]
    arms: tuple[ArmPair, ...]
    experiments: tuple[Question, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side. settings: (key, first's, second's) of each that differs. refused: by task, why nothing of
    it is compared.
    """

    first: Side
    second: Side
    settings: tuple[tuple[str, Any, Any], ...]
    notes: tuple[str, ...]
    tasks: tuple[TaskComparison, ...]
    refused: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Plain values, with null for what is not known."""

        def described(side: Side) -> dict[str, Any]:
            data = side.data
            facts = {"folder": str(side.folder), "title": side.title, "study": data.study.get("name")}
            return facts | {"smoke": data.smoke, "revision": data.revision.model_dump(), "seeds": data.seeds}

        return {
            "schema": 1,
            "first": described(self.first),
            "second": described(self.second),
            "settings": [{"key": key, "first": a, "second": b} for key, a, b in self.settings],
            "notes": list(self.notes),
            "tasks": {task.task: asdict(task) for task in self.tasks},
            "refused": self.refused,
        }


def compare(first: Path, second: Path) -> Comparison:
    """Everything that the runs in two result folders have in common, second minus first.

    Raises:
        UserError: a folder that cannot be read, or two runs with nothing to compare; the message says why.
    """
    sides = Side.read(first), Side.read(second)
    a, b = sides
    where = f"{first} and {second}"
    if a.data.smoke != b.data.smoke:
        raise UserError(
            "one is a smoke run and the other is not: the smoke run's numbers mean nothing",
            where=where,
            hint="Compare two whole runs.",
        )
    both = [task.name for task in a.data.tasks if task.name in {other.name for other in b.data.tasks}]
    if not both:
        names = [", ".join(task.name for task in side.data.tasks) or "none" for side in sides]
        raise UserError(f"the runs have no task in common ({names[0]}; {names[1]})", where=where)
    grounds = [ground(a, b, task) for task in both]
    if all(result.refused for result in grounds):
        reasons = " ".join(f"{result.task}: {result.refused}" for result in grounds)
        raise UserError(
            f"not comparable. {reasons}",
            where=where,
            hint="Give both runs the same data, judges and SFT policy; loss, optimiser, proxy, sweep and seeds may "
            "differ.",
        )
    tasks = tuple(_task(Matched(sides, result)) for result in grounds if not result.refused)
    if not any(task.arms for task in tasks):
        reasons = " ".join(dict.fromkeys(reason for task in tasks for reason in task.missing))
        raise UserError(f"no arm is finished in both runs. {reasons}", where=where)
    notes = list(_notes(a, b))
    if all(pair.identical for task in tasks for pair in task.arms):
        notes.append("The runs are identical: every outcome that is compared is the same.")
    return Comparison(
        a,
        b,
        tuple(settings_that_differ(a, b)),
        tuple(notes),
        tasks,
        {result.task: result.refused for result in grounds if result.refused},
    )


def _notes(a: Side, b: Side) -> tuple[str, ...]:
    notes = []
    if a.data.smoke:
        notes.append("Both are smoke runs: their numbers mean nothing, nor does any difference.")
    commits = [side.data.revision.commit_or("unknown") for side in (a, b)]
    if commits[0] != commits[1]:
        notes.append(f"Made by different revisions of the code: {commits[0]} and {commits[1]}.")
    elif any(side.data.revision.dirty for side in (a, b)):
        notes.append("Made with uncommitted changes to the code, which may differ between the runs.")
    lists = [{task.name for task in side.data.tasks} for side in (a, b)]
    if alone := sorted(lists[0] ^ lists[1]):
        notes.append(f"In one run only: {', '.join(alone)}.")
    return tuple(notes)


# --- a task -----------------------------------------------------------------------------------------------------------


def _task(walk: Matched) -> TaskComparison:
    compared = tuple(_arm_pair(walk.task, *pair, walk.settings) for pair in walk.pairs)
    return TaskComparison(
        walk.task,
        walk.ground.opponents,
        walk.settings.opponent,
        walk.settings.split,
        walk.notes,
        compared,
        _experiments(walk, same=walk.all_matched and all(pair.identical for pair in compared)),
        walk.missing,
    )


# --- arms -------------------------------------------------------------------------------------------------------------

_LEVELS = {
    "peak": ("peak", "win rate"),
    "fall": ("fall from the peak to the end", "win rate"),
    "end": ("at the end", "win rate"),
    "kl": ("KL at the peak", "nats; second over first"),
}


def _contrast(a: Curve, b: Curve) -> dict[str, float]:
    """What is compared of two curves: `b` against `a`. KL as its logarithm, so that its interval stays positive."""
    result = {"gap": average_gap(b, a)}
    for name, curve in (("first", a), ("second", b)):
        rate, kl = peak(curve)
        levels = {"peak": rate, "fall": fall(curve), "end": curve.end, "kl": float(np.log(kl))}
        result |= {f"{key}_{name}": value for key, value in levels.items()}
    return result | {key: result[f"{key}_second"] - result[f"{key}_first"] for key in _LEVELS}


_PLACES = ("kl", "kl_first", "kl_second")
_CONTRASTS = ("gap", *(f"{key}{which}" for key in _LEVELS for which in ("", "_first", "_second")))


def _arm_pair(task: str, one: MatchedArm, other: MatchedArm, settings: AnalysisSpec) -> ArmPair:
    shared = sorted(one.rows.keys() & other.rows.keys())
    curves = [
        {seed: runs_of(arm.name, seed, rows) for seed, rows in arm.rows.items() if not shared or seed in shared}
        for arm in (one, other)
    ]
    identical = bool(shared) and all(_same(curves[0][seed], curves[1][seed]) for seed in shared)
    rows = {}
    for judge in JUDGES:
        key = (settings.split, settings.opponent, judge)
        first, second = ([result[key] for result in side.values() if key in result] for side in curves)
        if not first or not second:
            continue
        rng = numpy_stream("compare", task, one.family, one.name, judge)
        if shared:
            made = intervals(
                {"first": first, "second": second},
                _of_seed,
                _CONTRASTS,
                rng=rng,
                replicates=settings.replicates,
                places=_PLACES,
            )
            lost = len(one.rows.keys() ^ other.rows.keys())
            if lost:
                made = {k: e.noted(f"{lost} seed(s) that only one run has left out") for k, e in made.items()}
        else:
            made = unpaired_estimates(first, second, _contrast, _CONTRASTS, rng=rng, replicates=settings.replicates)
        rows[judge] = _arm_rows(made, PAIRED if shared else PROMPTS_SHARED, identical)
    listed = [", ".join(map(str, sorted(arm.rows))) for arm in (one, other)]
    seeds = ", ".join(map(str, shared)) if shared else f"{listed[0]} against {listed[1]}"
    return ArmPair(one.family, one.name, other.name, seeds, identical, rows)


def _of_seed(seed: Seed) -> dict[str, float]:
    return _contrast(seed["first"][0], seed["second"][0])


def _same(a: Mapping[tuple[str, str, str], Run], b: Mapping[tuple[str, str, str], Run]) -> bool:
    """Whether nothing that is compared differs; proxies may."""

    def equal(one: Run, other: Run) -> bool:
        pairs = ((one.steps, other.steps), (one.amount, other.amount), (one.win, other.win))
        return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in pairs)

    keys = {key for key in {*a, *b} if key[2] in JUDGES}
    return all(key in a and key in b and equal(a[key], b[key]) for key in keys)


def _arm_rows(made: Mapping[str, Estimate], how: str, identical: bool) -> tuple[Quantity, ...]:
    gap = made["gap"]
    rows = [_row("average_gap", "average gap at equal KL", "win rate", None, None, gap, how, identical)]
    for key, (label, unit) in _LEVELS.items():
        one, other, difference = (made[f"{key}{which}"] for which in ("_first", "_second", ""))
        if key == "kl":
            one, other, difference = (estimate.exponential() for estimate in (one, other, difference))
        if difference.n_seeds and key == "kl":
            difference = difference.noted("rough where several checkpoints are about as high")
        name = "kl_at_peak_ratio" if key == "kl" else f"{key}_difference"
        rows.append(_row(name, label, unit, one, other, difference, how, identical))
    return tuple(rows)


def _row(
    key: str,
    label: str,
    unit: str,
    first: Estimate | None,
    second: Estimate | None,
    difference: Estimate,
    how: str,
    identical: bool = False,
) -> Quantity:
    note = "; ".join(filter(None, [IDENTICAL if identical else "", difference.note]))
    one, other = (Interval.of(side) if side else None for side in (first, second))
    counts = difference.n_seeds, difference.n_prompts
    return Quantity(key, label, unit, one, other, Interval.of(difference), *counts, how, note)


# --- experiments ------------------------------------------------------------------------------------------------------


def _experiments(walk: Matched, *, same: bool) -> tuple[Question, ...]:
    """Every question that both runs asked. same: whether all their arms are identical."""
    data = [_task_data(walk, place) for place in (0, 1)]
    questions = []
    for one, other in walk.conclusions:
        made: list[dict[str, Estimate]] = [{}, {}]
        known = EXPERIMENTS.get(one.name)
        if known and data[0] and data[1]:
            made = [{name: x.estimate for name, x in known.analyse(part).estimates.items()} for part in data if part]
        theirs = {estimate.name: estimate for estimate in other.estimates}
        rows = (_estimate_row(walk, x, theirs[x.name], made, same) for x in one.estimates if x.name in theirs)
        verdicts = (one.verdict, other.verdict)
        questions.append(Question(one.name, one.title, verdicts, tuple(row for row in rows if row)))
    return tuple(questions)


def _task_data(walk: Matched, place: int) -> TaskData | None:
    """What an experiment analyses, rebuilt from a result folder; None where this version cannot read its settings."""
    side = walk.sides[place]
    if side.plan is None:
        return None
    try:
        planned = [arm.entry for arm in side.plan.tasks[walk.task].arms]
    except UserError:
        return None
    entries = {(entry.family, entry.name, entry.stage.seed): entry for entry in planned}
    finished = [
        Finished(
            entries[arm.family, arm.name, seed],
            runs_of(arm.name, seed, rows),
            str(arm.records[seed].weights_sha256),
            per_prompt=rows,
            parameters=arm.records[seed].parameters or 0,
        )
        for arm in walk.arms[place]
        for seed, rows in arm.rows.items()
        if (arm.family, arm.name, seed) in entries and (not walk.paired or walk.in_both(arm, seed))
    ]
    truth = any("true" in key for arm in finished for key in arm.runs)
    return TaskData(walk.task, walk.settings, finished, truth=truth)


def _estimate_row(
    walk: Matched, one: EstimateRecord, two: EstimateRecord, made: Sequence[Mapping[str, Estimate]], same: bool
) -> Quantity | None:
    """One estimate of both runs. None where neither run has a number on the common scale. same: whether all arms of the
    runs are identical, so that what is published alike is alike.
    """
    again = [side.get(one.name) for side in made]
    known = [result for result in again if result is not None and math.isfinite(result.value)]
    how, a, b = PAIRED if walk.paired else INDEPENDENT, again[0], again[1]
    if len(known) < 2 and walk.published and one.value is not None and two.value is not None:
        how, a, b = PUBLISHED, _as_estimate(one), _as_estimate(two)
    elif not known:
        return None
    a, b = a or _NOTHING, b or _NOTHING
    joint = _joint(a, b, walk.settings.replicates) if how == PAIRED else None
    if how == PUBLISHED and same and one == two:
        how, joint = IDENTICAL, (0.0, 0.0, 0.0)
    if joint is None:
        how, joint = how if how == PUBLISHED else INDEPENDENT, difference_of_intervals(a, b)
    note = "; ".join(dict.fromkeys(note for note in (a.note, b.note) if note))
    difference = Estimate(*joint, min(a.n_seeds, b.n_seeds), min(a.n_prompts, b.n_prompts), 0, note)
    return _row(one.name, one.label, one.unit, a, b, difference, how)


def _joint(a: Estimate, b: Estimate, replicates: int) -> tuple[float, float, float] | None:
    """(value, low, high) of b - a from draws of the same prompts and seeds; None where the draws do not belong
    together, because the runs differ in what is defined.
    """
    if not len(a.draws) == len(b.draws) == replicates or (a.n_seeds, a.n_prompts) != (b.n_seeds, b.n_prompts):
        return None
    low, high = np.quantile(b.draws - a.draws, [0.025, 0.975]).tolist()
    return b.value - a.value, low, high


_NOTHING = Estimate(math.nan, math.nan, math.nan, 0, 0, 0, "")


def _as_estimate(published: EstimateRecord) -> Estimate:
    value, low, high = (math.nan if v is None else v for v in (published.value, published.low, published.high))
    return Estimate(value, low, high, published.n_seeds or 0, published.n_prompts or 0, 0, published.note)
