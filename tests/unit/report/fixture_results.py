"""A result folder made up for tests: every number here is invented test data and stands for no measurement."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

HOSTILE = "</script><img src=x onerror=alert(1)> & \u2028 \"quoted\" 'text' {{ 7 * 7 }} <!-- <script>"
STEPS = (0, 8, 16, 32, 64, 128, 256, 512)
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
) -> Path:
    """Write `results.json` and `samples.parquet`; `text` is put into every foreign text of the folder."""
    rng = random.Random(7)
    results: dict[str, Any] = {
        "schema": 1,
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
            "core_seconds": 540.2,
            "stages": [
                {"label": f"sft{text}", "kind": "sft", "seconds": 24.0, "status": "made"},
                {"label": "golden model", "kind": "preference", "seconds": None, "status": "cached"},
            ],
        },
        "versions": {"aligngap": "0.1.0", "python": "3.11", "packages": {"torch": "2.13.0", "scipy": None}},
    }
    rows: list[dict[str, Any]] = []
    for task in tasks:
        arms = [arm for seed in seeds for arm in _arms(seed, rng, text, fail_one, no_numbers)]
        results["tasks"][task] = {
            "arms": arms,
            "stages": _stages(no_numbers),
            "experiments": _experiments(len(seeds), text, no_numbers) if experiments else {},
        }
        rows += _samples(task, arms, prompts, rng, text, no_numbers)
    folder.mkdir(parents=True, exist_ok=True)
    # NaN is written as a bare word on purpose: a reader must survive it.
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    samples = pl.DataFrame(rows, schema_overrides={"arm": pl.String, "utility": pl.Float64}, infer_schema_length=None)
    samples.write_parquet(folder / "samples.parquet")
    return folder


def _arms(seed: int, rng: random.Random, text: str, fail_one: bool, no_numbers: bool) -> list[dict[str, Any]]:
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
                "self_accuracy": None if family == "offline" else 0.51,
            }
            if no_numbers:
                point |= {"kl": None, "kl_se": float("nan"), "wins": {"golden_policy": {}, "sft": None}}
                point |= dict.fromkeys(("proxy", "utility", "tokens", "accuracy", "drift", "self_accuracy"))
            points.append(point)
    return {
        "name": name,
        "family": family,
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


def _experiments(n_seeds: int, text: str, no_numbers: bool) -> dict[str, Any]:
    def estimate(label: str, value: float, low: float, high: float, note: str = "") -> dict[str, Any]:
        numbers = dict.fromkeys(("value", "low", "high")) if no_numbers else {"value": value, "low": low, "high": high}
        known = {"n_seeds": n_seeds, "n_prompts": 512, "note": note + text, "unit": "win rate"}
        return {"label": label + text} | numbers | known

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
        },
        "coverage": {
            "title": "Coverage (H1)",
            "question": "Does the online run's data, shuffled, close the gap?",
            "finding": "Little better than offline.",
            "rule": "Contradicted if shuffled closes more than half of the gap; supported if less.",
            "verdict": "inconclusive",
            "sentence": "Shuffling closes between a quarter and almost all of the gap.",
            "estimates": {"share": {**estimate("Share of the gap closed", 0.52, 0.24, 0.93), "unit": "share"}},
        },
        "tandem": {
            "title": "Tandem",
            "question": "Does exact replay give the online run?",
            "finding": "Equal up to numerical noise.",
            "rule": "Supported if all weights are equal bit for bit.",
            "verdict": "contradicted",
            "sentence": "One replay of three differs from its online run.",
            "estimates": {},
        },
    }


def _samples(
    task: str, arms: list[dict[str, Any]], prompts: int, rng: random.Random, text: str, no_numbers: bool
) -> list[dict[str, Any]]:
    words = "river market council opened early while the old bridge stayed closed after heavy rain".split()

    def sentence(length: int) -> str:
        return " ".join(rng.choice(words) for _ in range(length)).capitalize() + "."

    def value(spread: float) -> float | None:
        return None if no_numbers else round(rng.gauss(0, spread), 3)

    rows: list[dict[str, Any]] = []
    for index in range(prompts):
        prompt = {"task": task, "split": "held_out", "prompt_number": index, "prompt": sentence(45) + text}
        for who in ("sft", "golden_policy"):
            rows.append(
                prompt
                | {"who": who, "arm": None, "seed": 0, "step": None, "response": sentence(16) + text, "ended": True}
                | {"utility": value(0.5), "margin_golden": value(0.3), "margin_proxy": None}
            )
        for arm in arms:
            if arm["baseline"] and arm["status"] == "finished":
                for step in (64, STEPS[-1]):
                    rows.append(
                        prompt
                        | {"who": "policy", "arm": arm["name"], "seed": arm["seed"], "step": step}
                        | {"response": sentence(18) + text, "ended": index % 5 != 0}
                        | {"utility": value(0.5), "margin_golden": value(0.3), "margin_proxy": value(0.3)}
                    )
    return rows
