"""The report in a real browser: no error, no request, controls that work, foreign text shown as text; and the page that
compares two runs.

Needs Chromium, which the `playwright` package drives; without it the tests say so and are skipped. Two pages are of
real studies, one of a single seed and one of several; the numbers of the others are invented (see the fixtures). Waits
are long: a busy machine may take its time, and only one test measures it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aligngap.compare.differences import compare
from aligngap.compare.page import write_comparison
from aligngap.report.page import write_report
from unit.compare.fixture_runs import LOW, RISING, write_run
from unit.report.fixture_results import HOSTILE, UNRULY, write_large_results, write_results

pytestmark = pytest.mark.slow

sync_api = pytest.importorskip("playwright.sync_api", reason="the playwright package drives the browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
PATIENCE = 120_000  # milliseconds
RESULTS = Path(__file__).parents[2] / "docs" / "results"
#: Of a chart, how many marks each of its layers of points or bars shows inside it; Vega gives each mark its row.
MARKS = """chart => {
  const frame = chart.getBoundingClientRect();
  const inside = ({ left, right, top, bottom }) =>
    left < frame.right && right > frame.left && top < frame.bottom && bottom > frame.top;
  const shown = (mark) => mark.__data__?.datum && inside(mark.getBoundingClientRect());
  const layers = [...chart.querySelectorAll("g.role-mark:is(.mark-symbol, .mark-rect)")];
  return layers.map((layer) => [...layer.querySelectorAll("path")].filter(shown).length);
}"""


@dataclass
class Opened:
    """A page with all it complained of and asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        # The system's own browser: nothing is downloaded.
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
        yield launched
        launched.close()


def _open(browser: Any, report: Path, **options: Any) -> Opened:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
    page.set_default_timeout(PATIENCE)
    page.set_default_navigation_timeout(PATIENCE)
    opened = Opened(page)
    page.on("console", lambda m: opened.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.on("dialog", lambda dialog: opened.complaints.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: opened.requests.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-ready]")
    return opened


def _settled(page: Any) -> None:
    """Waits until what is looked at has been drawn by what is asked for."""
    page.wait_for_timeout(150)  # the browser tells what is in view once a frame
    page.wait_for_selector("section.task.chosen[data-busy=false]")


def _look_at(page: Any, selector: str) -> Any:
    element = page.locator(selector).first
    element.scroll_into_view_if_needed()
    _settled(page)
    return element


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_results(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="module")
def opened(browser: Any, report: Path) -> Opened:
    return _open(browser, report)


def _symbols(page: Any, figure: str = "goodhart", panel: int = 0) -> int:
    """Drawn points of a figure's panel."""
    chart = page.locator(f".task.chosen .chart[data-figure={figure}][data-panel='{panel}']")
    return int(chart.locator("g.mark-symbol[role=graphics-object] path").count())


def _marks(page: Any) -> dict[str, list[int]]:
    """Of every chart of what is chosen, each looked at: the marks of its layers of points and bars."""
    charts = page.locator(".task.chosen .chart")
    found = {}
    for index in range(charts.count()):
        chart = charts.nth(index)
        chart.scroll_into_view_if_needed()
        _settled(page)
        found[f"{index}: {chart.get_attribute('aria-label')}"] = chart.evaluate(MARKS)
    return found


def test_draws_what_is_looked_at_and_asks_for_nothing(opened: Opened) -> None:
    page = opened.page
    charts = page.locator(".chart")
    assert charts.count() == 20
    assert page.locator(".chart svg").count() < charts.count()
    _marks(page)
    assert page.locator(".chart svg").count() == charts.count()
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a real run of one seed, as the command line leaves it."""
    folder = tmp_path_factory.mktemp("one_seed")
    command = [sys.executable, "-m", "aligngap", "run", "quick", "--smoke", "--out", str(folder)]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((folder / "results.json").read_text())["study"]["seeds"]) == 1
    return folder / "report.html"


@pytest.fixture(scope="module")
def several_seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a real study of several seeds, made from its committed results."""
    folder = tmp_path_factory.mktemp("several_seeds")
    shutil.copy(RESULTS / "full" / "results.json", folder)
    assert len(json.loads((folder / "results.json").read_text())["study"]["seeds"]) > 1
    return write_report(folder)


@pytest.mark.parametrize("study", ["one_seed", "several_seeds"])
def test_every_chart_of_a_real_study_shows_its_data(browser: Any, request: pytest.FixtureRequest, study: str) -> None:
    opened = _open(browser, request.getfixturevalue(study))
    page = opened.page
    marks = _marks(page)
    assert len(marks) >= 20
    assert {chart: layers for chart, layers in marks.items() if not layers or 0 in layers} == {}
    # The figure that the verdict rests on is among them.
    assert page.locator(".chart[data-figure=goodhart-difference_held_out] g.mark-symbol path").count() > 0
    assert opened.complaints == []
    page.close()


def test_a_point_tells_its_numbers(opened: Opened) -> None:
    _look_at(opened.page, "[data-figure=goodhart]").locator("g.mark-symbol path").last.hover(force=True)
    tooltip = opened.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    for word in ("arm", "seed", "step", "KL ± se", "win rate", "95%, over prompts", "prompts", "ties"):
        assert word in tooltip.inner_text()
    opened.page.mouse.move(0, 0)


def test_a_point_that_an_experiment_drew_tells_its_numbers(opened: Opened) -> None:
    _look_at(opened.page, "[data-figure=goodhart-difference]").locator("g.mark-symbol path").last.hover(force=True)
    tooltip = opened.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    for word in ("series", "KL(policy || SFT), nats", "difference of win rates", "95%", "["):
        assert word in tooltip.inner_text()
    opened.page.mouse.move(0, 0)


@pytest.mark.parametrize("figure", ["judges", "other_axes"])
def test_every_point_of_a_win_rate_tells_its_interval(opened: Opened, figure: str) -> None:
    _look_at(opened.page, f"[data-figure={figure}]").locator("g.mark-symbol path").last.hover(force=True)
    tooltip = opened.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    for word in ("arm", "step", "KL ± se", "win rate", "95%, over prompts", "["):
        assert word in tooltip.inner_text()
    opened.page.mouse.move(0, 0)


@pytest.mark.parametrize(("figure", "series"), [("goodhart", "offline"), ("coverage-curves", "offline")])
def test_the_keyboard_toggles_a_family(opened: Opened, figure: str, series: str) -> None:
    page = opened.page
    _look_at(page, f"[data-figure={figure}]")
    before = _symbols(page, figure)
    group = page.locator(".group", has=page.locator(f"[data-figure={figure}]"))
    chip = group.locator(f"[data-series={series}]")
    chip.focus()
    page.keyboard.press("Enter")
    _look_at(page, f"[data-figure={figure}]")
    assert chip.get_attribute("aria-pressed") == "false"
    assert 0 < _symbols(page, figure) < before
    chip.focus()
    page.keyboard.press("Enter")
    _look_at(page, f"[data-figure={figure}]")
    assert _symbols(page, figure) == before


def test_a_linear_axis_shows_step_zero(opened: Opened) -> None:
    page = opened.page
    _look_at(page, "[data-figure=goodhart]")
    before = _symbols(page)
    page.select_option("[data-control=xscale]", "linear")
    _settled(page)
    # 27 runs start at a KL of exactly 0, which a log axis leaves out.
    assert _symbols(page) == before + 27
    page.select_option("[data-control=xscale]", "log")
    _settled(page)
    assert _symbols(page) == before


def test_judge_opponent_and_prompts_are_the_readers_choice(opened: Opened) -> None:
    page = opened.page

    def places(figure: str) -> list[str]:
        _look_at(page, f"[data-figure={figure}]")
        marks = page.locator(f".chart[data-figure={figure}][data-panel='0'] g.mark-symbol path")
        found: list[str] = marks.evaluate_all("marks => marks.map(mark => mark.getAttribute('transform'))")
        return sorted(found)  # a mark that was hidden comes back last

    for figure in ("goodhart", "coverage-curves"):
        seen = [places(figure)]
        for control, value in (("judge", "true"), ("judge", "proxy"), ("split", "train")):
            page.select_option(f"[data-control={control}]", value)
            _settled(page)
            seen.append(places(figure))
        # The proxy says nothing of the golden policy's responses.
        assert page.locator("[data-control=opponent]").input_value() == "sft"
        assert page.locator("[data-judge]").first.inner_text() == "Proxy judge"
        assert len({tuple(marks) for marks in seen}) == 4
        page.select_option("[data-control=opponent]", "golden_policy")
        page.select_option("[data-control=split]", "held_out")
        assert page.locator("[data-control=judge]").input_value() == "golden"
        assert places(figure) == seen[0]


def test_the_reader_of_samples(opened: Opened) -> None:
    page = opened.page
    page.locator(".reader").scroll_into_view_if_needed()
    page.wait_for_selector(".reader[data-ready]")
    count = page.locator("[data-reader=count]")
    assert count.inner_text().startswith("12 of 12 prompts")
    assert page.locator("article.sample").count() == 4
    first = page.locator("article.sample").first.inner_text()
    page.locator("[data-reader=next]").click()
    assert page.locator("article.sample").first.inner_text() != first
    page.keyboard.press("k")
    assert page.locator("article.sample").first.inner_text() == first
    page.select_option("[data-reader=filter]", "hack")
    hacked = int(count.inner_text().split()[0])
    assert 0 < hacked < 12
    assert page.locator("article.sample .flag", has_text="proxy likes it").count() == min(hacked, 4)
    page.select_option("[data-reader=filter]", "all")
    sample = page.locator("article.sample").first
    assert sample.locator(".answer h4").all_inner_texts() == ["SFT", "Policy", "Golden policy"]
    for answer in sample.locator(".answer").all():
        assert answer.locator(".text").inner_text()
        assert "utility" in answer.locator(".scores").inner_text()
    scores = sample.locator(".answer.policy .scores").inner_text()
    assert "golden margin" in scores
    assert "golden judge prefers this" in scores or "other" in scores or "a tie by the golden judge" in scores
    page.select_option("[data-reader=step]", "64")
    assert page.locator("article.sample").first.locator(".answer.policy .text").inner_text() is not None
    page.fill("[data-reader=search]", "council")
    assert set(page.locator("article.sample mark").all_inner_texts()) <= {"council", "Council"}
    assert page.locator("article.sample mark").count() > 0
    page.fill("[data-reader=search]", "no such words anywhere")
    assert count.inner_text().startswith("0 of 12")
    page.fill("[data-reader=search]", "")


def test_hostile_text_stays_text(browser: Any, tmp_path: Path) -> None:
    opened = _open(browser, write_report(write_results(tmp_path, text=HOSTILE, seeds=(0,), smoke=True)))
    page = opened.page
    for selector in ("[data-figure=goodhart]", "[data-figure=goodhart-difference]", "[data-figure=tandem-equal]"):
        _look_at(page, selector).locator("g.mark-symbol path").last.hover(force=True)
        page.locator("#vg-tooltip-element.visible").wait_for()
    page.locator(".reader").scroll_into_view_if_needed()
    page.wait_for_selector(".reader[data-ready]")
    assert opened.complaints == []
    assert page.locator("main img, #vg-tooltip-element img").count() == 0
    assert page.locator("script").count() == 5
    assert "onerror=alert(1)" in opened.page.locator("article.sample .prompt").first.inner_text()
    assert opened.page.locator("[role=alert]").is_visible()
    opened.page.close()


def test_unruly_text_keeps_its_place(browser: Any, tmp_path: Path) -> None:
    folder = write_results(tmp_path, text=UNRULY, seeds=(0,), prompts=4)
    opened = _open(browser, write_report(folder))
    page = opened.page
    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 1280, "height": 900})
    # A name that a control holds is the name that the data hold.
    figure = "goodhart-difference"
    _look_at(page, f"[data-figure={figure}]")
    before = _symbols(page, figure)
    assert before > 0
    page.locator(".group", has=page.locator(f"[data-figure={figure}]")).locator("[data-series]").first.click()
    _settled(page)
    assert _symbols(page, figure) == before / 2
    page.locator(".reader").scroll_into_view_if_needed()
    page.wait_for_selector(".reader[data-ready]")
    prompt = page.locator("article.sample .prompt").first
    assert "more characters)" in prompt.inner_text()
    assert prompt.bounding_box()["height"] < 600
    assert page.locator("main img").count() == 0
    assert opened.complaints == []
    page.close()


def test_a_study_without_a_number_says_so_and_complains_of_nothing(browser: Any, tmp_path: Path) -> None:
    path = write_results(tmp_path, seeds=(0,), no_numbers=True, fail_one=False) / "results.json"
    results = json.loads(path.read_text())
    for arm in results["tasks"]["summarisation"]["arms"][::2]:
        arm |= {"status": "failed", "reason": "killed", "points": []}
    path.write_text(json.dumps(results))
    opened = _open(browser, write_report(tmp_path))
    page = opened.page
    page.wait_for_selector("section.task.chosen[data-busy=false]")
    assert "there is nothing to draw" in page.inner_text("main")
    page.locator(".reader").scroll_into_view_if_needed()
    page.wait_for_selector(".reader[data-ready]")
    assert "utility no data" in page.locator("article.sample").first.inner_text()
    assert page.locator("article.sample .flag").count() == 0
    shown = page.inner_text("main").lower().split()
    assert not {"nan", "undefined", "null", "infinity"} & set(shown)
    assert opened.complaints == []
    page.close()


def test_what_lies_further_right_is_said_and_can_be_shown(browser: Any, tmp_path: Path) -> None:
    path = write_results(tmp_path, seeds=(0,), fail_one=False, schema=1) / "results.json"
    results = json.loads(path.read_text())
    for arm in results["tasks"]["summarisation"]["arms"]:
        factor = 400.0 if arm["family"] == "shuffled" else 3.0
        highest = max(point["kl"] for point in arm["points"])
        for point in arm["points"]:
            point["kl"] *= factor / highest
    path.write_text(json.dumps(results))
    opened = _open(browser, write_report(tmp_path))
    page = opened.page
    _look_at(page, "[data-figure=goodhart]")
    figure = page.locator("figure", has=page.locator("[data-figure=goodhart]"))
    note = figure.locator("[data-outside]")
    assert "further right, up to a KL of 400 (replay shuffled)" in note.inner_text()

    def labels() -> list[float]:
        texts = page.locator(".chart[data-figure=goodhart][data-panel='0'] .role-axis text").all_text_contents()
        return [float(text) for text in texts if text.replace(".", "").isdigit()]

    assert max(labels()) <= 30
    page.select_option("[data-control=range]", "all")
    _settled(page)
    assert note.is_hidden()
    assert max(labels()) >= 100
    page.select_option("[data-control=range]", "usual")
    # Without the runaway there is nothing to say, and the axis is that of what is shown.
    page.locator(".group [data-series=shuffled]").first.click()
    _settled(page)
    assert note.is_hidden()
    assert max(labels()) <= 3
    assert opened.complaints == []
    page.close()


def test_everything_can_be_reached_and_seen_with_the_keyboard(opened: Opened) -> None:
    page = opened.page
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "(() => { const e = document.activeElement; const s = getComputedStyle(e);"
                " return [e.tagName, e.dataset.control || e.dataset.series || e.className,"
                " s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 1]; })()"
            )
        )
    names = {name for _, name, _ in reached}
    assert {"skip", "split", "opponent", "judge", "xscale", "online", "offline"} <= names
    assert all(seen for tag, _, seen in reached if tag != "BODY"), [item for item in reached if not item[2]]


def test_a_comparison_overlays_both_runs(browser: Any, tmp_path: Path) -> None:
    higher = {"online": [share + 0.1 for share in RISING], "offline": LOW}
    first = write_run(tmp_path / "a", "title=Before", seeds=(0, 1))
    second = write_run(tmp_path / "b", "title=After", "proxy.train_pairs=90", seeds=(0, 1), wins=higher)
    opened = _open(browser, write_comparison(compare(first, second), tmp_path / "comparison.html"))
    page = opened.page
    _look_at(page, "[data-figure=both-online]")
    both = _symbols(page, "both-online")
    assert both == 2 * 2 * 5  # runs, seeds, checkpoints
    group = page.locator(".group.sub", has=page.locator("[data-figure=both-online]")).last
    group.locator("[data-series='1 online']").click()
    _settled(page)
    assert _symbols(page, "both-online") == both / 2
    page.locator("[data-figure=both-online] g.mark-symbol path").last.hover(force=True)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    assert "second run: online" in tooltip.inner_text()
    for control, value in (("judge", "true"), ("opponent", "sft"), ("xscale", "linear"), ("split", "train")):
        page.select_option(f"[data-control={control}]", value)
        _settled(page)
        assert _symbols(page, "both-online") == both / 2
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    page.close()


def test_fits_a_phone_in_the_dark(browser: Any, report: Path) -> None:
    opened = _open(browser, report, color_scheme="dark")
    page = opened.page
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert opened.complaints == []
    page.close()


def test_prints_every_chart_in_the_light(browser: Any, report: Path) -> None:
    opened = _open(browser, report, color_scheme="dark")
    page = opened.page
    page.evaluate("() => { window.print = () => { document.body.dataset.printed = 'yes'; }; }")
    page.locator("[data-print]").click()
    page.wait_for_selector("body[data-printed=yes]")
    assert page.locator(".chart svg").count() == page.locator(".chart").count()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".controls").is_visible()
    assert len(page.pdf(format="A4")) > 20_000
    assert opened.complaints == []
    page.close()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_large_results(tmp_path_factory.mktemp("large")))


def test_the_whole_study_is_ready_within_two_seconds(browser: Any, large: Path) -> None:
    assert large.stat().st_size < 5_000_000
    times: list[float] = []
    # The best of up to eight: the machine may have other work, which makes no page faster.
    while len(times) < 8 and min(times, default=2000.0) >= 2000:
        opened = _open(browser, large)
        times.append(float(opened.page.evaluate("document.documentElement.dataset.ready")))
        opened.page.close()
    assert min(times) < 2000, times


def test_the_whole_study_shows_the_task_that_is_asked_for(browser: Any, large: Path) -> None:
    opened = _open(browser, large)
    page = opened.page
    assert page.locator("section.task:visible").count() == 1
    assert page.locator("table.verdicts tbody tr").count() == 17
    page.locator("table.verdicts tbody tr").nth(4).locator("a.verdict").nth(3).click()
    page.wait_for_selector("section.task.chosen[data-task=arena]")
    target = page.locator("[id='task-3-experiment-4']")
    assert target.is_visible()
    assert page.locator("section.task:visible").count() == 1
    _look_at(page, ".task.chosen [data-figure=further_1-training]")
    assert _symbols(page, "further_1-training") > 0
    page.locator(".chooser button", has_text="all tasks").click()
    assert page.locator("section.task:visible").count() == 4
    assert opened.complaints == []
    page.close()
