"""Figures as specifications and as files."""

import json
from pathlib import Path
from typing import Any

import altair as alt
import pytest

from aligngap.report import figures, still
from aligngap.report.style import Theme
from aligngap.results import Figure, FigurePoint, StudyResults, read
from unit.report.fixture_results import write_results


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return read(write_results(tmp_path_factory.mktemp("results"), seeds=(0,)))


def _walk(node: Any) -> Any:
    yield node
    for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _walk(item)


def test_every_figure_is_there_in_reading_order(data: StudyResults) -> None:
    found = figures.every_figure(data, data.tasks[0], Theme.for_page(data))
    assert [figure.name for figure in found] == [
        *("goodhart", "other_axes", "judges", "training", "cost"),
        *("goodhart-difference", "coverage-curves", "tandem-equal"),  # and not tandem's second, which has no number
    ]
    assert [panel.title for panel in found[0].panels] == ["Golden judge", "True utility"]


def test_panels_are_valid_json_that_loads_nothing(data: StudyResults) -> None:
    for figure in figures.every_figure(data, data.tasks[0], Theme.for_page(data)):
        for panel in figure.panels:
            spec = panel.build()
            json.dumps(spec, allow_nan=False)
            alt.Chart.from_dict(spec, validate=True)  # what `build` leaves out to be quick
            assert not [node for node in _walk(spec) if isinstance(node, dict) and "url" in node]
            names = {param["name"] for param in spec["params"]}
            assert {"split", "shown", "seeds", "sweep", "opponent", "judge"} | set(panel.params) <= names


def test_an_image_has_no_parameter_left_and_no_name_shared_between_panels(data: StudyResults) -> None:
    # With view names in common, Vega-Lite drew one panel's points with the other panel's numbers.
    figure = figures.task_figures(data, data.tasks[0], Theme.for_images(data))[0]
    spec = still.image_spec(data, figure)
    for node in _walk({key: value for key, value in spec.items() if key != "datasets"}):
        if isinstance(node, dict):
            assert "params" not in node
            assert not ("mark" in node and "name" in node)
            if isinstance(node.get("filter"), str):
                assert "=== split" not in node["filter"]
                assert "shown" not in node["filter"]
    assert {"points0", "points1"} <= set(spec["datasets"])


def test_panels_of_an_image_plot_their_own_judge(data: StudyResults) -> None:
    import vl_convert

    figure = figures.task_figures(data, data.tasks[0], Theme.for_images(data))[0]
    scene = vl_convert.vegalite_to_scenegraph(still.image_spec(data, figure), vl_version="6.1")
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


@pytest.fixture(scope="module")
def runaway(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    """Of five families within a KL of a few nats, one arm of `shuffled` goes on to some hundreds."""
    folder = tmp_path_factory.mktemp("runaway")
    path = write_results(folder, seeds=(0,), fail_one=False, schema=1) / "results.json"
    results = json.loads(path.read_text())
    for arm in results["tasks"]["summarisation"]["arms"]:
        factor = 400.0 if arm["family"] == "shuffled" else 3.0
        highest = max(point["kl"] for point in arm["points"])
        for point in arm["points"]:
            point["kl"] *= factor / highest
    path.write_text(json.dumps(results))
    return read(folder)


def _span(data: StudyResults, families: tuple[str, ...], **options: Any) -> dict[str, float]:
    runs = figures.tables(data, data.tasks[0])["runs"]
    return figures.reach([run for run in runs if run["family"] in families], "golden_policy", **options)


def test_a_runaway_arm_does_not_widen_the_figures_and_is_not_cut_in_silence(runaway: StudyResults) -> None:
    task = runaway.tasks[0]
    assert figures.reaches_far(runaway, task)
    others = ("online", "offline", "replay", "golden_policy")
    assert _span(runaway, others)["xmax"] == pytest.approx(3.0 * 1.25)
    both = _span(runaway, (*others, "shuffled"))
    # The usual range ends at five times the upper quartile of 3 nats: what of the runaway lies in it is shown.
    assert 3.0 <= both["xmax"] <= 15.0 * 1.25
    assert _span(runaway, (*others, "shuffled"), whole=True)["xmax"] == pytest.approx(400 * 1.25)
    (figure, *_) = figures.task_figures(runaway, task, Theme.for_images(runaway))
    subtitle = still.image_spec(runaway, figure)["title"]["subtitle"]
    points = runaway.points.filter((runaway.points["split"] == "held_out") & (runaway.points["kl"] > both["xmax"]))
    assert points.height > 0
    assert subtitle[1] == f"Not shown: {points.height} points further right, up to a KL of 400 (replay shuffled)"


def test_where_only_the_runaway_is_shown_all_of_it_is(runaway: StudyResults) -> None:
    runs = [run for run in figures.tables(runaway, runaway.tasks[0])["runs"] if run["family"] == "shuffled"]
    far = [run | {"from_kl": None, "to_kl": None} for run in runs]  # no point in the usual range
    assert figures.reach(far, "golden_policy")["xmax"] == pytest.approx(400 * 1.25)
    assert figures.reach([], "golden_policy") == {"xmin": 0.01, "xmax": 10.0, "ymin": 0.45, "ymax": 0.55}


def test_axes_take_in_every_rate_of_what_is_shown(runaway: StudyResults) -> None:
    span = _span(runaway, ("online",))
    points = runaway.points.filter((runaway.points["family"] == "online") & (runaway.points["kl"] > 0))
    rates = [rate for judge in ("golden", "true", "proxy") for rate in points[f"rate_golden_policy_{judge}"] if rate]
    assert span["ymin"] <= min(rates)
    assert span["ymax"] >= max(rates)
    assert span["xmin"] < points["kl"].min() * 0.81


def test_win_rates_are_drawn_over_steps_and_the_proxys_opinion_too(data: StudyResults) -> None:
    figure = figures.task_figures(data, data.tasks[0], Theme.for_images(data))[1]
    scene = _scene(still.image_spec(data, figure))
    symbols = [m for m in scene if m["marktype"] == "symbol" and "layer" in str(m.get("name", ""))]
    steps = {int(point["step"]) for point in data.points.to_dicts()}
    # On the axis of steps step 0 has a place, which a logarithm of KL has not.
    assert len({round(item["x"], 3) for item in symbols[0]["items"]}) == len(steps)
    assert len(symbols[0]["items"]) == len(symbols[1]["items"]) > 0


def test_a_figure_of_families_shows_these_alone_and_says_which_have_no_data(data: StudyResults) -> None:
    task = data.tasks[0]
    coverage = next(x for x in task.experiments if x.name == "coverage")
    (figure,) = figures.experiment_figures(data, task, coverage, Theme.for_images(data))
    assert figure.shown == ("online", "offline", "shuffled")
    assert figure.note == "No data of: Absent."
    spec = still.image_spec(data, figure)
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
    data: StudyResults, mark: Any, x: float | str, kind: str, count: int
) -> None:
    places = [x, x + 1 if isinstance(x, float) else "another"]
    points = [
        FigurePoint("online", place, 0.1, 0.05, 0.2) if seed is None else FigurePoint("online", place, 0.12, seed=seed)
        for place in places
        for seed in (None, *data.seeds)
    ]
    drawn = Figure("made_up", "Made up", "x", "win rate", mark, points)
    experiment = data.tasks[0].experiments[0].model_copy(update={"figures": (drawn,)})
    task = data.tasks[0].model_copy(update={"experiments": (experiment,)})
    changed = data.model_copy(update={"tasks": (task,)})
    (figure,) = figures.experiment_figures(changed, task, experiment, Theme.for_images(changed))
    marks = [m for m in _scene(still.image_spec(changed, figure)) if "layer" in str(m.get("name", ""))]
    assert sum(len(m["items"]) for m in marks if m["marktype"] == "symbol") == 2 + 2 * (mark != "bar")
    assert sum(len(m["items"]) for m in marks if m["marktype"] == "rect") == 2 * (mark == "bar")
    intervals = [m for m in marks if m["marktype"] == kind]
    assert len(intervals) == count or sum(len(m["items"]) for m in intervals) == count


def test_charts_are_saved(data: StudyResults, tmp_path: Path) -> None:
    # One figure stands for all: each takes a second.
    every = figures.task_figures
    paths = still.figure_files(data, tmp_path / "charts", choose=lambda *arguments: every(*arguments)[-1:])
    assert [path.name for path in paths] == ["summarisation-cost.png", "summarisation-cost.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_text().startswith("<svg")
    (pdf,) = still.figure_files(data, tmp_path, ("pdf",), choose=lambda *arguments: every(*arguments)[-1:])
    assert pdf.read_bytes().startswith(b"%PDF")


def test_nothing_is_drawn_from_nothing(tmp_path: Path) -> None:
    empty = read(write_results(tmp_path / "in", no_numbers=True))
    assert still.figure_files(empty, tmp_path / "out") == []


def test_file_names_are_safe() -> None:
    assert still.file_name("../a task/ü", "goodhart") == "a_task-goodhart"
