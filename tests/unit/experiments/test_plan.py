"""Studies, compiled: the arms and stages that they become, who asks for which, and what they cost."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest

import aligngap
from aligngap.errors import UserError
from aligngap.experiments.base import Experiment
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.plan import Plan
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.experiments.shipped import shipped
from aligngap.experiments.study import load_study
from aligngap.pipeline.stages import Arm

WORLDS = ["summarisation", "helpfulness", "harmlessness", "arena"]


def plan_of(name: str, *settings: str) -> Plan:
    return Plan(load_study(name, settings))


@pytest.mark.parametrize("name", list(shipped()))
@pytest.mark.parametrize("smoke", [False, True])
def test_shipped_studies_load_and_plan(name: str, smoke: bool) -> None:
    study = load_study(name, smoke=smoke)
    assert study.name == name
    assert study.smoke is smoke
    plan = Plan(study)
    plan.check_models()
    stages = plan.stages
    assert len({stage.identity for stage in stages}) == len(stages)
    places = {stage.identity: place for place, stage in enumerate(stages)}
    assert all(places[parent.identity] < places[stage.identity] for stage in stages for parent in stage.parents)


def test_studies_that_extend_others_share_their_stages() -> None:
    """All but what looks at fewer prompts: the evaluations, their start and the opponents' responses."""
    quick, paper = (
        {
            stage.identity
            for stage in plan_of(name, "experiments=[goodhart]", *more).stages
            if stage.kind not in ("evaluate", "start", "responses")
        }
        for name, more in (("quick", []), ("paper", ["tasks=[summarisation, arena]"]))
    )
    assert quick < paper


def test_who_asked_for_a_stage() -> None:
    plan = plan_of("quick", "experiments=[goodhart, coverage]")
    users, stages = plan.users, plan.stages
    entries = [arm.entry for arm in plan.tasks["summarisation"].arms]
    assert set(users) == {stage.identity for stage in stages}
    assert all(names in (["goodhart"], ["coverage"], ["goodhart", "coverage"]) for names in users.values())
    of = {entry.family: entry.stage.identity for entry in entries if entry.baseline}
    assert users[of["online"]] == ["goodhart", "coverage"]
    assert users[of["shuffled"]] == ["coverage"]
    assert users[of["golden_policy"]] == ["goodhart", "coverage"]
    swept = [entry.stage.identity for entry in entries if not entry.baseline]
    assert swept
    # What the sweep adds is the first experiment's alone, unless the second draws it as well.
    assert all(users[identity][0] == "goodhart" for identity in swept)


def test_measures_are_targets_and_stand_on_the_arms_of_others() -> None:
    plain = plan_of("quick", "experiments=[goodhart]", "seeds=[0, 1]")
    assert plain.tasks["summarisation"].measures == []
    more = plan_of("quick", "experiments=[goodhart, classification]", "seeds=[0, 1]")
    found = more.tasks["summarisation"].measures
    assert sorted(entry.seed for entry in found) == [0, 1]
    wanted = {stage.identity for stage in more.targets}
    assert {entry.stage.identity for entry in found} <= wanted
    added = {stage.identity for stage in more.stages} - {stage.identity for stage in plain.stages}
    assert added == {entry.stage.identity for entry in found}  # nothing is trained for it


def test_a_measure_that_two_experiments_ask_for_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = replace(EXPERIMENTS["classification"], name="twin")
    monkeypatch.setitem(EXPERIMENTS, "twin", twin)
    plan = plan_of("quick", "experiments=[classification, twin]")
    (entry,) = plan.tasks["summarisation"].measures
    assert plan.users[entry.stage.identity] == ["classification", "twin"]
    assert [stage.identity for stage in plan.targets].count(entry.stage.identity) == 1


def test_experiments_share_arms_and_stages() -> None:
    """Adding an experiment trains nothing that exists."""
    one = plan_of("quick", "experiments=[goodhart]").stages
    both = plan_of("quick", "experiments=[goodhart, coverage]").stages
    made = {stage.identity for stage in one}
    assert made <= {stage.identity for stage in both}
    added = sorted(stage.kind for stage in both if stage.identity not in made)
    assert added == ["arm", "evaluate", "reference"]  # the shuffled arm, on the stream of online


def test_arms_of_a_seed_differ_only_in_source_and_stated_settings() -> None:
    entries = [arm.entry for arm in plan_of("quick").tasks["summarisation"].arms]
    found = [entry.stage for entry in entries if entry.baseline]
    assert len(found) == 7
    for name in ("loss", "optim", "seed", "keep"):
        assert len({str(getattr(arm, name)) for arm in found}) == 1, name
    for name in ("sft", "task"):
        assert len({getattr(arm, name).identity for arm in found}) == 1, name


ROLES = ("golden", "proxy")


def parts_of(*settings: str) -> dict[str, int]:
    """How many different stages of each kind a study of two seeds has, judges by their role."""
    stages = plan_of("quick", "seeds=[0, 1]", "sft_tasks=[summarisation]", *settings).stages
    kinds = [(stage.kind, getattr(stage, "role", None)) for stage in stages]
    count = {"sft": kinds.count(("sft", None)), "pairs": kinds.count(("pairs", None))}
    count |= {role: kinds.count(("preference", role)) for role in ROLES}
    arms = [stage for stage in stages if isinstance(stage, Arm) and stage.judge and stage.judge.role == "golden"]
    return count | {"golden policy": len(arms)}


def test_a_seed_varies_all_that_is_drawn() -> None:
    assert parts_of() == dict.fromkeys(("sft", "pairs", "golden", "proxy", "golden policy"), 2)


@pytest.mark.parametrize(
    ("shared", "once"),
    [
        ("golden", {"golden"}),
        ("sft", {"sft"}),
        ("pairs", {"pairs"}),
        ("pairs, sft, golden", {"pairs", "sft", "golden", "golden policy"}),
    ],
)
def test_what_a_study_says_that_its_seeds_share_is_made_once(shared: str, once: set[str]) -> None:
    count = parts_of(f"shared=[{shared}]", "data.golden_pairs=100")
    # Golden that is shared learns from its own pairs, which are shared with it.
    count["pairs"] -= 1 if "golden" in shared else 2
    assert {name for name, number in count.items() if number == 1} == once


def test_two_seeds_learn_from_other_pairs_and_are_asked_the_same_prompts() -> None:
    """The first laboratory's proxies all learned from the same first 250 pairs."""
    study = load_study("quick", ["seeds=[0, 1]"])
    benches = [Bench(study, "summarisation").of(seed) for seed in study.seeds]
    proxies = [bench.proxy(seed) for seed, bench in enumerate(benches)]
    assert [proxy.pairs.pairs.task.seed for proxy in proxies] == [0, 1]  # type: ignore[attr-defined]
    for seed, bench in enumerate(benches):
        for entry in (bench.online(seed), bench.offline(seed), bench.offline_proxy(seed)):
            evaluation = bench.evaluation(entry)
            assert evaluation.start.task == bench.pairs == entry.stage.task
            assert evaluation.start.golden == bench.golden
            assert entry.stage.sft == bench.sft
    first, second = benches
    mixed = first.online(1)  # whichever seed the bench is for
    assert mixed.stage.identity == second.online(1).stage.identity
    assert first.evaluation(mixed).identity == second.evaluation(mixed).identity


def test_how_many_processes_make_a_stage_is_in_no_identity() -> None:
    plain, several = (
        {stage.identity for stage in plan_of("quick", *more).stages}
        for more in ([], ["parallel.processes=2", "parallel.sharding=full"])
    )
    assert several == plain


def test_factors_that_leave_no_number_are_refused() -> None:
    with pytest.raises(UserError, match="lr inf") as caught:
        _ = plan_of("quick", "baseline.optim.lr=1e200", "sweep.lr_factors=[1e200]").targets
    assert "sweep" in str(caught.value.where)
    with pytest.raises(UserError, match="steps 0"):
        _ = plan_of("quick", "sweep.step_factors=[0.0001]").targets


def test_a_plan_shows_what_the_study_says() -> None:
    plan = Plan(load_study("full", ["device=mps", "analysis.margin=0.03"], seeds=2, smoke=True))
    assert (plan.name, plan.smoke, plan.seeds, plan.device) == ("full", True, (0,), "mps")
    assert plan.analysis.margin == 0.03
    assert plan.specification["title"] == plan.title
    assert json.loads(json.dumps(plan.specification)) == plan.specification


def test_a_recorded_study_has_the_same_plan() -> None:
    plan = plan_of("quick", "seeds=[0, 1]")
    again = Plan.recorded(json.loads(json.dumps(plan.specification)))
    assert [stage.identity for stage in again.stages] == [stage.identity for stage in plan.stages]
    assert again.users == plan.users


def test_every_experiment_is_asked_in_the_four_worlds() -> None:
    plan = plan_of("paper")
    assert list(plan.tasks) == WORLDS
    for task in plan.tasks.values():
        assert list(task.asked) == list(plan.experiments)
        assert task.not_asked == {}
        entries = [arm.entry for arm in task.arms]
        known = {(entry.family, entry.stage.identity) for entry in entries}
        assert len(known) == len(entries)
        needed = {(entry.family, entry.stage.identity) for needs in task.asked.values() for entry in needs.arms}
        assert known - needed == {("golden_policy", task.bench.golden_policy.identity)}
        assert entries[-1].family == "golden_policy"
        assert all(arm.evaluation.arm.identity == arm.entry.stage.identity for arm in task.arms)
        measured = {measure.stage.identity for needs in task.asked.values() for measure in needs.measures}
        assert {measure.stage.identity for measure in task.measures} == measured
    arms = [{arm.entry.stage.identity for arm in task.arms} for task in plan.tasks.values()]
    assert len(set.union(*arms)) == sum(map(len, arms))


def test_users_are_those_who_would_need_the_stage_alone() -> None:
    plan = plan_of("paper", "tasks=[arena]", "sft_tasks=[arena, summarisation]")
    assert set(plan.users) == {stage.identity for stage in plan.stages}
    for name in plan.experiments:
        alone = {
            stage.identity
            for stage in plan_of(
                "paper", "tasks=[arena]", "sft_tasks=[arena, summarisation]", f"experiments=[{name}]"
            ).stages
        }
        assert {stage.identity for stage in plan.used_by(name)} == alone, name
        assert {identity for identity, names in plan.users.items() if name in names} == alone, name
        own = {stage.identity for stage in plan.used_by(name, alone=True)}
        assert own == {identity for identity in alone if plan.users[identity] == [name]}, name


def test_an_experiment_is_asked_once_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []

    def counted(name: str, experiment: Experiment) -> Experiment:
        def arms(bench: Bench) -> list[ArmEntry]:
            calls.append((name, bench.task))
            return experiment.arms(bench)

        return replace(experiment, name=name, arms=arms)

    for name, like in (("first", "goodhart"), ("second", "coverage")):
        monkeypatch.setitem(EXPERIMENTS, name, counted(name, EXPERIMENTS[like]))
    plan = plan_of("quick", "experiments=[first, second]", "tasks=[summarisation, arena]")
    assert calls == []
    for task in plan.tasks.values():
        assert task.yardstick.keys() == {"pairs", "golden", "sft", "golden_policy"}
    assert calls == []  # who compares two runs needs no arms
    for _ in range(2):
        assert plan.targets
        assert plan.users
        assert all(task.reads for task in plan.tasks.values())
    assert sorted(calls) == [(name, task) for name in ("first", "second") for task in ("arena", "summarisation")]


def test_estimates_are_sums_of_the_stages() -> None:
    plan = plan_of("quick")
    total = sum(stage.work for stage in plan.stages)
    assert plan.work() == pytest.approx(total)
    assert plan.duration(1) == pytest.approx(total)
    assert max(stage.work for stage in plan.stages) <= plan.duration(2) < total
    first = plan.stages[0]
    assert plan.work({first.identity}) == pytest.approx(total - first.work)
    assert (
        plan.duration(1, {stage.identity for stage in plan.stages})
        == plan.work({stage.identity for stage in plan.stages})
        == 0
    )


def test_further_measures_of_every_arm() -> None:
    plain, more = plan_of("quick"), plan_of("quick", "evaluation.measures=[repetition]")
    (task,) = more.tasks.values()
    assert [[stage.measure for stage in arm.measured] for arm in task.arms] == [["repetition"]] * len(task.arms)
    added = {stage.identity for stage in more.stages} - {stage.identity for stage in plain.stages}
    assert added == {stage.identity for arm in task.arms for stage in arm.measured}


def own_data(folder: Path) -> Path:
    """A study's file, with 80 pairs beside it."""
    rows = [{"prompt": f"Say {n}.", "chosen": f" {n}!", "rejected": " No."} for n in range(80)]
    (folder / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "mine.yaml"
    file.write_text(
        "extends: quick\nexperiments: [goodhart, golden, scaling]\nmodels: {sizes: [small]}\n"
        "datasets: {numbers: {source: numbers.jsonl, held_out_pairs: 16}}\n"
    )
    return file


def test_the_plan_of_a_users_data_set_says_what_is_not_asked(tmp_path: Path) -> None:
    plan = plan_of(str(own_data(tmp_path)))
    (task,) = plan.tasks.values()
    assert (task.task, list(task.asked)) == ("numbers", ["goodhart"])
    assert list(task.not_asked) == ["golden", "scaling"]
    assert all(reason.endswith(".") for reason in task.not_asked.values())
    kinds = [stage.kind for stage in plan.stages]
    assert (kinds.count("pairs"), kinds.count("sft")) == (1, 1)
    # What cannot be asked needs no more than what is there whoever asks: the agreement, and the golden policy.
    assert plan.used_by("golden") == plan.used_by("scaling")
    assert {stage.kind for stage in task.wanted_by("golden")} == {"agreement", "evaluate"}
    assert plan.used_by("golden", alone=True) == []


def test_models_that_cannot_be_had_are_told_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        plan_of("quick", f"models.policy={tmp_path}/nowhere").check_models()


def readers(root: Path) -> set[str]:
    """Modules that import StudySpec, take it from a module that they have imported, or read a bench's study."""

    def reads(node: ast.AST) -> bool:
        if isinstance(node, ast.ImportFrom):
            return any(alias.name == "StudySpec" for alias in node.names)
        if not isinstance(node, ast.Attribute):
            return False
        return node.attr == "StudySpec" or ast.unparse(node).endswith("bench.study")

    texts = {file.relative_to(root).as_posix(): file.read_text("utf-8") for file in root.rglob("*.py")}
    return {
        module
        for module, text in texts.items()
        if ("StudySpec" in text or "bench" in text) and any(map(reads, ast.walk(ast.parse(text))))
    }


def test_nobody_outside_experiments_reads_a_study() -> None:
    """But `api`, where a user has one in hand: it is compiled there, at once."""
    outside = {module for module in readers(Path(aligngap.__file__).parent) if not module.startswith("experiments/")}
    assert outside == {"api.py"}


@pytest.mark.parametrize(
    "text",
    [
        "from aligngap.experiments.spec import AnalysisSpec, StudySpec",
        "from aligngap.experiments import spec\nspec.StudySpec",
        "def late():\n    from aligngap.experiments.spec import StudySpec as S",
        "def seeds(bench):\n    return bench.study.seeds",
    ],
)
def test_who_reads_a_study_is_seen(tmp_path: Path, text: str) -> None:
    (tmp_path / "late.py").write_text(text)
    (tmp_path / "other.py").write_text("from aligngap.experiments.plan import Plan")
    assert readers(tmp_path) == {"late.py"}
