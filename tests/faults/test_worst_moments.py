"""Real stages and results, killed at each of their moments, one kill after the other: they end as if undisturbed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aligngap.experiments.gather import collect
from aligngap.experiments.plan import Plan
from aligngap.pipeline.graph import Outcome, Stage, all_stages
from aligngap.store import Store
from faults.moments import moments_of_stages
from faults.work import make_results, make_stage
from tiny import Tiny, make

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


def stages(tiny: Tiny) -> dict[str, Stage]:
    """One of each kind that takes long, and so is killed more likely than others."""
    bench = tiny.bench
    online = bench.online(0)
    return {
        "sft": bench.sft,
        "proxy": bench.proxy(0),
        "arm": online.stage,
        "generate": bench.sampled_pairs(0, None, "final"),
        "evaluate": bench.evaluation(online),
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("seconds.json", "record.json", "manifest.json")
    }


@pytest.mark.parametrize("name", ["sft", "proxy", "arm", "generate", "evaluate"])
def test_a_stage_killed_at_every_moment_in_turn(tiny: Tiny, tmp_path: Path, name: str) -> None:
    stage = stages(tiny)[name]
    expected = contents(tiny.made(stage))
    store = Store(tmp_path / "store")
    for parent in all_stages(stage.parents):
        (store.root / parent.identity).symlink_to(tiny.made(parent))

    kills = sum(1 for _ in moments_of_stages(make_stage, stage, store.root))
    assert kills > 5
    assert contents(store.get(stage.identity).path) == expected
    assert store.verify([stage.identity]) == []
    store.sweep()
    assert list((store.root / ".temporary").iterdir()) == []
    assert list(store.partials()) == []


def test_results_killed_at_every_moment_in_turn(tiny: Tiny, tmp_path: Path) -> None:
    study = tiny.bench.study.model_copy(update={"experiments": ("tandem",)})
    plan = Plan(study)
    for target in plan.targets:
        make(target, tiny.store)
    outcome = Outcome({stage.identity: "finished" for stage in plan.stages})
    collect(plan, tiny.store, outcome, tmp_path)
    expected = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "again").mkdir()
    for _ in moments_of_stages(make_results, study, tiny.store.root, outcome, tmp_path / "again"):
        file = tmp_path / "again" / "results.json"
        assert not file.exists() or json.loads(file.read_text()) == expected
    assert json.loads((tmp_path / "again" / "results.json").read_text()) == expected
    for name in ("points", "per_prompt", "samples"):
        assert (tmp_path / "again" / f"{name}.parquet").read_bytes() == (tmp_path / f"{name}.parquet").read_bytes()
