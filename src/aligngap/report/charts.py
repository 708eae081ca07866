"""Every figure once: as panels that the page embeds and drives, and as images for papers and READMEs.

A *panel* is a single view over the named data sets `points`, `runs`, `bands` and `references`, steered by parameters
(task, split, judge, families shown ...). The page embeds the panels without data and sets the parameters from its own
controls, so that one copy of the data serves all figures; an image is the same panels side by side with the parameters
fixed and the data put in. Colours come from a `Palette`, in the page as CSS variables, so that dark mode and printing
are matters of style alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from aligngap.report.load import JUDGES, OPPONENTS, SPLITS, ReportData, Task

if TYPE_CHECKING:
    import altair as alt

Format = Literal["png", "svg", "pdf"]

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

#: Okabe and Ito's colours, told apart with every common kind of colour blindness; shapes repeat the distinction.
_FAMILY_COLOURS = {
    "online": "#0072B2",
    "offline": "#D55E00",
    "offline_proxy": "#CC79A7",
    "replay": "#56B4E9",
    "shuffled": "#009E73",
    "golden_policy": "#B88700",
}
_SPARE_COLOURS = ("#7A7A7A", "#8C6BB1", "#A6761D")
_FAMILY_SHAPES = {
    "online": "circle",
    "offline": "square",
    "offline_proxy": "triangle-down",
    "replay": "triangle-up",
    "shuffled": "diamond",
    "golden_policy": "cross",
}
_SPARE_SHAPES = ("triangle-right", "triangle-left", "stroke")
#: The same hues, lighter, for a dark ground.
_FAMILY_DARK = {
    "online": "#4BA3E3",
    "offline": "#FF8A4C",
    "offline_proxy": "#EDA3CB",
    "replay": "#A5D8FF",
    "shuffled": "#35C99B",
    "golden_policy": "#F0C24B",
}
_SPARE_DARK = ("#A8A8A8", "#B9A2DB", "#D9B36C")
JUDGE_COLOURS = {"golden": "#B88700", "true": "#009E73", "proxy": "#B4508A"}
JUDGE_DARK = {"golden": "#F0C24B", "true": "#35C99B", "proxy": "#F29CCB"}

#: 0, 500, 1k, 1.5k: a format of the axis would give all labels the largest one's unit.
_SHORT = "format(datum.value, '~s')"
_KL_TICKS = [v * 10.0**e for e in range(-6, 6) for v in (1, 3)]


@dataclass(frozen=True)
class Palette:
    """Colours as a drawing takes them: hexadecimal for images, CSS variables for the page."""

    ink: str
    muted: str
    grid: str
    family: dict[str, str]
    judge: dict[str, str]

    @classmethod
    def for_images(cls, families: Sequence[str]) -> Palette:
        return cls("#22262b", "#5d6670", "#e6e8eb", family_colours(families), JUDGE_COLOURS)

    @classmethod
    def for_page(cls, families: Sequence[str]) -> Palette:
        family = {name: f"var(--family-{index})" for index, name in enumerate(families)}
        return cls("var(--ink)", "var(--muted)", "var(--grid)", family, {j: f"var(--judge-{j})" for j in JUDGES})


def _assign(families: Sequence[str], own: dict[str, str], spare: Sequence[str]) -> dict[str, str]:
    others = [name for name in families if name not in own]
    return {name: own[name] if name in own else spare[others.index(name) % len(spare)] for name in families}


def family_colours(families: Sequence[str], *, dark: bool = False) -> dict[str, str]:
    """A colour per family that stays the same from report to report."""
    if dark:
        return _assign(families, _FAMILY_DARK, _SPARE_DARK)
    return _assign(families, _FAMILY_COLOURS, _SPARE_COLOURS)


def family_shapes(families: Sequence[str]) -> dict[str, str]:
    return _assign(families, _FAMILY_SHAPES, _SPARE_SHAPES)


def family_name(family: str) -> str:
    return FAMILY_NAMES.get(family, family.replace("_", " ").capitalize())


@dataclass(frozen=True)
class Panel:
    """One view of a figure: its title, its chart without data, and the parameters that make it this view."""

    title: str
    chart: alt.LayerChart | alt.FacetChart
    params: dict[str, Any]

    def spec(self) -> dict[str, Any]:
        """Vega-Lite without data, but for the few values a panel brings itself."""
        import altair as alt

        with alt.data_transformers.enable("default", consolidate_datasets=False):
            spec: dict[str, Any] = self.chart.to_dict()
        for key in ("$schema", "config"):
            spec.pop(key, None)
        return spec


@dataclass(frozen=True)
class Figure:
    """Panels that belong together."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    legend: Literal["family", "judge"] = "family"
    #: Whether it looks different on train and held-out prompts.
    by_split: bool = True


# --- data -----------------------------------------------------------------------------------------------------------


def datasets(data: ReportData) -> dict[str, list[dict[str, Any]]]:
    """The named data sets all panels share, as plain rows."""
    numbers = [name for name, kind in data.points.schema.items() if kind == pl.Float64]
    # Five significant digits are beyond what any of these numbers can carry, and halve the page.
    points = data.points.with_columns(pl.col(name).round_sig_figs(5) for name in numbers)
    references = [
        {"task": task.name, "split": split, "kl": kl} for task in data.tasks for split, kl in task.golden_kl.items()
    ]
    return {
        "points": points.to_dicts(),
        "runs": data.runs.drop("reason", "weights_sha256").to_dicts(),
        "bands": data.bands.to_dicts(),
        "references": references,
    }


def has_values(data: ReportData, task: str, columns: Iterable[str], *, family: str | None = None) -> bool:
    """Whether any point of the task (or of the family's baselines) has a number in any of the columns."""
    points = data.points.filter(pl.col("task") == task)
    if family is not None:
        points = points.filter((pl.col("family") == family) & pl.col("baseline"))
    return any(points[name].count() > 0 for name in columns)


def splits_of(data: ReportData, task: str) -> list[str]:
    present = set(data.points.filter(pl.col("task") == task)["split"].to_list())
    return [split for split in SPLITS if split in present]


def _domains(data: ReportData, task: str, opponent: str) -> dict[str, float]:
    """One range of KL for a task and one of rates for all judges of an opponent: panels can be compared by eye."""
    points = data.points.filter(pl.col("task") == task)
    rates = [points[f"rate_{opponent}_{judge}"] for judge in JUDGES]
    values = [v for series in rates for v in series.drop_nulls().to_list()] + [0.5]
    low, high = min(values) - 0.03, max(values) + 0.03
    kls = [kl for kl in points["kl"].drop_nulls().to_list() if kl > 0] or [0.01, 10.0]
    return {
        "ymin": max(0.0, low // 0.05 * 0.05),
        "ymax": min(1.0, -(-high // 0.05) * 0.05),
        "xmin": min(kls) * 0.8,
        "xmax": max(kls) * 1.25,
    }


# --- panels ---------------------------------------------------------------------------------------------------------


def _shared_params(families: Sequence[str], seeds: Sequence[int], values: dict[str, Any]) -> list[alt.Parameter]:
    import altair as alt

    defaults: dict[str, Any] = {
        "task": "",
        "split": "held_out",
        "shown": list(families),
        "seeds": list(seeds),
        "sweep": True,
        "xscale": "log",
        "opponent": "golden_policy",
        "judge": "golden",
        "xmin": 0.01,
        "xmax": 10,
        "ymin": 0,
        "ymax": 1,
        "only": "",
    }
    return [alt.param(name=name, value=value) for name, value in (defaults | values).items()]


#: Rows that the controls leave in view. A run without a seed is never hidden by the choice of seeds.
_IN_VIEW = (
    "datum.task === task && indexof(shown, datum.family) >= 0 && (sweep || datum.baseline)"
    " && (datum.seed === null || indexof(seeds, datum.seed) >= 0)"
)
_OF_SPLIT = "datum.split === split"
_DRAWABLE_KL = "isValid(datum.kl) && (xscale !== 'log' || datum.kl > 0)"


def _family_encodings(palette: Palette) -> tuple[alt.Color, alt.Shape]:
    import altair as alt

    families = list(palette.family)
    names = "{" + ",".join(f"{json.dumps(f)}:{json.dumps(family_name(f))}" for f in families) + "}[datum.label]"
    legend = alt.Legend(title=None, orient="bottom", labelExpr=names, columns=6, symbolOpacity=1)
    scale = alt.Scale(domain=families, range=[palette.family[f] for f in families])
    shapes = family_shapes(families)
    shape_scale = alt.Scale(domain=families, range=[shapes[f] for f in families])
    return (
        alt.Color("family:N", scale=scale, legend=legend),
        alt.Shape("family:N", scale=shape_scale, legend=legend),
    )


def _kl_axis(title: str = "KL(policy || SFT), nats") -> alt.X:
    import altair as alt

    axis = alt.Axis(values=_KL_TICKS, format=".3~r", grid=False)
    # Not forced to nice round ends: on a log axis that would waste a third of the width.
    scale = alt.Scale(type="log", nice=False, domain=[alt.ExprRef("xmin"), alt.ExprRef("xmax")])
    return alt.X("kl:Q", title=title, axis=axis, scale=scale)


def _dash(palette: Palette, value: float) -> alt.Chart:
    """A dashed line across at a value of y; the axis is that of the layers above it."""
    import altair as alt

    rule = alt.Chart(alt.InlineData(values=[{"at": value}])).mark_rule(
        strokeDash=[4, 4], color=palette.muted, opacity=0.9
    )
    encoded: alt.Chart = rule.encode(y=alt.Y("at:Q"))
    return encoded


def _golden_kl_rule(palette: Palette) -> alt.LayerChart | alt.FacetChart:
    import altair as alt

    base = alt.Chart(alt.NamedData("references")).transform_filter("datum.task === task && datum.split === split")
    rule = base.mark_rule(strokeDash=[2, 3], color=palette.muted, opacity=0.9).encode(x="kl:Q")
    label = base.mark_text(align="left", baseline="top", dx=4, dy=2, color=palette.muted, fontSize=10).encode(
        x="kl:Q", y=alt.value(0), text=alt.value("golden policy’s KL")
    )
    return alt.layer(rule, label)


def _hover() -> alt.Parameter:
    import altair as alt

    return alt.selection_point(name="hover", fields=["run"], on="pointerover", clear="pointerout", empty=False)


def _standing_out(yes: float, no: float) -> Any:
    """`yes` for the baselines and for the run under the pointer, `no` for the sweep around them."""
    import altair as alt

    test: Any = {"test": {"or": [{"param": "hover", "empty": False}, "datum.baseline"]}}
    return alt.condition(test, alt.value(yes), alt.value(no))


def win_panel(
    palette: Palette, seeds: Sequence[int], *, task: str, opponent: str, judge: str, domains: dict[str, float]
) -> Panel:
    """Win rate over KL (Tang et al., figure 1): a point a checkpoint, a line a run, in order of KL."""
    import altair as alt

    values: dict[str, Any] = {"task": task, "opponent": opponent, "judge": judge} | domains
    fields = {what: f"datum['{what}_' + opponent + '_' + judge]" for what in ("rate", "se", "n", "ties")}
    rows = (
        alt.Chart(alt.NamedData("points"))
        .transform_filter(f"{_IN_VIEW} && {_OF_SPLIT} && {_DRAWABLE_KL}")
        .transform_calculate(**fields)
        .transform_filter("isValid(datum.rate)")
        .transform_calculate(
            low="isValid(datum.se) ? max(0, datum.rate - datum.se) : datum.rate",
            high="isValid(datum.se) ? min(1, datum.rate + datum.se) : datum.rate",
            kl_text="format(datum.kl, '.3~g') + (isValid(datum.kl_se) ? ' ± ' + format(datum.kl_se, '.2~g') : '')",
            rate_text="format(datum.rate, '.1%') + (isValid(datum.se) ? ' ± ' + format(datum.se, '.1%') : '')",
        )
    )
    colour, shape = _family_encodings(palette)
    against = OPPONENT_NAMES[opponent]
    scale = alt.Scale(domain=[alt.ExprRef("ymin"), alt.ExprRef("ymax")], nice=False, clamp=True)
    y = alt.Y("rate:Q", title=f"win rate against {against}", scale=scale, axis=alt.Axis(format=".0%", tickCount=6))
    tooltip = [
        alt.Tooltip("arm:N", title="arm"),
        alt.Tooltip("seed:N", title="seed"),
        alt.Tooltip("step:Q", title="step"),
        alt.Tooltip("kl_text:N", title="KL ± se"),
        alt.Tooltip("rate_text:N", title="win rate ± se"),
        alt.Tooltip("n:Q", title="prompts"),
        alt.Tooltip("ties:Q", title="ties"),
    ]
    band = (
        alt.Chart(alt.NamedData("bands"))
        .transform_filter(
            "datum.task === task && datum.split === split && datum.opponent === opponent && datum.judge === judge"
            f" && indexof(shown, datum.family) >= 0 && {_DRAWABLE_KL}"
        )
        .mark_area(opacity=0.16)
        .encode(_kl_axis(), y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour)
    )
    line = rows.mark_line(clip=True).encode(
        _kl_axis(),
        y,
        color=colour,
        detail="run:N",
        order=alt.Order("kl:Q"),
        strokeWidth=_standing_out(2, 1),
        opacity=_standing_out(0.85, 0.3),
    )
    bars = (
        rows.transform_filter("datum.baseline")
        .mark_rule(opacity=0.35, clip=True)
        .encode(_kl_axis(), y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour)
    )
    points = (
        rows.mark_point(filled=True, clip=True)
        .encode(
            _kl_axis(),
            y,
            color=colour,
            shape=shape,
            tooltip=tooltip,
            size=_standing_out(46, 18),
            opacity=_standing_out(1, 0.5),
        )
        .add_params(_hover())
    )
    layers = alt.layer(line, _dash(palette, 0.5), _golden_kl_rule(palette), band, bars, points)
    chart = layers.add_params(*_shared_params(list(palette.family), seeds, values))
    return Panel(JUDGE_NAMES[judge], chart, values)


def step_panel(
    palette: Palette, seeds: Sequence[int], *, task: str, measure: str, title: str, reference: float | None = None
) -> Panel:
    """A measure over optimiser steps (Tang et al., figures 7 and 8)."""
    import altair as alt

    rows = alt.Chart(alt.NamedData("points")).transform_filter(
        f"{_IN_VIEW} && {_OF_SPLIT} && isValid(datum.step) && isValid(datum['{measure}'])"
    )
    colour, shape = _family_encodings(palette)
    share = measure in ("accuracy", "self_accuracy")
    axis = alt.Axis(format=".1~%" if share else ".3~r", tickCount=5)
    y = alt.Y(f"{measure}:Q", title=None, axis=axis, scale=alt.Scale(zero=False, nice=True))
    x = alt.X("step:Q", title="optimiser steps", axis=alt.Axis(labelExpr=_SHORT, grid=False, tickCount=5))
    tooltip = [
        alt.Tooltip("arm:N", title="arm"),
        alt.Tooltip("seed:N", title="seed"),
        alt.Tooltip("step:Q", title="step"),
        alt.Tooltip("kl:Q", title="KL", format=".3~g"),
        alt.Tooltip(f"{measure}:Q", title=title, format=".1%" if share else ".3~g"),
    ]
    line = rows.mark_line().encode(
        x,
        y,
        color=colour,
        detail="run:N",
        order=alt.Order("step:Q"),
        strokeWidth=_standing_out(2, 1),
        opacity=_standing_out(0.85, 0.3),
    )
    points = (
        rows.mark_point(filled=True)
        .encode(
            x,
            y,
            color=colour,
            shape=shape,
            tooltip=tooltip,
            size=_standing_out(34, 14),
            opacity=_standing_out(1, 0.45),
        )
        .add_params(_hover())
    )
    layers: list[alt.Chart] = [line, points]
    if reference is not None:
        layers.insert(1, _dash(palette, reference))
    values = {"task": task}
    chart = alt.layer(*layers).add_params(*_shared_params(list(palette.family), seeds, values))
    return Panel(title, chart, values)


def judges_panel(palette: Palette, seeds: Sequence[int], *, task: str, family: str, domains: dict[str, float]) -> Panel:
    """What three judges say of one arm against SFT over KL: where they part is over-optimisation (Gao et al.)."""
    import altair as alt

    values: dict[str, Any] = {"task": task, "only": family} | domains
    columns: list[Any] = [f"rate_sft_{judge}" for judge in JUDGES]
    rows = (
        alt.Chart(alt.NamedData("points"))
        .transform_filter(
            "datum.task === task && datum.family === only && datum.baseline && "
            f"(datum.seed === null || indexof(seeds, datum.seed) >= 0) && {_OF_SPLIT} && {_DRAWABLE_KL}"
        )
        .transform_fold(columns, as_=["judged", "rate"])
        .transform_filter("isValid(datum.rate)")
        .transform_calculate(judge_name="replace(datum.judged, 'rate_sft_', '')")
    )
    names = "{" + ",".join(f"{j}:{json.dumps(JUDGE_NAMES[j])}" for j in JUDGES) + "}[datum.label]"
    legend = alt.Legend(title=None, orient="bottom", labelExpr=names)
    colour = alt.Color(
        "judge_name:N",
        scale=alt.Scale(domain=list(JUDGES), range=[palette.judge[j] for j in JUDGES]),
        legend=legend,
    )
    shape = alt.Shape(
        "judge_name:N",
        scale=alt.Scale(domain=list(JUDGES), range=["circle", "diamond", "triangle-up"]),
        legend=legend,
    )
    scale = alt.Scale(domain=[alt.ExprRef("ymin"), alt.ExprRef("ymax")], nice=False, clamp=True)
    y = alt.Y("rate:Q", title="win rate against SFT", scale=scale, axis=alt.Axis(format=".0%", tickCount=5))
    tooltip = [
        alt.Tooltip("judge_name:N", title="judge"),
        alt.Tooltip("arm:N", title="arm"),
        alt.Tooltip("seed:N", title="seed"),
        alt.Tooltip("step:Q", title="step"),
        alt.Tooltip("kl:Q", title="KL", format=".3~g"),
        alt.Tooltip("rate:Q", title="win rate", format=".1%"),
    ]
    line = rows.mark_line(strokeWidth=1.8, opacity=0.75, clip=True).encode(
        _kl_axis(), y, color=colour, detail="run:N", order=alt.Order("kl:Q")
    )
    points = rows.mark_point(filled=True, size=36, opacity=1, clip=True).encode(
        _kl_axis(), y, color=colour, shape=shape, tooltip=tooltip
    )
    chart = alt.layer(line, _dash(palette, 0.5), points).add_params(
        *_shared_params(list(palette.family), seeds, values)
    )
    return Panel(family_name(family), chart, values)


def cost_panel(palette: Palette, seeds: Sequence[int], *, task: str, measure: str, title: str) -> Panel:
    """What a run reached at its end over what it cost."""
    import altair as alt

    rows = alt.Chart(alt.NamedData("runs")).transform_filter(
        f"{_IN_VIEW} && isValid(datum.end_rate) && isValid(datum['{measure}'])"
    )
    colour, shape = _family_encodings(palette)
    tooltip = [
        alt.Tooltip("arm:N", title="arm"),
        alt.Tooltip("seed:N", title="seed"),
        alt.Tooltip(f"{measure}:Q", title=title, format=",.4~g"),
        alt.Tooltip("end_rate:Q", title="win rate at the end", format=".1%"),
        alt.Tooltip("peak_rate:Q", title="win rate at the peak", format=".1%"),
    ]
    points = (
        rows.mark_point(filled=True)
        .encode(
            alt.X(f"{measure}:Q", title=title.lower(), axis=alt.Axis(labelExpr=_SHORT, grid=False, tickCount=5)),
            alt.Y(
                "end_rate:Q",
                title="win rate at the end",
                axis=alt.Axis(format=".0%", tickCount=5),
                scale=alt.Scale(zero=False),
            ),
            color=colour,
            shape=shape,
            tooltip=tooltip,
            size=alt.condition("datum.baseline", alt.value(70), alt.value(28)),
            opacity=alt.condition("datum.baseline", alt.value(1), alt.value(0.5)),
        )
        .add_params(_hover())
    )
    values = {"task": task}
    return Panel(title, alt.layer(points).add_params(*_shared_params(list(palette.family), seeds, values)), values)


# --- figures --------------------------------------------------------------------------------------------------------


def task_figures(data: ReportData, task: Task, palette: Palette) -> list[Figure]:
    """The figures of a task that have anything to show, in reading order."""
    name, seeds, families = task.name, data.seeds, data.families
    figures = []
    for opponent in OPPONENTS:
        domains = _domains(data, name, opponent)
        judges = [j for j in ("golden", "true") if has_values(data, name, [f"rate_{opponent}_{j}"])]
        panels = [
            win_panel(palette, seeds, task=name, opponent=opponent, judge=judge, domains=domains) for judge in judges
        ]
        figures.append(
            Figure(
                "goodhart" if opponent == "golden_policy" else "against-sft",
                f"Win rate against {OPPONENT_NAMES[opponent]}, over KL",
                _WIN_CAPTIONS[opponent],
                tuple(panels),
            )
        )
    of_sft = [f"rate_sft_{judge}" for judge in JUDGES]
    with_judges = [
        family for family in families if family != "golden_policy" and has_values(data, name, of_sft, family=family)
    ]
    domains = _domains(data, name, "sft")
    figures.append(
        Figure(
            "judges",
            "Three judges of the same responses",
            "Baseline arms against the SFT policy. The policy is trained to please the proxy; the golden judge stands "
            "for the human; the true utility is known because the task is built in. Where proxy and truth part, the "
            "policy has learned the proxy’s mistakes.",
            tuple(judges_panel(palette, seeds, task=name, family=family, domains=domains) for family in with_judges),
            legend="judge",
        )
    )
    training = [
        (
            step_panel(palette, seeds, task=name, measure=measure, title=title, reference=reference)
            if has_values(data, name, [measure])
            else None
        )
        for measure, title, reference in _STEP_PANELS
    ]
    figures.append(
        Figure(
            "training",
            "Classifier, log-probabilities and length, over training",
            "A policy that ranks golden pairs well need not write well. Accuracy: how often the sign of the log-ratio "
            "margin predicts the golden label (dashed: chance). Drift: how far the log-probability of golden winners "
            "has moved from SFT’s (dashed: not at all).",
            tuple(panel for panel in training if panel is not None),
        )
    )
    runs = data.runs.filter((pl.col("task") == name) & pl.col("end_rate").is_not_null())
    costs = [
        cost_panel(palette, seeds, task=name, measure=measure, title=title)
        for measure, title in (("seconds", "Seconds of training"), ("judge_calls", "Judge calls"))
        if runs[measure].count() > 0
    ]
    figures.append(
        Figure(
            "cost",
            "Gain over cost",
            "Win rate against the golden policy’s responses at the last checkpoint, by the golden judge, over what the "
            "run cost. What all arms share (SFT, judges) is left out.",
            tuple(costs),
            by_split=False,
        )
    )
    return [figure for figure in figures if figure.panels]


_WIN_CAPTIONS = {
    "golden_policy": "A point is a checkpoint, a line a run (one arm, one seed) in order of KL. Thick: baseline arms, "
    "with one standard error over prompts. Thin: the offline sweep. Dashed: a draw, and the KL that the golden policy "
    "spent. Step 0 has a KL of exactly 0, which a log axis cannot show. After Tang et al. (2024), figure 1.",
    "sft": "The same checkpoints, judged against the responses of the SFT policy, where every arm starts at a draw.",
}

_STEP_PANELS: tuple[tuple[str, str, float | None], ...] = (
    ("accuracy", "Accuracy on golden pairs", 0.5),
    ("drift", "Drift of winners’ log-probability", 0.0),
    ("self_accuracy", "Accuracy on own pairs", 0.5),
    ("kl", "KL from SFT", None),
    ("tokens", "Response length, tokens", None),
    ("utility", "Mean true utility", None),
)


def config(palette: Palette) -> dict[str, Any]:
    """How every chart looks: quiet axes, light grid, no frame."""
    font = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": {
            "labelColor": palette.muted,
            "titleColor": palette.muted,
            "titleFontWeight": "normal",
            "titleFontSize": 12,
            "titlePadding": 10,
            "labelFontSize": 11,
            "domainColor": palette.grid,
            "tickColor": palette.grid,
            "gridColor": palette.grid,
            "tickSize": 4,
            "labelPadding": 5,
        },
        "legend": {"labelColor": palette.ink, "labelFontSize": 11, "symbolSize": 60, "labelLimit": 220},
        "title": {"color": palette.ink, "fontSize": 13, "fontWeight": 600, "anchor": "start", "offset": 10},
    }


def image_spec(
    data: ReportData, figure: Figure, *, split: str = "held_out", scale: str = "log", per_row: int = 3
) -> dict[str, Any]:
    """A figure of `task_figures` in image colours as one Vega-Lite specification with its data inside."""
    palette = Palette.for_images(data.families)
    task = figure.panels[0].params["task"]
    width = 380 if len(figure.panels) <= 2 else 270
    rows_of = {
        name: [row for row in rows if row["task"] == task and row.get("split", split) == split]
        for name, rows in datasets(data).items()
    }
    views, tables = [], {}
    for index, panel in enumerate(figure.panels):
        view = panel.spec()
        del view["params"]
        fixed = {"split": split, "xscale": scale, "shown": data.families, "seeds": data.seeds, "sweep": True}
        view = _fix(_with_scale(view, scale), fixed | {"only": "", "opponent": "", "judge": ""} | panel.params)
        # Each panel has its own copy of the data: Vega computes fields in place, and panels that compute the same field
        # from the same rows would overwrite each other's.
        for name in rows_of:
            view = _renamed(view, name, f"{name}{index}")
            # Marked, because tables of equal content would be merged into one again.
            tables[f"{name}{index}"] = [row | {"panel": index} for row in rows_of[name]]
        view |= {"width": width, "height": round(width * 0.72), "title": panel.title}
        views.append(view)
    rows = [{"hconcat": views[i : i + per_row], "spacing": 28} for i in range(0, len(views), per_row)]
    subtitle = f"{task} · {SPLIT_NAMES.get(split, split)}" if figure.by_split else task
    if data.smoke:
        subtitle += " · SMOKE RUN: THE NUMBERS MEAN NOTHING"
    title = {"text": figure.title, "subtitle": subtitle, "fontSize": 16, "subtitleColor": palette.muted, "offset": 18}
    return {
        "$schema": _schema(),
        "title": title,
        "vconcat": rows,
        "spacing": 24,
        "padding": 16,
        "datasets": tables,
        "config": config(palette) | {"background": "white", "font": "Helvetica, Arial, sans-serif"},
    }


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


def figures(data: ReportData, folder: Path, formats: Sequence[Format] = ("png", "svg")) -> list[Path]:
    """Every figure of every task, on every split, as files `TASK-FIGURE-SPLIT.FORMAT`; returns their paths.

    A task or figure without any number gets no file: an empty picture looks like a result.
    """
    import vl_convert

    folder.mkdir(parents=True, exist_ok=True)
    palette = Palette.for_images(data.families)
    written = []
    for task in data.tasks:
        for figure in task_figures(data, task, palette):
            for split in splits_of(data, task.name) if figure.by_split else [None]:
                svg = image_svg(data, figure, split=split or "held_out")
                for form in formats:
                    if form == "png":
                        content = vl_convert.svg_to_png(svg, scale=2)
                    elif form == "pdf":
                        content = vl_convert.svg_to_pdf(svg)
                    else:
                        content = svg.encode()
                    path = folder / f"{file_name(task.name, figure.name, *([split] if split else []))}.{form}"
                    path.write_bytes(content)
                    written.append(path)
    return written


def save_charts(data: ReportData, folder: Path) -> list[Path]:
    """PNG at twice the size of a screen's, and SVG, on a light ground."""
    return figures(data, folder, ("png", "svg"))


def image_svg(data: ReportData, figure: Figure, *, split: str = "held_out") -> str:
    """A figure as SVG text; also what a reader without scripts sees in the page."""
    import vl_convert

    version = ".".join(_schema().rsplit("/v", 1)[1].split(".")[:2])
    return vl_convert.vegalite_to_svg(image_spec(data, figure, split=split), vl_version=version)


def file_name(*parts: str) -> str:
    """A name safe on every file system, whatever a task is called."""
    return "-".join(re.sub(r"[^A-Za-z0-9]+", "_", part).strip("_") or "x" for part in parts)
