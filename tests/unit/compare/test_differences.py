"""Second minus first: values that are known, intervals that say what they cover, nothing made of nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pytest

from aligngap.compare import differences
from aligngap.compare.differences import Comparison, Quantity, TaskComparison, compare
from aligngap.errors import UserError
from unit.compare.fixture_runs import LOW, RISING, TASK, change, write_run

HIGHER = tuple(share + 0.1 for share in RISING)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("base"))


def _task(found: Comparison) -> TaskComparison:
    return found.tasks[0]


def _row(task: TaskComparison, family: str, key: str, judge: str = "golden") -> Quantity:
    pair = next(pair for pair in task.arms if pair.family == family)
    return next(row for row in pair.rows[judge] if row.key == key)


def _width(row: Quantity) -> float:
    assert row.difference.low is not None
    assert row.difference.high is not None
    return row.difference.high - row.difference.low


def _estimate(task: TaskComparison, key: str, experiment: str = "goodhart") -> Quantity:
    question = next(question for question in task.experiments if question.name == experiment)
    return next(row for row in question.rows if row.key == key)


def test_identical_runs_differ_by_exactly_nothing_and_say_so(base: Path) -> None:
    found = compare(base, base)
    assert found.settings == ()
    assert any("identical" in note for note in found.notes)
    task = _task(found)
    assert {pair.family for pair in task.arms} == {"online", "offline", "offline_proxy", "golden_policy"}
    rows = [row for pair in task.arms for rows in pair.rows.values() for row in rows]
    rows += [row for question in task.experiments for row in question.rows]
    assert len(rows) > 40
    for row in rows:
        nothing = 1.0 if row.key == "kl_at_peak_ratio" else 0.0
        known = (row.difference.value, row.difference.low, row.difference.high)
        assert known == (nothing, nothing, nothing), row.key
    assert all(pair.identical for pair in task.arms)
    assert "identical" in _row(task, "online", "average_gap").note


def test_a_known_difference_is_found_in_the_arm_that_has_it(base: Path, tmp_path: Path) -> None:
    task = _task(compare(base, write_run(tmp_path, wins={"online": HIGHER, "offline": LOW})))
    for key in ("average_gap", "peak_difference"):
        row = _row(task, "online", key)
        assert row.difference.value == pytest.approx(0.1, abs=0.02)
        assert row.difference.low is not None
        assert row.difference.low > 0
        assert (row.how, row.n_seeds, row.n_prompts) == (differences.PAIRED, 3, 200)
    gap = _row(task, "online", "average_gap")
    assert (gap.first, gap.second) == (None, None)  # it is a quantity of the two together
    assert _row(task, "online", "kl_at_peak_ratio").difference.value == pytest.approx(1.0)
    assert _row(task, "offline", "peak_difference").difference.value == 0.0
    # Of the two verdicts, the estimate that both rest on moved by as much.
    moved = _estimate(task, "average_gap")
    assert moved.how == differences.PAIRED
    assert moved.difference.value == pytest.approx(0.1, abs=0.02)


def test_paired_intervals_are_narrower_than_those_of_seeds_that_are_not_shared(base: Path, tmp_path: Path) -> None:
    wins = {"online": HIGHER, "offline": LOW}
    paired = _task(compare(base, write_run(tmp_path / "a", wins=wins)))
    apart = _task(compare(base, write_run(tmp_path / "b", wins=wins, seeds=(5, 6, 7, 8))))
    one, other = (_row(task, "online", "peak_difference") for task in (paired, apart))
    assert other.how == differences.PROMPTS_SHARED
    assert "3 against 4" in other.note
    assert other.difference.value == pytest.approx(0.1, abs=0.06)
    assert _width(one) < _width(other)
    pair = next(pair for pair in apart.arms if pair.family == "online")
    assert pair.seeds == "0, 1, 2 against 5, 6, 7, 8"
    # The golden policy's seed is that of every study, and does not make the seeds shared.
    assert _estimate(apart, "average_gap").how == differences.INDEPENDENT
    assert _width(_estimate(paired, "average_gap")) < _width(_estimate(apart, "average_gap"))


def test_seeds_that_one_run_alone_has_are_left_out_of_both(base: Path, tmp_path: Path) -> None:
    task = _task(compare(base, write_run(tmp_path, seeds=(2, 1, 9), wins={"online": RISING, "offline": LOW})))
    row = _row(task, "online", "peak_difference")
    assert (row.n_seeds, row.difference.value) == (2, 0.0)
    assert "2 seed(s) that only one run has left out" in row.note
    assert _estimate(task, "average_gap").n_seeds == 2
    assert _estimate(task, "average_gap").difference.value == 0.0


def test_one_seed_covers_prompts_only_and_says_so(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", seeds=(0,))
    second = write_run(tmp_path / "b", seeds=(0,), wins={"online": HIGHER, "offline": LOW})
    row = _row(_task(compare(first, second)), "online", "peak_difference")
    assert row.n_seeds == 1
    assert "prompts only" in row.note


def test_only_prompts_that_both_were_asked_are_compared(base: Path, tmp_path: Path) -> None:
    task = _task(compare(base, write_run(tmp_path, prompts=120)))
    row = _row(task, "online", "average_gap")
    assert (row.n_prompts, row.difference.value) == (120, 0.0)


def test_a_baseline_is_met_by_the_other_baseline_and_a_sweep_by_name(tmp_path: Path) -> None:
    sweep = "sweep.lr_factors=[1.0, 3.0]"
    first = write_run(tmp_path / "a", sweep, seeds=(0,))
    second = write_run(tmp_path / "b", sweep, "baseline.optim.lr=0.0015", "sweep.lr_factors=[1.0, 2.0]", seeds=(0,))
    task = _task(compare(first, second))
    pairs = {(pair.family, pair.first, pair.second) for pair in task.arms if pair.family == "offline"}
    # 0.0015 is the first run's sweep and the second run's baseline: they are not in the same place.
    assert pairs == {("offline", "offline lr=0.0005 beta=0.1", "offline lr=0.0015 beta=0.1")}
    assert "Only the first run has the arm offline lr=0.0015 beta=0.1." in task.missing
    assert "Only the second run has the arm offline lr=0.003 beta=0.1." in task.missing


def test_what_failed_is_named_and_nothing_is_made_of_it(base: Path, tmp_path: Path) -> None:
    task = _task(compare(base, write_run(tmp_path, failed=("online",))))
    assert "online" not in {pair.family for pair in task.arms}
    assert sum("made to fail" in line for line in task.missing) == 3
    row = _estimate(task, "average_gap")
    assert (row.second and row.second.value, row.difference.value) == (None, None)
    assert row.first is not None
    assert row.first.value is not None


def test_runs_without_a_finished_arm_in_common_are_refused(base: Path, tmp_path: Path) -> None:
    failed = ("online", "offline", "offline_proxy", "golden_policy")
    with pytest.raises(UserError, match="no arm is finished in both"):
        compare(base, write_run(tmp_path, failed=failed))


def test_outcomes_that_are_missing_are_not_zero(base: Path, tmp_path: Path) -> None:
    path = write_run(tmp_path) / "per_prompt.parquet"
    frame = pl.read_parquet(path)
    lost = (pl.col("family") == "online") & (pl.col("prompt_number") % 10 == 0)
    gone = (pl.col("family") == "offline") & pl.lit(True)
    frame.with_columns(
        win_golden_policy_golden=pl.when(lost | gone).then(math.nan).otherwise("win_golden_policy_golden"),
        win_golden_policy_true=pl.when(gone).then(None).otherwise("win_golden_policy_true"),
    ).write_parquet(path)
    task = _task(compare(base, tmp_path))
    online = _row(task, "online", "peak_difference").difference.value
    assert online == pytest.approx(0.0, abs=0.03)  # and not -0.1
    offline = next(pair for pair in task.arms if pair.family == "offline")
    assert all(row.difference.value is None for row in offline.rows["golden"] if row.key != "kl_at_peak_ratio")
    assert "true" not in offline.rows


def test_what_a_folder_cannot_recompute_is_taken_as_published(base: Path, tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "results.json"
    experiments = json.loads(path.read_text())["tasks"][TASK]["experiments"]
    known = {"label": "of tables", "unit": "accuracy", "n_seeds": 3, "n_prompts": 64, "note": ""}
    for folder, value in ((base, 0.6), (tmp_path, 0.7)):
        asked = {"made_up": experiments["goodhart"] | {"estimates": {"share": known | _within(value)}}}
        change(folder, experiments=experiments | asked)
    row = _estimate(_task(compare(base, tmp_path)), "share", "made_up")
    change(base, experiments=experiments)
    assert row.how == differences.PUBLISHED
    assert (row.difference.value, row.difference.low) == pytest.approx((0.1, 0.1 - 0.05 * 2**0.5))


def _within(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def test_estimates_of_other_prompts_are_made_anew_by_the_first_runs(base: Path, tmp_path: Path) -> None:
    task = _task(compare(base, write_run(tmp_path, "analysis.split=train")))
    assert any("by the first run's" in note for note in task.notes)
    assert task.split == "held_out"
    assert _estimate(task, "average_gap").difference.value == 0.0


def test_json_holds_no_nan(base: Path, tmp_path: Path) -> None:
    found = compare(base, write_run(tmp_path, failed=("offline",)))
    plain = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert plain["tasks"][TASK]["opponent"] == "golden_policy"
    assert plain["first"]["seeds"] == [0, 1, 2]
