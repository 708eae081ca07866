"""Every figure once: as panels that the page embeds and drives, and as images for papers and READMEs.

A *panel* is a single view over the named data sets of one task (`points`, `runs`, `references`, `drawn`: `datasets`),
steered by parameters: split, judge, opponent, what is shown ... The page embeds the panels without data and sets the
parameters from its own controls, so that one copy of a task's data serves all its figures; an image is the same panels
side by side with the parameters fixed and the data put in. What an experiment draws itself goes through one builder,
`drawn_panel`. Colours come from a `Look`, in the page as CSS variables, so that dark mode and printing are matters of
style alone.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from aligngap.report.images import Format, Images
from aligngap.report.load import FAMILIES, JUDGES, OPPONENTS, PENDING, SPLITS, Drawing, Experiment, ReportData, Task

if TYPE_CHECKING:
    import altair as alt

OPPONENT_NAMES = {"golden_policy": "the golden policy", "sft": "the SFT policy"}
JUDGE_NAMES = {"golden": "Golden judge", "true": "True utility", "proxy": "Proxy judge"}
SPLIT_NAMES = {"held_out": "held-out prompts", "train": "train prompts"}
FAMILY_NAMES = {
    "online": "Online",
    "offline": "Offline",
    "offline_proxy": "Offline, proxy's labels",
    "replay": "Replay, exact order",
    "shuffled": "Replay, shuffled",
    "golden_policy": "Golden policy",
}

#: On a light and on a dark ground, each at least 3:1 against it. The first six follow Okabe and Ito, told apart with
#: every common kind of colour blindness; after the proxy judge's come those for families that a study adds.
HUES = (
    ("#0072B2", "#4BA3E3"),
    ("#D55E00", "#FF8A4C"),
    ("#C2609A", "#EDA3CB"),
    ("#2E95D3", "#A5D8FF"),
    ("#009E73", "#35C99B"),
    ("#B88700", "#F0C24B"),
    ("#B4508A", "#F29CCB"),
    ("#4F3FB0", "#A79BF0"),
    ("#8A5A2B", "#D9B36C"),
    ("#1F8A94", "#6FD3DC"),
    ("#882255", "#E27FA8"),
    ("#7F7F1A", "#D6D66F"),
    ("#6E7781", "#A8B0B8"),
    ("#117733", "#7CCB8C"),
)
JUDGE_HUES = {"golden": 5, "true": 4, "proxy": 6}
_JUDGE_SHAPES = ("circle", "diamond", "triangle-up")
_SPARE_HUES = range(7, 14)
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")
_SOLID = (1, 0)
_FEW_BANDS = 3  # more of them, one over the other, cannot be told apart
_DASHES = ((6, 3), (2, 2), (8, 3, 2, 3))

#: 0, 500, 1k, 1.5k: a format of the axis would give all labels the largest one's unit.
_SHORT = "format(datum.value, '~s')"
_KL_TICKS = [v * 10.0**e for e in range(-6, 6) for v in (1, 3)]
_PERCENT = re.compile(r"\b(win rate|accuracy|agreement|share|quantile)", re.IGNORECASE)


@dataclass(frozen=True)
class Style:
    """How a family or a series is told apart: by hue (an index into `HUES`), shape and dash, never by one alone."""

    hue: int
    shape: str
    dash: tuple[int, ...] = _SOLID


_FAMILY_STYLES = {name: Style(index, _SHAPES[index]) for index, name in enumerate(FAMILIES)}


def styles(names: Sequence[str], families: Sequence[str] = ()) -> dict[str, Style]:
    """A style for each name. Those that are (or are labelled as) one of `families`, a family of the paper or a judge
    have that one's; others go through hues, shapes and dashes, of which no two among the first 168 share all.
    """
    known = _FAMILY_STYLES | (styles(families) if families else {})
    known |= {family_name(family).lower(): style for family, style in known.items()}
    known |= {JUDGE_NAMES[judge].lower(): style for judge, style in judge_styles().items()}
    found = {name: known[key] for name in names for key in (name, name.lower()) if key in known}
    # Solid lines are for what is known, where there is any.
    dashes = _DASHES if found else (_SOLID, *_DASHES)
    for index, name in enumerate(name for name in names if name not in found):
        hue = _SPARE_HUES[index % len(_SPARE_HUES)]
        dash = dashes[index // len(_SPARE_HUES) % len(dashes)]
        found[name] = Style(hue, _SHAPES[index % len(_SHAPES)], dash)
    return {name: found[name] for name in names}


def judge_styles() -> dict[str, Style]:
    return {j: Style(JUDGE_HUES[j], shape) for j, shape in zip(JUDGES, _JUDGE_SHAPES, strict=True)}


def family_name(family: str) -> str:
    return FAMILY_NAMES.get(family, family.replace("_", " ").capitalize())


@dataclass(frozen=True)
class Look:
    """Colours as a drawing takes them (hexadecimal for images, CSS variables for the page), and what a report's charts
    have in common: its families and seeds. own: name and style of families that the report knows better.
    """

    ink: str
    muted: str
    grid: str
    hues: tuple[str, ...]
    families: tuple[str, ...]
    seeds: tuple[int, ...]
    own: tuple[tuple[str, str, Style], ...] = ()

    @classmethod
    def for_images(cls, data: ReportData) -> Look:
        light = tuple(light for light, _ in HUES)
        return cls("#22262b", "#5d6670", "#e6e8eb", light, tuple(data.families), tuple(data.seeds))

    @classmethod
    def for_page(cls, data: ReportData, own: tuple[tuple[str, str, Style], ...] = ()) -> Look:
        variables = tuple(f"var(--hue-{index})" for index in range(len(HUES)))
        return cls("var(--ink)", "var(--muted)", "var(--grid)", variables, tuple(data.families), tuple(data.seeds), own)

    @property
    def names(self) -> dict[str, str]:
        """What each family is called."""
        return {family: family_name(family) for family in self.families} | {name: label for name, label, _ in self.own}

    @property
    def styles(self) -> dict[str, Style]:
        """How each family is told apart."""
        return styles(self.families) | {name: style for name, _, style in self.own}


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
class Figure:
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


# --- data -----------------------------------------------------------------------------------------------------------


def datasets(data: ReportData, task: Task) -> dict[str, list[dict[str, Any]]]:
    """The named data sets that all panels of a task share, as plain rows."""
    points = data.points.filter(pl.col("task") == task.name).drop("task")
    # Five significant digits are beyond what any of these numbers can carry, and halve the page.
    points = points.with_columns(
        pl.col(name).round_sig_figs(5) for name, kind in points.schema.items() if kind == pl.Float64
    )
    drawings = [drawing for experiment in task.experiments for drawing in experiment.figures]
    runs = data.runs.filter(pl.col("task") == task.name)
    # What is still being evaluated is drawn as far as it has come, and says so.
    arm = pl.when(pl.col("status") == PENDING).then(pl.col("arm") + " (unfinished)").otherwise("arm")
    runs = runs.with_columns(arm.alias("arm")).drop("task", "reason", "weights_sha256")
    return {
        "points": points.to_dicts(),
        "runs": runs.join(_extents(points), on="run", how="left").to_dicts(),
        "references": [{"split": split, "kl": kl} for split, kl in task.golden_kl.items()],
        "drawn": [{"figure": drawing.key, **point} for drawing in drawings for point in drawing.points],
    }


def _points(data: ReportData, task: str, families: Iterable[str] | None = None) -> pl.DataFrame:
    chosen = data.points.filter(pl.col("task") == task)
    return chosen if families is None else chosen.filter(pl.col("family").is_in(list(families)))


def splits_of(data: ReportData, task: str) -> list[str]:
    present = set(_points(data, task)["split"].to_list())
    return [split for split in SPLITS if split in present]


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


def reaches_far(data: ReportData, task: Task) -> bool:
    """Whether any point of the task lies beyond the usual range of KL."""
    points = _points(data, task.name)
    return not points.filter(pl.col("kl") > usual_kl(points)).is_empty()


def _extents(points: pl.DataFrame) -> pl.DataFrame:
    """How far each run reaches, with a margin: from_kl, to_kl, and from_, to_ of the rates against each opponent, over
    the points in the usual range of KL; with `all_` before them over all points. Null where it has none.
    """
    drawn = points.filter(pl.col("kl") > 0)
    found = drawn.select("run").unique(maintain_order=True)
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
        found = found.join(part.group_by("run").agg(columns), on="run", how="left")
    return found


def reach(runs: Sequence[Mapping[str, Any]], opponent: str, *, whole: bool = False) -> dict[str, float]:
    """The axes' range that takes in some runs of `datasets`: one of KL, and one of rates for all judges, so that panels
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


def drawn_runs(runs: Iterable[Mapping[str, Any]], figure: Figure) -> list[Mapping[str, Any]]:
    """The runs that a figure shows from the start."""
    only = [panel.params["only"] for panel in figure.panels if "only" in panel.params]
    return [r for r in runs if (r["family"] in only and r["baseline"] if only else r["family"] in figure.shown)]


# --- panels ---------------------------------------------------------------------------------------------------------

_DEFAULTS: dict[str, Any] = {
    "split": "held_out",
    "shown": [],
    "seeds": [],
    "sweep": True,
    "xscale": "log",
    "opponent": "golden_policy",
    "judge": "golden",
    "xmin": 0.01,
    "xmax": 10,
    "ymin": 0,
    "ymax": 1,
    "only": "",
    "figure": "",
}
"""Every parameter; all panels have all, so that a control need not know which use it."""

_OF_SEED = "(datum.seed === null || indexof(seeds, datum.seed) >= 0)"  # a run without a seed is never hidden
_IN_VIEW = f"indexof(shown, datum.family) >= 0 && (sweep || datum.baseline) && {_OF_SEED}"
_OF_SPLIT = "datum.split === split"
_BASELINE_OR_HOVERED = {"or": [{"param": "hover", "empty": False}, "datum.baseline"]}
_DRAWABLE_KL = "isValid(datum.kl) && (xscale !== 'log' || datum.kl > 0)"


def _spec(*layers: alt.Chart | alt.LayerChart) -> dict[str, Any]:
    """Vega-Lite without data, but for the few values that a layer brings itself."""
    import altair as alt

    params = [alt.param(name=name, value=value) for name, value in _DEFAULTS.items()]
    with alt.data_transformers.enable("default", consolidate_datasets=False):
        # Validation takes most of the time; the tests do it.
        spec: dict[str, Any] = alt.layer(*layers).add_params(*params).to_dict(validate=False)
    for key in ("$schema", "config"):
        spec.pop(key, None)
    return spec


def _encodings(look: Look, column: str, names: Mapping[str, str], own: Mapping[str, Style]) -> dict[str, Any]:
    """Colour, shape and dash by a column, with one legend for all three."""
    import altair as alt

    order = list(names)
    labels = "{" + ",".join(f"{json.dumps(n)}:{json.dumps(label)}" for n, label in names.items()) + "}[datum.label]"
    legend = alt.Legend(title=None, orient="bottom", labelExpr=labels, columns=5, symbolOpacity=1)

    def scale(values: Sequence[Any]) -> alt.Scale:
        return alt.Scale(domain=order, range=list(values))

    return {
        "color": alt.Color(f"{column}:N", scale=scale([look.hues[own[n].hue] for n in order]), legend=legend),
        "shape": alt.Shape(f"{column}:N", scale=scale([own[n].shape for n in order]), legend=legend),
        "dash": alt.StrokeDash(f"{column}:N", scale=scale([list(own[n].dash) for n in order]), legend=legend),
    }


def _family_encodings(look: Look) -> dict[str, Any]:
    return _encodings(look, "family", look.names, look.styles)


def _kl_axis() -> alt.X:
    import altair as alt

    axis = alt.Axis(values=_KL_TICKS, format=".3~r", grid=False, labelOverlap="greedy", labelSeparation=6)
    # Not forced to nice round ends: on a log axis that would waste a third of the width.
    scale = alt.Scale(type="log", nice=False, domain=[alt.ExprRef("xmin"), alt.ExprRef("xmax")])
    return alt.X("kl:Q", title="KL(policy || SFT), nats", axis=axis, scale=scale)


def _rate_axis(title: str, column: str = "rate") -> alt.Y:
    import altair as alt

    scale = alt.Scale(domain=[alt.ExprRef("ymin"), alt.ExprRef("ymax")], nice=False, clamp=True)
    return alt.Y(f"{column}:Q", title=title, scale=scale, axis=alt.Axis(format=".0%", tickCount=6))


def _dash(look: Look, value: float) -> alt.Chart:
    """A dashed line across at a value of y; the axis is that of the layers above it."""
    import altair as alt

    rule = alt.Chart(alt.InlineData(values=[{"at": value}])).mark_rule(strokeDash=[4, 4], color=look.muted, opacity=0.9)
    encoded: alt.Chart = rule.encode(y=alt.Y("at:Q"))
    return encoded


def _golden_kl_rule(look: Look) -> alt.LayerChart:
    import altair as alt

    inside = f"{_OF_SPLIT} && {_NEAR} && (xscale !== 'log' || datum.kl >= xmin)"
    base = alt.Chart(alt.NamedData("references")).transform_filter(inside)
    rule = base.mark_rule(strokeDash=[2, 3], color=look.muted, opacity=0.9).encode(x="kl:Q")
    room = "datum.kl < (xscale === 'log' ? sqrt(xmin * xmax) : xmax / 2)"

    def label(test: str, align: Literal["left", "right"], dx: int) -> alt.Chart:
        mark = base.transform_filter(test).mark_text(
            align=align, baseline="top", dx=dx, dy=2, color=look.muted, fontSize=10
        )
        encoded: alt.Chart = mark.encode(x="kl:Q", y=alt.value(0), text=alt.value("golden policy’s KL"))
        return encoded

    # To the side where there is room.
    labels = [label(room, "left", 4), label(f"!({room})", "right", -4)]
    return alt.LayerChart(layer=[rule, *labels])


def _hover() -> alt.Parameter:
    import altair as alt

    return alt.selection_point(name="hover", fields=["run"], on="pointerover", clear="pointerout", empty=False)


def _standing_out(yes: float, no: float, test: Any = _BASELINE_OR_HOVERED) -> dict[str, Any]:
    """Of a channel: `yes` for the baselines and for the run under the pointer, `no` for the sweep around them."""
    return {"condition": {"test": test, "value": yes}, "value": no}


def _tooltips(**titles: str) -> list[alt.Tooltip]:
    import altair as alt

    return [alt.Tooltip(f"{column}:N", title=title) for column, title in titles.items()]


_NEAR = "datum.kl <= xmax"  # lines go on to the edge; points beyond it would be there and not be seen
_KL_TEXT = {
    "kl_text": "isValid(datum.kl) ? format(datum.kl, '.3~g') + (isValid(datum.kl_se) ? ' ± ' + "
    "format(datum.kl_se, '.2~g') : '') : 'none'"
}


def _interval_text(rate: str, se: str) -> dict[str, str]:
    """95% over prompts, from a standard error."""
    ends = (f"format(max(0, {rate} - 1.96 * {se}), '.1%')", f"format(min(1, {rate} + 1.96 * {se}), '.1%')")
    return {"interval": f"isValid({se}) ? '[' + {ends[0]} + ', ' + {ends[1]} + ']' : 'none'"}


@functools.lru_cache(maxsize=64)
def _win_spec(look: Look, over: Literal["kl", "step", "rate_sft_proxy"] = "kl") -> dict[str, Any]:
    """Win rate over KL (Tang et al., figure 1): a point a checkpoint, a line a run, in order of KL. `over`: or over
    something else, in order of steps, because KL is disputed as an axis common to different optimisers.
    """
    import altair as alt

    columns = {what: f"datum['{what}_' + opponent + '_' + judge]" for what in ("rate", "se", "n", "ties")}
    drawable = _DRAWABLE_KL if over == "kl" else f"isValid(datum['{over}'])"
    rows = (
        alt.Chart(alt.NamedData("points"))
        .transform_filter(f"{_IN_VIEW} && {_OF_SPLIT} && {drawable}")
        .transform_calculate(**columns)
        .transform_filter("isValid(datum.rate)")
        .transform_calculate(
            low="isValid(datum.se) ? max(0, datum.rate - datum.se) : datum.rate",
            high="isValid(datum.se) ? min(1, datum.rate + datum.se) : datum.rate",
            rate_text="format(datum.rate, '.1%')",
            **_KL_TEXT,
            **_interval_text("datum.rate", "datum.se"),
        )
    )
    of = _family_encodings(look)
    x: Any = _kl_axis()
    if over == "step":
        x = alt.X("step:Q", title="optimiser steps", axis=alt.Axis(labelExpr=_SHORT, grid=False, tickCount=5))
    elif over == "rate_sft_proxy":
        axis = alt.Axis(format=".0%", grid=False, tickCount=6)
        x = alt.X(f"{over}:Q", title="win rate against SFT by the proxy", axis=axis, scale=alt.Scale(zero=False))
    y = _rate_axis("win rate")
    tooltip = [
        *_tooltips(arm="arm", seed="seed", step="step", kl_text="KL ± se"),
        *([alt.Tooltip(f"{over}:Q", title="by the proxy", format=".1%")] if over == "rate_sft_proxy" else []),
        *_tooltips(rate_text="win rate", interval="95%, over prompts", n="prompts", ties="ties"),
    ]
    clip = over == "kl"  # elsewhere the axes take in all there is
    near = rows.transform_filter(_NEAR) if clip else rows
    line = rows.mark_line(clip=clip).encode(
        x,
        y,
        color=of["color"],
        strokeDash=of["dash"],
        detail="run:N",
        order=alt.Order("kl:Q" if over == "kl" else "step:Q"),
        strokeWidth=alt.StrokeWidthValue(**_standing_out(2, 1)),
        opacity=alt.OpacityValue(**_standing_out(0.85, 0.3)),
    )
    bars = (
        near.transform_filter("datum.baseline")
        .mark_rule(opacity=0.35, clip=clip)
        .encode(x, y=_rate_axis("win rate", "low"), y2="high:Q", color=of["color"])
    )
    points = (
        near.mark_point(filled=True, clip=clip)
        .encode(
            x,
            y,
            color=of["color"],
            shape=of["shape"],
            tooltip=tooltip,
            size=alt.SizeValue(**_standing_out(46, 18)),
            opacity=alt.OpacityValue(**_standing_out(1, 0.5)),
        )
        .add_params(_hover())
    )
    golden = [_golden_kl_rule(look)] if over == "kl" else []
    return _spec(line, _dash(look, 0.5), *golden, bars, points)


@functools.lru_cache(maxsize=64)
def _measure_spec(
    look: Look, measure: str, title: str, reference: float | None = None, over: Literal["step", "kl"] = "step"
) -> dict[str, Any]:
    """A measure over optimiser steps (Tang et al., figures 7 and 8), or over KL."""
    import altair as alt

    drawable = _DRAWABLE_KL if over == "kl" else "isValid(datum.step)"
    rows = alt.Chart(alt.NamedData("points")).transform_filter(
        f"{_IN_VIEW} && {_OF_SPLIT} && {drawable} && isValid(datum['{measure}'])"
    )
    of = _family_encodings(look)
    share = measure in ("accuracy", "self_accuracy")
    axis = alt.Axis(format=".1~%" if share else ".3~r", tickCount=5)
    y = alt.Y(f"{measure}:Q", title=None, axis=axis, scale=alt.Scale(zero=False, nice=True))
    steps = alt.X("step:Q", title="optimiser steps", axis=alt.Axis(labelExpr=_SHORT, grid=False, tickCount=5))
    x = _kl_axis() if over == "kl" else steps
    tooltip = [
        *_tooltips(arm="arm", seed="seed", step="step"),
        alt.Tooltip("kl:Q", title="KL", format=".3~g"),
        alt.Tooltip(f"{measure}:Q", title=title, format=".1%" if share else ".3~g"),
    ]
    line = rows.mark_line().encode(
        x,
        y,
        color=of["color"],
        strokeDash=of["dash"],
        detail="run:N",
        order=alt.Order(f"{over}:Q"),
        strokeWidth=alt.StrokeWidthValue(**_standing_out(2, 1)),
        opacity=alt.OpacityValue(**_standing_out(0.85, 0.3)),
    )
    points = (
        rows.mark_point(filled=True)
        .encode(
            x,
            y,
            color=of["color"],
            shape=of["shape"],
            tooltip=tooltip,
            size=alt.SizeValue(**_standing_out(34, 14)),
            opacity=alt.OpacityValue(**_standing_out(1, 0.45)),
        )
        .add_params(_hover())
    )
    return _spec(line, *([] if reference is None else [_dash(look, reference)]), points)


@functools.lru_cache(maxsize=64)
def _judges_spec(look: Look) -> dict[str, Any]:
    """What three judges say of one arm against SFT over KL: where they part is over-optimisation (Gao et al.)."""
    import altair as alt

    columns: list[Any] = [f"rate_sft_{judge}" for judge in JUDGES]
    rows = (
        alt.Chart(alt.NamedData("points"))
        .transform_filter(f"datum.family === only && datum.baseline && {_OF_SEED} && {_OF_SPLIT} && {_DRAWABLE_KL}")
        .transform_fold(columns, as_=["judged", "rate"])
        .transform_filter("isValid(datum.rate)")
        .transform_calculate(by="replace(datum.judged, 'rate_sft_', '')")
        .transform_calculate(se="datum['se_sft_' + datum.by]")
        .transform_calculate(**_KL_TEXT, **_interval_text("datum.rate", "datum.se"))
    )
    of = _encodings(look, "by", JUDGE_NAMES, judge_styles())
    y = _rate_axis("win rate against SFT")
    tooltip = [
        *_tooltips(by="judge", arm="arm", seed="seed", step="step", kl_text="KL ± se"),
        alt.Tooltip("rate:Q", title="win rate", format=".1%"),
        *_tooltips(interval="95%, over prompts"),
    ]
    line = rows.mark_line(strokeWidth=1.8, opacity=0.75, clip=True).encode(
        _kl_axis(), y, color=of["color"], detail="run:N", order=alt.Order("kl:Q")
    )
    points = (
        rows.transform_filter(_NEAR)
        .mark_point(filled=True, size=36, opacity=1, clip=True)
        .encode(_kl_axis(), y, color=of["color"], shape=of["shape"], tooltip=tooltip)
    )
    return _spec(line, _dash(look, 0.5), points)


@functools.lru_cache(maxsize=64)
def _cost_spec(look: Look, measure: str, title: str) -> dict[str, Any]:
    """What a run reached at its end over what it cost."""
    import altair as alt

    rows = alt.Chart(alt.NamedData("runs")).transform_filter(
        f"{_IN_VIEW} && isValid(datum.end_rate) && isValid(datum['{measure}'])"
    )
    of = _family_encodings(look)
    tooltip = [
        *_tooltips(arm="arm", seed="seed"),
        alt.Tooltip(f"{measure}:Q", title=title, format=",.4~g"),
        alt.Tooltip("end_rate:Q", title="win rate at the end", format=".1%"),
        alt.Tooltip("peak_rate:Q", title="win rate at the peak", format=".1%"),
    ]
    axis = alt.Axis(format=".0%", tickCount=5)
    points = (
        rows.mark_point(filled=True)
        .encode(
            alt.X(f"{measure}:Q", title=title.lower(), axis=alt.Axis(labelExpr=_SHORT, grid=False, tickCount=5)),
            alt.Y("end_rate:Q", title="win rate at the end", axis=axis, scale=alt.Scale(zero=False)),
            color=of["color"],
            shape=of["shape"],
            tooltip=tooltip,
            size=alt.SizeValue(**_standing_out(70, 28, "datum.baseline")),
            opacity=alt.OpacityValue(**_standing_out(1, 0.5, "datum.baseline")),
        )
        .add_params(_hover())
    )
    return _spec(points)


@functools.lru_cache(maxsize=512)
def _drawn_spec(
    look: Look,
    mark: Literal["line", "point", "bar"],
    x_title: str,
    y_title: str,
    x_log: bool,
    names: tuple[str, ...],
    series: tuple[str, ...],
    pooled: bool,
    seeded: bool,
    bounded: bool,
    zero: bool,
) -> dict[str, Any]:
    """An experiment's own points: lines, points or bars with their intervals, and single seeds as faint marks.

    names: the places on the x axis, in order, where they are not numbers. pooled, seeded, bounded: whether any point is
    of all seeds, is of one seed, has an interval; without pooled points the seeds are all there is to see, and are not
    faint. zero: whether to mark where y is 0.
    """
    import altair as alt

    rate = _PERCENT.search(y_title) is not None
    form = ".1%" if rate else ".3~g"
    rows = (
        alt.Chart(alt.NamedData("drawn"))
        .transform_filter(f"datum.figure === figure && indexof(shown, datum.series) >= 0 && {_OF_SEED}")
        .transform_calculate(
            y_text=f"format(datum.y, '{form}')",
            interval="isValid(datum.low) && isValid(datum.high) ? "
            f"'[' + format(datum.low, '{form}') + ', ' + format(datum.high, '{form}') + ']' : 'none'",
            x_text="datum.x" if names else "format(datum.x, ',.3~r')",
            of_seeds="datum.seed === null ? 'all' : '' + datum.seed",
        )
    )
    x: Any
    if names:
        # Names are often longer than their bar is wide.
        slanted = sum(map(len, names)) > 50 or len(names) > 8
        angle = {"labelAngle": -28, "labelAlign": "right"} if slanted else {"labelAngle": 0}
        words = f"{json.dumps(_labels(names, look))}[datum.label]"
        axis = alt.Axis(labelExpr=words, labelLimit=170, grid=False, **angle)
        x = alt.X("x:N", title=x_title or None, sort=list(names), axis=axis, scale=alt.Scale(padding=0.25))
    else:
        scale = alt.Scale(type="log", nice=False, padding=12) if x_log else alt.Scale(zero=False, nice=True)
        ticks: dict[str, Any] = {"values": _KL_TICKS} if x_log and x_title.startswith("KL") else {"tickCount": 6}
        axis = alt.Axis(format=",.3~r", grid=False, labelOverlap=True, **ticks)
        x = alt.X("x:Q", title=x_title or None, scale=scale, axis=axis)
    y_scale = alt.Scale(zero=mark == "bar", nice=True)
    y = alt.Y("y:Q", title=y_title or None, scale=y_scale, axis=alt.Axis(format=".3~%" if rate else "~g", tickCount=6))
    of = _encodings(look, "series", _labels(series, look), styles(series, look.families))
    beside: dict[str, Any] = {}
    if mark == "bar" and len(series) > 1:
        beside = {"xOffset": alt.XOffset("series:N", sort=list(series), scale=alt.Scale(domain=list(series)))}
    tooltip = _tooltips(series="series", x_text=x_title or "x", y_text=y_title or "y", interval="95%", of_seeds="seed")
    line = {"order": alt.Order("x:Q")} if not names else {}
    known = rows.transform_filter("isValid(datum.low) && isValid(datum.high) && datum.seed === null")
    ends = {"y": alt.Y("low:Q", scale=y_scale, title=y_title or None), "y2": alt.Y2("high:Q")}
    one, every = (rows.transform_filter(f"datum.seed {sign} null") for sign in ("!==", "==="))
    marks: dict[str, Any] = {"color": of["color"], "shape": of["shape"], "tooltip": tooltip}
    strokes: dict[str, Any] = {"color": of["color"], "strokeDash": of["dash"], **line}
    thin: dict[str, Any] = {"strokeWidth": 1, "opacity": 0.3} if pooled else {"strokeWidth": 1.5, "opacity": 0.8}
    small: dict[str, Any] = {"size": 20, "opacity": 0.4} if pooled else {"size": 42, "opacity": 0.95}
    layers: list[alt.Chart] = []
    # Only layers with something in them: Vega complains of an axis without an extent.
    if mark == "bar" and pooled:
        layers.append(every.mark_bar(opacity=0.85).encode(x, y, color=of["color"], tooltip=tooltip, **beside))
    if bounded and mark == "bar":
        layers.append(known.mark_rule(color=look.ink, strokeWidth=1.6).encode(x, **ends, **beside))
    elif bounded and mark == "line" and not names and len(series) <= _FEW_BANDS:
        layers.append(known.mark_area(opacity=0.15).encode(x, **ends, color=of["color"]))
    elif bounded:
        layers.append(known.mark_rule(opacity=0.6).encode(x, **ends, color=of["color"]))
    if mark == "line" and seeded:
        layers.append(one.mark_line(**thin).encode(x, y, detail="seed:N", **strokes))
    if mark == "line" and pooled:
        layers.append(every.mark_line(strokeWidth=2).encode(x, y, **strokes))
    if zero:
        layers.append(_dash(look, 0.0))
    if mark == "bar" and seeded:
        layers.append(one.mark_point(filled=True, color=look.ink, **small).encode(x, y, tooltip=tooltip, **beside))
    elif seeded:
        layers.append(one.mark_point(filled=True, **small).encode(x, y, **marks))
    if mark != "bar" and pooled:
        layers.append(every.mark_point(filled=True, size=50, opacity=1).encode(x, y, **marks))
    return _spec(*layers)


def drawn_panel(look: Look, drawing: Drawing) -> Panel:
    """The one builder of what experiments draw themselves."""
    series = tuple(dict.fromkeys(point["series"] for point in drawing.points))
    names = tuple(dict.fromkeys(point["x"] for point in drawing.points)) if drawing.named else ()
    values = [v for point in drawing.points for v in (point["y"], point["low"], point["high"]) if v is not None]
    build = functools.partial(
        _drawn_spec,
        look,
        drawing.mark,
        drawing.x,
        drawing.y,
        drawing.x_log,
        names,
        series,
        any(point["seed"] is None for point in drawing.points),
        any(point["seed"] is not None for point in drawing.points),
        _bounded(drawing),
        min(values) < 0 < max(values),
    )
    return Panel(drawing.key, "", build, {"figure": drawing.key})


def _bounded(drawing: Drawing) -> bool:
    return any(None not in (p["low"], p["high"]) and p["seed"] is None for p in drawing.points)


def _labels(series: Sequence[str], look: Look) -> dict[str, str]:
    """A series that is a family bears its name."""
    return {name: family_name(name) if name in look.families else name for name in series}


# --- figures --------------------------------------------------------------------------------------------------------


def win_figure(look: Look, points: pl.DataFrame, families: Sequence[str], shown: Sequence[str], **words: Any) -> Figure:
    """Win rate over KL of some families: by the judge that the reader chooses, beside the true utility."""
    build = functools.partial(_win_spec, look)
    panels = [Panel("win", JUDGE_NAMES["golden"], build)]
    if _any_number(points, [f"rate_{opponent}_true" for opponent in OPPONENTS]):
        panels.append(Panel("win", JUDGE_NAMES["true"], build, {"judge": "true"}))
    return Figure(
        **words,
        panels=tuple(panels) if _any_number(points, rate_columns()) else (),
        series={family: look.names[family] for family in families},
        styles={family: look.styles[family] for family in families},
        shown=tuple(shown),
        span="usual",
    )


def task_figures(data: ReportData, task: Task, look: Look) -> list[Figure]:
    """The figures of a task as a whole that have anything to show, in reading order.

    What the paper compares first is shown from the start; the families of other experiments can be added to it.
    """
    name = task.name
    points = _points(data, name)
    families = [family for family in look.families if family in set(points["family"].to_list())]
    shown = [family for family in families if family in FAMILIES] or families
    common: dict[str, Any] = {
        "task": name,
        "series": {family: look.names[family] for family in families},
        "styles": {family: look.styles[family] for family in families},
        "shown": tuple(shown),
    }
    win = win_figure(
        look, points, families, shown, task=name, name="goodhart", title="Win rate over KL", caption=_WIN_CAPTION
    )
    other = Figure(
        **common,
        name="other_axes",
        title="Win rate over steps, and over the proxy’s opinion",
        caption="The same points in order of training. Different optimisers may spend the same KL differently, so a "
        "difference that one axis shows and another does not calls for caution. Right: what the proxy was pleased by, "
        "and what became of the win rate; a line that turns down while it moves right is a proxy being exploited.",
        panels=tuple(
            Panel(f"win-{column}", title, functools.partial(_win_spec, look, column))
            for column, title in _OTHER_AXES
            if _any_number(points, [column]) and _any_number(points, rate_columns())
        ),
        span="whole",
    )
    of_sft = rate_columns(["sft"])
    with_judges = [
        family
        for family in shown
        if family != "golden_policy"
        and _any_number(points.filter((pl.col("family") == family) & pl.col("baseline")), of_sft)
    ]
    judges = Figure(
        **common | {"series": JUDGE_NAMES, "styles": judge_styles()},
        name="judges",
        title="Three judges of the same responses",
        caption="Baseline arms against the SFT policy. The policy is trained to please the proxy; the golden judge "
        "stands for the human; the true utility is known because the task is built in. Where proxy and truth part, the "
        "policy has learned the proxy’s mistakes.",
        panels=tuple(
            Panel("judges", look.names[family], functools.partial(_judges_spec, look), {"only": family})
            for family in with_judges
        ),
        span="usual",
        against="sft",
    )
    training = Figure(
        **common,
        name="training",
        title="Classifier, log-probabilities and length, over training",
        caption="A policy that ranks golden pairs well need not write well. Accuracy: how often the sign of the "
        "log-ratio margin predicts the golden label (dashed: chance). Drift: how far the log-probability of golden "
        "winners has moved from SFT’s (dashed: not at all).",
        panels=tuple(
            Panel(f"step-{measure}", title, functools.partial(_measure_spec, look, measure, title, reference))
            for measure, title, reference in _STEP_PANELS
            if _any_number(points, [measure])
        ),
    )
    more = Figure(
        **common,
        name="measures",
        title="Further measures of the responses",
        caption="What the study asked of every arm beside the above: means over prompts, over training and over KL.",
        panels=tuple(
            Panel(
                f"{over}-{column}",
                f"{family_name(measure)} over {words}",
                functools.partial(_measure_spec, look, column, measure, over=over),
            )
            for column, measure in data.measures.items()
            if _any_number(points, [column])
            for over, words in _OVERS
        ),
        span="whole",
    )
    runs = data.runs.filter((pl.col("task") == name) & pl.col("end_rate").is_not_null())
    cost = Figure(
        **common,
        name="cost",
        title="Gain over cost",
        caption="Win rate against the golden policy’s responses at the last checkpoint, by the golden judge, over what "
        "the run cost. What all arms share (SFT, judges) is left out.",
        panels=tuple(
            Panel(f"cost-{measure}", title, functools.partial(_cost_spec, look, measure, title))
            for measure, title in _COST_PANELS
            if runs[measure].count() > 0
        ),
        by_split=False,
    )
    return [figure for figure in (win, other, judges, training, more, cost) if figure.panels]


def experiment_figures(data: ReportData, task: Task, experiment: Experiment, look: Look) -> list[Figure]:
    """The figures that an experiment asked for, also those without anything to draw: these say so."""
    return [_of_drawing(data, task.name, drawing, look) for drawing in experiment.figures]


def _of_drawing(data: ReportData, task: str, drawing: Drawing, look: Look) -> Figure:
    words: dict[str, Any] = {
        "task": task,
        "name": drawing.key,
        "title": drawing.title or drawing.name.replace("_", " "),
    }
    if drawing.families:
        points = _points(data, task, drawing.families)
        drawable = points.filter(pl.any_horizontal(pl.col(rate_columns()).is_not_null()) & pl.col("kl").is_not_null())
        present = set(drawable["family"].to_list())
        families = [family for family in drawing.families if family in present]
        lacking = [family_name(family) for family in drawing.families if family not in present]
        note = f"No data of: {', '.join(lacking)}." if lacking else ""
        return win_figure(look, drawable, families, families, **words, caption="", note=note)
    series = tuple(dict.fromkeys(point["series"] for point in drawing.points))
    note = f"{drawing.dropped} point{'s' if drawing.dropped > 1 else ''} without a number left out."
    return Figure(
        **words,
        caption=" ".join(
            words
            for words, said in (
                ("Shaded, or the line through a mark: the 95% interval.", _bounded(drawing)),
                ("Faint: single seeds.", {point["seed"] is None for point in drawing.points} == {True, False}),
            )
            if said
        ),
        panels=(drawn_panel(look, drawing),) if drawing.points else (),
        series=_labels(series, look),
        styles=styles(series, look.families),
        shown=series,
        by_split=False,
        note="No data: nothing to draw." if not drawing.points else note if drawing.dropped else "",
    )


def every_figure(data: ReportData, task: Task, look: Look) -> list[Figure]:
    """All figures of a task that have anything to show."""
    own = [figure for experiment in task.experiments for figure in experiment_figures(data, task, experiment, look)]
    return [figure for figure in (*task_figures(data, task, look), *own) if figure.panels]


_WIN_CAPTION = (
    "A point is a checkpoint, a line a run (one arm, one seed) in order of KL. Thick: baseline arms, with one standard "
    "error over prompts. Thin: the offline sweep. Dashed: a draw, and the KL that the golden policy spent. Step 0 has "
    "a KL of exactly 0, which a log axis cannot show. After Tang et al. (2024), figure 1."
)

_OTHER_AXES: tuple[tuple[Literal["step", "rate_sft_proxy"], str], ...] = (
    ("step", "Over optimiser steps"),
    ("rate_sft_proxy", "Over the proxy’s opinion"),
)
_STEP_PANELS: tuple[tuple[str, str, float | None], ...] = (
    ("accuracy", "Accuracy on golden pairs", 0.5),
    ("drift", "Drift of winners’ log-probability", 0.0),
    ("self_accuracy", "Accuracy on own pairs", 0.5),
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


def config(look: Look) -> dict[str, Any]:
    """How every chart looks: quiet axes, light grid, no frame."""
    font = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": {
            "labelColor": look.muted,
            "titleColor": look.muted,
            "titleFontWeight": "normal",
            "titleFontSize": 12,
            "titlePadding": 10,
            "labelFontSize": 11,
            "domainColor": look.grid,
            "tickColor": look.grid,
            "gridColor": look.grid,
            "tickSize": 4,
            "labelPadding": 5,
        },
        "legend": {"labelColor": look.ink, "labelFontSize": 11, "symbolSize": 60, "labelLimit": 220},
        "title": {"color": look.ink, "fontSize": 13, "fontWeight": 600, "anchor": "start", "offset": 10},
    }


# --- images ---------------------------------------------------------------------------------------------------------


def image_spec(
    data: ReportData,
    figure: Figure,
    *,
    split: str = "held_out",
    opponent: str = "golden_policy",
    scale: str = "log",
    per_row: int = 3,
) -> dict[str, Any]:
    """A figure built with `Look.for_images`, as one Vega-Lite specification with its data inside."""
    look = Look.for_images(data)
    task = next(task for task in data.tasks if task.name == figure.task)
    width = {1: 480, 2: 380}.get(len(figure.panels), 270)
    kept = {panel.params["only"] for panel in figure.panels if "only" in panel.params} | set(figure.shown)
    drawn = {panel.params["figure"] for panel in figure.panels if "figure" in panel.params}
    rows_of = {
        name: [
            row
            for row in rows
            if row.get("split", split) == split
            and ("family" not in row or row["family"] in kept)
            and ("figure" not in row or row["figure"] in drawn)
        ]
        for name, rows in datasets(data, task).items()
    }
    fixed = _DEFAULTS | {"split": split, "opponent": opponent, "xscale": scale, "seeds": list(look.seeds)}
    fixed |= {"shown": list(figure.shown)}
    if figure.span:
        runs = drawn_runs(rows_of["runs"], figure)
        fixed |= reach(runs, figure.against or opponent, whole=figure.span == "whole")
    views, tables = [], {}
    for index, panel in enumerate(figure.panels):
        view = {key: value for key, value in panel.build().items() if key != "params"}
        view = _fix(_with_scale(_only(view, figure.shown), scale), fixed | panel.params)
        # Each panel has its own copy of the data: Vega computes fields in place, and panels that compute the same field
        # from the same rows would overwrite each other's.
        for name in rows_of:
            view = _renamed(view, name, f"{name}{index}")
            # Marked, because tables of equal content would be merged into one again.
            tables[f"{name}{index}"] = [row | {"panel": index} for row in rows_of[name]]
        view |= {"width": width, "height": round(width * 0.72)} | ({"title": panel.title} if panel.title else {})
        views.append(view)
    rows = [{"hconcat": views[i : i + per_row], "spacing": 28} for i in range(0, len(views), per_row)]
    subtitle = [task.name] + ([SPLIT_NAMES.get(split, split)] if figure.by_split else [])
    subtitle += [f"against {OPPONENT_NAMES[figure.against or opponent]}"] if figure.span else []
    subtitle += ["SMOKE RUN: THE NUMBERS MEAN NOTHING"] if data.smoke else []
    far = _beyond(rows_of["points"], runs, fixed["xmax"]) if figure.span == "usual" else ""
    title = {
        "text": _wrapped(figure.title, 34 * len(views[:per_row]) + 30),
        "subtitle": [" · ".join(subtitle), *([far] if far else [])],
        "fontSize": 16,
        "subtitleColor": look.muted,
        "offset": 18,
    }
    return {
        "$schema": _schema(),
        "title": title,
        "vconcat": rows,
        "spacing": 24,
        "padding": 16,
        "datasets": tables,
        "config": config(look) | {"background": "white", "font": "Helvetica, Arial, sans-serif"},
    }


def _beyond(points: Iterable[Mapping[str, Any]], runs: Iterable[Mapping[str, Any]], xmax: float) -> str:
    """What lies to the right of a figure, in a sentence; empty where nothing does."""
    arms = {run["run"]: run["arm"] for run in runs}
    far = [point for point in points if point["run"] in arms and point["kl"] is not None and point["kl"] > xmax]
    if not far:
        return ""
    names = list(dict.fromkeys(arms[point["run"]] for point in far))
    whose = "; ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    most = max(point["kl"] for point in far)
    return f"Not shown: {len(far)} point{'s' if len(far) > 1 else ''} further right, up to a KL of {most:.3g} ({whose})"


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width) or [""]


def _only(node: Any, shown: Sequence[str]) -> Any:
    """Scales and legends without the families that the image does not show."""
    if isinstance(node, dict):
        kept = {key: _only(value, shown) for key, value in node.items()}
        domain, colours = kept.get("domain"), kept.get("range")
        if isinstance(domain, list) and isinstance(colours, list) and set(shown) & set(map(str, domain)):
            pairs = [(name, value) for name, value in zip(domain, colours, strict=True) if name in shown]
            kept |= {"domain": [name for name, _ in pairs], "range": [value for _, value in pairs]}
        return kept
    return [_only(value, shown) for value in node] if isinstance(node, list) else node


def _renamed(node: Any, old: str, new: str) -> Any:
    if isinstance(node, dict):
        if node == {"name": old}:
            return {"name": new}
        return {key: _renamed(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [_renamed(value, old, new) for value in node]
    return node


def _schema() -> str:
    import altair as alt

    return str(alt.SCHEMA_URL)


_EXPRESSIONS = {"filter", "calculate", "expr", "test", "or"}


def _fix(node: Any, params: dict[str, Any], key: str = "") -> Any:
    """Parameters written out as their values, and nothing left that waits for a pointer.

    Vega-Lite knows one top level of parameters, while the panels of one image need different values of the same ones.
    """
    if isinstance(node, dict):
        if node.get("param") == "hover":
            return "false"
        kept = {name: value for name, value in node.items() if name not in ("params", "tooltip")}
        if "mark" in node:
            # Altair names the views that have parameters alike in every panel, and Vega-Lite then mixes up their data.
            kept.pop("name", None)
        return {name: _fix(value, params, name) for name, value in kept.items()}
    if isinstance(node, list):
        return [_fix(value, params, key) for value in node]
    if isinstance(node, str) and key in _EXPRESSIONS:
        # A name that is neither a field (after a dot), nor a part of a longer name, nor a quoted word.
        names = "|".join(map(re.escape, params))
        return re.sub(rf"(?<![\w.'])({names})(?![\w'])", lambda found: json.dumps(params[found[1]]), node)
    return node


def _with_scale(node: Any, scale: str) -> Any:
    """The KL axis on another scale; Vega-Lite cannot do this by a parameter."""
    if isinstance(node, dict):
        node = {name: _with_scale(value, scale) for name, value in node.items()}
        if node.get("field") == "kl" and "scale" in node and "axis" in node and scale != "log":
            node["scale"] = {"type": scale, "nice": False, "domain": [0, {"expr": "xmax"}]}
            node["axis"] = {name: value for name, value in node["axis"].items() if name != "values"}
    elif isinstance(node, list):
        node = [_with_scale(value, scale) for value in node]
    return node


def figures(
    data: ReportData,
    folder: Path,
    formats: Sequence[Format] = ("png", "svg"),
    *,
    opponent: str = "golden_policy",
    choose: Callable[[ReportData, Task, Look], list[Figure]] = every_figure,
) -> list[Path]:
    """The figures of every task as files `TASK[-EXPERIMENT]-FIGURE[-SPLIT].FORMAT`; returns their paths.

    opponent: whose responses the win rates are against. A task or figure without any number gets no file: an empty
    picture looks like a result. No browser is needed.
    """
    with Images(folder, formats) as images:
        draw(images, data, opponent=opponent, choose=choose)
    return images.written


def draw(
    images: Images,
    data: ReportData,
    *,
    opponent: str = "golden_policy",
    choose: Callable[[ReportData, Task, Look], list[Figure]] = every_figure,
) -> None:
    """As `figures`, for who has other things to do while they are painted."""
    look = Look.for_images(data)
    for task in data.tasks:
        for figure in choose(data, task, look):
            for split in splits_of(data, task.name) if figure.by_split else [None]:
                svg = image_svg(data, figure, split=split or "held_out", opponent=opponent)
                images.add(file_name(task.name, figure.name, *([split] if split else [])), svg)


def image_svg(data: ReportData, figure: Figure, *, split: str = "held_out", opponent: str = "golden_policy") -> str:
    """A figure as SVG text; also what a reader without scripts sees in the page."""
    return _svg(image_spec(data, figure, split=split, opponent=opponent))


def _svg(spec: dict[str, Any]) -> str:
    import vl_convert

    version = ".".join(_schema().rsplit("/v", 1)[1].split(".")[:2])
    return str(vl_convert.vegalite_to_svg(spec, vl_version=version))


def file_name(*parts: str) -> str:
    """A name safe on every file system, whatever a task is called."""
    return "-".join(re.sub(r"[^A-Za-z0-9]+", "_", part).strip("_") or "x" for part in parts)
