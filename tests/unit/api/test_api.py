"""Results as a notebook takes them up; the numbers are the report fixture's."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import altair as alt
import polars as pl
import pytest

import aligngap
from aligngap.errors import UserError
from unit.report.fixture_results import write_results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> aligngap.Results:
    folder = tmp_path_factory.mktemp("run")
    write_results(folder)
    return aligngap.open_run(folder)


def test_verdicts_and_estimates_are_those_of_the_file(results: aligngap.Results) -> None:
    experiments = {
        (task, name): found
        for task, part in results.raw["tasks"].items()
        for name, found in part["experiments"].items()
    }
    assert [tuple(row) for row in results.verdicts.select("task", "experiment").rows()] == list(experiments)
    assert results.verdicts["verdict"].to_list() == [found["verdict"] for found in experiments.values()]
    (task, name), found = next(iter(experiments.items()))
    key, first = next(iter(found["estimates"].items()))
    row = results.estimates.filter(pl.col("task") == task, pl.col("experiment") == name).row(0, named=True)
    assert (row["estimate"], row["value"], row["low"]) == (key, first["value"], first["low"])
    assert "<table" in results._repr_html_()


def test_charts_are_altair_and_hold_the_data(results: aligngap.Results) -> None:
    found = results.charts()
    assert found
    assert all(isinstance(chart, alt.TopLevelMixin) for chart in found.values())
    assert any("goodhart" in name or "win" in name for name in found)
    assert len(next(iter(found.values())).to_json()) > 1000
    with pytest.raises(UserError, match="no split"):
        results.charts(split="test")


def test_no_results_is_an_error_of_the_users(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results"):
        aligngap.open_run(tmp_path)


def test_what_cannot_be_run_is_an_error_of_the_users() -> None:
    with pytest.raises(UserError, match="Did you mean 'quick'"):
        aligngap.run("quik")
    with pytest.raises(UserError, match="loaded already"):
        aligngap.run(aligngap.load("quick"), seeds=2)
    with pytest.raises(UserError, match="no executor 'rya'"):
        aligngap.run("quick", executor="rya")
    with pytest.raises(UserError, match="artefacts at a URL are for"):
        aligngap.run("quick", store="memory://here")
    with pytest.raises(UserError, match="no tracker 'tensorbord'"):
        aligngap.run("quick", track=["tensorbord"])


def test_settings_are_values_or_words() -> None:
    changes: dict[str, object] = {"baseline.optim.lr": 1e-5, "tasks": ["arena"], "sft": None, "title": "a: [b]"}
    study = aligngap.load("quick", changes, seeds=2, smoke=True)
    assert (study.baseline.optim.lr, study.tasks, study.sft, study.title) == (1e-5, ("arena",), None, "a: [b]")
    assert study.smoke
    words = aligngap.load(
        "quick", ["baseline.optim.lr=0.00001", "tasks=[arena]", "sft=null", "title='a: [b]'"], seeds=2
    )
    assert words.shrunk() == study


def test_what_is_missing_is_listed(results: aligngap.Results) -> None:
    listed = [
        (task, arm["name"], arm["seed"], arm["status"], arm["reason"])
        for task, part in results.raw["tasks"].items()
        for arm in part["arms"]
        if arm["status"] != "finished"
    ]
    arms = results.missing.filter(pl.col("what") == "arm")
    assert arms.select("task", "name", "seed", "status", "reason").rows() == listed
    assert listed
    assert "Missing from these results" in results._repr_html_()


def test_a_notebook_shows_text_as_text(results: aligngap.Results) -> None:
    shown = replace(results)
    shown.__dict__["verdicts"] = results.verdicts.with_columns(sentence=pl.lit("<script>" + "long " * 100))
    assert "<script>" not in shown._repr_html_()
    assert "long " * 100 in shown._repr_html_()


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, aligngap; print(sorted({'torch', 'polars', 'altair', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
