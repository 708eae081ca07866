"""Classifiers along the online stream: the rule on made-up tables, and the stage on a tiny real run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from aligngap.experiments.base import Analysis
from aligngap.experiments.classification import measures
from aligngap.experiments.classification.measure import StreamAccuracy, windows
from aligngap.pipeline.stages import load_judge, load_policy, predictions
from aligngap.tasks.pairs import read_pairs
from made_up import analysed
from tiny import STEPS, Tiny

POINTS, PAIRS = 10, 64
LEVEL = [0.7] * POINTS
FALLING = np.linspace(0.95, 0.65, POINTS).tolist()
CHANCE = [0.5] * POINTS


def table(accuracy: dict[str, Sequence[float]], seed: int, ties: int = 0) -> pl.DataFrame:
    """Each classifier is right on the share asked for of each step's pairs, the easiest ones; the last are ties."""
    g = np.random.default_rng(seed)
    shift = 0.02 * g.normal()  # seeds differ, for all classifiers alike
    frames = []
    for k in range(POINTS):
        order = g.permutation(PAIRS)
        for name, levels in accuracy.items():
            right = (np.arange(PAIRS) < round((levels[k] + shift) * PAIRS)).astype(float)
            right[PAIRS - ties :] = np.nan
            columns = {"step": 50 * (k + 1), "pair": 1600 * k + np.arange(PAIRS), "correct": right[order]}
            frames.append(pl.DataFrame(columns).with_columns(classifier=pl.lit(name)))
    return pl.concat(frames)


def concluded(
    proxy: Sequence[float], online: Sequence[float], offline: Sequence[float], seeds: int = 5, ties: int = 0
) -> Analysis:
    given = {"proxy": proxy, "online": online, "offline": offline, "true": [0.9] * POINTS}
    tables = {("stream_accuracy", seed): table(given, seed, ties) for seed in range(seeds)}
    return analysed("classification", [], tables)


@pytest.mark.parametrize(
    ("proxy", "online", "offline", "verdict"),
    [
        (FALLING, CHANCE, [0.6] * POINTS, "supported"),
        (FALLING, [0.95] * POINTS, CHANCE, "contradicted"),  # a policy is ahead
        (FALLING[::-1], CHANCE, CHANCE, "contradicted"),  # grows better as the stream drifts
        (LEVEL, CHANCE, CHANCE, "inconclusive"),  # best, but no decay to be seen
        (LEVEL, LEVEL, LEVEL, "contradicted"),  # all within the margin
    ],
)
def test_rule(proxy: list[float], online: list[float], offline: list[float], verdict: str) -> None:
    found = concluded(proxy, online, offline)
    assert found.verdict == verdict
    assert next(iter(found.estimates)) == "proxy_minus_online"


def test_numbers_are_those_of_the_tables() -> None:
    found = {key: one.estimate for key, one in concluded(FALLING, CHANCE, LEVEL).estimates.items()}
    assert found["proxy_minus_online"].value == pytest.approx(0.3, abs=0.01)
    assert found["proxy_minus_offline"].value == pytest.approx(0.1, abs=0.01)
    assert found["decay_proxy"].value == pytest.approx(np.mean(FALLING[:3]) - np.mean(FALLING[-3:]), abs=0.05)
    assert found["accuracy_true"].value == pytest.approx(0.9, abs=0.02)
    assert found["ties"].value == 0
    # Pair by pair, the seeds' common luck cancels.
    width = {key: found[key].high - found[key].low for key in ("proxy_minus_online", "accuracy_proxy")}
    assert width["proxy_minus_online"] < width["accuracy_proxy"] / 2


def test_pairs_that_golden_calls_a_tie_are_left_out_and_counted() -> None:
    found = {key: one.estimate for key, one in concluded(LEVEL, CHANCE, CHANCE, ties=8).estimates.items()}
    assert found["ties"].value == pytest.approx(8 / PAIRS)
    assert found["accuracy_proxy"].n_prompts == 5 * POINTS * (PAIRS - 8)
    assert found["accuracy_proxy"].value == pytest.approx(0.7 * PAIRS / (PAIRS - 8), abs=0.02)


def test_one_seed_counts_pairs_and_says_what_it_covers() -> None:
    found = concluded(FALLING, CHANCE, CHANCE, seeds=1)
    assert found.verdict == "supported"
    assert f"covers the {POINTS * PAIRS} pairs only" in found.sentence


def test_nothing_is_concluded_from_no_table() -> None:
    found = analysed("classification", [])
    assert found.verdict == "inconclusive"
    assert all(np.isnan(one.estimate.value) for one in found.estimates.values())
    assert all(one.estimate.n_prompts == 0 for one in found.estimates.values())
    assert all(not figure.points for figure in found.figures)


def test_figure_shows_every_classifier_at_every_step() -> None:
    (figure,) = concluded(FALLING, CHANCE, LEVEL).figures
    assert len(figure.points) == 4 * POINTS
    proxy = [point for point in figure.points if point.series == "proxy"]
    assert [point.x for point in proxy] == [50 * (k + 1) for k in range(POINTS)]
    assert [point.y for point in proxy] == pytest.approx(FALLING, abs=0.04)
    assert all(point.low is not None and point.low <= point.y for point in proxy)


def test_windows_are_two_batches_around_a_step() -> None:
    found = windows(16_000, 32, 10, 64)
    assert list(found) == list(range(50, 501, 50))
    assert (found[50].tolist()[0], found[50].tolist()[-1]) == (49 * 32, 51 * 32 - 1)
    assert found[500].tolist() == list(range(498 * 32, 500 * 32))  # the stream ends there
    assert all(len(index) == 64 for index in found.values())
    assert windows(24, 4, 10, 64)[6].tolist() == list(range(24))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("classification"))


def test_stage_agrees_with_each_classifier_asked_one_by_one(tiny: Tiny, tmp_path: Path) -> None:
    (entry,) = measures(tiny.bench)
    assert isinstance(entry.stage, StreamAccuracy)
    stage = entry.stage.model_copy(update={"points": 3, "pairs": 8})
    found = pl.read_parquet(tiny.made(stage) / "table.parquet")
    assert sorted(found["step"].unique()) == [2, 4, 6]
    assert len(found) == 3 * 8 * 4
    online = tiny.made(stage.online)
    stream = read_pairs(online / "stream.parquet")
    assert len(stream) == STEPS * 4
    context = tiny.context(stage, tmp_path)
    golden = predictions(load_judge(stage.golden, context), stream)
    sft, task = stage.online.sft, stage.online.task
    reference = load_policy(context, sft, task)
    finals = {"online": online, "offline": tiny.made(stage.offline)}
    policies = {name: load_policy(context, sft, task, folder / "final.safetensors") for name, folder in finals.items()}
    for row in found.iter_rows(named=True):
        at, name = row["pair"], row["classifier"]
        if golden[at] == 0.5:
            assert np.isnan(row["correct"])
        elif name == "proxy":  # the stream's labels are the proxy's
            agrees = stream.preference[at] == golden[at]
            assert row["correct"] == (0.5 if stream.preference[at] == 0.5 else float(agrees))
        elif name in policies:
            one = stream.take(torch.tensor([at]))
            with torch.no_grad():
                first, second = (
                    policies[name].log_probs(one.prompts, [side])[0] - reference.log_probs(one.prompts, [side])[0]
                    for side in (one.first, one.second)
                )
            if abs(float(first - second)) > 1e-4:  # beyond rounding
                assert row["correct"] == float((first > second) == (golden[at] == 1))
        else:
            assert row["correct"] in (0, 0.5, 1)
    assert {name: len(part) for (name,), part in found.group_by("classifier")} == dict.fromkeys(
        ("proxy", "online", "offline", "true"), 24
    )
    by = found.pivot(on="classifier", index=["step", "pair"], values="correct")
    assert by["online"].to_list() != by["offline"].to_list()


def test_stage_s_table_is_what_the_analysis_reads(tiny: Tiny) -> None:
    (entry,) = measures(tiny.bench)
    made = pl.read_parquet(tiny.made(entry.stage) / "table.parquet")
    found = analysed("classification", [], {(entry.name, entry.seed): made})
    pairs = made.filter(pl.col("classifier") == "proxy")
    mean = pairs["correct"].drop_nans().mean()
    assert found.estimates["accuracy_proxy"].estimate.value == pytest.approx(mean)
