"""Golden's departure from the true utility: the rule on made-up audits, and a real audit."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from aligngap.experiments.base import Analysis
from aligngap.experiments.golden import (
    LABELS,
    LOW_BETA,
    OVER_OPTIMISED,
    audit_name,
    fresh_pairs,
    measures,
    on_policy_pairs,
    over_optimised,
)
from aligngap.experiments.golden.measure import GOLDENS, GoldenAudit
from aligngap.experiments.study import load_study
from aligngap.pipeline.stages import SPLITS
from aligngap.store.disk import read_json
from aligngap.tasks.pairs import read_pairs
from made_up import BENCH, analysed, entries
from tiny import HELD_OUT, PROMPTS, TRAIN, Tiny

N = 300
STEPS = (0, 10, 100)


def audit(seed: int, over: dict[str, float], true: float = 0.6) -> pl.DataFrame:
    """Win rates that go from one half at step 0 to `true`, and by each golden to so much over it. One luck a prompt."""
    luck = np.random.default_rng(seed).random(N)
    parts = []
    for split in SPLITS:
        for place, step in enumerate(STEPS):
            share = place / (len(STEPS) - 1)
            rates = {"true": 0.5 + share * (true - 0.5)}
            rates |= {name: rates["true"] + share * over.get(name, over["golden"]) for name in GOLDENS}
            columns = {f"win_{name}": (luck < rate).astype(float) for name, rate in rates.items()}
            frame = pl.DataFrame({"prompt_number": np.arange(N), "kl": np.full(N, 5.0 * share), **columns})
            parts.append(frame.with_columns(step=pl.lit(step), split=pl.lit(split)))
    return pl.concat(parts).sample(fraction=1, shuffle=True, seed=seed)  # no order may be relied on


def concluded(over: dict[str, float], seeds: int = 3, calm: float = 0.0, scatter: float = 0.0) -> Analysis:
    """scatter: how far one seed lies from the next."""
    tables = {}
    for seed in range(seeds):
        here = {name: value + scatter * (seed - 1) for name, value in over.items()}
        for family in LABELS:
            rates = here if family == OVER_OPTIMISED else {"golden": calm}
            tables[audit_name(family), seed] = audit(seed, rates)
    return analysed("golden", [], tables)


@pytest.mark.parametrize(
    ("departure", "scatter", "verdict"),
    [
        (0.2, 0.0, "supported"),
        (-0.2, 0.0, "contradicted"),
        (0.0, 0.0, "contradicted"),  # wholly within the margin
        (0.1, 0.1, "inconclusive"),
    ],
)
def test_the_verdict_rests_on_the_over_optimised_arm(departure: float, scatter: float, verdict: str) -> None:
    found = concluded({"golden": departure}, calm=0.1, scatter=scatter)
    assert found.verdict == verdict
    assert next(iter(found.estimates)) == "departure"
    assert found.estimates["departure"].estimate.value == pytest.approx(departure, abs=0.04)
    assert found.estimates["departure_offline"].estimate.value == pytest.approx(0.1, abs=0.04)


def test_what_each_remedy_mends() -> None:
    found = {
        key: one.estimate
        for key, one in concluded({"golden": 0.3, "more_pairs": 0.2, "on_policy": 0.05}).estimates.items()
    }
    assert found["mended_more_pairs"].value == pytest.approx(0.1, abs=0.03)
    assert found["mended_on_policy"].value == pytest.approx(0.25, abs=0.04)
    assert found["on_policy_over_more_pairs"].value == pytest.approx(0.15, abs=0.04)
    assert found["departure_on_policy"].value == pytest.approx(0.05, abs=0.03)
    assert found["mended_on_policy"].value + found["departure_on_policy"].value == pytest.approx(
        found["departure"].value
    )
    assert found["mended_on_policy"].low > 0


def test_figures_follow_the_kl() -> None:
    figures = {figure.name: figure for figure in concluded({"golden": 0.3, "more_pairs": 0.1}).figures}
    points = [point for point in figures["departure"].points if point.series == LABELS[OVER_OPTIMISED]]
    assert [point.x for point in points] == [2.5, 5.0]  # step 0 has KL 0
    assert [point.y for point in points] == pytest.approx([0.15, 0.3], abs=0.05)
    assert {point.series for point in figures["departure"].points} == set(LABELS.values())
    assert {point.series for point in figures["remedies"].points} == set(GOLDENS.values())


def test_one_audit_is_not_another() -> None:
    found = analysed("golden", [], {(audit_name("online"), 0): audit(0, {"golden": 0.2})})
    assert found.verdict == "inconclusive"
    assert np.isnan(found.estimates["departure"].estimate.value)
    assert found.estimates["departure"].estimate.n_prompts == 0
    assert found.estimates["departure_online"].estimate.value == pytest.approx(0.2, abs=0.06)
    assert "no data" in found.sentence


def test_one_seed_says_what_its_interval_covers() -> None:
    found = concluded({"golden": 0.2}, seeds=1)
    assert f"covers the {N} prompts only" in found.sentence
    assert "1 seed" in found.estimates["departure"].estimate.note


def test_arms_and_labels_are_equal_but_for_what_is_asked() -> None:
    found = {family: entry.stage for (family, _), entry in entries("golden", 1).items()}
    far, online = found[OVER_OPTIMISED], found["online"]
    assert (far.loss.beta, far.loss.model_copy(update={"beta": online.loss.beta})) == (LOW_BETA, online.loss)
    assert (far.optim, far.judge, far.source) == (online.optim, online.judge, online.source)
    assert load_study("golden").experiments == ("golden",)
    for entry in measures(BENCH):
        assert isinstance(entry.stage, GoldenAudit)
        (more,), (own,) = entry.stage.more_pairs.more, entry.stage.on_policy.more
        assert more.task.part == "golden"
        assert own == on_policy_pairs(BENCH, entry.seed, more)  # on the very prompts of the other remedy
        assert own.judge is None
        assert more.task.train_pairs == BENCH.study.data.train_pairs
        for golden in (entry.stage.more_pairs, entry.stage.on_policy):
            assert (golden.pairs, golden.optim, golden.seed) == (BENCH.golden.pairs, BENCH.golden.optim, 0)
        assert len({getattr(entry.stage, name).identity for name in GOLDENS}) == 3


# --- real stages ---


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def stage(tiny: Tiny) -> GoldenAudit:
    found = {entry.name: entry.stage for entry in measures(tiny.bench)}[audit_name(OVER_OPTIMISED)]
    assert isinstance(found, GoldenAudit)
    return found


def test_audit_of_a_real_arm(tiny: Tiny, stage: GoldenAudit) -> None:
    table = pl.read_parquet(tiny.made(stage) / "table.parquet")
    arm = over_optimised(tiny.bench, 0).stage
    assert len(table) == len(arm.keep) * len(SPLITS) * PROMPTS
    stored = pl.read_parquet(tiny.made(stage.evaluation) / "per_prompt.parquet")
    for column in ("step", "split", "prompt_number", "kl"):
        assert table[column].to_list() == stored[column].to_list()
    assert table["win_true"].to_list() == stored["win_sft_true"].to_list()
    # Judged anew by the same golden, against the same responses of SFT: what the evaluation found.
    assert table["win_golden"].to_list() == stored["win_sft_golden"].to_list()
    assert table["win_more_pairs"].to_list() != table["win_golden"].to_list()
    assert table["win_more_pairs"].to_list() != table["win_on_policy"].to_list()
    for name in GOLDENS:
        assert set(table[f"win_{name}"].unique()) <= {0.0, 0.5, 1.0}


def test_remedies_have_equally_many_labels(tiny: Tiny, stage: GoldenAudit) -> None:
    tiny.made(stage)
    counts = {name: read_json(tiny.made(getattr(stage, name)) / "metrics.json")["train_pairs"] for name in GOLDENS}
    assert counts == {"golden": TRAIN, "more_pairs": 2 * TRAIN, "on_policy": 2 * TRAIN}
    fresh = fresh_pairs(tiny.bench)
    more, own = (
        read_pairs(tiny.made(part) / "train.parquet") for part in (fresh, on_policy_pairs(tiny.bench, 0, fresh))
    )
    assert more.prompts.rows() == own.prompts.rows()
    assert more.first.rows() != own.first.rows()


def test_fresh_pairs_keep_clear_of_the_held_out_prompts(tiny: Tiny) -> None:
    held_out = {tuple(ids) for ids in read_pairs(tiny.made(tiny.bench.pairs) / "held_out.parquet").prompts.rows()}
    assert len(held_out) == HELD_OUT
    fresh = tiny.made(fresh_pairs(tiny.bench))
    train, again = (
        {tuple(ids) for ids in read_pairs(fresh / f"{split}.parquet").prompts.rows()} for split in ("train", "held_out")
    )
    assert again == held_out
    assert len(train) == TRAIN
    assert not train & held_out
