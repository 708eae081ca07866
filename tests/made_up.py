"""Finished arms whose truth is known, for tests of analyses. The numbers are test data, not results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import polars as pl

from aligngap.experiments.base import Analysis, Finished, TaskData
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.experiments.spec import AnalysisSpec
from aligngap.experiments.study import load_study
from aligngap.stats.curves import Run

PROMPTS, PAIRS = 400, 100
KL = np.geomspace(0.05, 5.0, 6)
BENCH = Bench(load_study("quick"), "summarisation")

RISING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
HALFWAY = [0.1, 0.15, 0.22, 0.3, 0.35, 0.4]
LOW = [0.1, 0.1, 0.15, 0.2, 0.2, 0.2]


def finished(
    entry: ArmEntry,
    wins: Sequence[float],
    *,
    kl_factor: float = 1.0,
    drift: float | None = None,
    judged: Mapping[str, Sequence[float]] | None = None,
) -> Finished:
    """An arm whose win rate at the six KLs is as given; `judged`: by other judges.

    Some prompts are easy, for all arms and seeds.

    drift: mean log pi/pi_sft of the winners at the end, reached in equal steps; one pair is a tie.
    """
    seed = entry.stage.seed
    luck = np.random.default_rng(0).permutation((np.arange(PROMPTS) + 0.5) / PROMPTS)
    kl = np.repeat((KL * kl_factor)[:, None], PROMPTS, 1)
    steps = np.arange(1, len(KL) + 1)
    runs = {
        (split, opponent, judge): Run(
            entry.name, seed, steps, kl, (luck < np.array((judged or {}).get(judge, wins))[:, None]).astype(float)
        )
        for split, opponent, judge in product(
            ("train", "held_out"), ("golden_policy", "sft"), ("golden", "true", "proxy")
        )
    }
    return Finished(entry, runs, "w", pl.DataFrame() if drift is None else per_pair(seed, steps.tolist(), drift))


def per_pair(seed: int, steps: Sequence[int], drift: float) -> pl.DataFrame:
    """What an arm makes of the pairs of both splits; train pairs drift a nat further down."""
    noise = np.random.default_rng(seed + 100).normal(0, 0.5, PAIRS)
    noise[0] = np.nan
    noise[1:] -= noise[1:].mean()
    return pl.concat(
        pl.DataFrame({"prompt_number": np.arange(PAIRS), "drift": (drift - (split == "train")) * share + noise})
        .with_columns(step=pl.lit(step), split=pl.lit(split))
        .reverse()
        for split in ("train", "held_out")
        for step in steps
        for share in (step / max(steps),)
    )


def entries(name: str, seeds: int) -> dict[tuple[str, int], ArmEntry]:
    """An experiment's arms by family and seed; the baseline's where a family has several."""
    bench = Bench(BENCH.study.model_copy(update={"seeds": tuple(range(seeds))}), BENCH.task)
    return {(entry.family, entry.stage.seed): entry for entry in EXPERIMENTS[name].arms(bench)}


def analysed(
    name: str, arms: Sequence[Finished], tables: Mapping[tuple[str, int], pl.DataFrame] | None = None
) -> Analysis:
    """The experiment's analysis of these arms alone."""
    return EXPERIMENTS[name].analyse(TaskData(BENCH.task, AnalysisSpec(replicates=200), arms, tables or {}))
