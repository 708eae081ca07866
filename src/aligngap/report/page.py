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
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from aligngap.pipeline.executors.progress import time_spent
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
    UNFINISHED,
    VERDICTS,
    StudyResults,
    Task,
    read,
)

if TYPE_CHECKING:
    import jinja2

#: The page stays below 5 MB; samples are cut first, and the page says so.
_PAGE_BYTES = 4_700_000
_SAMPLE_BYTES = 1_600_000
_FALLBACK_BYTES = 500_000


def publish(folder: Path, into: Path | None = None, processes: int | None = None) -> Path:
    """The figures of each task as a whole as PNG and SVG, and the page, from the results in a run's folder; the page's
    path. into: the folder to write to; None: the run's. processes: as `Images` takes them.
    """
    data, into = read(folder), into or folder
    with Images(into / "charts", ("png", "svg"), processes) as images:
        draw(images, data, choose=task_figures)
        page = render(data)  # while they are painted
    return put(page, into / "report.html")  # the last file: whoever finds it finds the others


def write_report(folder: Path) -> Path:
    """Write `report.html` beside the `results.json` of a folder."""
    return put(render(read(folder)), folder / "report.html")


def put(page: str, path: Path) -> Path:
    """Write a page whole or not at all, so that a reader who reloads never sees half of one. Raises OSError."""
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(page, encoding="utf-8", errors="backslashreplace")
    draft.replace(path)
    return path


def render(data: StudyResults) -> str:
    """The page as text."""
    theme = Theme.for_page(data)
    contexts, parts = [], {}
    for index, task in enumerate(data.tasks):
        figures = task_figures(data, task, theme)
        own = {x.name: experiment_figures(data, task, x, theme) for x in task.experiments}
        contexts.append(_task_context(data, task, f"task-{index}", figures, own))
        parts[f"task:{task.name}"] = packed(drawable(data, task, [*figures, *itertools.chain(*own.values())]))
    names = dict.fromkeys(name for context in contexts for name in context["experiments"])
    verdicts = {name: [context["experiments"].get(name) for context in contexts] for name in names}
    page = Page(
        "template.html.j2",
        shared_by_scripts(data, theme),
        parts,
        title=data.study.get("title") or data.study.get("name") or "Study",
        data=data,
        arms=data.runs.select("task", "arm").unique().height,
        tasks=contexts,
        verdicts=verdicts,
        tally=_tally(data),
        spent=time_spent((stage.kind, stage.seconds) for stage in data.timings.stages),
        fallbacks=_fallbacks(data),
        seeds_note=seeds_note(len(data.seeds)),
        # Before a study could say so, all of these were drawn once.
        seeds_share=data.study.get("shared", ("pairs", "sft", "golden")),
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
        "family": family_name,
        "file_name": file_name,
        "glyph": GLYPHS.__getitem__,
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
    result: dict[str, str] = {}
    room = _FALLBACK_BYTES
    for task in data.tasks:
        figures = task_figures(data, task, Theme.for_images(data))
        splits = splits_of(data, task.name)
        if figures and splits:
            svg = image_svg(data, figures[0], split=splits[0]).encode()
            uri = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
            if len(uri) <= room:
                result[task.name] = uri
                room -= len(uri)
    return result


def _task_context(
    data: StudyResults, task: Task, identifier: str, figures: list[Figure], own: dict[str, list[Figure]]
) -> dict[str, Any]:
    """What the template needs to know of a task beside its record. own: the figures of each experiment."""
    runs = data.runs.filter(pl.col("task") == task.name)
    numbered = enumerate((*figures, *itertools.chain(*own.values())), start=1)
    return {
        "id": identifier,
        "name": task.name,
        "task": task,
        "data_set": task.stages.get("data"),
        "gates": task.gates,
        "ungated": task.ungated,
        "figures": figures,
        "numbers": {figure.name: number for number, figure in numbered},
        "splits": splits_of(data, task.name),
        "far": reaches_far(data, task),
        "has_sweep": not all(runs["baseline"].to_list()),
        "experiments": {
            experiment.name: {
                "id": f"{identifier}-experiment-{index}",
                "experiment": experiment,
                "finished": sum(len(row.finished) for row in experiment.inputs),
                "wanted": sum(len(row.finished + row.failed + row.pending) for row in experiment.inputs),
                "figures": own[experiment.name],
            }
            for index, experiment in enumerate(task.experiments)
        },
        "has_samples": not data.samples.filter((pl.col("task") == task.name) & (pl.col("who") == "policy")).is_empty(),
        "arms": _arm_rows(runs),
        "bases": runs["base"].drop_nulls().n_unique(),
        "at_split": next(iter(runs["at_split"].drop_nulls()), None),
        "missing": _missing(data, task, runs),
    }


def _tally(data: StudyResults) -> str:
    result = [experiment.verdict for task in data.tasks for experiment in task.experiments]
    shown = [*VERDICTS, *(state for state in (UNFINISHED, FAILED) if state in result)]
    return ", ".join(f"{result.count(verdict)} {verdict}" for verdict in shown)


def _missing(data: StudyResults, task: Task, runs: pl.DataFrame) -> list[dict[str, Any]]:
    """Everything that was asked for and has no number: what, which seed, and why. Nothing is computed in its place."""
    drawable = pl.any_horizontal(pl.col(rate_columns()).is_not_null()) & pl.col("kl").is_not_null()
    points = data.points.group_by("run").agg(pl.len().alias("asked"), drawable.sum().alias("known"))
    asked, known = (pl.col(name).fill_null(0) for name in ("asked", "known"))
    unrecorded = "no reason recorded"
    reason = (
        pl.when(pl.col("status") != FINISHED)
        .then(pl.col("reason").fill_null(unrecorded))
        .when(known == 0)
        .then(pl.lit("it has no checkpoint with a KL and a win rate"))
        .when(known < asked)
        .then(pl.format("{} of its {} points lack a KL or a win rate", asked - known, asked))
    )
    arms = runs.join(points, on="run", how="left", maintain_order="left").with_columns(reason.alias("reason"))
    arms = arms.drop_nulls("reason").select(pl.format("arm {}", "arm").alias("what"), "seed", "status", "reason")
    return arms.to_dicts() + [
        {"what": f"measure {m.name}", "seed": m.seed, "status": m.status, "reason": m.reason or unrecorded}
        for m in task.measures
        if m.status != FINISHED
    ]


def _arm_rows(runs: pl.DataFrame) -> list[dict[str, Any]]:
    measures = ("peak_rate", "end_rate", "end_kl", "seconds", "tokens_sampled", "judge_calls")
    finished = pl.col("status") == FINISHED
    rows = runs.group_by("arm", "family", "baseline", "base", maintain_order=True).agg(
        finished.sum().alias("finished"),
        pl.len().alias("total"),
        *(pl.col(m).filter(finished).mean() for m in measures),
    )
    return rows.to_dicts()
