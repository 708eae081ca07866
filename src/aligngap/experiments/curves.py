"""From what an arm has left behind to its curves: outcomes prompt by prompt, and what each checkpoint has cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from aligngap.pipeline.graph import Stage
from aligngap.pipeline.stages import Arm, Generate, JudgeStage, PairsStage, Relabel
from aligngap.results import COMPARISONS
from aligngap.sources.mixture import MixtureSpec
from aligngap.sources.recorded import RecordedSpec
from aligngap.sources.sampled import SampledSpec
from aligngap.stats.budget import JUDGE_CALLS, KL, LABELS, SECONDS, STEPS, TOKENS_SAMPLED, Floats, Run
from aligngap.store.artefact import Artefact
from aligngap.store.disk import read_json
from aligngap.store.store import Store


def runs_of(
    name: str, seed: int, frame: pl.DataFrame, costs: pl.DataFrame | None = None
) -> dict[tuple[str, str, str], Run]:
    """An arm's curves under one seed by (split, opponent, judge), from its rows of `per_prompt.parquet`. costs: what
    `costs_of` gives; without them the curves are over KL and steps only.

    Checkpoints in order of step and prompts in order of number; what has no row or no number is NaN. A judge who says
    nothing of a split, such as the true utility where nobody knows it, has no curve.
    """
    result = {}
    for (split,), part in frame.group_by("split", maintain_order=True):
        steps, row = np.unique(part["step"].to_numpy(), return_inverse=True)
        numbers, column = np.unique(part["prompt_number"].to_numpy(), return_inverse=True)
        empty = np.full((len(steps), len(numbers)), np.nan)

        def matrix(values: pl.Series, at: Any = (row, column), empty: Any = empty) -> Any:
            filled = empty.copy()
            filled[at] = values.cast(pl.Float64).fill_null(np.nan).to_numpy()
            return filled

        budgets = {KL.name: matrix(part["kl"])}
        if costs is not None and len(costs):
            there = pl.DataFrame({STEPS.name: steps}).join(costs, on=STEPS.name, how="left", maintain_order="left")
            budgets |= {name: there[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in there.columns[1:]}
        for opponent, judges in COMPARISONS.items():
            for judge in judges:
                wins = f"win_{opponent}_{judge}"
                if wins in part.columns and part[wins].null_count() < len(part):
                    key = (str(split), opponent, judge)
                    result[key] = Run(name, seed, steps.astype(np.int64), matrix(part[wins]), budgets)
    return result


def costs_of(arm: Arm, store: Store) -> pl.DataFrame:
    """What a finished arm has cost at each step that it kept; a column a budget of `stats.budget`, which says what is
    counted. NaN for what its artefacts do not say: those of a plugin's source, or of inputs that are gone.

    Judge calls and tokens of a live source are counted in its recorded stream, batch by batch, so that they are exact
    at every step. Shipped orders go through all recorded pairs before they repeat one, so the pairs used are steps x
    batch, at most as many as there are.
    """
    steps = np.array(arm.keep)
    trained = steps * arm.optim.batch
    artefact = store.get(arm.identity)
    total = read_json(artefact.file("cost.json")) | read_json(artefact.file("seconds.json"))
    calls = tokens = np.zeros(len(steps))
    if arm.source.needs_judge:
        calls, tokens = _live(artefact.file("stream.parquet"), trained, total)
    recorded = np.zeros(len(steps))
    if arm.recorded is not None:
        recorded = np.minimum(trained - calls, _pairs(arm.recorded, store))
    if not isinstance(arm.source, SampledSpec | RecordedSpec | MixtureSpec):
        recorded = np.full(len(steps), np.nan)
    labels = _labels(arm.judge, calls, store) if arm.source.needs_judge else np.zeros(len(steps))
    if arm.recorded is not None:
        labels = labels + _recorded_labels(arm.recorded, recorded, store)
    columns = {
        JUDGE_CALLS: calls + recorded,
        LABELS: labels,
        TOKENS_SAMPLED: tokens,
        SECONDS: total["seconds"] * steps / arm.optim.steps,
    }
    return pl.DataFrame({STEPS.name: steps} | {budget.name: values for budget, values in columns.items()})


def _live(stream: Path, trained: Floats, total: dict[str, Any]) -> tuple[Floats, Floats]:
    """Pairs labelled and tokens sampled by a live source when so many pairs had been trained on. NaN where the stream
    does not add up to the source's own account.
    """
    frame = pl.read_parquet(stream, columns=["first_ids", "second_ids", "provenance"])
    live = frame["provenance"].str.starts_with("policy at step")
    tokens = (frame["first_ids"].list.len() + frame["second_ids"].list.len()) * live
    result = []
    for amounts, name in ((live, JUDGE_CALLS.name), (tokens, TOKENS_SAMPLED.name)):
        sums = np.concatenate([[0.0], amounts.cast(pl.Float64).cum_sum().to_numpy()])
        known = len(sums) > trained.max() and sums[-1] == total[name]
        result.append(sums[trained] if known else np.full(len(trained), np.nan))
    return result[0], result[1]


def _artefact(stage: Stage, store: Store) -> Artefact | None:
    return store.get(stage.identity) if store.has(stage.identity) else None


def _pairs(stage: PairsStage, store: Store) -> float:
    """How many pairs an artefact holds."""
    artefact = _artefact(stage, store)
    if artefact is None:
        return np.nan
    return float(pl.scan_parquet(artefact.file(stage.train_file)).select(pl.len()).collect().item())


def _labels(judge: JudgeStage | None, calls: Floats, store: Store) -> Floats:
    """Labels that so many calls of a judge rest on. None: raters."""
    if judge is None or judge.role == "golden":
        return calls
    artefact = _artefact(judge, store)
    known = artefact if artefact and artefact.has("metrics.json") else None
    learned = read_json(known.file("metrics.json")).get("train_pairs") if known else None
    return np.full(len(calls), np.nan if learned is None else float(learned))


def _recorded_labels(stage: PairsStage, used: Floats, store: Store) -> Floats:
    """Labels that so many recorded pairs rest on; NaN for the stream of an arm that mixed its pairs."""
    if isinstance(stage, Arm) and stage.recorded is not None:
        return np.full(len(used), np.nan)
    judge = stage.judge if isinstance(stage, Arm | Relabel | Generate) else None
    return _labels(judge, used, store)
