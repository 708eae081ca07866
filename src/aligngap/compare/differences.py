"""Second run minus first, with the interval of the difference: of every arm that both have, and of every experiment.

Runs of one seed share prompts, order of data and noise of evaluation, so where both runs have a seed they are compared
under it, and under the same resampled prompts (`stats.intervals`). Where they share no seed, all seeds of the one are
compared with all of the other under the same resampled prompts (`stats.unpaired`).

An experiment's estimates are made anew for both runs, by its own analysis, on what both have. Its random streams are
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
import polars as pl

from aligngap.compare.comparable import Ground, Side, ground, settings_that_differ
from aligngap.errors import UserError
from aligngap.experiments.base import Finished, TaskData
from aligngap.experiments.curves import runs_of
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.experiments.spec import AnalysisSpec
from aligngap.report.load import Estimate as Published
from aligngap.report.style import SPLIT_NAMES
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
class Number:
    """A value with its 95% interval; None where there is no data."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, value: float | None, low: float | None, high: float | None) -> Number:
        """None for what is not finite."""
        return cls(*(v if v is not None and math.isfinite(v) else None for v in (value, low, high)))


@dataclass(frozen=True)
class Row:
    """One quantity in both runs. first, second: None where it is a quantity of the two together. difference: second
    minus first; for a ratio, second over first. how: the design of its interval; note: what it rests on.
    """

    key: str
    label: str
    unit: str
    first: Number | None
    second: Number | None
    difference: Number
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
    rows: dict[str, tuple[Row, ...]]


@dataclass(frozen=True)
class Question:
    """An experiment that both runs asked; the first row is the one that the verdicts rest on."""

    name: str
    title: str
    verdicts: tuple[str, str]
    rows: tuple[Row, ...]


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
            facts = {"folder": str(side.folder), "title": side.title, "study": side.data.study.get("name")}
            return facts | {"smoke": side.data.smoke, "revision": side.data.revision, "seeds": side.data.seeds}

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
    if all(found.refused for found in grounds):
        reasons = " ".join(f"{found.task}: {found.refused}" for found in grounds)
        raise UserError(
            f"not comparable. {reasons}",
            where=where,
            hint="Give both runs the same data, judges and SFT policy; loss, optimiser, proxy, sweep and seeds may "
            "differ.",
        )
    tasks = tuple(_task(a, b, found) for found in grounds if not found.refused)
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
        {found.task: found.refused for found in grounds if found.refused},
    )


def _notes(a: Side, b: Side) -> tuple[str, ...]:
    notes = []
    if a.data.smoke:
        notes.append("Both are smoke runs: their numbers mean nothing, nor does any difference.")
    revisions = [side.data.revision or {} for side in (a, b)]
    commits = [str(revision.get("commit") or "unknown")[:12] for revision in revisions]
    if commits[0] != commits[1]:
        notes.append(f"Made by different revisions of the code: {commits[0]} and {commits[1]}.")
    elif any(revision.get("dirty") for revision in revisions):
        notes.append("Made with uncommitted changes to the code, which may differ between the runs.")
    lists = [{task.name for task in side.data.tasks} for side in (a, b)]
    if alone := sorted(lists[0] ^ lists[1]):
        notes.append(f"In one run only: {', '.join(alone)}.")
    return tuple(notes)


# --- a task -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Arm:
    """All finished seeds of an arm, with their rows of outcomes."""

    family: str
    name: str
    baseline: bool
    rows: dict[int, pl.DataFrame]


def _task(a: Side, b: Side, found: Ground) -> TaskComparison:
    settings = a.analysis
    notes = list(found.notes)
    if settings.opponent not in found.opponents:
        settings = settings.model_copy(update={"opponent": found.opponents[0]})
    chosen = [(side.analysis.split, side.analysis.opponent, side.analysis.judge) for side in (a, b)]
    if chosen[0] != chosen[1]:
        notes.append(
            f"The runs' own estimates are by different prompts, opponents or judges ({' '.join(chosen[0])}; "
            f"{' '.join(chosen[1])}); here both are by the first run's."
        )
    prompts = _shared_prompts(a, b, found.task)
    lost = [len(numbers) for split, numbers in prompts.items() if split == settings.split]
    if not lost or not lost[0]:
        notes.append(f"The runs share no {SPLIT_NAMES.get(settings.split, settings.split)}.")
    sides = [_arms(side, found.task, prompts) for side in (a, b)]
    pairs = _matched(*sides)
    compared = tuple(_arm_pair(found.task, one, other, settings) for one, other in pairs)
    return TaskComparison(
        found.task,
        found.opponents,
        settings.opponent,
        settings.split,
        tuple(notes),
        compared,
        _experiments(a, b, found, settings, sides, pairs, compared),
        _missing(a, b, found.task, sides, pairs),
    )


def _shared_prompts(a: Side, b: Side, task: str) -> dict[str, list[int]]:
    """Numbers of the prompts that both runs were evaluated on, by split."""
    asked = []
    for side in (a, b):
        frame = side.per_prompt
        rows = frame.filter(pl.col("task") == task) if not frame.is_empty() else frame
        asked.append(
            {str(split): set(part["prompt_number"].to_list()) for (split,), part in rows.group_by("split")}
            if not rows.is_empty()
            else {}
        )
    return {split: sorted(numbers & asked[1].get(split, set())) for split, numbers in asked[0].items()}


def _arms(side: Side, task: str, prompts: Mapping[str, Sequence[int]]) -> list[_Arm]:
    """The finished arms of a task in the order of the results, on the shared prompts alone."""
    frame = side.per_prompt
    if frame.is_empty():
        return []
    kept = pl.any_horizontal(
        [pl.lit(False)]
        + [(pl.col("split") == split) & pl.col("prompt_number").is_in(numbers) for split, numbers in prompts.items()]
    )
    frame = frame.filter((pl.col("task") == task) & kept)
    by_run = {
        (str(family), str(arm), int(str(seed))): part
        for (family, arm, seed), part in frame.group_by("family", "arm", "seed", maintain_order=True)
    }
    found: dict[tuple[str, str], _Arm] = {}
    for arm in side.task(task).arms:
        key = (str(arm.get("family")), str(arm.get("name")))
        rows = by_run.get((*key, arm["seed"])) if arm["seed"] is not None else None
        if arm.get("status") == "finished" and rows is not None:
            entry = found.setdefault(key, _Arm(*key, bool(arm.get("baseline")), {}))
            entry.rows[arm["seed"]] = rows
    return list(found.values())


def _matched(first: Sequence[_Arm], second: Sequence[_Arm]) -> list[tuple[_Arm, _Arm]]:
    """Arms in the same place: a family's one baseline with the other run's, whatever its settings; others by name."""
    pairs = []
    taken = set[int]()
    for arm in first:
        others = [other for other in second if other.family == arm.family and other.baseline == arm.baseline]
        ours = [other for other in first if other.family == arm.family and other.baseline == arm.baseline]
        alone = arm.baseline and len(others) == len(ours) == 1
        for other in others:
            if (alone or other.name == arm.name) and id(other) not in taken:
                taken.add(id(other))
                pairs.append((arm, other))
                break
    return pairs


def _missing(
    a: Side, b: Side, task: str, sides: Sequence[Sequence[_Arm]], pairs: Sequence[tuple[_Arm, _Arm]]
) -> tuple[str, ...]:
    found = []
    for place, (side, there) in enumerate(zip((a, b), sides, strict=True)):
        run = ("first", "second")[place]
        matched = {id(pair[place]) for pair in pairs}
        found += [f"Only the {run} run has the arm {arm.name}." for arm in there if id(arm) not in matched]
        for arm in side.task(task).arms:
            if arm.get("status") != "finished":
                reason = arm.get("reason") or "no reason recorded"
                found.append(
                    f"{run} run, arm {arm.get('name')}, seed {arm.get('seed')}: {arm.get('status')}, {reason}."
                )
    asked = [{experiment.name for experiment in side.task(task).experiments} for side in (a, b)]
    if alone := sorted(asked[0] ^ asked[1]):
        found.append(f"Asked in one run only: {', '.join(alone)}.")
    return tuple(found)


# --- arms -------------------------------------------------------------------------------------------------------------

_LEVELS = {
    "peak": ("peak", "win rate"),
    "fall": ("fall from the peak to the end", "win rate"),
    "end": ("at the end", "win rate"),
    "kl": ("KL at the peak", "nats; second over first"),
}


def _contrast(a: Curve, b: Curve) -> dict[str, float]:
    """What is compared of two curves: `b` against `a`. KL as its logarithm, so that its interval stays positive."""
    found = {"gap": average_gap(b, a)}
    for name, curve in (("first", a), ("second", b)):
        rate, kl = peak(curve)
        levels = {"peak": rate, "fall": fall(curve), "end": curve.end, "kl": float(np.log(kl))}
        found |= {f"{key}_{name}": value for key, value in levels.items()}
    return found | {key: found[f"{key}_second"] - found[f"{key}_first"] for key in _LEVELS}


_PLACES = ("kl", "kl_first", "kl_second")
_CONTRASTS = ("gap", *(f"{key}{which}" for key in _LEVELS for which in ("", "_first", "_second")))


def _arm_pair(task: str, one: _Arm, other: _Arm, settings: AnalysisSpec) -> ArmPair:
    shared = sorted(one.rows.keys() & other.rows.keys())
    curves = [
        {seed: runs_of(arm.name, seed, rows) for seed, rows in arm.rows.items() if not shared or seed in shared}
        for arm in (one, other)
    ]
    identical = bool(shared) and all(_same(curves[0][seed], curves[1][seed]) for seed in shared)
    rows = {}
    for judge in JUDGES:
        key = (settings.split, settings.opponent, judge)
        first, second = ([found[key] for found in side.values() if key in found] for side in curves)
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


def _arm_rows(made: Mapping[str, Estimate], how: str, identical: bool) -> tuple[Row, ...]:
    gap = made["gap"]
    rows = [_row("average_gap", "average gap at equal KL", "win rate", None, None, gap, how, identical)]
    for key, (label, unit) in _LEVELS.items():
        one, other, difference = (made[f"{key}{which}"] for which in ("_first", "_second", ""))
        if key == "kl":
            one, other, difference = (estimate.exponential() for estimate in (one, other, difference))
        if difference.n_seeds and key == "kl":
            difference = difference.noted("rough where several checkpoints are about as high")
        name = "kl_at_peak_ratio" if key == "kl" else f"{key}_difference"
        rows.append(_row(name, label, unit, _number(one), _number(other), difference, how, identical))
    return tuple(rows)


def _number(estimate: Estimate) -> Number:
    return Number.of(estimate.value, estimate.low, estimate.high)


def _row(
    key: str,
    label: str,
    unit: str,
    first: Number | None,
    second: Number | None,
    difference: Estimate,
    how: str,
    identical: bool,
) -> Row:
    note = "; ".join(filter(None, [IDENTICAL if identical else "", difference.note]))
    return Row(
        key, label, unit, first, second, _number(difference), difference.n_seeds, difference.n_prompts, how, note
    )


# --- experiments ------------------------------------------------------------------------------------------------------


def _experiments(
    a: Side,
    b: Side,
    found: Ground,
    settings: AnalysisSpec,
    sides: Sequence[Sequence[_Arm]],
    pairs: Sequence[tuple[_Arm, _Arm]],
    compared: Sequence[ArmPair],
) -> tuple[Question, ...]:
    """Every question that both runs asked."""
    ours = [(one, other) for one, other in pairs if one.family != "golden_policy"]  # its seed is that of no study
    paired = any(one.rows.keys() & other.rows.keys() for one, other in ours)
    same = all(pair.identical for pair in compared) and all(len(there) == len(pairs) for there in sides)
    data = [
        _task_data(side, found.task, settings, there, _not_in_both(ours, place) if paired else set())
        for place, (side, there) in enumerate(zip((a, b), sides, strict=True))
    ]
    # As published, the two are on one scale only if neither opponent, prompts nor judge had to be replaced.
    own = [(side.analysis.split, side.analysis.opponent, side.analysis.judge) for side in (a, b)]
    published = own[0] == own[1] == (settings.split, settings.opponent, settings.judge)
    others = {experiment.name: experiment for experiment in b.task(found.task).experiments}
    questions = []
    for experiment in a.task(found.task).experiments:
        other = others.get(experiment.name)
        if other is None:
            continue
        made: list[dict[str, Estimate]] = [{}, {}]
        known = EXPERIMENTS.get(experiment.name)
        if known and data[0] and data[1]:
            made = [
                {key: value.estimate for key, value in known.analyse(part).estimates.items()} for part in data if part
            ]
        theirs = {estimate.key: estimate for estimate in other.estimates}
        rows = (
            _estimate_row(one, theirs[one.key], made, published, paired, same, settings.replicates)
            for one in experiment.estimates
            if one.key in theirs
        )
        verdicts = (experiment.verdict, other.verdict)
        questions.append(Question(experiment.name, experiment.title, verdicts, tuple(row for row in rows if row)))
    return tuple(questions)


def _not_in_both(pairs: Sequence[tuple[_Arm, _Arm]], place: int) -> set[tuple[str, str, int]]:
    """(family, name, seed) of the runs of one side (`place` in each pair) whose counterpart is not there."""
    found = set()
    for pair in pairs:
        arm, against = pair[place], pair[1 - place]
        found |= {(arm.family, arm.name, seed) for seed in arm.rows.keys() - against.rows.keys()}
    return found


def _task_data(
    side: Side, task: str, settings: AnalysisSpec, there: Sequence[_Arm], dropped: set[tuple[str, str, int]]
) -> TaskData | None:
    """What an experiment analyses, rebuilt from a result folder; None where this version cannot read its settings."""
    if side.plan is None:
        return None
    try:
        planned = [arm.entry for arm in side.plan.tasks[task].arms]
    except UserError:
        return None
    entries = {(entry.family, entry.name, entry.stage.seed): entry for entry in planned}
    recorded = {(arm.get("family"), arm.get("name"), arm.get("seed")): arm for arm in side.task(task).arms}
    finished = []
    for arm in there:
        for seed, rows in arm.rows.items():
            key = (arm.family, arm.name, seed)
            if key in entries and key not in dropped:
                facts = recorded[key]
                finished.append(
                    Finished(
                        entries[key],
                        runs_of(arm.name, seed, rows),
                        str(facts.get("weights_sha256")),
                        per_prompt=rows,
                        parameters=int(facts.get("parameters") or 0),
                    )
                )
    truth = any("true" in key for arm in finished for key in arm.runs)
    return TaskData(task, settings, finished, truth=truth)


def _estimate_row(
    one: Published,
    two: Published,
    made: Sequence[Mapping[str, Estimate]],
    published: bool,
    paired: bool,
    same: bool,
    replicates: int,
) -> Row | None:
    """One estimate of both runs. None where neither run has a number on the common scale.

    published: whether the runs' own estimates are on it; paired: whether the runs share seeds; same: whether all their
    arms are identical, so that what is published alike is alike.
    """
    anew = [side.get(one.key) for side in made]
    known = [found for found in anew if found is not None and math.isfinite(found.value)]
    how, a, b = PAIRED if paired else INDEPENDENT, anew[0], anew[1]
    if len(known) < 2 and published and one.value is not None and two.value is not None:
        how, a, b = PUBLISHED, _as_estimate(one), _as_estimate(two)
    elif not known:
        return None
    a, b = a or _NOTHING, b or _NOTHING
    joint = _joint(a, b, replicates) if how == PAIRED else None
    if how == PUBLISHED and same and one == two:
        how, joint = IDENTICAL, (0.0, 0.0, 0.0)
    if joint is None:
        how, joint = how if how == PUBLISHED else INDEPENDENT, difference_of_intervals(a, b)
    return Row(
        one.key,
        one.label,
        one.unit,
        _number(a),
        _number(b),
        Number.of(*joint),
        min(a.n_seeds, b.n_seeds),
        min(a.n_prompts, b.n_prompts),
        how,
        "; ".join(dict.fromkeys(note for note in (a.note, b.note) if note)),
    )


def _joint(a: Estimate, b: Estimate, replicates: int) -> tuple[float, float, float] | None:
    """(value, low, high) of b - a from draws of the same prompts and seeds; None where the draws do not belong
    together, because the runs differ in what is defined.
    """
    if not len(a.draws) == len(b.draws) == replicates or (a.n_seeds, a.n_prompts) != (b.n_seeds, b.n_prompts):
        return None
    low, high = np.quantile(b.draws - a.draws, [0.025, 0.975]).tolist()
    return b.value - a.value, low, high


_NOTHING = Estimate(math.nan, math.nan, math.nan, 0, 0, 0, "")


def _as_estimate(published: Published) -> Estimate:
    value, low, high = (math.nan if v is None else v for v in (published.value, published.low, published.high))
    return Estimate(value, low, high, published.n_seeds or 0, published.n_prompts or 0, 0, published.note)
