"""A real run, watched in a real browser from its first stages through its death to its end.

Needs Chromium and the `playwright` package, as the tests of the report do.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.test_report_browser import CHROMIUM, FLAGS
from tiny import Tiny
from unit.live.run_folder import snapshot
from unit.report.fixture_results import HOSTILE

pytestmark = pytest.mark.slow

sync_api = pytest.importorskip("playwright.sync_api", reason="the playwright package drives the browser")

STEPS = 120
STUDY: dict[str, Any] = {
    "extends": "quick",
    "title": f"Watched{HOSTILE}",
    "experiments": ["goodhart", "coverage", "tandem"],
    "data": {"train_pairs": 64, "held_out_pairs": 32},
    "sft": {"steps": 2},
    "golden": {"optim": {"steps": 3}},
    "proxy": {"optim": {"steps": 2}, "train_pairs": 16},
    "baseline": {"optim": {"steps": STEPS, "batch": 4, "warmup_steps": 1, "lr": 0.01}},
    # More arms than will come to their end before the run is killed.
    "sweep": {"lr_factors": [0.1 * factor for factor in range(1, 40)], "betas": [0.1]},
    "evaluation": {"prompts": 12, "pairs": 8, "checkpoints": 3},
    "analysis": {"replicates": 100},
}


class Watching:
    """A study, and the processes that run and watch it."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        Tiny(folder)
        models = dict.fromkeys(("policy", "proxy", "golden"), str(folder / "base"))
        tasks = {"tasks": ["summarisation"], "sft_tasks": ["summarisation"]}
        (folder / "watched.yaml").write_text(yaml.safe_dump(STUDY | tasks | {"models": models} | changes))
        self.study, self.out, self.log = folder / "watched.yaml", folder / "run", folder / "log"
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with self.log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "aligngap", *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=variables,
            )
        self._processes.append(process)
        return process

    def run(self) -> subprocess.Popen[str]:
        """The run, up to its first stage."""
        process = self.start("run", str(self.study), "--out", str(self.out), "--jobs", "1")
        assert process.stdout is not None
        for line in process.stdout:
            if "started" in line:
                return process
        raise AssertionError(self.log.read_text())

    def watch(self) -> tuple[subprocess.Popen[str], str]:
        """Who watches it, and where."""
        process = self.start("watch", str(self.out), "--port", "0")
        assert process.stdout is not None
        found = re.search(r"http://localhost:\d+/", process.stdout.readline())
        assert found, self.log.read_text()
        return process, found[0]

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@contextmanager
def study(folder: Path, **changes: Any) -> Iterator[Watching]:
    made = Watching(folder, **changes)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


def _ended(page: Any) -> int:
    found = re.match(r"(\d+) of (\d+) stages", page.locator("#count").inner_text())
    assert found
    return int(found[1])


def _report(page: Any) -> Any:
    """The frame that is shown; during a change there are two."""
    return page.frame_locator("main#report iframe:not(.coming)")


@dataclass
class Opened:
    """A page with all it complained of and asked of others."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def _open(browser: Any, url: str) -> Opened:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(240_000)
    opened = Opened(page)

    def asked(request: Any) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            opened.foreign.append(request.url)

    def said(message: Any) -> None:
        # Vega warns of an axis without values when the only family that has any yet is hidden.
        if message.type in ("error", "warning") and "Infinite extent" not in message.text:
            opened.complaints.append(message.text)

    page.on("console", said)
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.on("dialog", lambda dialog: opened.complaints.append(f"dialog: {dialog.message}"))
    page.on("request", asked)
    page.goto(url)
    return opened


def test_a_run_that_goes_on_dies_and_goes_on(tmp_path: Path, browser: Any) -> None:
    with study(tmp_path) as watching:
        _follow(watching, browser)


def _follow(watching: Watching, browser: Any) -> None:
    run = watching.run()
    _, url = watching.watch()
    opened = _open(browser, url)
    page = opened.page

    # Stages tick without a reload.
    page.wait_for_selector("html[data-state=running]")
    page.evaluate("() => { document.body.dataset.same = 'yes'; }")
    assert page.locator("#title").inner_text().split() == f"Watched{HOSTILE}".split()
    assert page.locator("main#report iframe").count() == 0
    page.locator("#all summary").click()
    first = _ended(page)
    page.wait_for_selector(f"#all tr.finished >> nth={first}")
    assert _ended(page) > first
    page.wait_for_selector("#work tbody tr.running")

    # The report comes in, and is renewed in its place with what the reader has chosen.
    page.wait_for_selector("html[data-version]")
    version = page.locator("html").get_attribute("data-version")
    report = _report(page)
    report.locator(".alarm.unfinished").wait_for()
    page.locator("#all summary").click()
    report.locator("[data-control=xscale]").select_option("linear")
    chip = report.locator(".task .group > .chips [data-series]").first
    family = chip.get_attribute("data-series")
    chip.click()
    report.locator("details.numbers summary").click()
    figure = report.locator(".chart[data-figure=goodhart]").first
    figure.evaluate("figure => figure.scrollIntoView({ block: 'center', behavior: 'instant' })")
    place = figure.bounding_box()
    page.wait_for_selector(f"html[data-version]:not([data-version='{version}'])")
    report = _report(page)
    assert report.locator("[data-control=xscale]").input_value() == "linear"
    chip = report.locator(f".task .group > .chips [data-series={family}]").first
    assert chip.get_attribute("aria-pressed") == "false"
    assert report.locator("details.numbers").get_attribute("open") is not None
    assert report.locator("details.numbers table").count() == 1
    moved = report.locator(".chart[data-figure=goodhart]").first.bounding_box()
    assert place is not None
    assert moved is not None
    assert abs(moved["y"] - place["y"]) < 60  # what stands above may have grown by a line
    assert report.locator(".chart[data-figure=goodhart] g.mark-symbol path").count() > 0
    assert page.locator("main#report iframe").count() == 1
    assert page.locator("body").get_attribute("data-same") == "yes"

    # The run dies without a word.
    assert run.poll() is None
    run.send_signal(signal.SIGKILL)
    run.wait()
    page.wait_for_selector("html[data-state=interrupted]")
    assert "was interrupted" in page.locator("#message").inner_text()
    assert page.locator("#state").inner_text() == "interrupted"
    page.wait_for_timeout(7_000)  # its stages follow it within five seconds
    before = snapshot(watching.out)
    page.reload()
    page.wait_for_selector("html[data-version]")
    page.wait_for_timeout(3_000)
    assert snapshot(watching.out) == before

    # It goes on.
    watching.run()
    page.wait_for_selector("html[data-state=running]")
    assert page.locator("#message").is_hidden()
    assert opened.complaints == []
    assert opened.foreign == []
    page.close()


def test_a_run_that_has_come_to_its_end_and_a_watch_that_has(tmp_path: Path, browser: Any) -> None:
    short = {"baseline": {"optim": {"steps": 4, "batch": 4, "warmup_steps": 1}}, "sweep": {"lr_factors": [1.0]}}
    with study(tmp_path, experiments=["coverage"], **short) as watching:
        run = watching.run()
        watch, url = watching.watch()
        opened = _open(browser, url)
        page = opened.page
        run.communicate()
        assert run.returncode == 0
        page.wait_for_selector("html[data-state=finished]")
        page.get_by_text("The report below is the finished one.").wait_for()
        report = _report(page)
        report.locator("html[data-ready]").wait_for(state="attached")
        report.locator("#h-verdicts", has_text=re.compile("^What came out$")).wait_for()
        assert report.locator(".alarm.unfinished").count() == 0
        # What it was made of may go: the results are in the folder.
        shutil.rmtree(watching.out / "store")
        page.reload()
        _report(page).locator("#h-verdicts").wait_for()
        assert (opened.complaints, opened.foreign) == ([], [])
        watch.send_signal(signal.SIGINT)
        assert watch.wait(60) == 0
        page.wait_for_selector("html[data-state=lost]")
        assert "has ended or cannot be reached" in page.locator("#message").inner_text()
        page.close()
