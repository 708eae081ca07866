"""A comparison as one self-contained page, in the style of the report and drawn by its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from aligngap.compare import words
from aligngap.compare.differences import JUDGES, Comparison, Quantity, TaskComparison
from aligngap.report.figures import Chart, reaches_far, splits_of, win_figure
from aligngap.report.packing import drawable, packed
from aligngap.report.page import Page, put, shared_by_scripts
from aligngap.report.style import JUDGE_NAMES, OPPONENT_NAMES, Style, Theme, family_name
from aligngap.results import OPPONENTS, ArmRecord, StudyResults, Task

#: Both runs of an arm in one figure, told apart by hue, shape and dash.
_STYLES = (Style(0, "circle"), Style(1, "square", (6, 3)))
_NAMES = ("First run", "Second run")


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the page, whole or not at all. Raises DiskError."""
    return put(render(comparison), path)


def render(comparison: Comparison) -> str:
    """The page as text."""
    data = _both(comparison)
    own = tuple((family, _NAMES[int(family[0]) - 1], _STYLES[int(family[0]) - 1]) for family in data.families)
    theme = Theme.for_page(data, own)
    tasks, parts = [], {}
    for index, (task, merged) in enumerate(zip(comparison.tasks, data.tasks, strict=True)):
        figures = [figure for figure in _figures(task, data, theme) if figure.panels]
        tasks.append(_task(task, f"task-{index}", figures, data, merged))
        parts[f"task:{task.task}"] = packed(drawable(data, merged, figures))
    sides = (comparison.first, comparison.second)
    return Page(
        "compare.html.j2",
        shared_by_scripts(data, theme),
        parts,
        title=" and ".join(dict.fromkeys(side.title for side in sides)),
        sides=sides,
        comparison=comparison,
        words=words,
        seeds=data.seeds,
        tasks=tasks,
        judges={judge: JUDGE_NAMES[judge] for judge in JUDGES},
    ).text()


def _both(comparison: Comparison) -> StudyResults:
    """The compared arms of both runs as one study, whose families are `1 FAMILY` and `2 FAMILY`."""
    tasks, points, before = [], [], 0
    for task in comparison.tasks:
        arms: list[ArmRecord] = []
        for place, side in enumerate((comparison.first, comparison.second)):
            compared = {(pair.family, (pair.first, pair.second)[place]) for pair in task.arms}
            names = {"family": f"{place + 1} ", "arm": f"{_NAMES[place].lower()}: "}
            numbers = side.data.runs.filter(pl.col("task") == task.task)["run"].to_list()
            renumbered = {}
            for number, arm in zip(numbers, side.data.task(task.task).arms, strict=True):
                if (arm.family, arm.name) in compared:
                    renumbered[number] = before + len(arms)
                    changed = {"family": names["family"] + arm.family, "name": names["arm"] + arm.name}
                    arms.append(arm.model_copy(update=changed))
            shown = side.data.points.filter(pl.col("run").is_in(list(renumbered)))
            shown = shown.with_columns((pl.lit(text) + pl.col(column)).alias(column) for column, text in names.items())
            points.append(shown.with_columns(pl.col("run").replace(renumbered)))
        # The budget of the golden policy, where the runs share it.
        shared = comparison.first.data.task(task.task).golden_kl if len(task.opponents) == len(OPPONENTS) else {}
        tasks.append(Task(name=task.task, arms=tuple(arms), golden_kl=shared))
        before += len(arms)
    first = comparison.first.data
    both = pl.concat(points, how="diagonal")  # one of them may have measures of its own
    return StudyResults(study=first.study, smoke=first.smoke, tasks=tuple(tasks), points=both)


def _figures(task: TaskComparison, data: StudyResults, theme: Theme) -> list[Chart]:
    """Win rate over KL, both runs in one figure: a figure a family."""
    points = data.points.filter(pl.col("task") == task.task)
    result = []
    for family in dict.fromkeys(pair.family for pair in task.arms):
        both = [name for name in (f"1 {family}", f"2 {family}") if name in theme.names]
        pair = next(pair for pair in task.arms if pair.family == family)
        result.append(
            win_figure(
                theme,
                points.filter(pl.col("family").is_in(both)),
                both,
                both,
                task=task.task,
                name=f"both-{family}",
                title=family_name(family) if len(task.arms) > 1 else words.arm_words(pair),
                caption="",
            )
        )
    return result


def _task(
    task: TaskComparison, identifier: str, figures: Sequence[Chart], data: StudyResults, merged: Task
) -> dict[str, Any]:
    """What the template needs to know of a task. judged: by judge, the rows of all arms by their key."""
    runs = data.runs.filter(pl.col("task") == task.task)
    judged: dict[str, dict[str, list[Quantity]]] = {}
    for judge in JUDGES:
        for row in (row for pair in task.arms for row in pair.rows.get(judge, ())):
            judged.setdefault(judge, {}).setdefault(row.key, []).append(row)
    return {
        "id": identifier,
        "name": task.task,
        "comparison": task,
        "judged": judged,
        "figures": figures,
        "numbers": {figure.name: number for number, figure in enumerate(figures, start=1)},
        "splits": splits_of(data, task.task),
        "opponents": {name: OPPONENT_NAMES[name] for name in task.opponents},
        "far": reaches_far(data, merged),
        "has_sweep": not all(runs["baseline"].to_list()),
    }
