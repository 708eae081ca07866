"""What of a figure is drawn, and which columns the charts get."""

from __future__ import annotations

from aligngap.report.drawing import drawings, measures, plotted
from aligngap.results import POINTS, Conclusion, Figure, FigurePoint, StudyResults, measure_columns
from aligngap.results.tables import typed_points
from unit.results.made_up_points import row


def test_figures_keep_what_can_be_drawn_and_count_the_rest() -> None:
    log = Figure("log", x_log=True, points=[FigurePoint("online", x, 0.1) for x in (-1.0, 0.0, 1.0, None)])
    names = Figure("names", points=[FigurePoint("online", "a", 0.1), FigurePoint("online", "b", float("nan"))])
    both = Figure("both", x_log=True, points=[FigurePoint("online", "a", 0.1), FigurePoint("online", -1, 0.1)])
    drawn = drawings(Conclusion(name="goodhart", figures=(log, names, both, Figure("empty"))))
    assert [drawing.key for drawing in drawn] == [f"goodhart-{name}" for name in ("log", "names", "both", "empty")]
    assert [[point["x"] for point in drawing.points] for drawing in drawn] == [[1.0], ["a"], ["a", "-1.0"], []]
    assert [drawing.dropped for drawing in drawn] == [3, 1, 0, 0]
    assert [drawing.named for drawing in drawn] == [False, True, True, False]
    assert [drawing.x_log for drawing in drawn] == [True, False, False, False]


def test_a_measure_has_columns_that_a_chart_can_name() -> None:
    name = "bad ['.mean"
    points = typed_points(row(0, "a", **dict(zip(measure_columns(name), (1.0, 0.5, 12), strict=True))))
    data = StudyResults(points=points)
    assert measures(data) == {"measure_0": name}
    assert plotted(data).select("measure_0", "measure_0_se").row(0) == (1.0, 0.5)
    assert not {*measure_columns(name), "identity", "lr"} & set(plotted(data).columns)
    assert set(plotted(data).columns) - {"measure_0", "measure_0_se"} < set(POINTS)
