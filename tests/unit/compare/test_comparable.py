"""What two runs must share, and what is said where they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from aligngap.compare.comparable import Side, flat, ground, settings_that_differ
from aligngap.compare.differences import compare
from aligngap.errors import UserError
from unit.compare.fixture_runs import TASK, change, write_run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("base"), seeds=(0,))


def _ground(base: Path, other: Path) -> tuple[tuple[str, ...], str, str]:
    found = ground(Side.read(base), Side.read(other), TASK)
    return found.opponents, found.refused, " ".join(found.notes)


@pytest.mark.parametrize(
    ("override", "what", "key"),
    [
        ("data.train_pairs=4000", "the pairs and prompts", "data.train_pairs: 8000 and 4000"),
        ("golden.optim.steps=900", "the golden judge", "golden.optim.steps: 1000 and 900"),
        ("models.golden=small", "the golden judge", "models.golden: medium and small"),
        ("sft.lr=0.001", "the SFT policy", "sft.lr: 0.0005 and 0.001"),
        ("sft_tasks=[summarisation]", "the SFT policy", "sft_tasks"),
        ("evaluation.seed=7", "the opponents' responses", "evaluation.seed: 0 and 7"),
    ],
)
def test_another_scale_is_refused_and_the_key_named(
    base: Path, tmp_path: Path, override: str, what: str, key: str
) -> None:
    opponents, refused, _ = _ground(base, write_run(tmp_path, override, seeds=(0,)))
    assert opponents == ()
    assert f"{what} ({key}" in refused
    # What is made from what differs is not named again, nor is any setting that does not matter.
    assert refused.count("(") == 1
    with pytest.raises(UserError, match="not comparable"):
        compare(base, tmp_path)


@pytest.mark.parametrize(
    "override", ["proxy.train_pairs=100", "sweep.lr_factors=[1.0, 3.0]", "seeds=[4, 5]", "analysis.margin=0.05"]
)
def test_what_people_compare_may_differ(base: Path, tmp_path: Path, override: str) -> None:
    opponents, refused, notes = _ground(base, write_run(tmp_path, override, seeds=(0,)))
    assert (opponents, refused, notes) == (("golden_policy", "sft"), "", "")


def test_another_golden_policy_leaves_the_sft_policys_responses_and_says_so(base: Path, tmp_path: Path) -> None:
    opponents, refused, notes = _ground(
        base, write_run(tmp_path, "baseline.loss.name=dpo", seeds=(0,), weights="another")
    )
    assert (opponents, refused) == (("sft",), "")
    assert "baseline.loss.name: ipo and dpo" in notes
    found = compare(base, tmp_path)
    assert {task.opponent for task in found.tasks} == {"sft"}


def test_a_golden_policy_with_the_same_weights_is_the_same(base: Path, tmp_path: Path) -> None:
    # More checkpoints are kept of it, which gives it another identity.
    opponents, _, _ = _ground(base, write_run(tmp_path, "evaluation.checkpoints=4", seeds=(0,)))
    assert opponents == ("golden_policy", "sft")


def test_another_version_of_the_code_is_named_where_no_setting_differs(base: Path, tmp_path: Path) -> None:
    write_run(tmp_path, seeds=(0,))
    yardstick = Side.read(tmp_path).data.task(TASK).yardstick
    change(tmp_path, yardstick=yardstick | {"golden": "0" * 64})
    _, refused, _ = _ground(base, tmp_path)
    assert "the golden judge (made by different versions of the code" in refused


def test_an_old_folder_is_judged_by_its_settings_with_a_caveat(base: Path, tmp_path: Path) -> None:
    same, other = (
        write_run(tmp_path / name, *more, seeds=(0,), record=False)
        for name, more in (("same", ()), ("other", ("golden.optim.steps=900",)))
    )
    opponents, _, notes = _ground(base, same)
    assert opponents == ("golden_policy", "sft")
    assert "from the settings alone" in notes
    assert "golden.optim.steps" in _ground(base, other)[1]


def test_an_old_folder_whose_settings_cannot_be_read_is_refused(base: Path, tmp_path: Path) -> None:
    write_run(tmp_path, seeds=(0,), record=False)
    path = tmp_path / "results.json"
    path.write_text(path.read_text().replace('"golden_policy_step_factor"', '"no_such_key"'))
    assert "cannot read their settings" in _ground(base, tmp_path)[1]


def test_settings_are_compared_by_their_dotted_keys(base: Path, tmp_path: Path) -> None:
    write_run(tmp_path, "baseline.optim.lr=0.001", "title=Another", seeds=(0, 1))
    found = settings_that_differ(Side.read(base), Side.read(tmp_path))
    assert found == [("seeds", [0], [0, 1]), ("baseline.optim.lr", 0.0005, 0.001)]
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_a_smoke_run_is_not_compared_with_a_whole_one(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="smoke"):
        compare(base, write_run(tmp_path, seeds=(0,), smoke=True))


def test_without_outcomes_prompt_by_prompt_nothing_is_made_up(base: Path, tmp_path: Path) -> None:
    write_run(tmp_path, seeds=(0,))
    (tmp_path / "per_prompt.parquet").unlink()
    with pytest.raises(UserError, match="prompt by prompt are missing"):
        compare(base, tmp_path)
    (tmp_path / "per_prompt.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="not readable"):
        compare(base, tmp_path)


def test_no_task_in_common(base: Path, tmp_path: Path) -> None:
    write_run(tmp_path, seeds=(0,))
    path = tmp_path / "results.json"
    path.write_text(path.read_text().replace('"tasks": {"summarisation"', '"tasks": {"arena"'))
    with pytest.raises(UserError, match="no task in common"):
        compare(base, tmp_path)
