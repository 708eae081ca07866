"""The whole pipeline, every stage real, on random bases so small that it takes seconds."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from aligngap.experiments.gather import assemble, gather, summary
from aligngap.experiments.plan import Plan
from aligngap.experiments.study import load_study
from aligngap.models.build import Architecture, random_model
from aligngap.models.tokenizer import word_tokenizer
from aligngap.pipeline.graph import Outcome
from aligngap.pipeline.stages import Evaluate
from aligngap.results import COMPARISONS, PENDING, content, read
from aligngap.store.store import Store
from aligngap.tasks.worlds import WORLDS
from tiny import make_study

PROMPTS, STEPS = 12, 6
SMALL = [
    "experiments=[goodhart, coverage, tandem, classification]",
    "data.train_pairs=64",
    "data.held_out_pairs=32",
    "sft.steps=3",
    "golden.optim.steps=3",
    "proxy.optim.steps=3",
    "proxy.train_pairs=32",
    f"baseline.optim.steps={STEPS}",
    "baseline.optim.batch=4",
    "baseline.optim.warmup_steps=1",
    "baseline.optim.lr=0.01",
    "sweep.lr_factors=[1.0, 3.0]",
    "sweep.betas=[0.1]",
    f"evaluation.prompts={PROMPTS}",
    "evaluation.pairs=10",
    "evaluation.checkpoints=2",
    "analysis.replicates=100",
]


@dataclass(frozen=True)
class Finished:
    folder: Path
    plan: Plan
    results: dict[str, Any]
    lines: list[str]

    def arms(self, family: str) -> list[dict[str, Any]]:
        return [arm for arm in self.results["tasks"]["summarisation"]["arms"] if arm["family"] == family]

    def points(self, name: str) -> pl.DataFrame:
        """Of the one seed of an arm, without what is known of the arm."""
        return read(self.folder).points.filter(pl.col("arm") == name)[:, "step":]  # type: ignore[misc]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    tokenizer = word_tokenizer([word for place in WORLDS.values() for word in place().words()])
    for name, hidden in (("small", 16), ("medium", 24)):
        model = random_model(Architecture(hidden=hidden, layers=1, heads=2, intermediate=hidden), len(tokenizer), 0)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def run(bases: Path, folder: Path, *overrides: str) -> Finished:
    """As the executor does, in this process: every stage after its inputs."""
    models = [f"models.policy={bases}/small", f"models.proxy={bases}/small", f"models.golden={bases}/medium"]
    study = load_study("quick", [*models, *SMALL, *overrides])
    results = make_study(study, folder)
    return Finished(folder, Plan(study), results, summary(read(folder)))


@pytest.fixture(scope="module")
def once(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run(bases, tmp_path_factory.mktemp("one"))


def without(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, dict):
        return {key: without(part, names) for key, part in value.items() if key not in names}
    return [without(part, names) for part in value] if isinstance(value, list) else value


def test_results_have_the_documented_keys(once: Finished) -> None:
    written = json.loads((once.folder / "results.json").read_text())
    assert written == once.results
    assert written["schema"] == 2
    assert {"schema", "study", "smoke", "revision", "tasks", "timings", "versions"} <= set(written)
    task = written["tasks"]["summarisation"]
    assert {"arms", "stages", "experiments"} <= set(task)
    assert set(task["experiments"]) == {"goodhart", "coverage", "tandem", "classification"}
    for found in task["experiments"].values():
        assert found["verdict"] in ("supported", "contradicted", "inconclusive")
        assert found["rule"]
        assert found["estimates"]
        for estimate in found["estimates"].values():
            assert {"value", "low", "high", "n_seeds", "n_prompts"} <= set(estimate)
    assert {"sft", "golden", "proxy", "agreement"} <= set(task["stages"])
    judges = {"golden_rater", "golden_true", "rater_true", "proxy_golden", "proxy_true", "proxy_rater"}
    assert set(task["stages"]["agreement"]) == judges
    assert set(task["stages"]["agreement"]["proxy_golden"]["by_seed"]) == {"0"}
    assert set(task["stages"]["sizes"]) == {"policy", "golden", "proxy"}
    assert once.lines
    assert all("summarisation" in line for line in once.lines)


def test_every_arm_is_finished_and_measured_at_every_checkpoint(once: Finished) -> None:
    families = {"golden_policy": 1, "online": 1, "offline": 2, "replay": 1, "replay_mismatched": 1, "shuffled": 1}
    assert {family: len(once.arms(family)) for family in families} == families
    for family in families:
        for arm in once.arms(family):
            assert (arm["status"], arm["reason"]) == ("finished", None)
            assert len(arm["weights_sha256"]) == 64
            assert {"name", "source", "loss", "seed", "settings", "cost"} <= set(arm)
            points = once.points(arm["name"])
            assert points.select("step", "split").rows() == [
                (step, split) for step in (0, 1, STEPS) for split in ("train", "held_out")
            ]
            assert points.select("kl", "kl_se", "accuracy", "drift").null_count().sum_horizontal()[0] == 0
            for opponent, judge in ((who, judge) for who, judges in COMPARISONS.items() for judge in judges):
                assert points[f"n_{opponent}_{judge}"].to_list() == [PROMPTS] * 6
                assert points[f"rate_{opponent}_{judge}"].is_between(0, 1).all()
                assert points[f"ties_{opponent}_{judge}"].is_between(0, PROMPTS).all()


def test_every_stage_says_where_its_time_went(once: Finished) -> None:
    timings = once.results["timings"]
    went = {
        "arm": {"training"},
        "evaluate": {"evaluation", "sampling", "judging"},
        "sft": {"training"},
        "pairs": {"data"},
    }
    for stage in timings["stages"]:
        assert went.get(stage["kind"], set()) <= set(stage["spent"]), stage
        assert sum(stage["spent"].values()) == pytest.approx(stage["seconds"], abs=0.05)
        if stage["kind"] == "arm":
            live = {"sampling", "judging"} if "sampled" in stage["label"] else set()
            assert set(stage["spent"]) == {"training", *live}


def test_an_experiments_own_measure_is_made_and_read(once: Finished) -> None:
    task = once.results["tasks"]["summarisation"]
    (measure,) = task["measures"]
    assert (measure["name"], measure["seed"], measure["status"]) == ("stream_accuracy", 0, "finished")
    table = pl.read_parquet(Store(once.folder / "store").get(measure["identity"]).path / "table.parquet")
    assert table["pair"].max() == STEPS * 4 - 1  # the whole stream: six batches of four
    assert all(estimate["n_seeds"] == 1 for estimate in task["experiments"]["classification"]["estimates"].values())


def test_sft_is_pooled_over_all_worlds_and_arms_are_of_one(once: Finished) -> None:
    stages = [stage["label"] for stage in once.results["timings"]["stages"]]
    assert {f"{name}: raters' pairs" for name in WORLDS} <= set(stages)
    assert sum(label.startswith("SFT policy") for label in stages) == 1
    assert {label.partition(" ")[0] for label in stages if " arm: " in label and "evaluate" not in label} == {
        "summarisation"
    }


def test_every_arm_starts_at_sft_and_moves(once: Finished) -> None:
    for arm in once.results["tasks"]["summarisation"]["arms"]:
        kl = dict(once.points(arm["name"]).filter(split="held_out").select("step", "kl").rows())
        assert kl[0] == 0
        assert kl[STEPS] > 1e-6


def test_tandem_is_identical_and_nothing_else_is(once: Finished) -> None:
    online, replay = (once.arms(family)[0] for family in ("online", "replay"))
    assert online["weights_sha256"] == replay["weights_sha256"]
    assert once.points("online").equals(once.points("replay"))
    assert "1 of 1 seeds" in once.results["tasks"]["summarisation"]["experiments"]["tandem"]["sentence"]
    others = ("replay_mismatched", "shuffled", "offline", "golden_policy")
    weights = [arm["weights_sha256"] for arm in (online, *(arm for family in others for arm in once.arms(family)))]
    assert len(set(weights)) == len(weights)


class Hidden(Store):
    """A store that is only read, and lacks some artefacts."""

    def __init__(self, root: Path, hidden: Collection[str], partial: Path | None = None) -> None:
        super().__init__(root, reading=True)
        self._hidden, self._begun = hidden, partial

    def has(self, identity: str) -> bool:
        return identity not in self._hidden and super().has(identity)

    def unfinished(self, identity: str) -> Path:
        return self._begun or super().unfinished(identity)


def unfinished(
    once: Finished, hidden: Collection[str], partial: Path | None = None
) -> tuple[dict[str, Any], pl.DataFrame]:
    """Results of the task, and its points, while these artefacts are still to come."""
    outcome = Outcome(dict.fromkeys(hidden, PENDING), dict.fromkeys(hidden, "not finished yet"))
    store = Hidden(once.folder / "store", hidden, partial)
    results = assemble(once.plan, store, outcome, [gather(once.plan.tasks["summarisation"], store, outcome)])
    return content(results)["tasks"]["summarisation"], results.points


def test_what_is_still_to_come_is_named_and_nothing_is_concluded_from_it(once: Finished, tmp_path: Path) -> None:
    (shuffled,) = (arm for arm in once.plan.tasks["summarisation"].arms if arm.entry.family == "shuffled")
    evaluation = shuffled.evaluation
    whole = Store(once.folder / "store").get(evaluation.identity).path
    for kind, name in (("prompts", "per_prompt"), ("pairs", "per_pair")):
        rows = pl.read_parquet(whole / f"{name}.parquet").filter(pl.col("step") == 1)
        rows.write_parquet(Evaluate.file(tmp_path, kind, 1))
    found, points = unfinished(once, {evaluation.identity}, tmp_path)
    final = once.results["tasks"]["summarisation"]

    (arm,) = (arm for arm in found["arms"] if arm["family"] == "shuffled")
    assert (arm["status"], arm["reason"]) == ("pending", "not finished yet")
    begun = points.filter(pl.col("arm") == "shuffled")[:, "step":]  # type: ignore[misc]
    assert begun.equals(once.points("shuffled").filter(step=1))
    assert len(begun) == 2

    waits = found["experiments"]["coverage"]
    assert waits["verdict"] == "unfinished"
    assert waits["power"] is None
    assert all(estimate["p"] is None and estimate["null"] is None for estimate in waits["estimates"].values())
    states = {row["name"]: (row["finished"], row["pending"]) for row in waits["inputs"]}
    assert (states["shuffled"], states["online"]) == (([], [0]), ([0], []))
    for name in ("goodhart", "tandem", "classification"):
        assert found["experiments"][name] | {"holm": None} == final["experiments"][name] | {"holm": None}
    # Each adjusted p-value depends on all others.
    assert {experiment["holm"] for experiment in found["experiments"].values()} == {None}
    assert any(experiment["holm"] is not None for experiment in final["experiments"].values())


@pytest.mark.parametrize("name", ["goodhart", "coverage", "tandem", "classification"])
def test_what_an_experiment_concludes_rests_on_its_own_arms_and_measures(once: Finished, name: str) -> None:
    """So its verdict stands as soon as they have come, whatever else the study asks."""
    task = once.plan.tasks["summarisation"]
    mine = {entry.stage.identity for entry in task.asked[name].arms}
    own = {arm.evaluation.identity for arm in task.arms if arm.entry.stage.identity in mine}
    own |= {measure.stage.identity for measure in task.asked[name].measures}
    others = {stage.identity for stage in once.plan.targets if stage.kind == "evaluate"} - own
    found, _ = unfinished(once, others)
    final = once.results["tasks"]["summarisation"]["experiments"][name]
    assert found["experiments"][name] | {"holm": None} == final | {"holm": None}
    assert "unfinished" in {content["verdict"] for content in found["experiments"].values()}


def test_the_results_of_a_finished_study_wait_for_nothing(once: Finished) -> None:
    for found in once.results["tasks"]["summarisation"]["experiments"].values():
        assert found["verdict"] != "unfinished"
        assert all(row["finished"] and not row["failed"] and not row["pending"] for row in found["inputs"])


def test_cost_is_counted(once: Finished) -> None:
    for family, live in (
        ("golden_policy", True),
        ("online", True),
        ("replay", False),
        ("shuffled", False),
        ("offline", False),
    ):
        for arm in once.arms(family):
            assert arm["cost"]["judge_calls"] == (STEPS * 4 if live else 0)
            assert (arm["cost"]["tokens_sampled"] > 0) == live
            assert arm["cost"]["seconds"] > 0


def test_tables_beside_the_results(once: Finished) -> None:
    arms = len(once.results["tasks"]["summarisation"]["arms"])
    assert len(pl.read_parquet(once.folder / "points.parquet")) == 6 * arms
    prompts = pl.read_parquet(once.folder / "per_prompt.parquet")
    assert len(prompts) == 6 * PROMPTS * arms
    # Others can recompute every number: here the first arm's first KL and win rate.
    arm = once.arms("online")[0]
    for point in once.points(arm["name"]).to_dicts():
        part = prompts.filter(
            (pl.col("family") == "online") & (pl.col("step") == point["step"]) & (pl.col("split") == point["split"])
        )
        assert part["kl"].mean() == pytest.approx(point["kl"])
        assert part["win_golden_policy_golden"].mean() == pytest.approx(point["rate_golden_policy_golden"])
    samples = pl.read_parquet(once.folder / "samples.parquet")
    assert set(samples["who"]) == {"policy", "sft", "golden_policy"}
    assert samples["prompt"].str.ends_with("tl;dr").all()


def test_twice_is_the_same_but_for_times(once: Finished, bases: Path, tmp_path: Path) -> None:
    again = run(bases, tmp_path)
    times = ("timings", "seconds", "core_seconds")
    assert without(again.results, times) == without(once.results, times)
    for name in ("points", "per_prompt", "samples"):
        assert pl.read_parquet(tmp_path / f"{name}.parquet").equals(pl.read_parquet(once.folder / f"{name}.parquet"))


def test_another_seed_changes_all_but_what_is_shared(once: Finished, bases: Path, tmp_path: Path) -> None:
    other = run(bases, tmp_path, "seeds=[1]", "experiments=[tandem]", "shared=[pairs, sft, golden]")
    assert other.arms("online")[0]["weights_sha256"] != once.arms("online")[0]["weights_sha256"]
    assert other.arms("online")[0]["weights_sha256"] == other.arms("replay")[0]["weights_sha256"]
    # SFT, golden and the golden policy belong to all seeds of a study that says so.
    assert other.arms("golden_policy")[0]["weights_sha256"] == once.arms("golden_policy")[0]["weights_sha256"]
    shared = [run.results["tasks"]["summarisation"]["stages"] for run in (once, other)]
    assert (shared[0]["sft"], shared[0]["golden"]) == (shared[1]["sft"], shared[1]["golden"])
