"""A diagnosis as one self-contained page that opens anywhere, offline; nothing in it runs."""

from __future__ import annotations

import base64
from importlib import resources
from pathlib import Path

import numpy as np
import polars as pl

from aligngap.diagnosis.findings import Findings
from aligngap.diagnosis.report import Diagnosis
from aligngap.diagnosis.terminal import cell, facts, label
from aligngap.errors import UserError
from aligngap.report.page import put
from aligngap.report.still import svg_of
from aligngap.report.style import HUES

_NAMES = {"chosen": "chosen", "rejected": "rejected", "own": "policy's own"}


def page_path(path: Path) -> Path:
    """Where a page is to go. Raises UserError when it cannot be written there, before anything is measured."""
    if path.suffix != ".html":
        raise UserError("a page's file ends in .html", where=str(path), hint=f"Write {path.stem or 'page'}.html.")
    if not path.parent.is_dir():
        raise UserError("there is no such folder", where=str(path.parent), hint="Make it, or give --out another place.")
    return path


def write_page(result: Diagnosis, path: Path) -> None:
    """Write it whole or not at all. Raises UserError."""
    put(render(result), path)


def render(result: Diagnosis) -> str:
    """The page as text; whatever the data's names hold is text in it."""
    import jinja2
    from markupsafe import Markup

    files = resources.files("aligngap.diagnosis")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    style = (resources.files("aligngap.report") / "style.css").read_text("utf-8")
    picture = base64.b64encode(histogram(result.findings).encode()).decode("ascii")
    return environment.from_string((files / "page.html.j2").read_text("utf-8")).render(
        about=result.about,
        facts=list(facts(result.about, result.findings.counts)),
        regime=result.regime,
        sections=result.findings.sections,
        cell=cell,
        label=label,
        style=Markup(style),
        picture=f"data:image/svg+xml;base64,{picture}",
    )


def histogram(findings: Findings, bins: int = 40) -> str:
    """The standardised excess of all responses as SVG: the policy's own, chosen, rejected."""
    import altair as alt

    everything = np.concatenate(list(findings.z.values()))
    low, high = np.quantile(everything, [0.002, 0.998])
    edges = np.linspace(low, max(high, low + 1e-3), bins + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    rows = []
    for name, values in findings.z.items():
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        share = counts / max(1, len(values))
        rows.append(pl.DataFrame({"at": middles, "share": share, "who": [_NAMES[name]] * bins}))
    hues = [HUES[index][0] for index in range(len(_NAMES))]
    chart = (
        alt.Chart(pl.concat(rows), width=640, height=240, background="white")
        .mark_line(interpolate="step")
        .encode(
            x=alt.X("at:Q", title="excess, in standard deviations that the policy expects (right: less likely)"),
            y=alt.Y("share:Q", title="share of responses", axis=alt.Axis(format="%")),
            color=alt.Color("who:N", title=None, sort=list(_NAMES.values())).scale(
                domain=list(_NAMES.values()), range=hues
            ),
        )
    )
    return svg_of(chart.to_dict())
