"""Discrimination against generation: the rule on made-up arms, and self-classification on a tiny real run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from aligngap.experiments.base import Analysis, Finished
from aligngap.experiments.bench import ArmEntry
from aligngap.experiments.coverage import arms as coverage_arms
from aligngap.experiments.discrimination import arms, measures, table_name
from aligngap.experiments.discrimination.measure import SelfAccuracy
from aligngap.experiments.goodhart import arms as goodhart_arms
from aligngap.pipeline.stages import load_judge, load_policy
from aligngap.seeds import uniforms
from aligngap.stats.spearman import spearman
from aligngap.types import Tokens
from made_up import BENCH, LOW, PROMPTS, RISING, analysed, finished
from tiny import STEPS, Tiny

PAIRS = 300
CHANCE = [0.5] * 6
LEARNS = [0.5, 0.55, 0.6, 0.62, 0.65, 0.7]


def measured(entry: ArmEntry, wins: Sequence[float], accuracy: Sequence[float], drift: float = -1.0) -> Finished:
    """An arm with these win rates and accuracies at its six checkpoints, up to the prompts' and the seed's luck; train
    pairs are told a tenth better. Step 0 is there, too, and must not be looked at.
    """
    seed = entry.stage.seed
    g = np.random.default_rng(seed + 50)
    luck, prompts = g.random(PAIRS), np.random.default_rng(seed).random(PROMPTS)
    per_pair, per_prompt = [], []
    for split, (step, win, right) in product(
        ("train", "held_out"), zip(range(7), [0.9, *wins], [0.9, *accuracy], strict=True)
    ):
        share = right + 0.1 * (split == "train")
        columns = {"prompt_number": np.arange(PAIRS), "correct": (luck < share).astype(float)}
        columns["drift"] = drift * step / 6 + g.normal(0, 0.1, PAIRS)
        columns["drift"][0] = np.nan
        at = {"step": pl.lit(step), "split": pl.lit(split)}
        per_pair.append(pl.DataFrame(columns).with_columns(**at).reverse())
        won = {"prompt_number": np.arange(PROMPTS), "win_golden_policy_golden": (prompts < win).astype(float)}
        per_prompt.append(pl.DataFrame(won).with_columns(**at).reverse())
    return replace(finished(entry, wins), per_pair=pl.concat(per_pair), per_prompt=pl.concat(per_prompt))


def own_pairs(share: float, seed: int, ties: int = 0) -> pl.DataFrame:
    """Self-classification at steps 1 and 6, first half-way and then right on this share of the pairs."""
    frames = []
    for split, (step, right) in product(("train", "held_out"), ((1, (share + 0.5) / 2), (6, share))):
        correct = (np.random.default_rng([seed, step]).permutation(PAIRS) < right * PAIRS).astype(float)
        correct[:ties] = np.nan
        columns = pl.DataFrame({"prompt_number": np.arange(PAIRS), "correct": correct})
        frames.append(columns.select(step=pl.lit(step), split=pl.lit(split), **{c: pl.col(c) for c in columns.columns}))
    return pl.concat(frames)


def concluded(
    online: tuple[list[float], list[float]], offline: tuple[list[float], list[float]], seeds: int = 3, ties: int = 0
) -> Analysis:
    """(win rates, accuracies) of either; the shuffled stream is as online."""
    bench = replace(BENCH, study=BENCH.study.model_copy(update={"seeds": tuple(range(seeds))}))
    given = {"online": (*online, -1.0), "shuffled": (*online, -2.0), "offline": (*offline, -5.0)}
    runs = [measured(entry, *given[entry.family]) for entry in arms(bench)]
    own = {"online": 0.5, "offline": 0.6}
    tables = {(table_name(family), seed): own_pairs(own[family], seed, ties) for family in own for seed in range(seeds)}
    return analysed("discrimination", runs, tables)


PAPER = ((RISING, CHANCE), (LOW, LEARNS))


@pytest.mark.parametrize(
    ("online", "offline", "verdict"),
    [
        (*PAPER, "supported"),
        ((RISING, LEARNS), (LOW, CHANCE), "contradicted"),  # the better classifier writes better
        ((LOW, CHANCE), (RISING, LEARNS), "contradicted"),  # so again
        ((RISING, LEARNS), (LOW, LEARNS), "inconclusive"),  # equally good classifiers
        ((LOW, CHANCE), (LOW, LEARNS), "inconclusive"),
    ],
)
def test_rule(online: tuple[list[float], list[float]], offline: tuple[list[float], list[float]], verdict: str) -> None:
    found = concluded(online, offline)
    assert found.verdict == verdict
    assert next(iter(found.estimates)) == "accuracy_difference"


@pytest.fixture(scope="module")
def with_ties() -> Analysis:
    return concluded(*PAPER, ties=30)


def test_numbers_are_those_of_the_baseline_arms_at_the_end(with_ties: Analysis) -> None:
    found = {key: one.estimate for key, one in with_ties.estimates.items()}
    assert found["accuracy_difference"].value == pytest.approx(0.2, abs=0.03)
    assert found["accuracy_offline"].value == pytest.approx(0.7, abs=0.03)
    assert found["accuracy_offline_train"].value == pytest.approx(0.8, abs=0.03)
    assert found["drift_difference"].value == pytest.approx(-4, abs=0.05)
    assert found["drift_shuffled"].value == pytest.approx(-2, abs=0.05)
    assert found["drift_shuffled"].n_prompts == PAIRS - 1


def test_self_classification_leaves_out_and_counts_what_golden_calls_a_tie(with_ties: Analysis) -> None:
    found = {key: one.estimate for key, one in with_ties.estimates.items()}
    assert found["self_ties_online"].value == pytest.approx(0.1)
    assert found["self_online"].n_prompts == PAIRS - 30
    assert found["self_online"].value == pytest.approx(0, abs=0.03)
    assert found["self_online_train"].value == pytest.approx(0, abs=0.03)
    assert found["self_offline"].value == pytest.approx(0.1, abs=0.03)
    assert found["self_mean_offline"].value == pytest.approx(0.075, abs=0.03)


def test_correlations_within_and_across_arms_may_disagree() -> None:
    """Each arm classifies better as it wins more; the arms that classify best win least."""
    rising = np.linspace(0.5, 0.55, 6).tolist()
    found = concluded((RISING, rising), ([0.1, 0.12, 0.14, 0.16, 0.18, 0.2], LEARNS), seeds=2).estimates
    assert found["correlation_within"].estimate.value == pytest.approx(1, abs=0.05)
    assert found["correlation_end"].estimate.value < -0.8
    assert found["correlation_peak"].estimate.value < -0.8
    assert found["correlation_all"].estimate.value < 0.5
    one = found["correlation_end"].estimate
    assert -1 <= one.low <= one.value <= one.high <= 1
    each = len(arms(BENCH))
    assert f"({each} arms and {6 * each} checkpoints a seed)" in found["correlation_end"].label


def test_one_seed_says_what_it_covers() -> None:
    found = concluded(*PAPER, seeds=1)
    assert found.verdict == "supported"
    assert f"covers the {PAIRS} pairs only" in found.sentence
    assert f"covers the {PROMPTS} prompts only" in found.sentence


def test_nothing_is_concluded_from_nothing() -> None:
    found = analysed("discrimination", [])
    assert found.verdict == "inconclusive"
    assert all(np.isnan(one.estimate.value) for one in found.estimates.values())
    assert all(not figure.points for figure in found.figures)


def test_half_the_arms_are_half_the_numbers() -> None:
    """Offline failed: what online has is reported, and no difference is claimed."""
    entries = [entry for entry in arms(BENCH) if entry.family == "online"]
    found = analysed("discrimination", [measured(entry, RISING, CHANCE) for entry in entries])
    assert found.verdict == "inconclusive"
    assert np.isnan(found.estimates["accuracy_difference"].estimate.value)
    assert found.estimates["accuracy_online"].estimate.value == pytest.approx(0.5, abs=0.06)
    assert np.isnan(found.estimates["correlation_end"].estimate.value)  # one arm is no correlation


def test_figures_show_checkpoints_after_step_0(with_ties: Analysis) -> None:
    figures = {figure.name: figure for figure in with_ties.figures}
    assert len(figures) == 7
    dots = figures["win_rate_by_accuracy"].points
    assert len(dots) == 6 * 3 * len(arms(BENCH))
    assert {dot.series for dot in dots} == {"online", "offline", "shuffled"}
    ends = [dot for dot in dots if dot.series == "online" and dot.seed == 0]
    assert max(dot.y for dot in ends) == pytest.approx(0.6, abs=0.06)
    drift = [point for point in figures["drift_held_out"].points if point.series == "offline"]
    assert [point.x for point in drift] == [1, 2, 3, 4, 5, 6]
    assert [point.y for point in drift] == pytest.approx([-5 * k / 6 for k in range(1, 7)], abs=0.05)
    assert all(point.low < point.y < point.high for point in drift)  # type: ignore[operator]
    assert [point.x for point in figures["self_accuracy_train"].points] == [1, 6, 1, 6]


def test_rank_correlation_is_spearman_s() -> None:
    x, y = np.random.default_rng(0).integers(0, 6, (2, 20, 9)).astype(float)
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    assert spearman(x, y) == pytest.approx(expected)
    assert np.isnan(spearman(np.ones((1, 5)), y[:1, :5])).all()
    assert np.isnan(spearman(x[:, :2], y[:, :2])).all()


def test_arms_are_those_of_figure_1_and_of_coverage() -> None:
    own = [entry.stage.identity for entry in arms(BENCH)]
    shared = {entry.stage.identity for entry in (*goodhart_arms(BENCH), *coverage_arms(BENCH))}
    assert len(own) == len(set(own))
    assert set(own) < shared
    sweep = [entry for entry in goodhart_arms(BENCH) if entry.family == "offline"]
    assert [entry.family for entry in arms(BENCH)].count("offline") == len(sweep) > 1
    assert {entry.name: entry.seed for entry in measures(BENCH)} == {
        "self_accuracy online": 0,
        "self_accuracy offline": 0,
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("discrimination"))


def test_stage_agrees_with_sampling_and_asking_one_by_one(tiny: Tiny, tmp_path: Path) -> None:
    stage = measures(tiny.bench)[0].stage
    assert isinstance(stage, SelfAccuracy)
    found = pl.read_parquet(tiny.made(stage) / "table.parquet")
    assert sorted(found["step"].unique()) == [step for step in stage.arm.keep if step > 0]
    assert found.group_by("step", "split").len()["len"].to_list() == [stage.prompts] * 2 * len(stage.steps)
    context, sft, task = tiny.context(stage, tmp_path), stage.arm.sft, stage.arm.task
    golden = load_judge(stage.golden, context)
    policy = load_policy(context, sft, task, tiny.made(stage.arm) / f"steps/{STEPS:06d}.safetensors")
    reference = load_policy(context, sft, task)
    pairs = task.read(context, "held_out")
    rows = found.filter((pl.col("step") == STEPS) & (pl.col("split") == "held_out"))
    assert rows["prompt_number"].to_list() == pairs.prompt_numbers[: stage.prompts].tolist()
    told = 0
    for at, correct in enumerate(rows["correct"]):
        one = pairs.take(torch.tensor([at]))
        noise = uniforms(one.prompt_numbers, 2, policy.max_new_tokens, "self-classification", stage.arm.seed)
        with torch.no_grad():
            both = policy.sample(one.prompts, 2, noise).rows()
            first, second = (Tokens.collate([row]) for row in both)
            label = float(golden.prefer(one.prompts, first, second))
            margin = sum(
                sign * float(who.log_probs(one.prompts, [side])[0])
                for side, swap in ((first, 1), (second, -1))
                for who, sign in ((policy, swap), (reference, -swap))
            )
        if label == 0.5:
            assert np.isnan(correct)
        elif abs(margin) > 1e-4:  # beyond rounding
            assert correct == float((margin > 0) == (label == 1))
            told += 1
    assert told > 0


def test_what_is_measured_is_what_the_analysis_reads(tiny: Tiny) -> None:
    (entry,) = (entry for entry in arms(tiny.bench) if entry.family == "online")
    folder = tiny.made(tiny.bench.evaluation(entry))
    tables = [pl.read_parquet(folder / f"{name}.parquet") for name in ("per_pair", "per_prompt")]
    own = measures(tiny.bench)[0]
    made = pl.read_parquet(tiny.made(own.stage) / "table.parquet")
    arm = replace(finished(entry, RISING), per_pair=tables[0], per_prompt=tables[1])
    found = analysed("discrimination", [arm], {(own.name, own.seed): made})
    last = tables[0].filter((pl.col("step") == STEPS) & (pl.col("split") == "held_out"))
    assert found.estimates["accuracy_online"].estimate.value == pytest.approx(last["correct"].mean())
    assert found.estimates["drift_online"].estimate.value == pytest.approx(last["drift"].drop_nans().mean())
    dots = next(figure for figure in found.figures if figure.name == "win_rate_by_accuracy").points
    assert [dot.x for dot in dots][-1] == pytest.approx(last["correct"].mean())
    wins = tables[1].filter((pl.col("step") == STEPS) & (pl.col("split") == "held_out"))
    assert [dot.y for dot in dots][-1] == pytest.approx(wins["win_golden_policy_golden"].mean())
