"""Figures as specifications and as files."""

import json
from pathlib import Path
from typing import Any

import pytest

from aligngap.report import charts
from aligngap.report.load import ReportData, load
from unit.report.fixture_results import write_results


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return load(write_results(tmp_path_factory.mktemp("results"), seeds=(0,)))


def _walk(node: Any) -> Any:
    yield node
    for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _walk(item)


def test_every_figure_is_there_in_reading_order(data: ReportData) -> None:
    found = charts.task_figures(data, data.tasks[0], charts.Palette.for_page(data.families))
    assert [figure.name for figure in found] == ["goodhart", "against-sft", "judges", "training", "cost"]
    assert [panel.title for panel in found[0].panels] == ["Golden judge", "True utility"]


def test_panels_are_valid_json_that_loads_nothing(data: ReportData) -> None:
    for figure in charts.task_figures(data, data.tasks[0], charts.Palette.for_page(data.families)):
        for panel in figure.panels:
            spec = panel.spec()
            json.dumps(spec, allow_nan=False)
            assert not [node for node in _walk(spec) if isinstance(node, dict) and "url" in node]
            assert {"task", "split", "shown", "seeds", "sweep"} <= {param["name"] for param in spec["params"]}


def test_an_image_has_no_parameter_left_and_no_name_shared_between_panels(data: ReportData) -> None:
    # With view names in common, Vega-Lite drew one panel's points with the other panel's numbers.
    figure = charts.task_figures(data, data.tasks[0], charts.Palette.for_images(data.families))[0]
    spec = charts.image_spec(data, figure)
    for node in _walk({key: value for key, value in spec.items() if key != "datasets"}):
        if isinstance(node, dict):
            assert "params" not in node
            assert not ("mark" in node and "name" in node)
            if isinstance(node.get("filter"), str):
                assert "=== task" not in node["filter"]
                assert "=== split" not in node["filter"]
    assert {"points0", "points1"} <= set(spec["datasets"])


def test_panels_of_an_image_plot_their_own_judge(data: ReportData) -> None:
    import vl_convert

    figure = charts.task_figures(data, data.tasks[0], charts.Palette.for_images(data.families))[0]
    scene = vl_convert.vegalite_to_scenegraph(charts.image_spec(data, figure), vl_version="6.1")
    marks = [node for node in _walk(scene) if isinstance(node, dict) and node.get("marktype") in ("symbol", "line")]
    heights: dict[str, list[set[float]]] = {"symbol": [], "line": []}
    for mark in marks:
        if "layer" in str(mark.get("name", "")) and mark.get("items"):
            heights[mark["marktype"]].append({round(item["y"], 3) for item in mark["items"] if "y" in item})
    lines = set().union(*heights["line"])
    assert len(heights["symbol"]) == 2
    for points in heights["symbol"]:
        assert points
        assert points <= lines
    assert heights["symbol"][0] != heights["symbol"][1]


def test_colours_stay_with_their_family() -> None:
    both = charts.family_colours(["offline", "online", "new one"])
    assert both["online"] == charts.family_colours(["online"])["online"]
    assert len(set(both.values())) == 3


def test_charts_are_saved(data: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One figure stands for all: each takes a second.
    every = charts.task_figures
    monkeypatch.setattr(charts, "task_figures", lambda *arguments: every(*arguments)[-1:])
    paths = charts.save_charts(data, tmp_path / "charts")
    assert [path.name for path in paths] == ["summarisation-cost.png", "summarisation-cost.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_text().startswith("<svg")
    (pdf,) = charts.figures(data, tmp_path, ("pdf",))
    assert pdf.read_bytes().startswith(b"%PDF")


def test_nothing_is_drawn_from_nothing(tmp_path: Path) -> None:
    empty = load(write_results(tmp_path / "in", no_numbers=True))
    assert charts.figures(empty, tmp_path / "out") == []


def test_file_names_are_safe() -> None:
    assert charts.file_name("../a task/ü", "goodhart") == "a_task-goodhart"
