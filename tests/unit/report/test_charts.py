"""Figures as specifications and as files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import altair as alt
import pytest

from aligngap.report import charts
from aligngap.report.load import Drawing, ReportData, load
from unit.report.fixture_results import FURTHER, write_results


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return load(write_results(tmp_path_factory.mktemp("results"), seeds=(0,)))


def _walk(node: Any) -> Any:
    yield node
    for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _walk(item)


def test_every_figure_is_there_in_reading_order(data: ReportData) -> None:
    found = charts.every_figure(data, data.tasks[0], charts.Look.for_page(data))
    assert [figure.name for figure in found] == [
        *("goodhart", "other_axes", "judges", "training", "cost"),
        *("goodhart-difference", "coverage-curves", "tandem-equal"),  # and not tandem's second, which has no number
    ]
    assert [panel.title for panel in found[0].panels] == ["Golden judge", "True utility"]


def test_panels_are_valid_json_that_loads_nothing(data: ReportData) -> None:
    for figure in charts.every_figure(data, data.tasks[0], charts.Look.for_page(data)):
        for panel in figure.panels:
            spec = panel.build()
            json.dumps(spec, allow_nan=False)
            alt.Chart.from_dict(spec, validate=True)  # what `build` leaves out to be quick
            assert not [node for node in _walk(spec) if isinstance(node, dict) and "url" in node]
            names = {param["name"] for param in spec["params"]}
            assert {"split", "shown", "seeds", "sweep", "opponent", "judge"} | set(panel.params) <= names


def test_an_image_has_no_parameter_left_and_no_name_shared_between_panels(data: ReportData) -> None:
    # With view names in common, Vega-Lite drew one panel's points with the other panel's numbers.
    figure = charts.task_figures(data, data.tasks[0], charts.Look.for_images(data))[0]
    spec = charts.image_spec(data, figure)
    for node in _walk({key: value for key, value in spec.items() if key != "datasets"}):
        if isinstance(node, dict):
            assert "params" not in node
            assert not ("mark" in node and "name" in node)
            if isinstance(node.get("filter"), str):
                assert "=== split" not in node["filter"]
                assert "shown" not in node["filter"]
    assert {"points0", "points1"} <= set(spec["datasets"])


def test_panels_of_an_image_plot_their_own_judge(data: ReportData) -> None:
    import vl_convert

    figure = charts.task_figures(data, data.tasks[0], charts.Look.for_images(data))[0]
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


def test_families_are_told_apart_and_stay_as_they_are() -> None:
    families = ["offline", "online", *FURTHER]
    found = charts.styles(families)
    assert found["online"] == charts.styles(["online"])["online"]
    assert len(set(found.values())) == len(families)
    # Hue alone would not do: a reader may not see it.
    assert len({(style.shape, style.dash) for style in charts.styles(FURTHER[:7]).values()}) == 7


def test_a_series_looks_like_the_family_or_the_judge_it_is() -> None:
    families = ["online", *FURTHER]
    found = charts.styles(["Window 16", "golden judge", "online", "of its own"], families)
    assert found["Window 16"] == charts.styles(families)["window_16"]
    assert found["golden judge"].hue == charts.JUDGE_HUES["golden"]
    assert found["of its own"] not in (found["Window 16"], found["golden judge"], found["online"])


@pytest.mark.parametrize(("ground", "column"), [("#ffffff", 0), ("#14171b", 1)])
def test_every_hue_can_be_seen_on_its_ground(ground: str, column: int) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for pair in charts.HUES:
        low, high = sorted((luminance(ground), luminance(pair[column])))
        assert (high + 0.05) / (low + 0.05) >= 3, pair


def test_a_figure_of_families_shows_these_alone_and_says_which_have_no_data(data: ReportData) -> None:
    task = data.tasks[0]
    coverage = next(x for x in task.experiments if x.name == "coverage")
    (figure,) = charts.experiment_figures(data, task, coverage, charts.Look.for_images(data))
    assert figure.shown == ("online", "offline", "shuffled")
    assert figure.note == "No data of: Absent."
    spec = charts.image_spec(data, figure)
    assert {row["family"] for row in spec["datasets"]["points0"]} == {"online", "offline", "shuffled"}
    domains = [node["domain"] for node in _walk(spec["vconcat"]) if isinstance(node, dict) and "domain" in node]
    assert ["online", "offline", "shuffled"] in domains
    assert not any("golden_policy" in domain for domain in domains)


def _scene(spec: dict[str, Any]) -> list[dict[str, Any]]:
    import vl_convert

    scene = vl_convert.vegalite_to_scenegraph(spec, vl_version="6.1")
    return [node for node in _walk(scene) if isinstance(node, dict) and node.get("marktype") and node.get("items")]


@pytest.mark.parametrize(
    ("mark", "x", "kind", "count"),
    [("line", 1.0, "area", 1), ("point", 1.0, "rule", 2), ("bar", "a name", "rule", 2), ("line", "a name", "rule", 2)],
)
def test_drawn_figures_have_points_intervals_and_seeds(
    data: ReportData, mark: Any, x: float | str, kind: str, count: int
) -> None:
    places = [x, x + 1 if isinstance(x, float) else "another"]
    points = tuple(
        {"series": "online", "x": place, "y": 0.1 if seed is None else 0.12, "seed": seed}
        | {"low": 0.05 if seed is None else None, "high": 0.2 if seed is None else None}
        for place in places
        for seed in (None, *data.seeds)
    )
    drawing = Drawing("goodhart", "made_up", "Made up", "x", "win rate", mark, False, (), points, 0)
    experiment = dataclasses.replace(data.tasks[0].experiments[0], figures=(drawing,))
    task = dataclasses.replace(data.tasks[0], experiments=(experiment,))
    changed = dataclasses.replace(data, tasks=(task,))
    (figure,) = charts.experiment_figures(changed, task, experiment, charts.Look.for_images(changed))
    marks = [m for m in _scene(charts.image_spec(changed, figure)) if "layer" in str(m.get("name", ""))]
    assert sum(len(m["items"]) for m in marks if m["marktype"] == "symbol") == 2 + 2 * (mark != "bar")
    assert sum(len(m["items"]) for m in marks if m["marktype"] == "rect") == 2 * (mark == "bar")
    intervals = [m for m in marks if m["marktype"] == kind]
    assert len(intervals) == count or sum(len(m["items"]) for m in intervals) == count


def test_charts_are_saved(data: ReportData, tmp_path: Path) -> None:
    # One figure stands for all: each takes a second.
    every = charts.task_figures
    paths = charts.figures(data, tmp_path / "charts", choose=lambda *arguments: every(*arguments)[-1:])
    assert [path.name for path in paths] == ["summarisation-cost.png", "summarisation-cost.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_text().startswith("<svg")
    (pdf,) = charts.figures(data, tmp_path, ("pdf",), choose=lambda *arguments: every(*arguments)[-1:])
    assert pdf.read_bytes().startswith(b"%PDF")


def test_nothing_is_drawn_from_nothing(tmp_path: Path) -> None:
    empty = load(write_results(tmp_path / "in", no_numbers=True))
    assert charts.figures(empty, tmp_path / "out") == []


def test_file_names_are_safe() -> None:
    assert charts.file_name("../a task/ü", "goodhart") == "a_task-goodhart"
