"""Result folders of made-up arms whose truth is known, for tests of comparisons: no number here is a measurement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from aligngap.experiments.base import Finished, TaskData
from aligngap.experiments.gather import runs_of
from aligngap.experiments.plan import Plan
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.experiments.study import load_study

TASK = "summarisation"
PROMPTS = 200
KL = np.geomspace(0.05, 5.0, 5)
STEPS = np.array([5, 20, 60, 150, 500])
RISING = (0.2, 0.3, 0.4, 0.5, 0.6)
LOW = (0.2, 0.25, 0.3, 0.35, 0.4)
WINS: dict[str, Sequence[float]] = {"online": RISING, "offline": LOW}


def write_run(
    folder: Path,
    *overrides: str,
    wins: Mapping[str, Sequence[float]] = WINS,
    seeds: Sequence[int] = (0, 1, 2),
    seed_sd: float = 0.02,
    prompts: int = PROMPTS,
    record: bool = True,
    weights: str = "the golden policy's",
    experiments: Sequence[str] = ("goodhart",),
    failed: Sequence[str] = (),
    text: str = "",
    smoke: bool = False,
) -> Path:
    """Write results.json and per_prompt.parquet of a study on made-up arms.

    wins: win rate at the five KLs, by family (0.3 for those not named); a seed shifts it, and some prompts are easy for
    every arm. failed: families that failed. record: whether the yardstick is on record. text: put into names.
    """
    names = f"experiments=[{', '.join(experiments)}]"
    given = [names, f"seeds={list(seeds)}", "analysis.replicates=100", f"evaluation.prompts={prompts}"]
    given.append("sweep.betas=[0.1]")
    study = load_study("quick", [*given, *overrides])
    plan = Plan(study).tasks[TASK]
    listed, frames, finished = [], [], []
    for entry in (planned.entry for planned in plan.arms):
        arm, family = entry.stage, entry.family
        rows = _outcomes(family, arm.seed, wins.get(family, (0.3,) * len(KL)), seed_sd, prompts)
        facts: dict[str, Any] = {
            "name": entry.name + text,
            "family": family,
            "baseline": entry.baseline,
            "base": "small",
            "source": {},
            "loss": arm.loss.model_dump(mode="json"),
            "seed": arm.seed,
            "settings": arm.optim.model_dump(mode="json"),
            "identity": arm.identity,
            "status": "failed" if family in failed else "finished",
            "reason": f"it was made to fail{text}" if family in failed else None,
            "weights_sha256": weights if family == "golden_policy" else arm.identity,
            "points": [],
            "cost": None,
        }
        if family not in failed:
            facts["points"] = _points(rows)
            labels = {"task": TASK, "arm": entry.name + text, "family": family, "seed": arm.seed}
            frames.append(rows.with_columns(pl.lit(value).alias(name) for name, value in labels.items()))
            finished.append(Finished(entry, runs_of(entry.name, arm.seed, rows), facts["weights_sha256"]))
        listed.append(facts)
    data = TaskData(TASK, study.analysis, finished)
    content = {
        "arms": listed,
        "measures": [],
        "stages": {},
        "experiments": {name: _concluded(name, data, text) for name in experiments},
        "holm": {},
        **({"yardstick": plan.yardstick} if record else {}),
    }
    settings = study.model_dump(mode="json") | {"title": f"{study.title}{text}", "smoke": smoke}
    results = {
        "schema": 1,
        "study": settings,
        "smoke": smoke,
        "revision": {"commit": "0123456789abcdef", "dirty": False},
        "tasks": {TASK: content},
        "timings": {},
        "versions": {"aligngap": "0"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (pl.concat(frames) if frames else pl.DataFrame()).write_parquet(folder / "per_prompt.parquet")
    return folder


def change(folder: Path, **fields: Any) -> None:
    """Replace fields of the task's part of results.json."""
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results["tasks"][TASK] |= fields
    path.write_text(json.dumps(results))


def _outcomes(family: str, seed: int, wins: Sequence[float], seed_sd: float, prompts: int) -> pl.DataFrame:
    """An arm's rows: prompts are easy or hard for all arms alike, the seed shifts the whole curve."""
    easy = np.random.default_rng(0).permutation((np.arange(1000) + 0.5) / 1000)[:prompts]
    shift = np.random.default_rng([seed, *family.encode()]).normal(0, seed_sd)
    frames = []
    for split, place in (("train", 0), ("held_out", 1000)):
        for step, kl, share in zip(STEPS, KL, wins, strict=True):
            won = (easy < share + shift).astype(float)
            columns = {
                "step": np.full(prompts, step),
                "prompt_number": np.arange(prompts) + place,
                "kl": np.full(prompts, kl),
                "tokens": np.full(prompts, 9),
                "utility": won,
                "margin_golden": won - 0.5,
                "margin_proxy": won - 0.5,
            }
            judged = ("golden_policy_golden", "golden_policy_true", "sft_golden", "sft_true", "sft_proxy")
            columns |= {f"win_{name}": won for name in judged}
            frames.append(pl.DataFrame(columns).with_columns(split=pl.lit(split)))
    return pl.concat(frames)


def _points(rows: pl.DataFrame) -> list[dict[str, Any]]:
    points = []
    for (step, split), part in rows.group_by("step", "split", maintain_order=True):
        won = part["win_sft_golden"]
        cell = {"rate": won.mean(), "se": won.std() / len(won) ** 0.5, "n": len(won), "ties": 0}
        wins = {"golden_policy": {"golden": cell, "true": cell}, "sft": {"golden": cell, "true": cell, "proxy": cell}}
        points.append({"step": step, "split": split, "kl": part["kl"].mean(), "kl_se": 0.0, "wins": wins})
    return points


def _concluded(name: str, data: TaskData, text: str) -> dict[str, Any]:
    found = EXPERIMENTS[name].analyse(data)
    numbers = ("value", "low", "high", "n_seeds", "n_prompts", "note")
    estimates = {
        key: {"label": row.label + text, "unit": row.unit, **{n: getattr(row.estimate, n) for n in numbers}}
        for key, row in found.estimates.items()
    }
    figures = [asdict(replace(figure, points=())) for figure in found.figures]
    words = {"title": name + text, "question": "", "finding": "", "rule": "", "sentence": found.sentence}
    return words | {"verdict": found.verdict, "estimates": estimates, "figures": figures}
