"""What a result folder becomes, above all where numbers are missing."""

import json
import math
from pathlib import Path

import polars as pl
import pytest

from aligngap.errors import UserError
from aligngap.report.load import load
from unit.report.fixture_results import write_results


def test_points_and_runs_are_flat(tmp_path: Path) -> None:
    data = load(write_results(tmp_path))
    assert data.families == ["online", "offline", "replay", "shuffled", "golden_policy"]
    assert data.seeds == [0, 1, 2]
    assert data.runs.height == 30
    # The failed arm stays among the runs and has no point.
    failed = data.runs.filter(pl.col("status") == "failed")
    assert failed.height == 3
    assert data.points.filter(pl.col("run").is_in(failed["run"].to_list())).is_empty()


def test_the_peak_is_the_highest_held_out_win_rate(tmp_path: Path) -> None:
    data = load(write_results(tmp_path))
    run = data.runs.filter((pl.col("family") == "online") & (pl.col("seed") == 0)).to_dicts()[0]
    rows = data.points.filter((pl.col("run") == run["run"]) & (pl.col("split") == "held_out"))
    best = rows.sort("rate_golden_policy_golden", descending=True).to_dicts()[0]
    assert (run["peak_step"], run["at_split"]) == (best["step"], "held_out")
    assert run["end_step"] == 512


def test_missing_numbers_are_null_and_never_zero(tmp_path: Path) -> None:
    data = load(write_results(tmp_path, no_numbers=True))
    assert data.points.height > 0
    for name in ("kl", "kl_se", "rate_golden_policy_golden", "rate_sft_proxy", "accuracy", "drift"):
        assert data.points[name].null_count() == data.points.height
    assert data.runs["peak_step"].null_count() == data.runs.height
    assert data.tasks[0].golden_kl == {}


def test_golden_kl_is_the_mean_of_the_last_checkpoints(tmp_path: Path) -> None:
    data = load(write_results(tmp_path))
    last = data.points.filter(
        (pl.col("family") == "golden_policy") & (pl.col("step") == 512) & (pl.col("split") == "train")
    )
    assert data.tasks[0].golden_kl["train"] == pytest.approx(last["kl"].mean())


def test_a_folder_without_results_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"schema": 99})])
def test_other_schemas_and_broken_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError):
        load(tmp_path)


def test_samples_may_be_absent_or_lack_columns(tmp_path: Path) -> None:
    write_results(tmp_path)
    pl.read_parquet(tmp_path / "samples.parquet").drop("margin_proxy").write_parquet(tmp_path / "samples.parquet")
    assert load(tmp_path).samples["margin_proxy"].null_count() == load(tmp_path).samples.height
    (tmp_path / "samples.parquet").unlink()
    assert load(tmp_path).samples.is_empty()


def test_figures_keep_what_can_be_drawn_and_count_the_rest(tmp_path: Path) -> None:
    results = json.loads((write_results(tmp_path) / "results.json").read_text())
    content = results["tasks"]["summarisation"]["experiments"]["goodhart"]
    point = {"series": "online", "y": 0.1, "low": None, "high": None, "seed": None}
    content["figures"] = [
        {"name": "log", "mark": "line", "x_log": True, "points": [point | {"x": x} for x in (-1.0, 0.0, 1.0, None)]},
        {"name": "names", "mark": "no such mark", "points": [point | {"x": "a"}, point | {"x": "b", "y": math.nan}]},
        {"name": "empty"},
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    log, names, empty = load(tmp_path).tasks[0].experiments[0].figures
    assert ([p["x"] for p in log.points], log.dropped, log.named) == ([1.0], 3, False)
    assert ([p["x"] for p in names.points], names.dropped, names.named, names.mark) == (["a"], 1, True, "point")
    assert (empty.points, empty.dropped, empty.key) == ((), 0, "goodhart-empty")


def test_significance_is_read_where_it_is_there(tmp_path: Path) -> None:
    first, second, _ = load(write_results(tmp_path)).tasks[0].experiments
    assert first.main is not None
    assert (first.main.p, first.main.null, first.holm, first.power["seeds"]) == (0.004, 0.0, 0.012, 7)
    assert second.main is not None
    assert (second.main.p, second.power) == (None, {})
