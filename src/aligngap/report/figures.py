"""Which figures a study has, and from which tables they are drawn.

A *panel* is one specification over the tables of a task (`tables`), with the parameters that make it this view; a
*figure* is panels that belong together. The page embeds specifications without data and draws from one copy of a task's
tables; an image (`still`) is the same panels side by side with the data put in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from aligngap.report.drawing import Drawing, drawings, measures, plotted
from aligngap.report.style import JUDGE_NAMES, Style, Theme, family_name, judge_styles, styles
from aligngap.results import FAMILIES, JUDGES, OPPONENTS, PENDING, SPLITS, Conclusion, StudyResults, Task


@dataclass(frozen=True)
class Panel:
    """One view of a figure. `build` gives its specification, which panels of one `key` share; `params` are the
    parameters that make it this view, which no control changes.
    """

    key: str
    title: str
    build: Callable[[], dict[str, Any]]
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chart:
    """Panels that belong together; without any where there is nothing to draw, and `note` says why.

    series: what its legend names, with labels. shown: what of it is drawn from the start. span: for win rates, whether
    the axes take in the usual range of KL or the whole (`reach`). against: whose responses they are against, where that
    is not the reader's choice. by_split: whether train and held-out prompts differ.
    """

    task: str
    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    series: dict[str, str]
    styles: dict[str, Style]
    shown: tuple[str, ...]
    span: Literal["usual", "whole"] | None = None
    against: str | None = None
    by_split: bool = True
    note: str = ""


# --- tables -----------------------------------------------------------------------------------------------------------


def tables(data: StudyResults, task: Task) -> dict[str, list[dict[str, Any]]]:
    """The named tables that all panels of a task share, as plain rows."""
    points = plotted(data).filter(pl.col("task") == task.name).drop("task")
    # Five significant digits are beyond what any of these numbers can carry, and halve the page.
    points = points.with_columns(
        pl.col(name).round_sig_figs(5) for name, kind in points.schema.items() if kind == pl.Float64
    )
    drawn = [drawing for experiment in task.experiments for drawing in drawings(experiment)]
    runs = data.runs.filter(pl.col("task") == task.name)
    # What is still being evaluated is drawn as far as it has come, and says so.
    arm = pl.when(pl.col("status") == PENDING).then(pl.col("arm") + " (unfinished)").otherwise("arm")
    runs = runs.with_columns(arm.alias("arm")).drop("task", "reason", "weights_sha256")
    return {
        "points": points.to_dicts(),
        "runs": runs.join(_extents(points), on="run", how="left").to_dicts(),
        "references": [{"split": split, "kl": kl} for split, kl in task.golden_kl.items()],
        "drawn": [{"figure": drawing.key, **point} for drawing in drawn for point in drawing.points],
    }


def _points(data: StudyResults, task: str, families: Iterable[str] | None = None) -> pl.DataFrame:
    chosen = plotted(data).filter(pl.col("task") == task)
    return chosen if families is None else chosen.filter(pl.col("family").is_in(list(families)))


def splits_of(data: StudyResults, task: str) -> list[str]:
    present = set(_points(data, task)["split"].to_list())
    return [split for split in reversed(SPLITS) if split in present]


def rate_columns(opponents: Sequence[str] = OPPONENTS) -> list[str]:
    return [f"rate_{opponent}_{judge}" for opponent in opponents for judge in JUDGES]


def _any_number(points: pl.DataFrame, columns: Iterable[str]) -> bool:
    return any(points[name].count() > 0 for name in columns)


#: A run that goes on to a KL beyond this many times what most runs spend would leave little room for them.
FAR = 5.0


def usual_kl(points: pl.DataFrame) -> float:
    """Where the usual range of KL ends: at `FAR` times the upper quartile of the runs' largest KLs; infinite without
    any. A policy that has lost all hold on SFT can spend a hundred times what the others do.
    """
    largest = points.filter(pl.col("kl") > 0).group_by("run").agg(pl.col("kl").max())["kl"]
    upper = largest.quantile(0.75, "lower")
    return math.inf if upper is None else FAR * upper


def reaches_far(data: StudyResults, task: Task) -> bool:
    """Whether any point of the task lies beyond the usual range of KL."""
    points = _points(data, task.name)
    return not points.filter(pl.col("kl") > usual_kl(points)).is_empty()


def _extents(points: pl.DataFrame) -> pl.DataFrame:
    """How far each run reaches, with a margin: from_kl, to_kl, and from_, to_ of the rates against each opponent, over
    the points in the usual range of KL; with `all_` before them over all points. Null where it has none.
    """
    drawn = points.filter(pl.col("kl") > 0)
    result = drawn.select("run").unique(maintain_order=True)
    for prefix, part in (("", drawn.filter(pl.col("kl") <= usual_kl(points))), ("all_", drawn)):
        columns = [
            (pl.col("kl").min() * 0.8).alias(f"{prefix}from_kl"),
            (pl.col("kl").max() * 1.25).alias(f"{prefix}to_kl"),
        ]
        for opponent in OPPONENTS:
            rates = pl.concat_list(rate_columns([opponent])).explode()
            low, high = ((rates.min() - 0.03) / 0.05).floor() * 0.05, ((rates.max() + 0.03) / 0.05).ceil() * 0.05
            columns.append(low.clip(0, 1).round(2).alias(f"{prefix}from_{opponent}"))
            columns.append(high.clip(0, 1).round(2).alias(f"{prefix}to_{opponent}"))
        result = result.join(part.group_by("run").agg(columns), on="run", how="left")
    return result


def reach(runs: Sequence[Mapping[str, Any]], opponent: str, *, whole: bool = False) -> dict[str, float]:
    """The axes' range that takes in some runs of `tables`: one of KL, and one of rates for all judges, so that panels
    can be compared by eye. The page does the same for what it shows.

    whole: beyond the usual range of KL, too; so, in any case, where nothing lies in it.
    """

    def known(name: str) -> list[float]:
        return [run[name] for run in runs if run.get(name) is not None]

    prefix = "all_" if whole or not known("to_kl") else ""
    return {
        "xmin": min(known(f"{prefix}from_kl"), default=0.01),
        "xmax": max(known(f"{prefix}to_kl"), default=10.0),
        "ymin": min([0.45, *known(f"{prefix}from_{opponent}")]),
        "ymax": max([0.55, *known(f"{prefix}to_{opponent}")]),
    }


def drawn_runs(runs: Iterable[Mapping[str, Any]], figure: Chart) -> list[Mapping[str, Any]]:
    """The runs that a figure shows from the start."""
    only = [panel.params["only"] for panel in figure.panels if "only" in panel.params]
    return [r for r in runs if (r["family"] in only and r["baseline"] if only else r["family"] in figure.shown)]


# --- figures ----------------------------------------------------------------------------------------------------------

_WIN_CAPTION = (
    "A point is a checkpoint, a line a run (one arm, one seed) in order of KL. Thick: baseline arms, with one standard "
    "error over prompts. Thin: the offline sweep. Dashed: a draw, and the KL that the golden policy spent. Step 0 has "
    "a KL of exactly 0, which a log axis cannot show. After Tang et al. (2024), figure 1."
)
#: Title, caption and options of a task's other figures.
_WORDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "other_axes": (
        "Win rate over steps, and over the proxy’s opinion",
        "The same points in order of training. Different optimisers may spend the same KL differently, so a "
        "difference that one axis shows and another does not calls for caution. Right: what the proxy was pleased by, "
        "and what became of the win rate; a line that turns down while it moves right is a proxy being exploited.",
        {"span": "whole"},
    ),
    "judges": (
        "Three judges of the same responses",
        "Baseline arms against the SFT policy. The policy is trained to please the proxy; the golden judge "
        "stands for the human; the true utility is known because the task is built in. Where proxy and truth part, the "
        "policy has learned the proxy’s mistakes.",
        {"series": JUDGE_NAMES, "styles": judge_styles(), "span": "usual", "against": "sft"},
    ),
    "training": (
        "Classifier, log-probabilities and length, over training",
        "A policy that ranks golden pairs well need not write well. Accuracy: how often the sign of the "
        "log-ratio margin predicts the golden label (dashed: chance). Drift: how far the log-probability of golden "
        "winners has moved from SFT’s (dashed: not at all).",
        {},
    ),
    "measures": (
        "Further measures of the responses",
        "What the study asked of every arm beside the above: means over prompts, over training and over KL.",
        {"span": "whole"},
    ),
    "cost": (
        "Gain over cost",
        "Win rate against the golden policy’s responses at the last checkpoint, by the golden judge, over what "
        "the run cost. What all arms share (SFT, judges) is left out.",
        {"by_split": False},
    ),
}
_OTHER_AXES: tuple[tuple[Literal["step", "rate_sft_proxy"], str], ...] = (
    ("step", "Over optimiser steps"),
    ("rate_sft_proxy", "Over the proxy’s opinion"),
)
_STEP_PANELS: tuple[tuple[str, str, float | None], ...] = (
    ("accuracy", "Accuracy on golden pairs", 0.5),
    ("drift", "Drift of winners’ log-probability", 0.0),
    ("kl", "KL from SFT", None),
    ("tokens", "Response length, tokens", None),
    ("utility", "Mean true utility", None),
)
_OVERS: tuple[tuple[Literal["step", "kl"], str], ...] = (("step", "steps"), ("kl", "KL"))
_COST_PANELS = (
    ("seconds", "Seconds of training"),
    ("judge_calls", "Judge calls"),
    ("tokens_sampled", "Tokens sampled"),
)


def win_figure(
    theme: Theme, points: pl.DataFrame, families: Sequence[str], shown: Sequence[str], **words: Any
) -> Chart:
    """Win rate over KL of some families: by the judge that the reader chooses, beside the true utility."""
    from aligngap.report import specs

    build = functools.partial(specs.win_rate, theme)
    panels = [Panel("win", JUDGE_NAMES["golden"], build)]
    if _any_number(points, [f"rate_{opponent}_true" for opponent in OPPONENTS]):
        panels.append(Panel("win", JUDGE_NAMES["true"], build, {"judge": "true"}))
    return Chart(
        **words,
        panels=tuple(panels) if _any_number(points, rate_columns()) else (),
        **_families(theme, families),
        shown=tuple(shown),
        span="usual",
    )


def _families(theme: Theme, families: Iterable[str]) -> dict[str, Any]:
    return {
        "series": {family: theme.names[family] for family in families},
        "styles": {family: theme.styles[family] for family in families},
    }


def task_figures(data: StudyResults, task: Task, theme: Theme) -> list[Chart]:
    """The figures of a task as a whole that have anything to show, in reading order.

    What the paper compares first is shown from the start; the families of other experiments can be added to it.
    """
    points = _points(data, task.name)
    families = [family for family in theme.families if family in set(points["family"].to_list())]
    shown = tuple(family for family in families if family in FAMILIES) or tuple(families)
    words = {"task": task.name, "name": "goodhart", "title": "Win rate over KL", "caption": _WIN_CAPTION}
    win = win_figure(theme, points, families, shown, **words)
    figures = [win] if win.panels else []
    for name, panels in _panels(data, task, theme, points, shown).items():
        if panels:
            title, caption, options = _WORDS[name]
            options = _families(theme, families) | {"shown": shown} | options
            figures.append(Chart(task.name, name, title, caption, tuple(panels), **options))
    return figures


def _panels(
    data: StudyResults, task: Task, theme: Theme, points: pl.DataFrame, shown: Sequence[str]
) -> dict[str, list[Panel]]:
    """The panels of a task's figures beside the first, by figure."""
    from aligngap.report import specs

    def panel(key: str, title: str, build: Callable[..., dict[str, Any]], *given: Any, **params: Any) -> Panel:
        return Panel(key, title, functools.partial(build, theme, *given), params)

    known = {column for column in points.columns if points[column].count() > 0}
    rated = bool(known & set(rate_columns()))
    of_sft = rate_columns(["sft"])
    by_family = {family: points.filter((pl.col("family") == family) & pl.col("baseline")) for family in shown}
    ended = data.runs.filter((pl.col("task") == task.name) & pl.col("end_rate").is_not_null())
    return {
        "other_axes": [panel(f"win-{x}", title, specs.win_rate, x) for x, title in _OTHER_AXES if rated and x in known],
        "judges": [
            panel("judges", theme.names[family], specs.judges, only=family)
            for family, baselines in by_family.items()
            if family != "golden_policy" and _any_number(baselines, of_sft)
        ],
        "training": [panel(f"step-{p[0]}", p[1], specs.measure, *p) for p in _STEP_PANELS if p[0] in known],
        "measures": [
            panel(f"{x}-{column}", f"{family_name(name)} over {words}", specs.measure, column, name, None, x)
            for column, name in measures(data).items()
            if column in known
            for x, words in _OVERS
        ],
        "cost": [panel(f"cost-{p[0]}", p[1], specs.cost, *p) for p in _COST_PANELS if ended[p[0]].count() > 0],
    }


def experiment_figures(data: StudyResults, task: Task, experiment: Conclusion, theme: Theme) -> list[Chart]:
    """The figures that an experiment asked for, also those without anything to draw: these say so."""
    return [_drawn_figure(data, task.name, drawing, theme) for drawing in drawings(experiment)]


def _drawn_figure(data: StudyResults, task: str, drawing: Drawing, theme: Theme) -> Chart:
    from aligngap.report import specs

    words: dict[str, Any] = {
        "task": task,
        "name": drawing.key,
        "title": drawing.figure.title or drawing.figure.name.replace("_", " "),
    }
    if drawing.figure.families:
        points = _points(data, task, drawing.figure.families)
        drawable = points.filter(pl.any_horizontal(pl.col(rate_columns()).is_not_null()) & pl.col("kl").is_not_null())
        present = set(drawable["family"].to_list())
        families = [family for family in drawing.figure.families if family in present]
        lacking = [family_name(family) for family in drawing.figure.families if family not in present]
        note = f"No data of: {', '.join(lacking)}." if lacking else ""
        return win_figure(theme, drawable, families, families, **words, caption="", note=note)
    series = specs.series_of(drawing)
    notes = (
        ("Shaded, or the line through a mark: the 95% interval.", specs.bounded(drawing)),
        ("Faint: single seeds.", {point["seed"] is None for point in drawing.points} == {True, False}),
    )
    panel = Panel(drawing.key, "", functools.partial(specs.drawn, theme, drawing), {"figure": drawing.key})
    left_out = f"{drawing.dropped} point{'s' if drawing.dropped > 1 else ''} without a number left out."
    return Chart(
        **words,
        caption=" ".join(note for note, holds in notes if holds),
        panels=(panel,) if drawing.points else (),
        series=specs.series_labels(series, theme),
        styles=styles(series, theme.families),
        shown=series,
        by_split=False,
        note="No data: nothing to draw." if not drawing.points else left_out if drawing.dropped else "",
    )


def every_figure(data: StudyResults, task: Task, theme: Theme) -> list[Chart]:
    """All figures of a task that have anything to show."""
    own = [figure for experiment in task.experiments for figure in experiment_figures(data, task, experiment, theme)]
    return [figure for figure in (*task_figures(data, task, theme), *own) if figure.panels]
