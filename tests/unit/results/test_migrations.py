"""A result file as version 1 wrote it, from a real run that is kept here and trimmed: the same numbers, wherever they
are read. What is expected is taken from the raw JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import aligngap
from aligngap.cli import main
from aligngap.compare.differences import compare
from aligngap.report.page import render
from aligngap.results import content, read, write

KEPT = Path(__file__).parent / "schema_1"
PUBLISHED = Path(__file__).parents[3] / "docs" / "results"


def _nested(raw: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every number of every point, flat, as version 1 nests it."""
    arms = ((task, arm) for task, found in raw["tasks"].items() for arm in found["arms"])
    for run, (task, arm) in enumerate(arms):
        for point in arm["points"]:
            row = {"run": run, "task": task, "arm": arm["name"], "family": arm["family"], "seed": arm["seed"]}
            row |= {"lr": arm["settings"]["lr"], "beta": arm["settings"]["beta"], "identity": arm["identity"]}
            row |= {key: value for key, value in point.items() if key not in ("wins", "measures", "proxy")}
            for opponent, judges in point["wins"].items():
                for judge, win in judges.items():
                    row |= {f"{what}_{opponent}_{judge}": value for what, value in win.items()}
            yield row


def _known_then(new: Any, old: Any) -> Any:
    """A value without the keys that version 1 did not have."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: _known_then(new[key], value) for key, value in old.items()}
    if isinstance(old, list) and isinstance(new, list):
        return [_known_then(a, b) for a, b in zip(new, old, strict=True)]
    return new


@pytest.mark.parametrize("folder", [KEPT, PUBLISHED / "full", PUBLISHED / "paper"])
def test_points_estimates_and_verdicts_are_those_of_the_file(folder: Path) -> None:
    raw = json.loads((folder / "results.json").read_text("utf-8"))
    assert raw["schema"] == 1
    data = read(folder)
    expected = list(_nested(raw))
    assert len(expected) > 100
    assert data.points.select(expected[0].keys()).to_dicts() == expected
    now = content(data)
    for name, task in raw["tasks"].items():
        found = now["tasks"][name]
        arms = [{key: value for key, value in arm.items() if key != "points"} for arm in task["arms"]]
        assert _known_then(found["arms"], arms) == arms
        assert list(found["experiments"]) == list(task["experiments"])
        for key, old in task["experiments"].items():
            new = found["experiments"][key]
            assert _known_then(new, old) == old
            assert new["holm"] == task["holm"][key]
    assert (now["study"], now["versions"]) == (raw["study"], raw["versions"])


def test_the_kept_file_is_reported_compared_and_read_from_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = read(KEPT)
    page = render(data)
    for conclusion in data.tasks[0].experiments:
        assert conclusion.title in page
    assert "hold no task" not in page
    found = compare(KEPT, KEPT)
    assert "The runs are identical: every outcome that is compared is the same." in found.notes
    assert main(["compare", str(KEPT), str(KEPT)]) == 0
    assert "Experiments" in capsys.readouterr().out
    results = aligngap.open_run(KEPT)
    assert results.verdicts["verdict"].to_list() == [x.verdict for x in data.tasks[0].experiments]
    assert results.points.equals(data.points)
    assert len(results.per_prompt) > 0


def test_it_compares_with_the_same_results_in_todays_form(tmp_path: Path) -> None:
    write(read(KEPT), pl.read_parquet(KEPT / "per_prompt.parquet"), tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["schema"] == 2
    found = compare(KEPT, tmp_path)
    assert found.settings == ()
    assert all(pair.identical for task in found.tasks for pair in task.arms)
    assert all(one == two for task in found.tasks for q in task.experiments for one, two in [q.verdicts])


def test_a_stage_may_state_the_golden_policys_kl(tmp_path: Path) -> None:
    raw = json.loads((KEPT / "results.json").read_text("utf-8"))
    task = raw["tasks"]["summarisation"]
    task["arms"] = [arm for arm in task["arms"] if arm["family"] != "golden_policy"]
    task["stages"]["golden_policy"] = {"kl": 3.5}
    (tmp_path / "results.json").write_text(json.dumps(raw))
    assert read(tmp_path).tasks[0].golden_kl == {"train": 3.5, "held_out": 3.5}


def test_the_proxys_opinion_stands_for_its_win_rate_where_that_is_absent(tmp_path: Path) -> None:
    raw = json.loads((KEPT / "results.json").read_text("utf-8"))
    point = raw["tasks"]["summarisation"]["arms"][0]["points"][0]
    del point["wins"]["sft"]["proxy"]
    point["proxy"] = 0.125
    (tmp_path / "results.json").write_text(json.dumps(raw))
    assert read(tmp_path).points["rate_sft_proxy"][0] == 0.125


def test_bare_results(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"schema": 1}')
    assert "hold no task" in render(read(tmp_path))
