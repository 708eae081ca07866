"""The report in a real browser: no error, no request, controls that work, foreign text shown as text.

Needs Chromium and the `playwright` package, which drives it; without either, the tests say so and are skipped. The
numbers shown are invented (see the fixture).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aligngap.report.page import write_report
from unit.report.fixture_results import HOSTILE, write_results

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
]


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
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


def _open(browser: Any, report: Path, **options: Any) -> Opened:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
    page.set_default_timeout(120_000)
    opened = Opened(page)
    page.on("console", lambda m: opened.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.on("dialog", lambda dialog: opened.complaints.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: opened.requests.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_selector("section.task[data-drawn=log]")
    return opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_results(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="module")
def opened(browser: Any, report: Path) -> Opened:
    return _open(browser, report)


def _symbols(page: Any) -> int:
    """Drawn points of figure 1's first panel."""
    return int(page.locator(".chart").first.locator("g.mark-symbol[role=graphics-object] path").count())


def test_draws_every_chart_and_asks_for_nothing(opened: Opened) -> None:
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    charts = opened.page.locator(".chart")
    assert charts.count() == 16
    assert opened.page.locator(".chart svg").count() == charts.count()


def test_a_point_tells_its_numbers(opened: Opened) -> None:
    opened.page.locator(".chart").first.locator("g.mark-symbol path").last.hover(force=True)
    tooltip = opened.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    for word in ("arm", "seed", "step", "KL ± se", "win rate ± se", "prompts", "ties"):
        assert word in tooltip.inner_text()
    opened.page.mouse.move(0, 0)


def test_the_keyboard_toggles_a_family(opened: Opened) -> None:
    page, before = opened.page, _symbols(opened.page)
    chip = page.locator("[data-family=offline]")
    chip.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("section.task[data-steered*=shown]")
    assert chip.get_attribute("aria-pressed") == "false"
    assert 0 < _symbols(page) < before
    page.keyboard.press("Enter")
    page.wait_for_selector("section.task[data-steered*=offline]")
    assert _symbols(page) == before


def test_a_linear_axis_shows_step_zero(opened: Opened) -> None:
    page, before = opened.page, _symbols(opened.page)
    page.select_option("[data-control=xscale]", "linear")
    page.wait_for_selector("section.task[data-drawn=linear]")
    # 27 runs start at a KL of exactly 0, which a log axis leaves out.
    assert _symbols(page) == before + 27
    page.select_option("[data-control=xscale]", "log")
    page.wait_for_selector("section.task[data-drawn=log]")


def test_the_reader_of_samples(opened: Opened) -> None:
    page = opened.page
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
    assert page.locator("article.sample .flag", has_text="proxy likes it").count() == min(hacked, 4)
    page.select_option("[data-reader=filter]", "all")
    page.fill("[data-reader=search]", "no such words anywhere")
    assert count.inner_text().startswith("0 of 12")
    page.fill("[data-reader=search]", "")


def test_hostile_text_stays_text(browser: Any, tmp_path: Path) -> None:
    opened = _open(browser, write_report(write_results(tmp_path, text=HOSTILE, seeds=(0,), smoke=True)))
    assert opened.complaints == []
    assert opened.page.locator("main img").count() == 0
    assert "onerror=alert(1)" in opened.page.locator("article.sample .prompt").first.inner_text()
    assert opened.page.locator("[role=alert]").is_visible()
    opened.page.close()


def test_fits_a_phone_in_the_dark_and_prints(browser: Any, report: Path) -> None:
    opened = _open(browser, report, color_scheme="dark")
    page = opened.page
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(page.pdf(format="A4")) > 20_000
    assert opened.complaints == []
    page.close()
