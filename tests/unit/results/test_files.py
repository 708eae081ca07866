"""What is read from a result folder, and what is said of one that somebody has damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest

from aligngap.errors import UserError
from aligngap.results import (
    PENDING,
    SCHEMA,
    VERDICTS,
    ArmRecord,
    Conclusion,
    EstimateRecord,
    Figure,
    FigurePoint,
    StudyResults,
    Task,
    content,
    for_readers,
    read,
    read_per_prompt,
    write,
)
from aligngap.results.tables import typed_points
from aligngap.stats import verdict
from unit.report.fixture_results import UNRULY, write_results
from unit.results.made_up_points import row


def test_runs_and_points_are_counted(tmp_path: Path) -> None:
    data = read(write_results(tmp_path))
    assert data.runs.height == 30
    # The failed arm stays among the runs and has no point.
    failed = data.runs.filter(pl.col("status") == "failed")
    assert failed.height == 3
    assert data.points.filter(pl.col("run").is_in(failed["run"].to_list())).is_empty()


def test_the_peak_is_the_highest_held_out_win_rate(tmp_path: Path) -> None:
    data = read(write_results(tmp_path))
    run = data.runs.filter((pl.col("family") == "online") & (pl.col("seed") == 0)).to_dicts()[0]
    rows = data.points.filter((pl.col("run") == run["run"]) & (pl.col("split") == "held_out"))
    best = rows.sort("rate_golden_policy_golden", descending=True).to_dicts()[0]
    assert (run["peak_step"], run["at_split"]) == (best["step"], "held_out")
    assert run["end_step"] == 512


def test_extremes_are_of_held_out_prompts_where_there_are_any_and_the_first_of_equals() -> None:
    rate = "rate_golden_policy_golden"
    rows = [
        row(0, "a", split="train", step=1, **{rate: 0.9}),
        *(row(0, "a", step=step, kl=float(step), **{rate: value}) for step, value in ((1, 0.5), (2, 0.5), (3, 0.4))),
        row(1, "b", split="train", step=4, **{rate: 0.3}),
        row(2, "c", step=4),
    ]
    arms = tuple(ArmRecord(name=name, family=name, seed=0) for name in "abcd")
    points = typed_points(pl.concat(rows, how="diagonal_relaxed"))
    runs = StudyResults(tasks=(Task(name="t", arms=arms),), points=points).runs
    assert runs.select("peak_step", "peak_rate", "end_step", "end_kl", "at_split").rows() == [
        (1, 0.5, 3, 3.0, "held_out"),
        (4, 0.3, 4, None, "train"),
        (None, None, None, None, None),
        (None, None, None, None, None),
    ]


def test_missing_numbers_are_null_and_never_zero(tmp_path: Path) -> None:
    data = read(write_results(tmp_path, no_numbers=True))
    assert data.points.height > 0
    for name in ("kl", "kl_se", "rate_golden_policy_golden", "rate_sft_proxy", "accuracy", "drift"):
        assert data.points[name].null_count() == data.points.height
    assert data.runs["peak_step"].null_count() == data.runs.height
    assert data.tasks[0].golden_kl == {}


def test_golden_kl_is_the_mean_of_the_last_checkpoints(tmp_path: Path) -> None:
    data = read(write_results(tmp_path))
    last = data.points.filter(
        (pl.col("family") == "golden_policy") & (pl.col("step") == 512) & (pl.col("split") == "train")
    )
    assert data.tasks[0].golden_kl["train"] == pytest.approx(last["kl"].mean())


def test_a_folder_without_results_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results"):
        read(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[]", json.dumps({"schema": 99}), json.dumps({"schema": True}), "{}", "[" * 100_000, "\xff"]
)
def test_other_schemas_and_broken_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"schema|JSON") as caught:
        read(tmp_path)
    assert caught.value.where == str(tmp_path / "results.json")


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    data = read(write_results(tmp_path))
    write(data, pl.DataFrame({"task": ["t"], "arm": ["a"], "seed": [0], "step": [1], "prompt_number": [4]}), tmp_path)
    again = read(tmp_path)
    assert content(again) == content(data) == json.loads((tmp_path / "results.json").read_text())
    assert again.points.equals(data.points)
    assert again.samples.equals(data.samples)
    assert read_per_prompt(tmp_path)["prompt_number"].to_list() == [4]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_no_number_is_nan_or_infinite_and_whole_numbers_stay_whole(tmp_path: Path) -> None:
    figure = Figure("f", points=[FigurePoint("s", math.inf, math.nan, -math.inf, 1.0, 3)])
    made = EstimateRecord(name="gap", value=math.nan, low=-math.inf, high=0.5, n_seeds=2)
    task = Task(name="t", experiments=(Conclusion(name="e", estimates=(made,), figures=(figure,)),))
    results = StudyResults(
        tasks=(task,), study={"lr": math.nan, "list": (1, math.inf)}, points=row(0, "a", kl=math.nan)
    )
    write(results, pl.DataFrame(), tmp_path)
    raw = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert raw["schema"] == SCHEMA
    assert raw["study"] == {"lr": None, "list": [1, None]}
    found = raw["tasks"]["t"]["experiments"]["e"]
    assert [found["estimates"]["gap"][key] for key in ("value", "low", "high", "n_seeds")] == [None, None, 0.5, 2]
    assert [found["figures"][0]["points"][0][key] for key in ("x", "y", "low", "high", "seed")] == [None] * 3 + [1.0, 3]
    assert read(tmp_path).points["kl"].to_list() == [None]


def test_samples_may_be_absent_or_lack_columns(tmp_path: Path) -> None:
    write_results(tmp_path)
    pl.read_parquet(tmp_path / "samples.parquet").drop("margin_proxy").write_parquet(tmp_path / "samples.parquet")
    assert read(tmp_path).samples["margin_proxy"].null_count() == read(tmp_path).samples.height
    (tmp_path / "samples.parquet").unlink()
    assert read(tmp_path).samples.is_empty()


def test_points_may_not_be_absent(tmp_path: Path) -> None:
    write_results(tmp_path)
    (tmp_path / "points.parquet").unlink()
    with pytest.raises(UserError, match="points are missing"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["points", "samples"])
def test_a_table_that_cannot_be_read_is_one_error(tmp_path: Path, name: str) -> None:
    path = write_results(tmp_path) / f"{name}.parquet"
    for damage in (lambda: path.write_bytes(b"no table"), lambda: pl.DataFrame({"step": ["x"]}).write_parquet(path)):
        damage()
        with pytest.raises(UserError, match="not readable") as caught:
            read(tmp_path)
        assert caught.value.where == str(path)


def test_unruly_text_has_an_end_and_no_hidden_character_and_names_agree(tmp_path: Path) -> None:
    data = read(write_results(tmp_path, text=UNRULY, seeds=(0,)))
    texts = json.dumps(content(data), ensure_ascii=False)
    assert "\x1b" not in texts
    assert "\\u0000" not in texts
    assert "more characters)" in texts
    arms = {arm.name for arm in data.tasks[0].arms}
    assert set(data.points["arm"]) <= arms
    assert set(data.samples["arm"].drop_nulls()) <= arms
    assert max(map(len, arms)) <= 200
    assert content(for_readers(data)) == content(data)  # what is readable stays as it is


_TASK = "tasks.summarisation"


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        (lambda task, raw: task["arms"].append(None), rf"{_TASK}.arms\[10\]: "),
        (lambda task, raw: task["arms"].append({"family": "online"}), rf"{_TASK}.arms\[10\].name: Field required"),
        (lambda task, raw: task["arms"][3].update(seed="zero"), rf"{_TASK}.arms\[3\].seed: .*not a number: 'zero'"),
        (lambda task, raw: task["arms"][3].update(seed=0.5), rf"{_TASK}.arms\[3\].seed: .*not a whole number"),
        (lambda task, raw: task["arms"][3].update(cost=[1]), rf"{_TASK}.arms\[3\].cost: "),
        (lambda task, raw: task["arms"][3]["cost"].update(seconds=True), rf"{_TASK}.arms\[3\].cost.seconds: "),
        (lambda task, raw: task.update(measures={"a": 1}), f"{_TASK}.measures: "),
        (lambda task, raw: task.update(yardstick=4), f"{_TASK}.yardstick: "),
        (lambda task, raw: task["experiments"].update(odd=None), f"{_TASK}.experiments.odd: "),
        (lambda task, raw: task["experiments"].update(odd={"estimates": [1]}), r"experiments.odd.estimates\[0\]: "),
        (
            lambda task, raw: task["experiments"].update(odd={"figures": [{"points": [None]}]}),
            r"odd.figures\[0\].points",
        ),
        (lambda task, raw: task["experiments"].update(odd={"power": 1}), f"{_TASK}.experiments.odd.power: "),
        (lambda task, raw: raw["tasks"].update(nothing=None), "tasks.nothing: "),
        (lambda task, raw: raw.update(timings=[]), "timings: "),
        (lambda task, raw: raw.update(revision="abc"), "revision: "),
        (lambda task, raw: raw.update(study=None), "study: "),
    ],
)
@pytest.mark.parametrize("schema", [1, 2])
def test_an_odd_value_is_one_error_that_names_file_and_key(
    tmp_path: Path, damage: Callable[[dict[str, Any], dict[str, Any]], object], key: str, schema: int
) -> None:
    path = write_results(tmp_path, seeds=(0,), fail_one=False, schema=schema) / "results.json"
    raw = json.loads(path.read_text("utf-8"))
    damage(raw["tasks"]["summarisation"], raw)
    path.write_text(json.dumps(raw), "utf-8")
    with pytest.raises(UserError, match=key) as caught:
        read(tmp_path)
    assert caught.value.where == str(path)
    assert len(str(caught.value)) < 500


def test_what_another_version_adds_or_calls_otherwise_does_no_harm(tmp_path: Path) -> None:
    path = write_results(tmp_path, seeds=(0,)) / "results.json"
    raw = json.loads(path.read_text("utf-8"))
    found = raw["tasks"]["summarisation"]["experiments"]["goodhart"]
    found |= {"verdict": "proven", "new": 1, "figures": [{"name": "f", "mark": "pie", "points": []}, {"name": "empty"}]}
    path.write_text(json.dumps(raw), "utf-8")
    first = read(tmp_path).tasks[0].experiments[0]
    assert first.verdict == "inconclusive"
    assert [figure.mark for figure in first.figures] == ["point", "line"]


def test_significance_is_read_where_it_is_there(tmp_path: Path) -> None:
    first, second, _ = read(write_results(tmp_path)).tasks[0].experiments
    assert first.main is not None
    assert first.power is not None
    assert (first.main.p, first.main.null, first.holm, first.power.seeds) == (0.004, 0.0, 0.012, 7)
    assert second.main is not None
    assert (second.main.p, second.power) == (None, None)


def test_what_is_still_to_come_is_counted(tmp_path: Path) -> None:
    path = write_results(tmp_path, seeds=(0,)) / "results.json"
    assert read(tmp_path).pending == 0
    raw = json.loads(path.read_text("utf-8"))
    task = raw["tasks"]["summarisation"]
    for listed in (task["arms"], task["measures"]):
        listed[0]["status"] = PENDING
    path.write_text(json.dumps(raw), "utf-8")
    assert read(tmp_path).pending == 2


def test_the_words_of_verdicts_are_those_of_the_statistics() -> None:
    """Which import nothing of the project, and so have them once more."""
    assert get_args(verdict.Verdict) == VERDICTS
