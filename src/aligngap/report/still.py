"""Figures as images for papers, READMEs and readers without scripts: the panels of a figure side by side, with their
parameters written out and their data put in. No browser is needed.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aligngap.report.figures import Chart, drawn_runs, every_figure, reach, splits_of, tables
from aligngap.report.images import Format, Images
from aligngap.report.style import OPPONENT_NAMES, SPLIT_NAMES, Theme, config
from aligngap.results import StudyResults, Task

_PER_ROW = 3
#: Where Vega-Lite takes expressions, which may name parameters.
_EXPRESSIONS = ("filter", "calculate", "expr", "test", "or")


def image_spec(
    data: StudyResults, figure: Chart, *, split: str = "held_out", opponent: str = "golden_policy"
) -> dict[str, Any]:
    """A figure built with `Theme.for_images`, as one Vega-Lite specification with its data inside."""
    import altair as alt

    from aligngap.report.specs import DEFAULTS

    theme = Theme.for_images(data)
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
        for name, rows in tables(data, task).items()
    }
    params = DEFAULTS | {"split": split, "opponent": opponent, "seeds": list(theme.seeds), "shown": list(figure.shown)}
    notes = []
    if figure.span:
        runs = drawn_runs(rows_of["runs"], figure)
        params |= reach(runs, figure.against or opponent, whole=figure.span == "whole")
        notes = _beyond(rows_of["points"], runs, params["xmax"]) if figure.span == "usual" else []
    views = []
    for index, panel in enumerate(figure.panels):
        # Each panel has its own copy of the data: Vega computes fields in place, and panels that compute the same field
        # from the same rows would overwrite each other's.
        own = {name: f"{name}{index}" for name in rows_of}
        view = _still(panel.build(), figure.shown, params | panel.params, own)
        view |= {"width": width, "height": round(width * 0.72)} | ({"title": panel.title} if panel.title else {})
        views.append(view)
    subtitle = [task.name] + ([SPLIT_NAMES.get(split, split)] if figure.by_split else [])
    subtitle += [f"against {OPPONENT_NAMES[figure.against or opponent]}"] if figure.span else []
    subtitle += ["SMOKE RUN: THE NUMBERS MEAN NOTHING"] if data.smoke else []
    return {
        "$schema": str(alt.SCHEMA_URL),
        "title": {
            "text": textwrap.wrap(figure.title, 34 * len(views[:_PER_ROW]) + 30) or [""],
            "subtitle": [" · ".join(subtitle), *notes],
            "fontSize": 16,
            "subtitleColor": theme.muted,
            "offset": 18,
        },
        "vconcat": [{"hconcat": views[i : i + _PER_ROW], "spacing": 28} for i in range(0, len(views), _PER_ROW)],
        "spacing": 24,
        "padding": 16,
        "datasets": {
            # Marked, because tables of equal content would be merged into one again.
            f"{name}{index}": [row | {"panel": index} for row in rows]
            for index in range(len(views))
            for name, rows in rows_of.items()
        },
        "config": config(theme) | {"background": "white", "font": "Helvetica, Arial, sans-serif"},
    }


def _beyond(points: Iterable[Mapping[str, Any]], runs: Iterable[Mapping[str, Any]], xmax: float) -> list[str]:
    """What lies to the right of a figure, in a sentence; none where nothing does."""
    arms = {run["run"]: run["arm"] for run in runs}
    far = [point for point in points if point["run"] in arms and point["kl"] is not None and point["kl"] > xmax]
    if not far:
        return []
    names = list(dict.fromkeys(arms[point["run"]] for point in far))
    whose = "; ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    most = max(point["kl"] for point in far)
    count = f"{len(far)} point{'s' if len(far) > 1 else ''}"
    return [f"Not shown: {count} further right, up to a KL of {most:.3g} ({whose})"]


def _still(spec: dict[str, Any], shown: Sequence[str], params: Mapping[str, Any], own: Mapping[str, str]) -> Any:
    """A specification with its parameters written out as their values, and nothing left that waits for a pointer:
    Vega-Lite knows one top level of parameters, while the panels of one image need different values of the same ones.

    shown: families or series to which scales and legends are cut down. own: new names of the tables.
    """
    # A name that is neither a field (after a dot), nor a part of a longer name, nor a quoted word.
    named = re.compile(rf"(?<![\w.'])({'|'.join(map(re.escape, params))})(?![\w'])")

    def written_out(value: Any) -> Any:
        if isinstance(value, list):
            return [written_out(item) for item in value]
        return named.sub(lambda match: json.dumps(params[match[1]]), value) if isinstance(value, str) else value

    def change(node: dict[str, Any]) -> Any:
        if node.get("param") == "hover":
            return "false"
        if node.keys() == {"name"} and node["name"] in own:
            return {"name": own[node["name"]]}
        # Altair names the views that have parameters alike in every panel, and Vega-Lite then mixes up their data.
        dropped = ("params", "tooltip", "name") if "mark" in node else ("params", "tooltip")
        node = {
            key: written_out(value) if key in _EXPRESSIONS else value
            for key, value in node.items()
            if key not in dropped
        }
        domain, channel = node.get("domain"), node.get("range")
        if isinstance(domain, list) and isinstance(channel, list) and set(shown) & set(map(str, domain)):
            pairs = [(name, value) for name, value in zip(domain, channel, strict=True) if name in shown]
            node |= {"domain": [name for name, _ in pairs], "range": [value for _, value in pairs]}
        return node

    return changed(spec, change)


def changed(node: Any, change: Callable[[dict[str, Any]], Any]) -> Any:
    """A specification with every object in it replaced by what `change` makes of it, the inner ones first."""
    if isinstance(node, dict):
        return change({key: changed(value, change) for key, value in node.items()})
    return [changed(value, change) for value in node] if isinstance(node, list) else node


def figure_files(
    data: StudyResults,
    folder: Path,
    formats: Sequence[Format] = ("png", "svg"),
    *,
    opponent: str = "golden_policy",
    choose: Callable[[StudyResults, Task, Theme], list[Chart]] = every_figure,
) -> list[Path]:
    """The figures of every task as files `TASK[-EXPERIMENT]-FIGURE[-SPLIT].FORMAT`; returns their paths.

    opponent: whose responses the win rates are against. A task or figure without any number gets no file: an empty
    picture looks like a result.
    """
    with Images(folder, formats) as images:
        draw(images, data, opponent=opponent, choose=choose)
    return images.written


def draw(
    images: Images,
    data: StudyResults,
    *,
    opponent: str = "golden_policy",
    choose: Callable[[StudyResults, Task, Theme], list[Chart]] = every_figure,
) -> None:
    """As `figure_files`, for who has other things to do while they are painted."""
    theme = Theme.for_images(data)
    for task in data.tasks:
        for figure in choose(data, task, theme):
            for split in splits_of(data, task.name) if figure.by_split else [None]:
                svg = image_svg(data, figure, split=split or "held_out", opponent=opponent)
                images.add(file_name(task.name, figure.name, *([split] if split else [])), svg)


def image_svg(data: StudyResults, figure: Chart, *, split: str = "held_out", opponent: str = "golden_policy") -> str:
    """A figure as SVG text; also what a reader without scripts sees in the page."""
    return svg_of(image_spec(data, figure, split=split, opponent=opponent))


def svg_of(spec: dict[str, Any]) -> str:
    """A Vega-Lite specification as SVG text, by the version that altair writes."""
    import altair as alt
    import vl_convert

    version = ".".join(str(alt.SCHEMA_URL).rsplit("/v", 1)[1].split(".")[:2])
    return str(vl_convert.vegalite_to_svg(spec, vl_version=version))


def file_name(*parts: str) -> str:
    """A name safe on every file system, whatever a task is called."""
    return "-".join(re.sub(r"[^A-Za-z0-9]+", "_", part).strip("_") or "x" for part in parts)
