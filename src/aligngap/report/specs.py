"""Chart specifications: Vega-Lite over the named tables of a task (`points`, `runs`, `references`, `drawn`), without
data, steered by parameters: split, judge, opponent, what is shown ...

The page sets the parameters from its own controls, so that one copy of a task's data serves all its figures; an image
has them written out (`still`). Importing this module takes longer than most commands run: import it where it is used.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt

from aligngap.report.drawing import Drawing
from aligngap.report.style import JUDGE_NAMES, Style, Theme, family_name, judge_styles, styles
from aligngap.results import JUDGES

DEFAULTS: dict[str, Any] = {
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
"""Every parameter; all specifications have all, so that a control need not know which use it."""

_OF_SEED = "(datum.seed === null || indexof(seeds, datum.seed) >= 0)"  # a run without a seed is never hidden
_IN_VIEW = f"indexof(shown, datum.family) >= 0 && (sweep || datum.baseline) && {_OF_SEED}"
_OF_SPLIT = "datum.split === split"
_BASELINE_OR_HOVERED = {"or": [{"param": "hover", "empty": False}, "datum.baseline"]}
_DRAWABLE_KL = "isValid(datum.kl) && (xscale !== 'log' || datum.kl > 0)"
_NEAR = "datum.kl <= xmax"  # lines go on to the edge; points beyond it would be there and not be seen
_KL_TEXT = {
    "kl_text": "isValid(datum.kl) ? format(datum.kl, '.3~g') + (isValid(datum.kl_se) ? ' ± ' + "
    "format(datum.kl_se, '.2~g') : '') : 'none'"
}
#: 0, 500, 1k, 1.5k: a format of the axis would give all labels the largest one's unit.
_SHORT = "format(datum.value, '~s')"
_KL_TICKS = [v * 10.0**e for e in range(-6, 6) for v in (1, 3)]
_FEW_BANDS = 3  # more of them, one over the other, cannot be told apart
_PERCENT = re.compile(r"\b(win rate|accuracy|agreement|share|quantile)", re.IGNORECASE)


def _spec(*layers: alt.Chart | alt.LayerChart) -> dict[str, Any]:
    """Vega-Lite without data, but for the few values that a layer brings itself."""
    params = [alt.param(name=name, value=value) for name, value in DEFAULTS.items()]
    with alt.data_transformers.enable("default", consolidate_datasets=False):
        # Validation takes most of the time; the tests do it.
        spec: dict[str, Any] = alt.layer(*layers).add_params(*params).to_dict(validate=False)
    return {key: value for key, value in spec.items() if key not in ("$schema", "config")}


def _rows(table: str, *tests: str) -> alt.Chart:
    return alt.Chart(alt.NamedData(table)).transform_filter(" && ".join(tests))


# --- channels and axes ----------------------------------------------------------------------------------------------


def _encodings(theme: Theme, column: str, names: Mapping[str, str], own: Mapping[str, Style]) -> dict[str, Any]:
    """Colour, shape and dash by a column, with one legend for all three."""
    order = list(names)
    labels = "{" + ",".join(f"{json.dumps(n)}:{json.dumps(label)}" for n, label in names.items()) + "}[datum.label]"
    legend = alt.Legend(title=None, orient="bottom", labelExpr=labels, columns=5, symbolOpacity=1)

    def scale(values: Sequence[Any]) -> alt.Scale:
        return alt.Scale(domain=order, range=list(values))

    return {
        "color": alt.Color(f"{column}:N", scale=scale([theme.hues[own[n].hue] for n in order]), legend=legend),
        "shape": alt.Shape(f"{column}:N", scale=scale([own[n].shape for n in order]), legend=legend),
        "dash": alt.StrokeDash(f"{column}:N", scale=scale([list(own[n].dash) for n in order]), legend=legend),
    }


def _family_encodings(theme: Theme) -> dict[str, Any]:
    return _encodings(theme, "family", theme.names, theme.styles)


def _kl_axis() -> alt.X:
    axis = alt.Axis(values=_KL_TICKS, format=".3~r", grid=False, labelOverlap="greedy", labelSeparation=6)
    # Not forced to nice round ends: on a log axis that would waste a third of the width.
    scale = alt.Scale(type="log", nice=False, domain=[alt.ExprRef("xmin"), alt.ExprRef("xmax")])
    return alt.X("kl:Q", title="KL(policy || SFT), nats", axis=axis, scale=scale)


def _amount_axis(column: str, title: str) -> alt.X:
    return alt.X(f"{column}:Q", title=title, axis=alt.Axis(labelExpr=_SHORT, grid=False, tickCount=5))


def _rate_axis(title: str, column: str = "rate") -> alt.Y:
    scale = alt.Scale(domain=[alt.ExprRef("ymin"), alt.ExprRef("ymax")], nice=False, clamp=True)
    return alt.Y(f"{column}:Q", title=title, scale=scale, axis=alt.Axis(format=".0%", tickCount=6))


def _standing_out(yes: float, no: float, test: Any = _BASELINE_OR_HOVERED) -> dict[str, Any]:
    """Of a channel: `yes` for the baselines and for the run under the pointer, `no` for the sweep around them."""
    return {"condition": {"test": test, "value": yes}, "value": no}


def _tooltips(**titles: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{column}:N", title=title) for column, title in titles.items()]


def _interval_text(rate: str, se: str) -> dict[str, str]:
    """95% over prompts, from a standard error."""
    ends = (f"format(max(0, {rate} - 1.96 * {se}), '.1%')", f"format(min(1, {rate} + 1.96 * {se}), '.1%')")
    return {"interval": f"isValid({se}) ? '[' + {ends[0]} + ', ' + {ends[1]} + ']' : 'none'"}


# --- layers ---------------------------------------------------------------------------------------------------------


def _lines(rows: alt.Chart, x: alt.X, y: alt.Y, of: Mapping[str, Any], order: str, **mark: Any) -> alt.Chart:
    """A line a run."""
    encoded: alt.Chart = rows.mark_line(**mark).encode(
        x,
        y,
        color=of["color"],
        strokeDash=of["dash"],
        detail="run:N",
        order=alt.Order(f"{order}:Q"),
        strokeWidth=alt.StrokeWidthValue(**_standing_out(2, 1)),
        opacity=alt.OpacityValue(**_standing_out(0.85, 0.3)),
    )
    return encoded


def _symbols(
    rows: alt.Chart, x: alt.X, y: alt.Y, of: Mapping[str, Any], tooltip: list[alt.Tooltip], **channels: Any
) -> alt.Chart:
    """A point a row, which makes its run stand out while the pointer is over it."""
    hover = alt.selection_point(name="hover", fields=["run"], on="pointerover", clear="pointerout", empty=False)
    encoded: alt.Chart = rows.encode(x, y, color=of["color"], shape=of["shape"], tooltip=tooltip, **channels)
    return encoded.add_params(hover)


def _across(theme: Theme, value: float) -> alt.Chart:
    """A dashed line across at a value of y; the axis is that of the layers above it."""
    rule = alt.Chart(alt.InlineData(values=[{"at": value}])).mark_rule(
        strokeDash=[4, 4], color=theme.muted, opacity=0.9
    )
    encoded: alt.Chart = rule.encode(y=alt.Y("at:Q"))
    return encoded


def _golden_kl_rule(theme: Theme) -> alt.LayerChart:
    base = _rows("references", _OF_SPLIT, _NEAR, "(xscale !== 'log' || datum.kl >= xmin)")
    rule = base.mark_rule(strokeDash=[2, 3], color=theme.muted, opacity=0.9).encode(x="kl:Q")
    room = "datum.kl < (xscale === 'log' ? sqrt(xmin * xmax) : xmax / 2)"

    def label(test: str, align: Literal["left", "right"], dx: int) -> alt.Chart:
        mark = base.transform_filter(test).mark_text(
            align=align, baseline="top", dx=dx, dy=2, color=theme.muted, fontSize=10
        )
        encoded: alt.Chart = mark.encode(x="kl:Q", y=alt.value(0), text=alt.value("golden policy’s KL"))
        return encoded

    # To the side where there is room.
    labels = [label(room, "left", 4), label(f"!({room})", "right", -4)]
    return alt.LayerChart(layer=[rule, *labels])


# --- specifications -------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def win_rate(theme: Theme, over: Literal["kl", "step", "rate_sft_proxy"] = "kl") -> dict[str, Any]:
    """Win rate over KL (Tang et al., figure 1): a point a checkpoint, a line a run, in order of KL. `over`: or over
    something else, in order of steps, because KL is disputed as an axis common to different optimisers.
    """
    columns = {what: f"datum['{what}_' + opponent + '_' + judge]" for what in ("rate", "se", "n", "ties")}
    drawable = _DRAWABLE_KL if over == "kl" else f"isValid(datum['{over}'])"
    rows = (
        _rows("points", _IN_VIEW, _OF_SPLIT, drawable)
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
    of, y = _family_encodings(theme), _rate_axis("win rate")
    by_proxy = []
    x = _kl_axis() if over == "kl" else _amount_axis("step", "optimiser steps")
    if over == "rate_sft_proxy":
        axis = alt.Axis(format=".0%", grid=False, tickCount=6)
        x = alt.X(f"{over}:Q", title="win rate against SFT by the proxy", axis=axis, scale=alt.Scale(zero=False))
        by_proxy = [alt.Tooltip(f"{over}:Q", title="by the proxy", format=".1%")]
    tooltip = [
        *_tooltips(arm="arm", seed="seed", step="step", kl_text="KL ± se"),
        *by_proxy,
        *_tooltips(rate_text="win rate", interval="95%, over prompts", n="prompts", ties="ties"),
    ]
    clip = over == "kl"  # elsewhere the axes take in all there is
    near = rows.transform_filter(_NEAR) if clip else rows
    bars = near.transform_filter("datum.baseline").mark_rule(opacity=0.35, clip=clip)
    return _spec(
        _lines(rows, x, y, of, "kl" if over == "kl" else "step", clip=clip),
        _across(theme, 0.5),
        *([_golden_kl_rule(theme)] if over == "kl" else []),
        bars.encode(x, y=_rate_axis("win rate", "low"), y2="high:Q", color=of["color"]),
        _symbols(
            near.mark_point(filled=True, clip=clip),
            *(x, y, of, tooltip),
            size=alt.SizeValue(**_standing_out(46, 18)),
            opacity=alt.OpacityValue(**_standing_out(1, 0.5)),
        ),
    )


@functools.lru_cache(maxsize=64)
def measure(
    theme: Theme, column: str, title: str, reference: float | None = None, over: Literal["step", "kl"] = "step"
) -> dict[str, Any]:
    """A measure over optimiser steps (Tang et al., figures 7 and 8), or over KL."""
    drawable = _DRAWABLE_KL if over == "kl" else "isValid(datum.step)"
    rows = _rows("points", _IN_VIEW, _OF_SPLIT, drawable, f"isValid(datum['{column}'])")
    of = _family_encodings(theme)
    share = column == "accuracy"
    axis = alt.Axis(format=".1~%" if share else ".3~r", tickCount=5)
    y = alt.Y(f"{column}:Q", title=None, axis=axis, scale=alt.Scale(zero=False, nice=True))
    x = _kl_axis() if over == "kl" else _amount_axis("step", "optimiser steps")
    tooltip = [
        *_tooltips(arm="arm", seed="seed", step="step"),
        alt.Tooltip("kl:Q", title="KL", format=".3~g"),
        alt.Tooltip(f"{column}:Q", title=title, format=".1%" if share else ".3~g"),
    ]
    return _spec(
        _lines(rows, x, y, of, over),
        *([] if reference is None else [_across(theme, reference)]),
        _symbols(
            rows.mark_point(filled=True),
            *(x, y, of, tooltip),
            size=alt.SizeValue(**_standing_out(34, 14)),
            opacity=alt.OpacityValue(**_standing_out(1, 0.45)),
        ),
    )


@functools.lru_cache(maxsize=64)
def judges(theme: Theme) -> dict[str, Any]:
    """What three judges say of one arm against SFT over KL: where they part is over-optimisation (Gao et al.)."""
    columns: list[Any] = [f"rate_sft_{judge}" for judge in JUDGES]
    rows = (
        _rows("points", "datum.family === only", "datum.baseline", _OF_SEED, _OF_SPLIT, _DRAWABLE_KL)
        .transform_fold(columns, as_=["judged", "rate"])
        .transform_filter("isValid(datum.rate)")
        .transform_calculate(by="replace(datum.judged, 'rate_sft_', '')")
        .transform_calculate(se="datum['se_sft_' + datum.by]")
        .transform_calculate(**_KL_TEXT, **_interval_text("datum.rate", "datum.se"))
    )
    of = _encodings(theme, "by", JUDGE_NAMES, judge_styles())
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
    return _spec(line, _across(theme, 0.5), points)


@functools.lru_cache(maxsize=64)
def cost(theme: Theme, column: str, title: str) -> dict[str, Any]:
    """What a run reached at its end over what it cost."""
    tooltip = [
        *_tooltips(arm="arm", seed="seed"),
        alt.Tooltip(f"{column}:Q", title=title, format=",.4~g"),
        alt.Tooltip("end_rate:Q", title="win rate at the end", format=".1%"),
        alt.Tooltip("peak_rate:Q", title="win rate at the peak", format=".1%"),
    ]
    axis = alt.Axis(format=".0%", tickCount=5)
    return _spec(
        _symbols(
            _rows("runs", _IN_VIEW, "isValid(datum.end_rate)", f"isValid(datum['{column}'])").mark_point(filled=True),
            _amount_axis(column, title.lower()),
            alt.Y("end_rate:Q", title="win rate at the end", axis=axis, scale=alt.Scale(zero=False)),
            _family_encodings(theme),
            tooltip,
            size=alt.SizeValue(**_standing_out(70, 28, "datum.baseline")),
            opacity=alt.OpacityValue(**_standing_out(1, 0.5, "datum.baseline")),
        )
    )


# --- what an experiment draws itself --------------------------------------------------------------------------------

_POOLED, _SINGLE = "datum.seed === null", "datum.seed !== null"
_BOUNDED = f"isValid(datum.low) && isValid(datum.high) && {_POOLED}"


def drawn(theme: Theme, drawing: Drawing) -> dict[str, Any]:
    """An experiment's own points: lines, points or bars with their intervals, and single seeds as faint marks."""
    layers = _Drawn(theme, drawing)
    return _spec(*(layers.bars() if drawing.figure.mark == "bar" else layers.points()))


def series_of(drawing: Drawing) -> tuple[str, ...]:
    """The series of a drawing, in order of appearance."""
    return tuple(dict.fromkeys(point["series"] for point in drawing.points))


def series_labels(series: Sequence[str], theme: Theme) -> dict[str, str]:
    """A series that is a family bears its name."""
    return {name: family_name(name) if name in theme.families else name for name in series}


def bounded(drawing: Drawing) -> bool:
    """Whether any point of all seeds has an interval."""
    return any(None not in (p["low"], p["high"]) and p["seed"] is None for p in drawing.points)


class _Drawn:
    """The layers of a drawing; only those with something in them, because Vega complains of an axis without an extent.

    pooled, seeded, bounded: whether any point is of all seeds, is of one seed, has an interval.
    """

    def __init__(self, theme: Theme, drawing: Drawing) -> None:
        self.theme, self.drawing, self.series = theme, drawing, series_of(drawing)
        single = [point["seed"] is not None for point in drawing.points]
        self.pooled, self.seeded, self.bounded = not all(single), any(single), bounded(drawing)
        rate = _PERCENT.search(drawing.figure.y) is not None
        form = ".1%" if rate else ".3~g"
        tests = ("datum.figure === figure", "indexof(shown, datum.series) >= 0", _OF_SEED)
        self.rows = _rows("drawn", *tests).transform_calculate(
            y_text=f"format(datum.y, '{form}')",
            interval="isValid(datum.low) && isValid(datum.high) ? "
            f"'[' + format(datum.low, '{form}') + ', ' + format(datum.high, '{form}') + ']' : 'none'",
            x_text="datum.x" if drawing.named else "format(datum.x, ',.3~r')",
            of_seeds="datum.seed === null ? 'all' : '' + datum.seed",
        )
        self.of = _encodings(theme, "series", series_labels(self.series, theme), styles(self.series, theme.families))
        scale = alt.Scale(zero=drawing.figure.mark == "bar", nice=True)
        axis = alt.Axis(format=".3~%" if rate else "~g", tickCount=6)
        self.x = self._named_axis() if drawing.named else self._number_axis()
        self.y = alt.Y("y:Q", title=drawing.figure.y or None, scale=scale, axis=axis)
        self.ends = {"y": alt.Y("low:Q", scale=scale, title=drawing.figure.y or None), "y2": alt.Y2("high:Q")}
        titles = {"x_text": drawing.figure.x or "x", "y_text": drawing.figure.y or "y"}
        self.tooltip = _tooltips(series="series", **titles, interval="95%", of_seeds="seed")
        values = [v for point in drawing.points for v in (point["y"], point["low"], point["high"]) if v is not None]
        self.across = [_across(theme, 0.0)] if min(values) < 0 < max(values) else []
        # Without pooled points the seeds are all there is to see, and are not faint.
        self.small: dict[str, Any] = {"size": 20, "opacity": 0.4} if self.pooled else {"size": 42, "opacity": 0.95}

    def _named_axis(self) -> alt.X:
        names = list(dict.fromkeys(point["x"] for point in self.drawing.points))
        # Names are often longer than their bar is wide.
        slanted = sum(map(len, names)) > 50 or len(names) > 8
        angle = {"labelAngle": -28, "labelAlign": "right"} if slanted else {"labelAngle": 0}
        words = f"{json.dumps(series_labels(names, self.theme))}[datum.label]"
        axis = alt.Axis(labelExpr=words, labelLimit=170, grid=False, **angle)
        return alt.X("x:N", title=self.drawing.figure.x or None, sort=names, axis=axis, scale=alt.Scale(padding=0.25))

    def _number_axis(self) -> alt.X:
        title, log = self.drawing.figure.x, self.drawing.x_log
        scale = alt.Scale(type="log", nice=False, padding=12) if log else alt.Scale(zero=False, nice=True)
        ticks: dict[str, Any] = {"values": _KL_TICKS} if log and title.startswith("KL") else {"tickCount": 6}
        axis = alt.Axis(format=",.3~r", grid=False, labelOverlap=True, **ticks)
        return alt.X("x:Q", title=title or None, scale=scale, axis=axis)

    def bars(self) -> list[alt.Chart]:
        series, layers = list(self.series), []
        place: dict[str, Any] = {}
        if len(series) > 1:
            place = {"xOffset": alt.XOffset("series:N", sort=series, scale=alt.Scale(domain=series))}
        told = {"tooltip": self.tooltip, **place}
        if self.pooled:
            bars = self.rows.transform_filter(_POOLED).mark_bar(opacity=0.85)
            layers.append(bars.encode(self.x, self.y, color=self.of["color"], **told))
        if self.bounded:
            rules = self.rows.transform_filter(_BOUNDED).mark_rule(color=self.theme.ink, strokeWidth=1.6)
            layers.append(rules.encode(self.x, **self.ends, **place))
        layers += self.across
        if self.seeded:
            points = self.rows.transform_filter(_SINGLE).mark_point(filled=True, color=self.theme.ink, **self.small)
            layers.append(points.encode(self.x, self.y, **told))
        return layers

    def points(self) -> list[alt.Chart]:
        lines = self.drawing.figure.mark == "line"
        every, one = (self.rows.transform_filter(test) for test in (_POOLED, _SINGLE))
        strokes: dict[str, Any] = {"color": self.of["color"], "strokeDash": self.of["dash"]}
        strokes |= {} if self.drawing.named else {"order": alt.Order("x:Q")}
        marks: dict[str, Any] = {"color": self.of["color"], "shape": self.of["shape"], "tooltip": self.tooltip}
        layers = []
        if self.bounded:
            rows = self.rows.transform_filter(_BOUNDED)
            band = lines and not self.drawing.named and len(self.series) <= _FEW_BANDS
            interval = rows.mark_area(opacity=0.15) if band else rows.mark_rule(opacity=0.6)
            layers.append(interval.encode(self.x, **self.ends, color=self.of["color"]))
        if lines and self.seeded:
            thin: dict[str, Any] = (
                {"strokeWidth": 1, "opacity": 0.3} if self.pooled else {"strokeWidth": 1.5, "opacity": 0.8}
            )
            layers.append(one.mark_line(**thin).encode(self.x, self.y, detail="seed:N", **strokes))
        if lines and self.pooled:
            layers.append(every.mark_line(strokeWidth=2).encode(self.x, self.y, **strokes))
        layers += self.across
        if self.seeded:
            layers.append(one.mark_point(filled=True, **self.small).encode(self.x, self.y, **marks))
        if self.pooled:
            layers.append(every.mark_point(filled=True, size=50, opacity=1).encode(self.x, self.y, **marks))
        return layers
