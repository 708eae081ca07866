"""A study in bf16 comes to the conclusions of fp32: the same KL and win rates, within what is stated here.

Trained for 80 steps on the small base, judged by the same preference models, with the same noise. Weights and single
responses differ: on the way a label or a token falls otherwise, so single prompts are not compared.
"""

from __future__ import annotations

import polars as pl
import pytest

from aligngap.experiments.bench import Bench
from aligngap.experiments.study import load_study
from aligngap.store.store import Store
from tiny import make

KL = 0.1
"""Share of the KL at the end of training, per split."""
ERRORS = 3.0
"""Standard errors by which win rates may differ, as of two independent samples of prompts: each precision trains SFT
and the golden policy, the opponents, for itself.
"""

SETTINGS = [
    "models.golden=small",
    "models.proxy=small",
    "tasks=[summarisation]",
    "sft_tasks=[summarisation]",
    "data.train_pairs=512",
    "data.held_out_pairs=192",
    "sft.steps=40",
    "golden.optim.steps=100",
    "proxy.optim.steps=40",
    "baseline.optim.steps=80",
    "evaluation.prompts=192",
    "evaluation.pairs=8",
    "evaluation.checkpoints=4",
]


def curve(arm: str, dtype: str, store: Store) -> pl.DataFrame:
    study = load_study("paper", [f"models.policy={{path: small, dtype: {dtype}}}", *SETTINGS])
    bench = Bench(study, "summarisation")
    entry = bench.online(0) if arm == "online" else bench.offline(0)
    return pl.read_parquet(make(bench.evaluation(entry), store) / "per_prompt.parquet")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("precision") / "store")


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["offline", "online"])
def test_curves_in_bf16_are_those_of_fp32(store: Store, arm: str) -> None:
    full, half = (curve(arm, dtype, store) for dtype in ("float32", "bfloat16"))
    wins = [name for name in full.columns if name.startswith("win_")]
    assert len(wins) == 5
    rates = [rows.group_by("step").agg(pl.col(wins).mean()).sort("step") for rows in (full, half)]
    prompts = full.filter(step=0).height
    for name in wins:
        one, other = (rate[name].to_torch() for rate in rates)
        error = (one * (1 - one) / prompts + other * (1 - other) / prompts).sqrt()
        assert bool(((one - other).abs() <= ERRORS * error).all()), name
    end = full["step"].max()
    for split in ("train", "held_out"):
        at_end = [float(rows.filter(step=end, split=split)["kl"].mean() or 0) for rows in (full, half)]
        assert at_end[0] > 0.5
        assert at_end[1] == pytest.approx(at_end[0], rel=KL), split
    assert not full["kl"].equals(half["kl"])
    # The same policies before the first step: KL is 0 in either precision.
    assert float(half.filter(step=0)["kl"].abs().max() or 0) == 0
