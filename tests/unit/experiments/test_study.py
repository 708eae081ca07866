"""Studies as users write them, and the arms and stages that they become."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from aligngap.errors import UserError
from aligngap.experiments.shipped import shipped, shipped_text
from aligngap.experiments.spec import log_steps
from aligngap.experiments.study import arms, load_study, targets
from aligngap.pipeline.graph import all_stages
from aligngap.pipeline.stages import Arm, Evaluate


@pytest.mark.parametrize("name", list(shipped()))
@pytest.mark.parametrize("smoke", [False, True])
def test_shipped_studies_load_and_plan(name: str, smoke: bool) -> None:
    study = load_study(name, smoke=smoke)
    assert study.name == name
    assert study.smoke is smoke
    stages = all_stages(targets(study))
    assert len({stage.identity for stage in stages}) == len(stages)
    places = {stage.identity: place for place, stage in enumerate(stages)}
    assert all(places[parent.identity] < places[stage.identity] for stage in stages for parent in stage.parents)


def test_overrides_reach_what_they_name() -> None:
    study = load_study("quick", ["baseline.optim.lr=1e-3", "sweep.betas=[0.2, 0.4]", "analysis.judge=true"], seeds=3)
    assert (study.baseline.optim.lr, study.sweep.betas, study.seeds) == (1e-3, (0.2, 0.4), (0, 1, 2))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("baseline.optim.lrr=1", ["no key 'lrr'", "Did you mean 'lr'"]),
        ("baseline.optim.lr=-1", ["greater than 0", "baseline.optim.lr"]),
        ("baseline.optim.lr=fast", ["baseline.optim.lr", "fast"]),
        ("baseline.loss.name=ipp", ["no loss 'ipp'", "Did you mean 'ipo'"]),
        ("tasks=[sumarisation]", ["no task", "summarisation"]),
        ("tasks=[]", ["at least one task"]),
        ("experiments=[tandemm]", ["no experiment", "tandem"]),
        ("golden.model=pairwize", ["no preference model", "pairwise"]),
        ("seeds=[1, 1]", ["different numbers"]),
        ("device=gpu", ["device"]),
        ("nonsense", ["key=value"]),
        ("name.deeper=1", ["no keys below"]),
        ("seeds=[1", ["not valid YAML"]),
    ],
)
def test_a_mistake_is_named_with_its_place(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_study("quick", [override])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        load_study("quick", ["device=cuda"])


def test_unreadable_files(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("title: [unclosed\nseeds: [0]\n")
    with pytest.raises(UserError, match=r"bad\.yaml, line"):
        load_study(str(bad))
    bad.write_text("- a list\n")
    with pytest.raises(UserError, match="mapping"):
        load_study(str(bad))
    bad.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_study(str(bad))
    with pytest.raises(UserError, match="Did you mean 'quick'"):
        load_study("quik")


def test_a_file_of_ones_own_is_named_after_itself(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(yaml.safe_dump({**yaml.safe_load(shipped_text("quick")), "experiments": ["tandem"]}))
    study = load_study(str(own))
    assert study.name == "mine"
    assert {entry.family for entry in arms(study, "summarisation")} == {"golden_policy", "online", "replay"}


def test_experiments_share_arms_and_stages() -> None:
    """Adding an experiment trains nothing that exists."""
    one = all_stages(targets(load_study("quick", ["experiments=[goodhart]"])))
    both = all_stages(targets(load_study("quick", ["experiments=[goodhart, coverage]"])))
    added = {stage.identity for stage in both} - {stage.identity for stage in one}
    assert {stage.identity for stage in one} <= {stage.identity for stage in both}
    assert len(added) == 2  # the shuffled arm and its evaluation


def test_arms_of_a_seed_differ_only_in_source_and_stated_settings() -> None:
    found = [entry.stage for entry in arms(load_study("quick"), "summarisation") if entry.baseline]
    assert len(found) == 6
    for name in ("loss", "optim", "seed", "keep"):
        assert len({str(getattr(arm, name)) for arm in found}) == 1, name
    for name in ("sft", "task"):
        assert len({getattr(arm, name).identity for arm in found}) == 1, name


def test_seeds_share_sft_golden_and_golden_policy_but_not_the_proxy() -> None:
    stages = all_stages(targets(load_study("quick", seeds=2)))
    kinds = [(stage.kind, getattr(stage, "role", None)) for stage in stages]
    assert kinds.count(("sft", None)) == 1
    assert kinds.count(("preference", "golden")) == 1
    assert kinds.count(("preference", "proxy")) == 2
    golden_policies = [
        stage for stage in stages if isinstance(stage, Arm) and stage.judge and stage.judge.role == "golden"
    ]
    assert len(golden_policies) == 1
    opponents = {tuple(part.identity for part in stage.opponents) for stage in stages if isinstance(stage, Evaluate)}
    assert len(opponents) == 1


@pytest.mark.parametrize(("total", "count"), [(1000, 8), (24, 3), (1, 2), (5, 10)])
def test_checkpoints_are_log_spaced_from_the_start_to_the_end(total: int, count: int) -> None:
    steps = log_steps(total, count)
    assert steps[0] == 0
    assert steps[-1] == total
    assert list(steps) == sorted(set(steps))
    if total == 1000:
        ratios = [b / a for a, b in pairwise(steps[1:])]
        assert max(ratios) / min(ratios) < 1.2
