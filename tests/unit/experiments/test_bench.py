"""What a bench shares between arms, sizes, tasks and experiments, and what it keeps apart."""

from __future__ import annotations

from itertools import product

import pytest

from aligngap.errors import UserError
from aligngap.experiments.bench import Bench
from aligngap.experiments.spec import fifth
from aligngap.experiments.study import load_study
from aligngap.models.spec import Checkpoint
from aligngap.pipeline.graph import all_stages
from aligngap.pipeline.stages import Arm, Generate, Given, Pairs, Sft
from aligngap.sources.recorded import RecordedSpec
from aligngap.tasks.worlds.base import Dials

TASKS = ("summarisation", "helpfulness", "harmlessness", "arena")


@pytest.fixture
def bench() -> Bench:
    return Bench(load_study("quick"), "summarisation")


def test_a_bench_of_another_size_shares_all_but_the_policy(bench: Bench) -> None:
    other = bench.at_size(Checkpoint(path="medium"))
    for name in ("pairs", "golden", "golden_pairs", "golden_policy"):
        assert getattr(other, name).identity == getattr(bench, name).identity, name
    assert other.proxy(0).identity == bench.proxy(0).identity
    assert [part.identity for part in other.opponents] == [part.identity for part in bench.opponents]
    assert other.sft.base.name == other.online(0).stage.sft.base.name == "medium"
    assert other.sft.identity != bench.sft.identity
    for entry in (other.online(0), other.offline(0)):
        start = other.evaluation(entry).start
        assert start.sft.identity == other.sft.identity
        assert start.golden.identity == bench.golden.identity
        assert start.proxy.identity == bench.proxy(0).identity
    assert other.at_size(Checkpoint(path="small")).online(0).stage.identity == bench.online(0).stage.identity
    assert bench.at_size(Checkpoint(path="small")) == bench


def test_sft_is_pooled_over_the_studys_sft_tasks() -> None:
    study = load_study("paper", ["tasks=[summarisation, arena]"])
    first, second = (Bench(study, task) for task in study.tasks)
    assert [part.task.world for part in first.sft.pairs] == list(TASKS)
    assert first.sft.identity == second.sft.identity
    assert first.online(0).stage.identity != second.online(0).stage.identity
    # A study of one task shares the SFT policy with a study of all ...
    assert Bench(load_study("quick"), "summarisation").sft.identity == first.sft.identity
    # ... unless it names other tasks, or none: then its own.
    own = Bench(load_study("quick", ["sft_tasks=null"]), "summarisation").sft
    assert [part.task.world for part in own.pairs] == ["summarisation"]
    assert own.identity != first.sft.identity


def test_sampled_pairs_are_the_same_either_way_round(bench: Bench) -> None:
    sides = (None, "early", "final")
    made = {(a, b): bench.sampled_pairs(0, a, b) for a, b in product(sides, sides)}
    for (a, b), stage in made.items():
        assert stage.identity == made[b, a].identity
    assert len({stage.identity for stage in made.values()}) == 6
    assert bench.sampled_pairs(1, None, "final").identity != made[None, "final"].identity


def test_sampled_pairs_come_from_the_seeds_online_arm(bench: Bench) -> None:
    online = bench.online(0).stage
    steps = online.optim.steps
    early, final = bench.sampled_pairs(0, "early", "final"), bench.sampled_pairs(0, "final", "final")
    assert (early.first_step, early.second_step) == (fifth(steps), steps)
    assert (final.first_step, final.second_step) == (steps, steps)
    assert early.first is not None
    assert early.first.identity == online.identity
    assert {early.first_step, early.second_step} <= set(online.keep)  # an arm keeps the checkpoints that are sampled
    assert early.judge is not None
    assert early.judge.identity == bench.golden.identity
    assert early.origin == f"step {fifth(steps)} of seed 0 vs step {steps} of seed 0"
    sft = bench.sampled_pairs(0, None, None)
    assert (sft.first, sft.first_step, sft.second, sft.origin) == (None, None, None, "sft vs sft")


def test_recorded_arms_at_the_baseline_differ_in_their_pairs_only(bench: Bench) -> None:
    pairs = bench.sampled_pairs(0, "final", "final")
    entry, offline = bench.recorded(0, "quality", pairs), bench.offline(0)
    assert (entry.name, entry.family, entry.baseline) == ("quality", "quality", True)
    assert isinstance(entry.stage.recorded, Generate)
    assert entry.stage.specification == offline.stage.specification
    assert entry.stage.identity != offline.stage.identity


def test_a_slightly_different_replay_is_another_arm(bench: Bench) -> None:
    exact, dropped = (
        bench.on_stream(0, "replay", RecordedSpec(order="sequence", ends=ends)) for ends in ("kept", "dropped")
    )
    assert exact.stage.recorded is not None
    assert dropped.stage.recorded is not None
    assert exact.stage.recorded.identity == dropped.stage.recorded.identity == bench.online(0).stage.identity
    assert exact.stage.identity != dropped.stage.identity


def test_changed_losses_and_factors(bench: Bench) -> None:
    baseline = bench.study.baseline
    assert bench.loss() == baseline.loss
    assert bench.loss(beta=0.3).model_dump() == baseline.loss.model_dump() | {"beta": 0.3}
    assert bench.online(0).stage.identity == bench.online(0, loss=bench.loss()).stage.identity
    assert bench.online(0).baseline
    assert not bench.online(0, loss=bench.loss(beta=0.3)).baseline
    assert not bench.online(0, lr_factor=3.0).baseline
    longer = bench.offline(0, lr_factor=3.0, step_factor=2.0)
    assert longer.stage.optim.steps == longer.stage.keep[-1] == 2 * baseline.optim.steps
    assert longer.stage.optim.lr == pytest.approx(3 * baseline.optim.lr)
    assert not longer.baseline


def test_proxies_of_another_form_or_base_learn_from_the_same_labels(bench: Bench) -> None:
    own, pointwise, large = (
        bench.proxy(0),
        bench.proxy(0, model="pointwise"),
        bench.proxy(0, base=Checkpoint(path="medium")),
    )
    assert len({stage.identity for stage in (own, pointwise, large)}) == 3
    for stage in (own, pointwise, large):
        assert stage.pairs.identity == bench.golden_pairs.identity
        assert stage.train_pairs == bench.study.proxy.train_pairs


def test_tasks_share_the_sft_policy_and_nothing_of_the_raters() -> None:
    study = load_study("paper")
    of = {task: {stage.identity: stage for stage in all_stages([Bench(study, task).online(0).stage])} for task in TASKS}
    shared = set.intersection(*(set(stages) for stages in of.values()))
    kinds = [type(of["arena"][identity]) for identity in shared]
    assert kinds.count(Sft) == 1
    assert kinds.count(Pairs) == 4  # what the SFT policy is fine-tuned on
    assert len(kinds) == 5
    assert Arm not in kinds


def test_a_worlds_dials_reach_its_pairs_and_its_truth(bench: Bench) -> None:
    dials = ["worlds.summarisation.complexity=2", "worlds.summarisation.style=0.5"]
    study = load_study("quick", [*dials, "golden={judge: {kind: true}}"])
    set_, other = (Bench(study, task) for task in ("summarisation", "arena"))
    assert (set_.pairs.task.dials.complexity, set_.pairs.task.dials.style) == (2, 0.5)  # type: ignore[union-attr]
    truth, golden = set_.pairs.truth(), set_.golden
    assert truth is not None
    assert isinstance(golden, Given)
    assert truth.world.dials == golden.dials == set_.pairs.task.dials  # type: ignore[union-attr]
    assert set_.pairs.identity != bench.pairs.identity
    assert other.pairs.task.dials == Dials()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("worlds.summarization.style=1", "no world 'summarization'"),
        ("worlds.arena.complexity=9", "no complexity 9"),
        ("worlds.arena.length=17", "no responses of 17 tokens"),
        ("worlds.arena.style=2", "style"),
    ],
)
def test_dials_that_are_not_there_are_the_users_to_mend(setting: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_study("quick", [setting])
