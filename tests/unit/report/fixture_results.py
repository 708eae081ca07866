"""A result folder made up for tests: every number here is invented test data and stands for no measurement."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from aligngap.results import _migrations
from aligngap.results._values import readable

HOSTILE = "</script><img src=x onerror=alert(1)> & \u2028 \"quoted\" 'text' {{ 7 * 7 }} <!-- <script>"
#: What a broken tokenizer, a data set from the web or an error's trace can hold beside markup: control characters and
#: null bytes, marks that turn the direction of writing, and no end.
UNRULY = HOSTILE + "\x00\x1b[31m\x07\u202eturned round\u2066 \u05e9\u05dc\u05d5\u05dd" + " endless" * 12_500
STEPS = (0, 8, 16, 32, 64, 128, 256, 512)
FURTHER = (
    "window_4 window_16 window_500 sync_4 sync_16 sync_64 sync_infinity online_medium offline_medium shuffled_medium "
    "online_large offline_large shuffled_large online_bo2 offline_bo2 shuffled_bo2 dataset_golden dataset_sft_early "
    "dataset_early_late dataset_late quality_late online_rloo mixture_25 mixture_50 mixture_75 offline_sft_term "
    "offline_dpo_positive online_pointwise online_small_proxy online_large_proxy golden_more golden_on_policy "
    "theory_wide theory_narrow"
).split()
OFFLINE = [(lr, beta) for lr in ("3e-4", "1e-3", "3e-3") for beta in (0.1, 0.5)]


def write_results(
    folder: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    tasks: Sequence[str] = ("summarisation",),
    smoke: bool = False,
    fail_one: bool = True,
    no_numbers: bool = False,
    experiments: bool = True,
    prompts: int = 12,
    text: str = "",
    further: Sequence[str] = (),
    further_experiments: int = 0,
    every_step: bool = False,
    samples: bool = True,
    schema: int = 2,
) -> Path:
    """Write `results.json` and its tables; `text` is put into every foreign text of the folder.

    further: families of one more arm each. every_step: samples of every checkpoint and both splits. schema: 1 nests the
    points in `results.json`.
    """
    rng = random.Random(7)
    results: dict[str, Any] = {
        "schema": schema,
        "study": {
            "name": "quick",
            "title": f"Online against offline, made-up numbers{text}",
            "smoke": smoke,
            "seeds": list(seeds),
            "loss": {"name": "ipo", "beta": 0.1, "reduction": "sum"},
            "evaluation": {"prompts": 512, "checkpoints": list(STEPS)},
            "note": text or None,
        },
        "smoke": smoke,
        "revision": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
        "tasks": {},
        "timings": {
            "wall_seconds": 287.4,
            "jobs": 2,
            "core_seconds": 540.2,
            "activities": {"training": 310.0, "sampling": 190.0, "waiting": 34.6},
            "stages": [
                {"label": f"sft{text}", "kind": "sft", "seconds": 24.0, "status": "made", "spent": {"training": 24.0}},
                {"label": "golden model", "kind": "preference", "seconds": None, "status": "cached"},
            ],
        },
        "versions": {"aligngap": "0.1.0", "python": "3.11", "packages": {"torch": "2.13.0", "scipy": None}},
    }
    rows: list[dict[str, Any]] = []
    for task in tasks:
        arms = [arm for seed in seeds for arm in _arms(seed, rng, text, fail_one, no_numbers, further)]
        results["tasks"][task] = {
            "arms": arms,
            "stages": _stages(no_numbers),
            "measures": [
                {"name": "bouts", "seed": 0, "identity": "0", "status": "finished", "reason": None},
                {
                    "name": f"quality{text}",
                    "seed": 0,
                    "identity": "1",
                    "status": "failed",
                    "reason": f"out of memory{text}",
                },
            ],
            "experiments": {},
        }
        if experiments:
            made = _experiments(seeds, text, no_numbers) | _further_experiments(
                further_experiments, further, seeds, rng
            )
            holm = dict.fromkeys(made) if no_numbers else dict.fromkeys(made, 0.012)
            results["tasks"][task] |= {"experiments": made, "holm": holm}
        rows += _samples(task, arms, prompts, rng, text, no_numbers, every_step)
    folder.mkdir(parents=True, exist_ok=True)
    if schema == 2:
        _flatten(results, folder)
    # NaN is written as a bare word on purpose: a reader must survive it.
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    if samples:
        types = {"arm": pl.String, "utility": pl.Float64, "win_golden_policy_golden": pl.Float64}
        frame = pl.DataFrame(rows, schema_overrides=types, infer_schema_length=None)
        frame.write_parquet(folder / "samples.parquet")
    return folder


def _flatten(results: dict[str, Any], folder: Path) -> None:
    """Points into their own table, and all else where schema 2 has it, with every foreign text as it is."""
    migrated, points = _migrations.from_schema_1(readable(results))
    points.write_parquet(folder / "points.parquet")
    for content, found in zip(results["tasks"].values(), migrated["tasks"].values(), strict=True):
        content["golden_kl"] = found["golden_kl"]
        for arm in content["arms"]:
            del arm["points"]
        adjusted = content.pop("holm", {})
        for name, experiment in content["experiments"].items():
            experiment["holm"] = adjusted[name]


def write_large_results(folder: Path) -> Path:
    """As large as the whole study: 17 experiments, 4 tasks, 44 arms, 3 seeds, samples of every checkpoint."""
    tasks = ("summarisation", "helpfulness", "harmlessness", "arena")
    return write_results(folder, tasks=tasks, further=FURTHER, further_experiments=14, prompts=32, every_step=True)


def _arms(
    seed: int, rng: random.Random, text: str, fail_one: bool, no_numbers: bool, further: Sequence[str]
) -> list[dict[str, Any]]:
    arms = [
        _arm("online", f"online lr=1e-3 beta=0.1{text}", seed, True, 0.56, 3.2, rng, no_numbers),
        _arm("replay", "replay in exact order", seed, True, 0.55, 3.0, rng, no_numbers),
        _arm("shuffled", "replay shuffled", seed, True, 0.47, 2.2, rng, no_numbers),
        _arm("golden_policy", "golden policy", seed, True, 0.52, 2.4, rng, no_numbers),
    ]
    for lr, beta in OFFLINE:
        base = (lr, beta) == ("1e-3", 0.1)
        speed = {"3e-4": 1.4, "1e-3": 2.4, "3e-3": 3.6}[lr] - (0.4 if beta > 0.1 else 0.0)
        arms.append(_arm("offline", f"offline lr={lr} beta={beta}", seed, base, 0.44, speed, rng, no_numbers))
    for place, family in enumerate(further):
        height, speed = 0.4 + 0.15 * place / len(further), 2.0 + place % 5 / 4
        arms.append(_arm(family, family.replace("_", " "), seed, True, height, speed, rng, no_numbers))
    if fail_one:
        arms[-1] |= {"status": "failed", "reason": f"loss became NaN at step 31{text}", "points": [], "cost": {}}
    return arms


def _arm(
    family: str, name: str, seed: int, baseline: bool, height: float, speed: float, rng: random.Random, no_numbers: bool
) -> dict[str, Any]:
    points = []
    shift = rng.gauss(0, 0.01)
    for step in STEPS:
        kl = 0.0 if step == 0 else 0.02 * (step / 4) ** (speed / 1.75)
        for split in ("train", "held_out"):
            gain = 1 - math.exp(-kl)
            fall = 0.11 * math.log1p(kl / 6) ** 1.5
            level = 0.24 + (height - 0.24) * gain + shift + (0.015 if split == "train" else 0)
            rates = {
                "golden": level - 0.6 * fall,
                "true": level - 0.03 * gain - fall,
                "proxy": level + 0.07 * gain - 0.1 * fall,
            }
            wins = {
                "golden_policy": {judge: _win(rate, rng) for judge, rate in rates.items()},
                "sft": {judge: _win(rate + 0.26, rng) for judge, rate in rates.items()},
            }
            point: dict[str, Any] = {
                "step": step,
                "split": split,
                "kl": kl,
                "kl_se": kl * 0.04,
                "wins": wins,
                "proxy": wins["sft"]["proxy"]["rate"],
                "utility": 0.4 + gain * 0.3 - fall,
                "tokens": 22 + 3 * math.log1p(kl),
                "accuracy": None if step == 0 else 0.5 + (0.14 if family == "offline" else 0.03) * gain + shift,
                "drift": -0.9 * kl * (1.6 if family == "offline" else 1.0),
            }
            if no_numbers:
                point |= {"kl": None, "kl_se": float("nan"), "wins": {"golden_policy": {}, "sft": None}}
                point |= dict.fromkeys(("proxy", "utility", "tokens", "accuracy", "drift"))
            points.append(point)
    return {
        "name": name,
        "family": family,
        "base": "medium" if "medium" in family else "small",
        "source": {"kind": "sampled" if family == "online" else "recorded"},
        "loss": {"name": "ipo", "beta": 0.1, "reduction": "sum"},
        "seed": seed,
        "settings": {"lr": 1e-3, "beta": 0.1, "steps": 512, "batch": 32},
        "baseline": baseline,
        "status": "finished",
        "reason": None,
        "weights_sha256": f"{rng.getrandbits(256):064x}",
        "points": points,
        "cost": {
            "seconds": None if no_numbers else (95.0 if family == "online" else 31.0) + rng.gauss(0, 2),
            "tokens_sampled": 786432 if family == "online" else 0,
            "judge_calls": 32768 if family == "online" else 0,
            "steps": 512,
        },
    }


def _win(rate: float, rng: random.Random) -> dict[str, Any]:
    n = 512
    rate = min(1.0, max(0.0, rate + rng.gauss(0, 0.006)))
    return {"rate": rate, "se": math.sqrt(rate * (1 - rate) / n), "n": n, "ties": rng.randrange(20)}


def _stages(no_numbers: bool) -> dict[str, Any]:
    def share(value: float, n: int) -> dict[str, Any]:
        return {"value": float("nan") if no_numbers else value, "n": n}

    return {
        "sft": {"loss": 1.21, "held_out_loss": 1.27, "mean_utility": None if no_numbers else 0.41},
        "agreement": {
            "golden_rater": share(0.742, 1024),
            "golden_true": share(0.861, 1024),
            "proxy_golden": share(0.783, 1024),
            "proxy_true": share(0.744, 1024),
            "rater_true": share(0.801, 1024),
        },
        "sizes": {"policy": 412_000, "golden": 1_630_000, "proxy": 412_000},
        "proxy": {"pairs": 2048, "lr": 1e-3, "epochs": 3},
    }


def _figure(name: str, mark: str, points: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    words = {"title": f"A {mark} figure named {name}", "x": "KL(policy || SFT), nats", "y": "difference of win rates"}
    return {"name": name, **words, "mark": mark, "points": points, "x_log": False, "families": [], **more}


def _point(series: str, x: float | str, y: float, seed: int | None = None) -> dict[str, Any]:
    bounds = {"low": y - 0.04, "high": y + 0.04} if seed is None else {"low": None, "high": None}
    return {"series": series, "x": x, "y": y, "seed": seed} | bounds


def _further_experiments(
    count: int, families: Sequence[str], seeds: Sequence[int], rng: random.Random
) -> dict[str, Any]:
    """Experiments of the usual extent: a dozen estimates, win-rate curves, lines with their seeds, and bars."""
    made = {}
    for index in range(count):
        chosen = list(families[index : index + 5])
        curves = _figure("curves", "line", [], title="Win rate over KL", families=["online", "offline", *chosen])
        steps = [
            _point(family, 50.0 * place, 0.5 + rng.gauss(0.01 * place, 0.02), seed)
            for family in chosen
            for place in range(10)
            for seed in (None, *seeds)
        ]
        lines = _figure("training", "line", steps, x="optimiser steps", y="accuracy against golden labels")
        heights = [
            _point(side, f, rng.gauss(0.05, 0.05), s)
            for side in ("train", "held out")
            for f in chosen
            for s in (None, *seeds)
        ]
        bars = _figure("bars", "bar", heights, x="")
        estimates = {
            f"estimate_{i}": {"label": f"average gap at equal KL, made-up number {i}", "unit": "win rate", "note": ""}
            | {
                "value": 0.01 * i,
                "low": 0.01 * i - 0.03,
                "high": 0.01 * i + 0.03,
                "n_seeds": len(seeds),
                "n_prompts": 512,
            }
            for i in range(12)
        }
        made[f"further_{index}"] = {
            "title": f"Further hypothesis {index}",
            "question": "Would a made-up question of the usual length be answered by made-up numbers?",
            "finding": "The original found what originals find, and said so in a sentence (figure 9).",
            "rule": "Supported if the interval lies wholly above 0; contradicted if wholly below; else inconclusive.",
            "verdict": ("supported", "contradicted", "inconclusive")[index % 3],
            "sentence": "At equal KL the made-up arm wins a made-up share of the prompts more (3 seeds, 512 prompts).",
            "estimates": estimates,
            "figures": [curves, lines, bars],
        }
    return made


def _experiments(seeds: Sequence[int], text: str, no_numbers: bool) -> dict[str, Any]:
    n_seeds = len(seeds)
    kls = () if no_numbers else (0.05, 0.1, 0.3, 1.0, 3.0)
    band = [
        _point(series + text, kl, 0.02 * place + shift)
        for series, shift in (("golden judge", 0), ("true utility", -0.05))
        for place, kl in enumerate(kls)
    ]
    bars = (
        []
        if no_numbers
        else [_point("held out", name, 0.5, seed) for name in ("online", f"offline{text}") for seed in (None, *seeds)]
    )
    nan = _figure("nothing", "point", [_point("online", 1.0, float("nan"))])

    def estimate(label: str, value: float, low: float, high: float, note: str = "") -> dict[str, Any]:
        numbers = dict.fromkeys(("value", "low", "high")) if no_numbers else {"value": value, "low": low, "high": high}
        known = {"n_seeds": n_seeds, "n_prompts": 512, "note": note + text, "unit": "win rate"}
        tested = {"null": 0.0, "p": None if no_numbers else 0.004} if label.endswith("same configuration") else {}
        return {"label": label + text} | numbers | known | tested

    return {
        "goodhart": {
            "title": f"Online against offline{text}",
            "question": "At the same KL budget, does online beat offline?" + text,
            "finding": "Online is better at every KL, and peaks higher." + text,
            "rule": "Supported if the interval of the average gap lies above 0; contradicted if below." + text,
            "verdict": "supported",
            "sentence": "Online wins by 8.1 points on average over the common range of KL." + text,
            "estimates": {
                "gap": estimate("Average gap, same configuration", 0.081, 0.052, 0.113),
                "gap_best": estimate("Average gap, best of sweep", 0.046, 0.011, 0.079, "Chosen on train prompts."),
                "peak": estimate("Difference of peaks", 0.094, 0.058, 0.127),
                "fall": estimate("Fall from peak to end, offline", -0.012, -0.041, 0.016),
            },
            "power": {"seeds": None if n_seeds < 2 else 7, "prompts": 300, "note": "" if n_seeds > 1 else "One seed."},
            "figures": [_figure("difference", "line", band, x_log=True, title=f"Online minus offline{text}")],
        },
        "coverage": {
            "title": "Coverage (H1)",
            "question": "Does the online run's data, shuffled, close the gap?",
            "finding": "Little better than offline.",
            "rule": "Contradicted if shuffled closes more than half of the gap; supported if less.",
            "verdict": "inconclusive",
            "sentence": "Shuffling closes between a quarter and almost all of the gap.",
            "estimates": {"share": {**estimate("Share of the gap closed", 0.52, 0.24, 0.93), "unit": "share"}},
            "figures": [_figure("curves", "line", [], families=["online", "offline", "shuffled", f"absent{text}"])],
        },
        "tandem": {
            "title": "Tandem",
            "question": "Does exact replay give the online run?",
            "finding": "Equal up to numerical noise.",
            "rule": "Supported if all weights are equal bit for bit.",
            "verdict": "contradicted",
            "sentence": "One replay of three differs from its online run.",
            "estimates": {},
            "figures": [_figure("equal", "bar", bars, x=""), nan],
        },
    }


def _samples(
    task: str,
    arms: list[dict[str, Any]],
    prompts: int,
    rng: random.Random,
    text: str,
    no_numbers: bool,
    every_step: bool,
) -> list[dict[str, Any]]:
    words = "river market council opened early while the old bridge stayed closed after heavy rain".split()
    known = [" ".join(rng.choice(words) for _ in range(18)).capitalize() + "." for _ in range(4000)]

    def value(spread: float) -> float | None:
        return None if no_numbers else round(rng.gauss(0, spread), 3)

    def answer(who: str, arm: str | None, seed: int, step: int | None, ended: bool) -> dict[str, Any]:
        scores = {"utility": value(0.5), "margin_golden": value(0.3), "margin_proxy": value(0.3) if arm else None}
        margin = scores["margin_golden"]
        scores["win_golden_policy_golden"] = (1.0 if margin > 0.1 else 0.0) if arm and margin is not None else None
        return {
            "who": who,
            "arm": arm,
            "seed": seed,
            "step": step,
            "response": rng.choice(known) + text,
            "ended": ended,
            **scores,
        }

    rows: list[dict[str, Any]] = []
    for split in ("held_out", "train") if every_step else ("held_out",):
        for index in range(prompts):
            asked = " ".join(rng.choice(known) for _ in range(3)) + text
            prompt = {"task": task, "split": split, "prompt_number": index, "prompt": asked}
            rows += [prompt | answer(who, None, 0, None, True) for who in ("sft", "golden_policy")]
            for arm in arms:
                if arm["baseline"] and arm["status"] == "finished":
                    for step in STEPS if every_step else (64, STEPS[-1]):
                        rows.append(prompt | answer("policy", arm["name"], arm["seed"], step, index % 5 != 0))
    return rows
