"""The comparison as a person gets it: in a terminal, as JSON, and as a page that shows foreign text as text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aligngap.cli import main
from aligngap.compare.differences import Interval, compare
from aligngap.compare.page import render
from aligngap.compare.words import interval_words, value_words
from unit.compare.fixture_runs import LOW, RISING, TASK, write_run
from unit.report.fixture_results import HOSTILE
from unit.report.test_page import Elements

HIGHER = tuple(share + 0.1 for share in RISING)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    first = write_run(folder / "a", "title=Before", seeds=(0, 1))
    second = write_run(
        folder / "b", "title=After", "proxy.train_pairs=90", seeds=(0, 1), wins={"online": HIGHER, "offline": LOW}
    )
    return first, second


def test_the_terminal_names_what_differs_and_by_how_much(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, runs)]) == 0
    said = capsys.readouterr().out
    for words in (
        "Before",
        "After",
        "proxy.train_pairs",
        "held-out prompts, golden judge, win rates against the responses of the golden policy",
        "paired by seed and prompt",
        "fewer than 5 seeds",
    ):
        assert words in said, words
    (line,) = (line for line in said.splitlines() if "│ online " in line)
    assert "+10." in line or "+9." in line


def test_json_and_page_are_written(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "comparison.html"
    assert main(["compare", *map(str, runs), "--json", "--out", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == [{"key": "proxy.train_pairs", "first": 250, "second": 90}]
    assert found["tasks"][TASK]["experiments"][0]["name"] == "goodhart"
    text = " ".join(Elements(page.read_text(encoding="utf-8")).text.split())
    for words in (
        "Before and After",
        "Held-out prompts, golden judge, win rates against",
        "proxy.train_pairs 250 90",
        "paired by seed and prompt",
    ):
        assert words in text, words
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("wrong", ["comparison.txt", "no/such/folder/comparison.html"])
def test_a_page_that_cannot_be_written_is_the_users_to_mend(
    runs: tuple[Path, Path], tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / wrong)]) == 2
    assert "error: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_comparable_ends_with_two_and_the_reason(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(tmp_path / "c", "golden.optim.steps=900", seeds=(0,))
    page = tmp_path / "comparison.html"
    assert main(["compare", str(runs[0]), str(other), "--out", str(page)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "golden.optim.steps: 1000 and 900" in said.err
    assert not page.exists()
    assert main(["compare", str(runs[0]), str(tmp_path / "nothing")]) == 2


def test_hostile_text_is_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"{HOSTILE}\u202e\x1b[31m\x00"
    folders = [
        write_run(tmp_path / name, seeds=(0,), text=text, failed=("offline_proxy",), wins={"online": wins})
        for name, wins in (("a", RISING), ("b", HIGHER))
    ]
    elements = Elements(render(compare(*folders)))
    kinds = [tag for tag, _ in elements.tags]
    assert kinds.count("script") == 4
    assert "img" not in kinds
    assert "onerror=alert(1)" in elements.text
    assert "it was made to fail" in elements.text
    assert main(["compare", *map(str, folders)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\u202e" not in said


def test_a_page_loads_nothing_and_every_link_leads_somewhere(runs: tuple[Path, Path]) -> None:
    elements = Elements(render(compare(*runs)))
    identifiers = {a["id"] for _, a in elements.tags if a.get("id")}
    for tag, attributes in elements.tags:
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
            assert not (value or "").startswith("#") or (value or "")[1:] in identifiers
        assert not [name for name in attributes if name.startswith("on")]
    drawn = {a["data-figure"] for _, a in elements.tags if "data-figure" in a}
    assert drawn == {"both-online", "both-offline", "both-offline_proxy", "both-golden_policy"}


@pytest.mark.parametrize(
    ("number", "unit", "words"),
    [
        (Interval(0.031, -0.012, 0.074), "win rate", "+3.1% [−1.2%, +7.4%]"),
        (Interval(0.031, None, None), "win rate", "+3.1%, no interval"),
        (Interval(None, None, None), "win rate", "no data"),
        (Interval(0.0, 0.0, 0.0), "win rate", "0.0% [0.0%, 0.0%]"),
        (Interval(-1.234, -2.0, 0.5), "nats", "−1.23 [−2, +0.5]"),
    ],
)
def test_intervals_in_words(number: Interval, unit: str, words: str) -> None:
    assert interval_words(number, unit, signed=True) == words
    assert value_words(None, unit) == "no data"
