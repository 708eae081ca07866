"""`report.html`: one file that opens anywhere, offline, and asks nothing of any network.

Three guards keep foreign text (prompts, responses, names, reasons) harmless: the template escapes all of it, the data
travel as JSON without any character that could end their element, and the script makes text nodes only. A fourth, the
content security policy, allows exactly the two scripts of this page by their digests and forbids every connection.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import polars as pl

from aligngap.report import charts
from aligngap.report.load import JUDGES, Estimate, Experiment, ReportData, Task, load, number

#: The page stays below 5 MB; samples are cut first, and the page says so.
_PAGE_BYTES = 4_600_000
_SAMPLE_BYTES = 2_000_000
_FALLBACK_BYTES = 600_000

_AGREEMENTS = {
    "golden_rater": "Golden model and raters",
    "golden_true": "Golden model and true utility",
    "proxy_golden": "Proxy and golden model",
    "proxy_true": "Proxy and true utility",
    "proxy_rater": "Proxy and raters",
    "rater_true": "Raters and true utility",
}

#: The shapes of Vega, as paths about the origin.
_GLYPHS = {
    "circle": "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0",
    "square": "M-4,-4H4V4H-4Z",
    "triangle-up": "M0,-5L5,4H-5Z",
    "triangle-down": "M0,5L5,-4H-5Z",
    "triangle-right": "M5,0L-4,5V-5Z",
    "triangle-left": "M-5,0L4,5V-5Z",
    "diamond": "M0,-5.5L4.5,0L0,5.5L-4.5,0Z",
    "cross": "M-2,-5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z",
    "stroke": "M-5,-1.5H5V1.5H-5Z",
}


def publish(folder: Path) -> Path:
    """Charts as PNG and SVG, and the page, from the results in a run's folder; the page's path."""
    from aligngap.report.charts import save_charts

    save_charts(load(folder), folder / "charts")
    return write_report(folder)


def write_report(folder: Path) -> Path:
    """Write `report.html` beside the `results.json` of a folder."""
    path = folder / "report.html"
    page = render(load(folder))
    # Written aside and moved: a reader who reloads meanwhile sees the old page or the new one, never half of one.
    draft = path.with_name(".report.html.part")
    draft.write_text(page, encoding="utf-8")
    draft.replace(path)
    return path


def render(data: ReportData) -> str:
    """The page as text."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True)
    environment.filters |= {
        "exact": text_of_setting,
        "number": text_of_number,
        "percent": text_of_share,
        "has_mapping": _has_mapping,
    }
    runtime, script = _runtime(), _resource("page.js")
    palette = charts.Palette.for_page(data.families)
    ids = {task.name: f"task-{index}" for index, task in enumerate(data.tasks)}
    figures = {task.name: charts.task_figures(data, task, palette) for task in data.tasks}
    payload = {
        "tables": {name: _columns(rows) for name, rows in charts.datasets(data).items()},
        "figures": {
            name: [{"key": f.name, "panels": [_without_legends(p.spec()) for p in f.panels]} for f in found]
            for name, found in figures.items()
        },
        "config": charts.config(palette),
        "seeds": data.seeds,
        "splits": {task.name: next(iter(charts.splits_of(data, task.name)), None) for task in data.tasks},
    }
    budget = min(_SAMPLE_BYTES, _PAGE_BYTES - _FALLBACK_BYTES - len(runtime) - len(json_in_html(payload)))
    samples = {task.name: _samples(data, task.name, budget // max(1, len(data.tasks))) for task in data.tasks}
    payload["samples"] = {name: found for name, found in samples.items() if found is not None}
    fallbacks = _fallbacks(data)
    tasks = [
        _task_context(data, task, ids[task.name], figures[task.name], samples[task.name], fallbacks)
        for task in data.tasks
    ]
    verdicts = [
        x | {"task": task} for task, context in zip(data.tasks, tasks, strict=True) for x in context["experiments"]
    ]
    failed = [row for context in tasks for row in context["failed"]]
    template = environment.from_string(_resource("template.html.j2"))
    return template.render(
        data=data,
        title=str(data.study.get("title") or data.study.get("name") or "A study without a name"),
        counts=_counts(data),
        css=Markup(_colours(data) + _resource("style.css")),
        policy=_policy(runtime, script),
        payload=Markup(json_in_html(payload)),
        runtime=Markup(runtime),
        script=Markup(script),
        tasks=tasks,
        verdicts=verdicts,
        failed=failed,
        n_runs=data.runs.height,
        seeds=data.seeds,
        seeds_note=seeds_note(len(data.seeds)),
        judges=[
            {"label": charts.JUDGE_NAMES[judge], "colour": palette.judge[judge], "glyph": _GLYPHS[shape]}
            for judge, shape in zip(JUDGES, ("circle", "diamond", "triangle-up"), strict=True)
        ],
    )


# --- text -----------------------------------------------------------------------------------------------------------


def text_of_number(value: object) -> str:
    """Three significant digits, whole numbers in full, a real minus; "no data" for what is not a finite number."""
    plain = number(value)
    if plain is None:
        return "no data"
    if isinstance(value, int) or (plain.is_integer() and abs(plain) < 1e15):
        return f"{int(plain):,}".replace(",", "\u202f").replace("-", "−")
    if abs(plain) >= 100:
        return f"{plain:,.0f}".replace(",", "\u202f").replace("-", "−")
    text = f"{plain:.3g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "−")


def text_of_setting(value: object) -> str:
    """A setting in full: rounding it would make the page useless for a repetition."""
    return "no data" if number(value) is None else str(value)


def text_of_share(value: object) -> str:
    plain = number(value)
    return "no data" if plain is None else f"{plain * 100:.1f}%".replace("-", "−")


def seeds_note(n_seeds: int) -> str:
    """What the number of seeds lets a reader conclude."""
    if n_seeds == 0:
        return "No run of this study has a seed: no data."
    if n_seeds == 1:
        return (
            "One seed. Every interval covers the choice of prompts only: another run of the same study could land "
            "elsewhere by more than the intervals show. Read the verdicts as a description of this run."
        )
    if n_seeds < 5:
        return (
            f"{n_seeds} seeds. Intervals resample seeds and prompts, but with fewer than five seeds an interval from "
            "resampling tends to be too narrow."
        )
    return f"{n_seeds} seeds. Intervals resample seeds, paired between arms, and prompts."


def _covers(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    if estimate.n_seeds is None:
        return "Not stated."
    if estimate.n_seeds <= 1:
        return "" if estimate.note.startswith("1 seed") else "Prompts only (one seed)."  # the note says the same
    return "Seeds and prompts." if estimate.n_seeds >= 5 else "Seeds and prompts; fewer than five seeds."


def _counts(data: ReportData) -> str:
    arms = data.runs.select("task", "arm").unique().height
    parts = ((len(data.tasks), "task"), (arms, "arm"), (len(data.seeds), "seed"), (data.runs.height, "run"))
    return ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for count, what in parts)


# --- parts ----------------------------------------------------------------------------------------------------------


def json_in_html(value: object) -> str:
    """JSON that no HTML or script parser can be led out of, with null for what is not a finite number."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate, which a broken tokenizer can produce, has no UTF-8.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Names once instead of in every row."""
    names = list(rows[0]) if rows else []
    return {"columns": names, "rows": [[row[name] for name in names] for row in rows]}


def _without_legends(node: Any) -> Any:
    """The page has its own legend, which a keyboard can reach."""
    if isinstance(node, dict):
        return {key: None if key == "legend" else _without_legends(value) for key, value in node.items()}
    return [_without_legends(value) for value in node] if isinstance(node, list) else node


def _has_mapping(value: Any) -> bool:
    return any(isinstance(item, Mapping) for item in value)


def _resource(name: str) -> str:
    return resources.files("aligngap.report").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _runtime() -> str:
    """Vega, Vega-Lite and Vega-Embed, as vl-convert brings them: no download, and the versions that draw the images."""
    import vl_convert

    # A closing tag inside a string of the runtime would end the element.
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")


def _policy(*scripts: str) -> str:
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _colours(data: ReportData) -> str:
    def rules(families: dict[str, str], judges: dict[str, str]) -> str:
        lines = [f"--family-{index}:{families[name]};" for index, name in enumerate(data.families)]
        return ":root{" + "".join(lines + [f"--judge-{name}:{colour};" for name, colour in judges.items()]) + "}"

    light = rules(charts.family_colours(data.families), charts.JUDGE_COLOURS)
    dark = rules(charts.family_colours(data.families, dark=True), charts.JUDGE_DARK)
    return f"{light}\n@media screen and (prefers-color-scheme: dark){{{dark}}}\n"


def _fallbacks(data: ReportData) -> dict[str, str]:
    """Figure 1 of each task as an image, for readers without scripts, as far as it fits."""
    found: dict[str, str] = {}
    room = _FALLBACK_BYTES
    for task in data.tasks:
        figures = charts.task_figures(data, task, charts.Palette.for_images(data.families))
        splits = charts.splits_of(data, task.name)
        if figures and splits:
            svg = charts.image_svg(data, figures[0], split=splits[0]).encode()
            uri = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
            if len(uri) <= room:
                found[task.name] = uri
                room -= len(uri)
    return found


def _task_context(
    data: ReportData,
    task: Task,
    identifier: str,
    figures: list[charts.Figure],
    samples: dict[str, Any] | None,
    fallbacks: dict[str, str],
) -> dict[str, Any]:
    runs = data.runs.filter(pl.col("task") == task.name)
    present = set(runs["family"].to_list())
    shapes = charts.family_shapes(data.families)
    families = [
        {
            "name": family,
            "label": charts.family_name(family),
            "colour": f"var(--family-{index})",
            "glyph": _GLYPHS[shapes[family]],
        }
        for index, family in enumerate(data.families)
        if family in present
    ]
    failed = runs.filter(pl.col("status") != "finished").select("arm", "seed", "status", "reason").to_dicts()
    shown = [
        {
            "id": f"{identifier}-{figure.name}",
            "key": figure.name,
            "number": index,
            "title": figure.title,
            "caption": figure.caption,
            "legend": figure.legend,
            "panels": [{"title": panel.title} for panel in figure.panels],
            "fallback": fallbacks.get(task.name) if index == 1 else None,
        }
        for index, figure in enumerate(figures, start=1)
    ]
    at_split = next((s for s in runs["at_split"].to_list() if s), None)
    return {
        "id": identifier,
        "name": task.name,
        "figures": shown,
        "families": families,
        "splits": charts.splits_of(data, task.name),
        "has_sweep": not all(runs["baseline"].to_list()),
        "agreement": _agreement(task),
        "experiments": [
            {"id": f"{identifier}-experiment-{index}", "experiment": experiment, "rows": _estimate_rows(experiment)}
            for index, experiment in enumerate(task.experiments)
        ],
        "has_samples": samples is not None,
        "samples_note": None if samples is None else samples["note"],
        "arms": _arm_rows(runs),
        "at_split": {"held_out": "held-out"}.get(at_split or "", at_split),
        "failed": [row | {"task_id": identifier} for row in failed],
        "settings": _arm_settings(task),
        "stages": task.stages,
    }


def _agreement(task: Task) -> list[dict[str, Any]]:
    table = task.stages.get("agreement")
    rows = []
    for key, cell in (table if isinstance(table, dict) else {}).items():
        content = cell if isinstance(cell, dict) else {"value": cell}
        label = _AGREEMENTS.get(key, key.replace("_", " and "))
        rows.append({"label": label, "value": number(content.get("value")), "n": number(content.get("n"))})
    return rows


def _estimate_rows(experiment: Experiment) -> list[dict[str, Any]]:
    return [
        {
            "estimate": e,
            "covers": _covers(e),
            "whisker": _whisker(e, [o for o in experiment.estimates if o.unit == e.unit]),
        }
        for e in experiment.estimates
    ]


def _whisker(estimate: Estimate, peers: list[Estimate]) -> dict[str, float] | None:
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
    rows = runs.group_by("arm", "family", "baseline", maintain_order=True).agg(
        finished.sum().alias("finished"),
        pl.len().alias("total"),
        *(pl.col(m).filter(finished).mean() for m in measures),
    )
    return [row | {"family": charts.family_name(row["family"])} for row in rows.to_dicts()]


def _arm_settings(task: Task) -> list[dict[str, Any]]:
    """One entry an arm, its seeds together: only the weights differ between them."""
    entries: dict[str, dict[str, Any]] = {}
    for arm in task.arms:
        name = str(arm.get("name"))
        settings = {key: arm.get(key) for key in ("source", "loss", "settings")}
        entry = entries.setdefault(name, {"name": name, "seeds": [], "settings": settings | {"weights, SHA-256": {}}})
        entry["seeds"].append(arm.get("seed"))
        entry["settings"]["weights, SHA-256"][f"seed {arm.get('seed')}"] = arm.get("weights_sha256") or "no data"
    return list(entries.values())


# --- samples --------------------------------------------------------------------------------------------------------


def _samples(data: ReportData, task: str, budget: int) -> dict[str, Any] | None:
    """The first prompts of a task, as many as fit the budget, with every response to them.

    Prompts are taken in their order, never by what was answered: a choice by the outcome would mislead.
    """
    frame = data.samples.filter(pl.col("task") == task)
    policy = frame.filter(pl.col("who") == "policy")
    if policy.is_empty():
        return None
    keys = policy.select("split", "prompt_number").unique().sort("split", "prompt_number").rows()
    # Both splits come to the reader, however few fit.
    by_split = [[key for key in keys if key[0] == split] for split in dict.fromkeys(key[0] for key in keys)]
    longest = max(map(len, by_split))
    keys = [group[i] for i in range(longest) for group in by_split if i < len(group)]
    sizes: dict[tuple[Any, Any], int] = {}
    for split, n, response in frame.select("split", "prompt_number", "response").iter_rows():
        sizes[split, n] = sizes.get((split, n), 0) + len(json_in_html(response).encode()) + 40
    prompts_text = {
        (split, n): text for split, n, text in frame.select("split", "prompt_number", "prompt").unique().iter_rows()
    }
    kept: list[tuple[Any, Any]] = []
    used = 0
    for key in keys:
        used += sizes.get(key, 0) + len(json_in_html(prompts_text.get(key)).encode()) + 60
        if used > budget and kept:
            break
        kept.append((key[0], key[1]))
    position = {key: index for index, key in enumerate(kept)}

    def cells(row: dict[str, Any]) -> list[Any]:
        scores = [row["utility"], row["margin_golden"], row["margin_proxy"]]
        return [row["response"], row["ended"], *(None if s is None else float(f"{s:.4g}") for s in scores)]

    prompts = [
        {"split": split, "number": n, "text": prompts_text.get((split, n)), "sft": None, "golden_policy": None}
        for split, n in kept
    ]
    runs: dict[tuple[Any, Any, Any], list[Any]] = {}
    for row in frame.to_dicts():
        index = position.get((row["split"], row["prompt_number"]))
        if index is None:
            continue
        if row["who"] == "policy":
            runs.setdefault((row["arm"], row["seed"], row["step"]), []).append([index, *cells(row)])
        elif row["who"] in prompts[index]:
            prompts[index][row["who"]] = cells(row)
    marks = {(row["arm"], row["seed"]): row for row in data.runs.filter(pl.col("task") == task).to_dicts()}
    entries = []
    for (arm, seed, step), rows in sorted(runs.items(), key=lambda item: (item[0][1] or 0, item[0][2] or 0)):
        mark = marks.get((arm, seed), {})
        entries.append({"arm": arm, "seed": seed, "step": step, "rows": sorted(rows, key=lambda r: int(r[0]))})
        entries[-1] |= {"peak": step is not None and step == mark.get("peak_step"), "end": step == mark.get("end_step")}
    order = {arm: index for index, arm in enumerate(data.runs["arm"].to_list()[::-1])}
    entries.sort(key=lambda entry: -order.get(entry["arm"], -1))
    note = None
    if len(kept) < len(keys):
        note = f"The first {len(kept)} of {len(keys)} prompts, to keep this page small; all are in samples.parquet."
    return {"prompts": prompts, "runs": entries, "note": note}
