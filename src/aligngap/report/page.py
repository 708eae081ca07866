"""`report.html`: one file that opens anywhere, offline, and asks nothing of any network.

Three guards keep foreign text (prompts, responses, names, reasons) harmless: the template escapes all of it, the data
travel as JSON without any character that could end their element, and the script makes text nodes only. A fourth, the
content security policy, allows exactly the two scripts of this page by their digests and forbids every connection.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import itertools
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from aligngap.pipeline.executors.progress import Spent, time_spent
from aligngap.report.drawing import measures
from aligngap.report.figures import (
    Figure,
    experiment_figures,
    rate_columns,
    reaches_far,
    splits_of,
    task_figures,
)
from aligngap.report.images import Images
from aligngap.report.packing import drawable, json_in_html, packed
from aligngap.report.samples import samples
from aligngap.report.still import draw, file_name, image_svg
from aligngap.report.style import GLYPHS, HUES, JUDGE_NAMES, OPPONENT_NAMES, Theme, config, family_name
from aligngap.report.text import seeds_note, text_of_number, text_of_setting, text_of_share
from aligngap.results import (
    FAILED,
    FINISHED,
    PENDING,
    UNFINISHED,
    VERDICTS,
    Conclusion,
    EstimateRecord,
    StudyResults,
    Task,
    number,
    read,
)

if TYPE_CHECKING:
    import jinja2

#: The page stays below 5 MB; samples are cut first, and the page says so.
_PAGE_BYTES = 4_700_000
_SAMPLE_BYTES = 1_600_000
_FALLBACK_BYTES = 500_000

_AGREEMENTS = {
    "golden_rater": "Golden model and raters",
    "golden_true": "Golden model and true utility",
    "proxy_golden": "Proxy and golden model",
    "proxy_true": "Proxy and true utility",
    "proxy_rater": "Proxy and raters",
    "rater_true": "Raters and true utility",
}


def publish(folder: Path, into: Path | None = None, processes: int | None = None) -> Path:
    """The figures of each task as a whole as PNG and SVG, and the page, from the results in a run's folder; the page's
    path. into: the folder to write to; None: the run's. processes: as `Images` takes them.
    """
    data, into = read(folder), into or folder
    with Images(into / "charts", ("png", "svg"), processes) as images:
        draw(images, data, choose=task_figures)
        page = render(data)  # while they are painted
    return _put(page, into)  # the last file: whoever finds it finds the others


def write_report(folder: Path) -> Path:
    """Write `report.html` beside the `results.json` of a folder."""
    return _put(render(read(folder)), folder)


def _put(page: str, folder: Path) -> Path:
    path = folder / "report.html"
    # Written aside and moved: a reader who reloads meanwhile sees the old page or the new one, never half of one.
    draft = path.with_name(".report.html.part")
    draft.write_text(page, encoding="utf-8")
    draft.replace(path)
    return path


def render(data: StudyResults) -> str:
    """The page as text."""
    theme = Theme.for_page(data)
    fallbacks = _fallbacks(data)
    contexts, parts = [], {}
    for index, task in enumerate(data.tasks):
        figures = task_figures(data, task, theme)
        own = {x.name: experiment_figures(data, task, x, theme) for x in task.experiments}
        contexts.append(_task_context(data, task, f"task-{index}", figures, own, fallbacks.get(task.name)))
        parts[f"task:{task.name}"] = packed(
            drawable(data, task, [*figures, *(f for found in own.values() for f in found)])
        )
    verdicts, spent = _verdicts(contexts), _spent(data)
    activities = {name: seconds for name, seconds in data.timings.activities.items() if seconds is not None}
    page = Page(
        "template.html.j2",
        shared_by_scripts(data, theme),
        parts,
        title=data.study.get("title") or data.study.get("name") or "Study",
        data=data,
        counts=_counts(data),
        seeds=data.seeds,
        tasks=contexts,
        verdicts=verdicts,
        tally=_tally(verdicts),
        incomplete=[context for context in contexts if context["missing"]],
        spent=spent,
        total_seconds=sum(row.seconds for row in spent),
        activities=activities,
        all_seconds=sum(activities.values()),
        pending=data.pending,
        seeds_note=seeds_note(len(data.seeds)),
        opponents=OPPONENT_NAMES,
        judges=JUDGE_NAMES,
    )
    room = _PAGE_BYTES - page.size
    for task in data.tasks:
        shown = samples(data, task.name, min(_SAMPLE_BYTES, room) // len(data.tasks))
        if shown is not None:
            parts[f"samples:{task.name}"] = packed(shown)
    return page.text()


class Page:
    """A page from a template of this package, with the scripts and data that make its figures move.

    shared, parts: what the scripts draw from (`shared_by_scripts`), and packed data by name, which they unpack when
    they need it; more may be added until `text` is asked for.
    """

    def __init__(self, template: str, shared: Mapping[str, Any], parts: Mapping[str, str], **context: Any) -> None:
        from markupsafe import Markup

        self._scripts = (_runtime(), _resource("page.js"))
        css = Markup(_resource("style.css") + _hues())
        self._body = _template(template).render(policy=content_policy(), css=css, **context)
        self._shared, self._parts = shared, parts

    @property
    def size(self) -> int:
        """Bytes so far."""
        return sum(len(part.encode()) for part in (self._body, *self._scripts, *self._parts.values()))

    def text(self) -> str:
        """The whole page."""
        # What the runtime and the data need no template for, and their size makes dear to pass through one.
        elements = [f'<script type="application/json" id="shared">{json_in_html(self._shared)}</script>']
        elements += [
            f'<script type="text/plain" data-packed="{html.escape(name)}">{content}</script>'
            for name, content in self._parts.items()
        ]
        elements += [f"<script>{code}</script>" for code in self._scripts]
        return "\n".join([self._body, *elements, "</body>", "</html>", ""])


def shared_by_scripts(data: StudyResults, theme: Theme) -> dict[str, Any]:
    """What the script needs to know of all tasks."""
    return {
        "config": config(theme),
        "seeds": data.seeds,
        "judges": JUDGE_NAMES,
        "measures": measures(data),
        "splits": {task.name: next(iter(splits_of(data, task.name)), None) for task in data.tasks},
    }


# --- text -----------------------------------------------------------------------------------------------------------


def _covers(estimate: EstimateRecord) -> str:
    """What the interval covers, where the note does not say the same."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    if estimate.n_seeds is None:
        return "Not stated."
    if estimate.n_seeds <= 1:
        return "" if estimate.note.startswith("1 seed") else "Prompts only (one seed)."
    few = estimate.n_seeds < 5 and not estimate.note.startswith("fewer than 5 seeds")
    return "Seeds and prompts; fewer than five seeds." if few else "Seeds and prompts."


def _counts(data: StudyResults) -> str:
    arms = data.runs.select("task", "arm").unique().height
    parts = ((len(data.tasks), "task"), (arms, "arm"), (len(data.seeds), "seed"), (data.runs.height, "run"))
    return ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for count, what in parts)


# --- parts ----------------------------------------------------------------------------------------------------------


def _resource(name: str) -> str:
    return resources.files("aligngap.report").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _template(name: str) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        loader=jinja2.FunctionLoader(_resource),
    )
    environment.filters |= {
        "exact": text_of_setting,
        "number": text_of_number,
        "percent": text_of_share,
    }
    return environment.get_template(name)


@functools.cache
def _runtime() -> str:
    """Vega, Vega-Lite and Vega-Embed, as vl-convert brings them: no download, and the versions that draw the images."""
    import vl_convert

    # A closing tag inside a string of the runtime would end the element.
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")


def content_policy() -> str:
    """What every page may do: run its own two scripts, known by their digests, and reach nothing."""
    scripts = (_runtime(), _resource("page.js"))
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _hues() -> str:
    def rule(ground: int) -> str:
        return ":root{" + "".join(f"--hue-{index}:{pair[ground]};" for index, pair in enumerate(HUES)) + "}"

    return f"{rule(0)}\n@media screen and (prefers-color-scheme: dark){{{rule(1)}}}\n"


def _fallbacks(data: StudyResults) -> dict[str, str]:
    """Figure 1 of each task as an image, for readers without scripts, as far as it fits."""
    found: dict[str, str] = {}
    room = _FALLBACK_BYTES
    for task in data.tasks:
        figures = task_figures(data, task, Theme.for_images(data))
        splits = splits_of(data, task.name)
        if figures and splits:
            svg = image_svg(data, figures[0], split=splits[0]).encode()
            uri = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
            if len(uri) <= room:
                found[task.name] = uri
                room -= len(uri)
    return found


def _task_context(
    data: StudyResults,
    task: Task,
    identifier: str,
    figures: list[Figure],
    own: dict[str, list[Figure]],
    fallback: str | None,
) -> dict[str, Any]:
    runs = data.runs.filter(pl.col("task") == task.name)
    number_of = itertools.count(1)
    shown = [figure_context(figure, identifier, next(number_of)) for figure in figures]
    families = next((figure for figure in figures if figure.span), None) or next(iter(figures), None)
    at_split = next((s for s in runs["at_split"].to_list() if s), None)
    return {
        "id": identifier,
        "name": task.name,
        "figures": shown,
        "series": _legend(families) if families else [],
        "fallback": fallback,
        "splits": splits_of(data, task.name),
        "far": reaches_far(data, task),
        "has_sweep": not all(runs["baseline"].to_list()),
        "agreement": _agreement(task),
        "experiments": [
            {
                "id": f"{identifier}-experiment-{index}",
                "experiment": experiment,
                "rows": _estimate_rows(experiment),
                "rests": _rests(experiment),
                "figures": [figure_context(figure, identifier, next(number_of)) for figure in own[experiment.name]],
            }
            for index, experiment in enumerate(task.experiments)
        ],
        "hypotheses": len(task.experiments),
        "has_samples": not data.samples.filter((pl.col("task") == task.name) & (pl.col("who") == "policy")).is_empty(),
        "arms": _arm_rows(runs),
        "bases": runs["base"].drop_nulls().n_unique(),
        "at_split": {"held_out": "held-out"}.get(at_split or "", at_split),
        "missing": _missing(data, task),
        "settings": _arm_settings(task),
        "stages": task.stages,
    }


def figure_context(figure: Figure, identifier: str, index: int) -> dict[str, Any]:
    return {
        "id": f"{identifier}-{file_name(figure.name)}",
        "key": figure.name,
        "number": index,
        "title": figure.title,
        "caption": figure.caption,
        "note": figure.note,
        "series": _legend(figure),
        "panels": figure.panels,
        "usual": figure.span == "usual",
    }


def _legend(figure: Figure) -> list[dict[str, Any]]:
    """What a figure shows, or can show: its name, label, colour, shape and dash."""
    return [
        {
            "name": name,
            "label": label,
            "shown": name in figure.shown,
            "colour": f"var(--hue-{figure.styles[name].hue})",
            "glyph": GLYPHS[figure.styles[name].shape],
            "dash": " ".join(map(str, figure.styles[name].dash)),
        }
        for name, label in figure.series.items()
    ]


def _verdicts(contexts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each hypothesis, with a cell for each task; None where the task does not have it."""
    names = dict.fromkeys(x["experiment"].name for context in contexts for x in context["experiments"])
    rows = []
    for name in names:
        cells = [next((x for x in c["experiments"] if x["experiment"].name == name), None) for c in contexts]
        first = next(cell["experiment"] for cell in cells if cell)
        main = next((cell["experiment"].main for cell in cells if cell and cell["experiment"].main), None)
        rows.append({"first": first, "main": main, "cells": cells})
    return rows


def _tally(verdicts: list[dict[str, Any]]) -> str:
    found = [cell["experiment"].verdict for row in verdicts for cell in row["cells"] if cell]
    shown = [*VERDICTS, *(state for state in (UNFINISHED, FAILED) if state in found)]
    return ", ".join(f"{found.count(verdict)} {verdict}" for verdict in shown)


def _rests(experiment: Conclusion) -> dict[str, Any] | None:
    """On which of its arms and measures the estimates rest, and which are not among them; None where all are."""
    found: dict[str, list[str]] = {"finished": [], "failed": [], PENDING: []}
    count = {state: sum(len(getattr(row, state)) for row in experiment.inputs) for state in found}
    if count["finished"] == sum(count.values()):
        return None
    for row in experiment.inputs:
        name = f"{'measure ' if row.what == 'measure' else ''}{row.name}"
        for state, names in found.items():
            if seeds := getattr(row, state):
                names.append(f"{name} (seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))})")
    words = {state: "; ".join(names) for state, names in found.items()}
    return {"count": count["finished"], "total": sum(count.values()), **words}


def _spent(data: StudyResults) -> list[Spent]:
    """Where time went, by kind of stage."""
    return time_spent((stage.kind, stage.seconds) for stage in data.timings.stages)


def _missing(data: StudyResults, task: Task) -> list[dict[str, Any]]:
    """Everything that was asked for and has no number: what, which seed, and why. Nothing is computed in its place."""
    runs = data.runs.filter(pl.col("task") == task.name)
    rate = pl.any_horizontal(pl.col(rate_columns()).is_not_null())
    lacking = (
        data.points.filter(pl.col("task") == task.name)
        .group_by("run")
        .agg(pl.len().alias("asked"), (rate & pl.col("kl").is_not_null()).sum().alias("known"))
    )
    known = {run: (count, asked) for run, asked, count in lacking.select("run", "asked", "known").iter_rows()}
    rows = []
    for run in runs.to_dicts():
        row = {"what": f"arm {run['arm']}", "seed": run["seed"], "status": run["status"], "reason": run["reason"]}
        count, asked = known.get(run["run"], (0, 0))
        if run["status"] != "finished":
            rows.append(row | {"reason": run["reason"] or "no reason recorded"})
        elif count == 0:
            rows.append(row | {"reason": "it has no checkpoint with a KL and a win rate"})
        elif count < asked:
            rows.append(row | {"reason": f"{asked - count} of its {asked} points lack a KL or a win rate"})
    for measure in task.measures:
        if measure.status != FINISHED:
            what = {"what": f"measure {measure.name}", "seed": measure.seed}
            rows.append(what | {"status": measure.status, "reason": measure.reason or "no reason recorded"})
    return rows


def _agreement(task: Task) -> list[dict[str, Any]]:
    table = task.stages.get("agreement")
    rows = []
    for key, cell in (table if isinstance(table, dict) else {}).items():
        content = cell if isinstance(cell, dict) else {"value": cell}
        label = _AGREEMENTS.get(key, key.replace("_", " and "))
        rows.append({"label": label, "value": number(content.get("value")), "n": number(content.get("n"))})
    return rows


def _estimate_rows(experiment: Conclusion) -> list[dict[str, Any]]:
    return [
        {
            "estimate": e,
            "covers": _covers(e),
            "whisker": whisker(e, [o for o in experiment.estimates if o.unit == e.unit]),
        }
        for e in experiment.estimates
    ]


class Interval(Protocol):
    """A value with its interval; None where there is none."""

    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def whisker(estimate: Interval, peers: Sequence[Interval]) -> dict[str, float] | None:
    """Positions of an interval on a strip 176 wide that all estimates of the same unit share, with 0 on it."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    ends = [v for e in peers for v in (e.value, e.low, e.high) if v is not None] + [0.0]
    low, high = min(ends), max(ends)
    scale = 164 / ((high - low) or 1.0)

    def place(value: float) -> float:
        return round(6 + (value - low) * scale, 1)

    return {
        "zero": place(0.0),
        "low": place(estimate.low),
        "high": place(estimate.high),
        "value": place(estimate.value),
    }


def _arm_rows(runs: pl.DataFrame) -> list[dict[str, Any]]:
    measures = ("peak_rate", "end_rate", "end_kl", "seconds", "tokens_sampled", "judge_calls")
    finished = pl.col("status") == "finished"
    rows = runs.group_by("arm", "family", "baseline", "base", maintain_order=True).agg(
        finished.sum().alias("finished"),
        pl.len().alias("total"),
        *(pl.col(m).filter(finished).mean() for m in measures),
    )
    return [row | {"family": family_name(row["family"])} for row in rows.to_dicts()]


def _arm_settings(task: Task) -> list[dict[str, Any]]:
    """One entry an arm, its seeds together: only the weights differ between them."""
    entries: dict[str, dict[str, Any]] = {}
    for arm in task.arms:
        settings = {"source": arm.source, "loss": arm.loss, "settings": arm.settings, "weights, SHA-256": {}}
        entry = entries.setdefault(arm.name, {"name": arm.name, "seeds": [], "settings": settings})
        seed = "not known" if arm.seed is None else arm.seed
        entry["seeds"].append(seed)
        entry["settings"]["weights, SHA-256"][f"seed {seed}"] = arm.weights_sha256 or "no data"
    return list(entries.values())
