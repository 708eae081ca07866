"""What an arm's checkpoints have cost, and its curves over it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from aligngap.experiments.base import View
from aligngap.experiments.curves import costs_of, runs_of
from aligngap.pipeline.stages import Arm
from aligngap.sources.mixture import MixtureSpec
from aligngap.sources.recorded import RecordedSpec
from aligngap.stats.budget import BUDGETS, JUDGE_CALLS, KL
from aligngap.store.disk import write_json
from aligngap.store.store import Store
from aligngap.tasks.pairs import write_pairs
from aligngap.types import PairBatch, Tokens
from made_up import BENCH

BATCH = BENCH.study.baseline.optim.batch
POLICY, RECORDED = "policy at step 3", "golden labels"


def pairs(provenance: list[str]) -> PairBatch:
    """Of every pair, the first response has two tokens and the second three."""
    n = len(provenance)
    first, second = (Tokens.collate([list(range(length))] * n) for length in (2, 3))
    return PairBatch(torch.arange(n), Tokens.collate([[1]] * n), first, second, torch.ones(n), tuple(provenance))


def costs(
    tmp_path: Path, arm: Arm, live: list[str] | None = None, *, recorded: int = 0, **account: int
) -> pl.DataFrame:
    """live: where each pair of the arm's own stream came from; recorded: how many recorded pairs it has."""
    store = Store(tempfile.mkdtemp(dir=tmp_path))
    sampled = sum(name == POLICY for name in live or [])
    with store.writing(arm.identity, {}) as folder:
        account = {"judge_calls": sampled, "tokens_sampled": 5 * sampled, "steps": 500} | account
        write_json(folder / "cost.json", account)
        write_json(folder / "seconds.json", {"seconds": 100.0})
        if live:
            write_pairs(pairs(live), folder / "stream.parquet")
    if arm.recorded is not None:
        with store.writing(arm.recorded.identity, {}) as folder:
            write_pairs(pairs([RECORDED] * recorded), folder / arm.recorded.train_file)
    with store.writing(BENCH.proxy(0).identity, {}) as folder:
        write_json(folder / "metrics.json", {"train_pairs": 250})
    return costs_of(arm, store)


def test_a_live_source_pays_for_every_pair_and_rests_on_its_proxys_labels(tmp_path: Path) -> None:
    arm = BENCH.online(0).stage
    found = costs(tmp_path, arm, [POLICY] * (500 * BATCH))
    steps = np.array(arm.keep)
    assert found["steps"].to_list() == list(arm.keep)
    np.testing.assert_array_equal(found["judge_calls"], steps * BATCH)
    np.testing.assert_array_equal(found["tokens_sampled"], steps * BATCH * 5)
    assert set(found["labels"]) == {250.0}
    np.testing.assert_allclose(found["seconds"], steps / 5)
    assert set(found.columns) == set(BUDGETS) - {"kl"}


def test_recorded_pairs_are_paid_for_once(tmp_path: Path) -> None:
    arm = BENCH.offline(0).stage
    found = costs(tmp_path, arm, recorded=1000)
    np.testing.assert_array_equal(found["judge_calls"], np.minimum(np.array(arm.keep) * BATCH, 1000))
    np.testing.assert_array_equal(found["labels"], found["judge_calls"])  # golden's own
    assert set(found["tokens_sampled"]) == {0.0}


def test_a_replayed_stream_rests_on_the_labels_of_the_proxy_behind_it(tmp_path: Path) -> None:
    arm = BENCH.on_stream(0, "shuffled", RecordedSpec(order="uniform")).stage
    found = costs(tmp_path, arm, recorded=500 * BATCH)
    np.testing.assert_array_equal(found["judge_calls"], np.array(arm.keep) * BATCH)
    assert set(found["labels"]) == {250.0}


def test_a_mixture_counts_either_side_by_itself(tmp_path: Path) -> None:
    proxy, golden = BENCH.proxy(0), BENCH.golden_pairs
    arm = BENCH.arm(seed=0, source=MixtureSpec(on_policy=0.25), judge=proxy, recorded=golden)
    found = costs(tmp_path, arm, [POLICY, RECORDED, RECORDED, RECORDED] * (125 * BATCH), recorded=1000)
    live = np.array(arm.keep) * BATCH / 4
    kept = np.minimum(3 * live, 1000)
    np.testing.assert_allclose(found["judge_calls"], live + kept, atol=1)
    np.testing.assert_allclose(found["labels"], 250 + kept, atol=1)
    np.testing.assert_allclose(found["tokens_sampled"], 5 * live, atol=5)


def test_what_does_not_add_up_or_is_gone_is_not_known(tmp_path: Path) -> None:
    found = costs(tmp_path, BENCH.online(0).stage, [POLICY] * (500 * BATCH), judge_calls=3)
    assert np.isnan(found["judge_calls"].to_numpy()).all()
    assert not np.isnan(found["tokens_sampled"].to_numpy()).any()
    arm = BENCH.offline(1).stage
    store = Store(tmp_path / "alone")
    with store.writing(arm.identity, {}) as folder:
        write_json(folder / "cost.json", {"judge_calls": 0, "tokens_sampled": 0})
        write_json(folder / "seconds.json", {"seconds": 1.0})
    assert np.isnan(costs_of(arm, store)["judge_calls"].to_numpy()).all()


@pytest.mark.parametrize("known", [True, False])
def test_runs_carry_the_costs_of_their_checkpoints(known: bool) -> None:
    frame = pl.DataFrame(
        {
            "split": ["train"] * 4,
            "step": [0, 0, 5, 5],
            "prompt_number": [1, 2, 1, 2],
            "kl": [0.0, 0.0, 1.0, 2.0],
            "win_sft_golden": [0.5, 0.5, 1.0, 0.0],
        }
    )
    costs = pl.DataFrame({"steps": [0, 5], "judge_calls": [0.0, 160.0]}) if known else None
    (run,) = runs_of("online", 3, frame, costs).values()
    assert run.along is KL
    over = run.over(JUDGE_CALLS).amount
    np.testing.assert_array_equal(over, [0.0, 160.0] if known else [np.nan, np.nan])


def test_a_view_names_its_prompts_or_its_judge() -> None:
    assert View("train", split="train").words == "train prompts"
    assert View("held_out", split="held_out").words == "held-out prompts"
    assert View("true", judge="true").words == "by true utility"
