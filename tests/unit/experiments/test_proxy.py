"""Proxies of other forms and sizes: the rule on made-up runs, and the agreement stage on a tiny real run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from aligngap.experiments.base import Analysis
from aligngap.experiments.bench import Bench
from aligngap.experiments.proxy import NAMES, measures, proxies
from aligngap.experiments.proxy.measure import ProxyAgreement
from aligngap.experiments.study import load_study
from aligngap.store.disk import read_json
from aligngap.tasks.pairs import read_pairs, write_pairs
from made_up import HALFWAY, LOW, RISING, analysed, entries, finished
from tiny import Tiny

LARGE, PAIRS = "online_large_proxy", 500
AGREEMENT = dict.fromkeys(NAMES, 0.8)


def table(agreement: dict[str, float], seed: int) -> pl.DataFrame:
    """Pairs in a mixed order, each proxy right on the easiest; one pair is a tie."""
    order = np.random.default_rng(seed).permutation(PAIRS)
    frames = []
    for name, share in agreement.items():
        agrees = (np.arange(PAIRS) < share * PAIRS).astype(float)
        agrees[-1] = np.nan
        frames.append(pl.DataFrame({"proxy": name, "prompt_number": order, "agrees": agrees[order]}))
    return pl.concat(frames)


def concluded(
    curves: dict[str, list[float]],
    agreement: dict[str, float],
    own: dict[str, list[float]] | None = None,
    seeds: int = 3,
) -> Analysis:
    arms = [
        finished(entry, curves.get(family, LOW), judged={"proxy": (own or {}).get(family, RISING)})
        for (family, _), entry in entries("proxy", seeds).items()
    ]
    tables = {("proxy_agreement", seed): table(AGREEMENT | agreement, seed) for seed in range(seeds)}
    return analysed("proxy", arms, tables)


@pytest.mark.parametrize(
    ("large", "agreement", "verdict"),
    [
        (RISING, 0.9, "supported"),
        (RISING, 0.7, "contradicted"),  # the larger one is the worse judge, and its arm is ahead
        (LOW, 0.9, "contradicted"),  # better judge, no better arm
        (RISING, 0.8, "inconclusive"),  # no telling which is the better judge
    ],
)
def test_the_better_judge_has_the_better_arm(large: list[float], agreement: float, verdict: str) -> None:
    found = concluded({LARGE: large}, {LARGE: agreement})
    assert found.verdict == verdict
    assert next(iter(found.estimates)) == "average_gap"


def test_worse_and_smaller_may_be_the_better() -> None:
    found = concluded({"online": RISING, LARGE: LOW}, {LARGE: 0.6})
    assert found.verdict == "supported"
    assert found.estimates["average_gap"].estimate.value > 0.1
    assert "online against the baseline's proxy minus the larger proxy" in found.estimates["average_gap"].label


def test_numbers_are_those_of_proxies_and_arms() -> None:
    found = concluded({LARGE: RISING, "online_pointwise": HALFWAY}, {LARGE: 0.9}, own={LARGE: [0.9] * 6})
    values = {key: one.estimate.value for key, one in found.estimates.items()}
    assert values[f"agreement_{LARGE}"] == pytest.approx(0.9 * 500 / 499)
    assert values["agreement_difference"] == pytest.approx(50 / 499)
    assert values["peak_difference"] == pytest.approx(0.4)
    assert values["peak_online_pointwise"] == pytest.approx(0.4)
    assert values["pointwise_peak"] == pytest.approx(0.2)
    # Against SFT at the end: by its own proxy .9 and by golden .6; the baseline's .6 and .2.
    assert values[f"excess_{LARGE}"] == pytest.approx(0.3)
    assert values["excess_online"] == pytest.approx(0.4)
    assert values["excess_difference"] == pytest.approx(-0.1)
    points = {point.series: point for point in found.figures[1].points}
    assert len(points) == 4
    assert (points["the larger proxy"].x, points["the larger proxy"].y) == (
        values[f"agreement_{LARGE}"],
        values[f"peak_{LARGE}"],
    )


@pytest.mark.parametrize("missing", ["tables", "arms"])
def test_nothing_is_concluded_from_half(missing: str) -> None:
    arms = [finished(entry, RISING) for entry in entries("proxy", 2).values()]
    tables = {("proxy_agreement", seed): table(AGREEMENT | {LARGE: 0.9}, seed) for seed in range(2)}
    found = analysed("proxy", *((arms, {}) if missing == "tables" else ([], tables)))
    assert found.verdict == "inconclusive"
    assert np.isnan(found.estimates[f"{'agreement' if missing == 'tables' else 'peak'}_{LARGE}"].estimate.value)
    assert not found.figures[1].points


def test_proxies_differ_in_form_and_base_alone() -> None:
    bench = Bench(load_study("quick"), "summarisation")
    found = proxies(bench, 0)
    assert {name: (proxy.model, proxy.base.name) for name, proxy in found.items()} == {
        "online": ("pairwise", "small"),
        "online_pointwise": ("pointwise", "small"),
        "online_large_proxy": ("pairwise", "medium"),
        "online_large_pointwise": ("pointwise", "medium"),
    }
    assert len({str((proxy.optim, proxy.train_pairs, proxy.pairs.identity)) for proxy in found.values()}) == 1
    arms = {family: entry for (family, _), entry in entries("proxy", 1).items()}
    assert {family: entry.stage.judge for family, entry in arms.items()} == found
    assert arms["online"].stage == bench.online(0).stage
    assert [bench.evaluation(entry).start.proxy for entry in arms.values()] == list(found.values())


def test_agreement_stage_says_what_the_proxies_themselves_measured(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path)
    (measure,) = measures(tiny.bench)
    stage = measure.stage
    assert isinstance(stage, ProxyAgreement)
    found = pl.read_parquet(tiny.made(stage) / "table.parquet")
    golden = read_pairs(tiny.made(stage.golden_pairs) / "held_out.parquet")
    assert found["proxy"].unique(maintain_order=True).to_list() == list(NAMES)
    for name, proxy in zip(stage.names, stage.proxies, strict=True):
        rows = found.filter(pl.col("proxy") == name)
        assert rows["prompt_number"].to_list() == golden.prompt_numbers.tolist()
        measured = read_json(tiny.made(proxy) / "metrics.json")["held_out_agreement"]
        known = rows.filter(pl.col("agrees").is_not_nan())["agrees"]
        assert (known.mean(), len(known)) == (pytest.approx(measured["value"]), measured["n"])

    # Against labels that are ties, there is nothing to agree with.
    tied = tmp_path / "tied"
    tied.mkdir()
    golden.preference[::2] = 0.5
    write_pairs(golden, tied / "held_out.parquet")
    context = tiny.context(stage, tied)
    stage.run(replace(context, folders={**context.folders, stage.golden_pairs.identity: tied}))
    first = pl.read_parquet(tied / "table.parquet").filter(pl.col("proxy") == "online")["agrees"].to_numpy()
    assert np.isnan(first[::2]).all()
    assert not np.isnan(first[1::2]).all()
