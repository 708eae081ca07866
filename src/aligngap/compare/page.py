"""A comparison as one self-contained page, in the style of the report and drawn by its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from aligngap.compare import words
from aligngap.compare.differences import ArmPair, Comparison, Number, Row, TaskComparison
from aligngap.report.figures import Figure, reaches_far, splits_of, win_figure
from aligngap.report.packing import drawable, packed
from aligngap.report.page import Page, figure_context, shared_by_scripts, whisker
from aligngap.report.style import JUDGE_NAMES, OPPONENT_NAMES, Style, Theme, family_name
from aligngap.results import OPPONENTS, ArmRecord, StudyResults, Task

#: Both runs of an arm in one figure, told apart by hue, shape and dash.
_STYLES = (Style(0, "circle"), Style(1, "square", (6, 3)))
_NAMES = ("First run", "Second run")


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the page, whole or not at all. Raises OSError."""
    page = render(comparison)
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(page, encoding="utf-8")
    draft.replace(path)
    return path


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
        sides=[
            {
                "title": side.title,
                "folder": side.folder.name or str(side.folder),
                "revision": side.data.revision.commit_or("not known"),
                "dirty": bool(side.data.revision.dirty),
                "seeds": ", ".join(map(str, side.data.seeds)) or "none",
            }
            for side in sides
        ],
        smoke=comparison.first.data.smoke,
        comparison=comparison,
        settings=[(key, words.setting_words(a), words.setting_words(b)) for key, a, b in comparison.settings],
        seeds=data.seeds,
        tasks=tasks,
        opponents=OPPONENT_NAMES,
        judges=JUDGE_NAMES,
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


def _figures(task: TaskComparison, data: StudyResults, theme: Theme) -> list[Figure]:
    """Win rate over KL, both runs in one figure: a figure a family."""
    points = data.points.filter(pl.col("task") == task.task)
    found = []
    for family in dict.fromkeys(pair.family for pair in task.arms):
        both = [name for name in (f"1 {family}", f"2 {family}") if name in theme.names]
        pair = next(pair for pair in task.arms if pair.family == family)
        found.append(
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
    return found


def _task(
    task: TaskComparison, identifier: str, figures: Sequence[Figure], data: StudyResults, merged: Task
) -> dict[str, Any]:
    runs = data.runs.filter(pl.col("task") == task.task)
    return {
        "id": identifier,
        "name": task.task,
        "scale": words.scale_words(task),
        "comparison": task,
        "judged": [
            {"judge": judge, "rows": rows}
            for judge in JUDGE_NAMES
            if (rows := [_arm(pair, task.arms, judge) for pair in task.arms if pair.rows.get(judge)])
        ],
        "questions": [{"question": question, "rows": _rows(question.rows)} for question in task.experiments],
        "figures": [figure_context(figure, identifier, number) for number, figure in enumerate(figures, start=1)],
        "splits": splits_of(data, task.task),
        "opponents": {name: OPPONENT_NAMES[name] for name in task.opponents},
        "far": reaches_far(data, merged),
        "has_sweep": not all(runs["baseline"].to_list()),
    }


def _arm(pair: ArmPair, pairs: Sequence[ArmPair], judge: str) -> dict[str, Any]:
    """A line of the table of arms, and all that is known of the arm."""
    found = {row.key: row for row in pair.rows[judge]}
    shown = []
    for key in words.HEADLINES:
        peers = [row.difference for other in pairs for row in other.rows.get(judge, ()) if row.key == key]
        shown.append(_cell(found[key], peers))
    peak = found["peak_difference"]
    levels = [words.value_words(number.value if number else None, peak.unit) for number in (peak.first, peak.second)]
    return {"pair": pair, "name": words.arm_words(pair), "levels": levels, "shown": shown, "all": _rows(found.values())}


def _rows(rows: Any) -> list[dict[str, Any]]:
    listed = list(rows)
    return [_cell(row, [other.difference for other in listed if other.unit == row.unit]) for row in listed]


def _cell(row: Row, peers: Sequence[Number]) -> dict[str, Any]:
    """A row in words. A ratio has no place on a strip around 0."""
    strip = None if row.key == words.RATIO else whisker(row.difference, peers)
    levels = [words.interval_words(number, row.unit) if number else None for number in (row.first, row.second)]
    known = row.difference.value is not None
    return {
        "row": row,
        "levels": levels,
        "difference": words.difference_words(row),
        "known": known,
        "basis": words.basis(row) if known else row.note or "no data in one of the runs",
        "whisker": strip,
    }
