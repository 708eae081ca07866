"""What trackers are given, read back with TensorBoard's own reader and from W&B's own offline files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from aligngap.cli import main
from aligngap.errors import UserError
from aligngap.experiments.bench import ArmEntry
from aligngap.experiments.plan import Plan
from aligngap.experiments.study import load_study
from aligngap.pipeline.graph import Event
from aligngap.pipeline.stages import Evaluate
from aligngap.trackers.base import chosen
from aligngap.trackers.tracking import series_of, tracking, values_of
from tiny import Tiny
from unit.trackers.wandb_files import offline_runs


def test_series_have_names_that_tell_them_apart() -> None:
    plan = Plan(load_study("paper", ["seeds=[0, 1]", "shared=[pairs, sft, golden]"]))
    found = series_of(plan)
    names = Counter(name for name in {series.key: series.name for series in found.values()}.values())
    assert max(names.values()) == 1
    assert {f"{task}/online/seed {seed}" for task in plan.tasks for seed in (0, 1)} <= set(names)
    assert "shared/SFT policy (small)" in names  # one for all tasks
    for entry in (arm.entry for arm in plan.tasks["arena"].arms):
        assert found[entry.stage.identity].settings["seed"] == entry.stage.seed
        json.dumps(found[entry.stage.identity].settings)


def test_a_checkpoints_values_leave_out_what_was_not_measured() -> None:
    wins = {"rate_sft_golden": 0.25, "se_sft_golden": 0.1, "n_sft_golden": 4, "rate_sft_true": float("nan")}
    point = {"split": "held_out", "kl": 0.5, "utility": None, "tokens": 7.0, "accuracy": float("nan"), "drift": -1.0}
    assert values_of([point | wins]) == {
        "on_held_out_prompts/kl": 0.5,
        "on_held_out_prompts/tokens": 7.0,
        "on_held_out_prompts/drift": -1.0,
        "on_held_out_prompts/win_rate_over_sft_by_golden": 0.25,
    }


def test_what_is_not_known_or_not_installed_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="no tracker 'tensorbord'") as caught:
        chosen(["tensorbord"])
    assert "tensorboard" in str(caught.value.hint)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "quick", "--track", "wandb"]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "hint: Install it with: pip install 'aligngap[wandb]'"
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@dataclass
class Study:
    """A tiny study with one evaluated arm, and a run's folder for each test."""

    tiny: Tiny
    plan: Plan
    entry: ArmEntry
    evaluation: Evaluate
    warnings: list[str] = field(default_factory=list)

    @contextmanager
    def tracked(self, folder: Path, *names: str) -> Iterator[Any]:
        folder.mkdir(exist_ok=True)
        with tracking(names, self.plan, self.tiny.store, folder, folder / "logs", self.warnings.append) as note:
            yield note

    @property
    def events(self) -> list[Event]:
        """What a run tells of this arm."""
        arm, evaluation = self.entry.stage, self.evaluation
        return [
            Event("started", arm),
            *(
                Event(
                    "progress", arm, step, 6, {"loss": 1 / step, "rewards/margins": step / 4, "grad_norm": 2.0 * step}
                )
                for step in (1, 2, 6)
            ),
            Event("finished", arm, seconds=3.0),
            Event("started", evaluation),
            Event("progress", evaluation, 3, 3),
            Event("finished", evaluation, seconds=1.0),
        ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Study:
    tiny = Tiny(tmp_path_factory.mktemp("tiny"))
    given = tiny.bench.study.model_dump(mode="json") | {"experiments": ["coverage"], "name": "try"}
    plan = Plan.recorded(given)
    arm = next(arm for arm in plan.tasks["summarisation"].arms if arm.entry.family == "offline")
    entry, evaluation = arm.entry, arm.evaluation
    tiny.made(evaluation)
    return Study(tiny, plan, entry, evaluation)


@pytest.fixture
def study(made: Study) -> Study:
    made.warnings.clear()
    return made


NAME = "summarisation/offline lr=0.01 beta=0.1/seed 0"


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def kl(study: Study, step: int) -> float:
    frame = pl.read_parquet(study.tiny.store.get(study.evaluation.identity).path / "per_prompt.parquet")
    value = frame.filter((pl.col("step") == step) & (pl.col("split") == "held_out"))["kl"].mean()
    assert isinstance(value, float)
    return value


def test_tensorboard_reads_what_was_tracked(study: Study, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with study.tracked(tmp_path, "tensorboard") as note:
        for event in study.events:
            note(event)
    assert study.warnings == []
    found = scalars(tmp_path / "tensorboard" / NAME)
    assert found["training/loss"] == [(1, 1.0), (2, 0.5), (6, pytest.approx(1 / 6))]
    assert [step for step, _ in found["training/grad_norm"]] == [1, 2, 6]
    assert found["training/rewards/margins"] == [(1, 0.25), (2, 0.5), (6, 1.5)]
    assert [step for step, _ in found["on_held_out_prompts/kl"]] == list(study.entry.stage.keep)
    assert found["on_held_out_prompts/kl"][-1][1] == pytest.approx(kl(study, 6), rel=1e-5)
    for name in ("win_rate_over_golden_policy_by_golden", "win_rate_over_sft_by_proxy", "utility", "accuracy"):
        assert len(found[f"on_train_prompts/{name}"]) == 3
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_run_that_goes_on_repeats_nothing_and_voids_what_was_lost(study: Study, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    arm = study.entry.stage
    with study.tracked(tmp_path, "tensorboard") as note:
        for step in (1, 2, 4, 5):
            note(Event("progress", arm, step, 6, {"loss": 1.0}))
    with study.tracked(tmp_path, "tensorboard") as note:  # killed at step 5, resumed from its checkpoint at 3
        for event in (Event("progress", arm, 4, 6, {"loss": 2.0}), *study.events[3:]):
            note(event)
    with study.tracked(tmp_path, "tensorboard") as note:
        note(Event("cached", arm))
        note(Event("cached", study.evaluation))
    found = scalars(tmp_path / "tensorboard" / NAME)
    assert [step for step, _ in found["training/loss"]] == [1, 2, 4, 6]
    assert found["training/loss"][2] == (4, 2.0)
    assert [step for step, _ in found["on_held_out_prompts/kl"]] == list(arm.keep)


def test_checkpoints_are_tracked_while_the_evaluation_goes_on(study: Study, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (shuffled,) = (arm for arm in study.plan.tasks["summarisation"].arms if arm.entry.family == "shuffled")
    evaluation = shuffled.evaluation
    folder = study.tiny.store.partial(evaluation.identity)
    whole = study.tiny.store.get(study.evaluation.identity).path
    for kind, name in (("prompts", "per_prompt"), ("pairs", "per_pair")):
        rows = pl.read_parquet(whole / f"{name}.parquet").filter(pl.col("step") == 0)
        rows.write_parquet(Evaluate.file(folder, kind, 0))
    with study.tracked(tmp_path, "tensorboard") as note:
        note(Event("progress", evaluation, 1, 3))
    found = scalars(tmp_path / "tensorboard" / "summarisation" / "shuffled" / "seed 0")
    assert found["on_held_out_prompts/kl"] == [(0, 0.0)]
    assert study.warnings == []


def test_wandb_keeps_what_was_tracked_offline(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    with study.tracked(tmp_path, "wandb") as note:
        for event in study.events:
            note(event)
    assert study.warnings == []
    (run,) = offline_runs(tmp_path / "wandb").values()
    token = json.loads((tmp_path / "tracked-wandb.json").read_text())["token"]
    assert (run.name, run.group, run.project) == (NAME, f"try-{token}", "aligngap")
    assert run.run_id.startswith(token)
    assert run.exit_code == 0
    assert (run.config["family"], run.config["seed"]) == ("offline", 0)
    assert run.config["identity"] == study.entry.stage.identity
    training = [(row["step"], row["training/loss"]) for row in run.rows if "training/loss" in row]
    assert training == [(1, 1.0), (2, 0.5), (6, 1 / 6)]
    evaluated = {row["step"]: row["on_held_out_prompts/kl"] for row in run.rows if "on_held_out_prompts/kl" in row}
    assert evaluated == {step: pytest.approx(kl(study, step)) for step in study.entry.stage.keep}


def test_a_failed_arm_ends_as_failed(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with study.tracked(tmp_path, "wandb") as note:
        note(Event("progress", study.entry.stage, 1, 6, {"loss": float("nan")}))
        note(Event("failed", study.entry.stage, reason="the loss became NaN"))
        note(Event("blocked", study.evaluation, reason="needs the arm"))
    (run,) = offline_runs(tmp_path / "wandb").values()
    assert run.exit_code == 1


def test_a_tracker_that_fails_is_one_warning_and_the_others_go_on(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B without a login."""
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with study.tracked(tmp_path / "run", "wandb", "tensorboard") as note:
        for event in study.events * 3:
            note(event)
    (warning,) = study.warnings
    assert warning.startswith("Tracking with wandb is off: UsageError: ")
    assert warning.endswith(" The run goes on.")
    assert len(scalars(tmp_path / "run" / "tensorboard" / NAME)["on_held_out_prompts/kl"]) == 3
    assert "Traceback" in (tmp_path / "run" / "logs" / "wandb.log").read_text()


def test_what_cannot_be_read_is_one_warning(study: Study, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    path = study.tiny.store.get(study.evaluation.identity).path / "per_pair.parquet"
    content = path.read_bytes()
    path.write_bytes(b"no parquet")
    try:
        with study.tracked(tmp_path, "tensorboard") as note:
            for event in study.events:
                note(event)
    finally:
        path.write_bytes(content)
    (warning,) = study.warnings
    assert warning.startswith("Evaluations are not tracked: ")
    assert scalars(tmp_path / "tensorboard" / NAME)["training/loss"]


def test_nothing_asked_for_starts_nothing(study: Study, tmp_path: Path) -> None:
    with study.tracked(tmp_path) as note:
        for event in study.events:
            note(event)
    assert list(tmp_path.iterdir()) == []
