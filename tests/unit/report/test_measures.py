"""Measures that a study asked of every arm, in the report: foreign names, missing numbers; and a failed analysis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aligngap.report.drawing import measures, plotted
from aligngap.report.figures import task_figures
from aligngap.report.page import render
from aligngap.report.still import figure_files
from aligngap.report.style import Theme
from aligngap.results import StudyResults, read
from unit.report.fixture_results import HOSTILE, write_results

NAMES = ("words", f"bad name ['.\\\"]{HOSTILE}", "kl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every arm has three measures; one of them lacks one number, one has a name that is a column's."""
    folder = write_results(tmp_path_factory.mktemp("measures"), seeds=(0,), schema=1)
    path = folder / "results.json"
    results = json.loads(path.read_text("utf-8"))
    for arm in results["tasks"]["summarisation"]["arms"]:
        for at, point in enumerate(arm["points"]):
            point["measures"] = {name: {"mean": at + place, "se": 0.5, "n": 12} for place, name in enumerate(NAMES)}
    some = next(arm for arm in results["tasks"]["summarisation"]["arms"] if arm["points"])
    some["points"][0]["measures"]["words"] = {"mean": None, "se": None, "n": 0}
    first = next(iter(results["tasks"]["summarisation"]["experiments"].values()))
    first |= {"verdict": "failed", "error": f"RuntimeError: {HOSTILE}", "estimates": {}, "figures": []}
    path.write_text(json.dumps(results), "utf-8")
    return folder


@pytest.fixture(scope="module")
def data(folder: Path) -> StudyResults:
    return read(folder)


def test_measures_are_columns_whatever_they_are_called(data: StudyResults) -> None:
    assert list(measures(data)) == ["measure_0", "measure_1", "measure_2"]
    assert [name.split("\ufffd")[0][:4] for name in measures(data).values()] == [name[:4] for name in NAMES]
    points = plotted(data)
    assert points["measure_0"].null_count() == 1
    assert points["measure_0_se"].null_count() == 1
    assert (points["measure_2"] - points["measure_1"]).unique().to_list() == [1.0]
    assert points["kl"].to_list() != points["measure_2"].to_list()
    assert data.points["words.n"].to_list() == [0] + [12] * (len(points) - 1)


def test_they_are_drawn_over_steps_and_over_kl(data: StudyResults, tmp_path: Path) -> None:
    figures = task_figures(data, data.tasks[0], Theme.for_images(data))
    (figure,) = (figure for figure in figures if figure.name == "measures")
    keys = [panel.key for panel in figure.panels]
    assert keys == [f"{over}-measure_{index}" for index in range(3) for over in ("step", "kl")]
    assert figure.panels[0].title == "Words over steps"
    written = figure_files(data, tmp_path, ("svg",), choose=lambda *_: [figure])
    drawn = written[0].read_text("utf-8")
    assert "Words over KL" in drawn
    assert "KL(policy || SFT), nats" in drawn
    assert drawn.count('aria-roledescription="line mark"') > 6


def test_the_page_shows_them_and_no_markup_of_theirs(data: StudyResults) -> None:
    page = render(data)
    assert "Further measures of the responses" in page
    assert HOSTILE not in page
    assert "<img src=x" not in page
    shared: dict[str, Any] = json.loads(page.split('id="shared">')[1].split("</script>")[0])
    assert list(shared["measures"]) == ["measure_0", "measure_1", "measure_2"]


def test_a_failed_analysis_is_neither_verdict_nor_inconclusive(data: StudyResults) -> None:
    page = render(data)
    assert data.tasks[0].experiments[0].verdict == "failed"
    assert 'class="badge failed"' in page
    assert "1 failed." in page


def test_a_study_without_them_has_no_such_figure(tmp_path: Path) -> None:
    data = read(write_results(tmp_path, seeds=(0,)))
    assert data.measures == []
    assert "Further measures" not in render(data)
