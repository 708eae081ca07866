"""Coverage of the intervals in aligngap.stats on simulated runs whose true gap is known.

    python benchmarks/coverage.py --repetitions 200 --json coverage.json

The world: a prompt has a Beta(2, 2) easiness that both arms share, and an arm-specific part; a seed shifts the win rate
of an arm and stretches its KL; outcomes are Bernoulli, per-prompt KL is gamma around its mean. Prompts and seeds are
new in each repetition. The truth is the mean over the seed population of the noise-free statistic. With one seed it is
that seed's own noise-free statistic, because such an interval claims to cover prompts only.

Printed for each statistic, interval kind and number of seeds: the share of repetitions whose interval holds the truth,
its Monte Carlo standard error, the mean width, and the bias of the estimate. The peak is a maximum of noisy points and
leans upwards; its row shows by how much.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from aligngap.stats.bootstrap import Interval, gap_band, gap_estimates
from aligngap.stats.curves import Curve, Run, average_gap, interpolate, peak_difference

ARMS = ("online", "offline")
STATISTICS = ("average_gap", "peak_difference")
PATH = np.log(np.geomspace(0.5, 40, 10))  # kappa of the ten checkpoints, before the seed's stretch


@dataclass(frozen=True)
class World:
    seed_sd: float  # between-seed sd of an arm's win rate
    prompt_share: float  # half-range of the arm-specific prompt effect
    n_prompts: int

    def ideal(self, arm: str, kappa: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rises, peaks, falls; the online arm higher at every KL."""
        top, centre = (0.62, 1.9) if arm == "online" else (0.55, 1.3)
        return top - 0.05 * (kappa - centre) ** 2 / 2

    def truth(self, arm: str, rng: np.random.Generator) -> Curve:
        """Noise-free curve of one seed of an arm."""
        kappa = PATH + rng.normal(0, 0.15)
        win = self.ideal(arm, kappa) + np.clip(rng.normal(0, 1), -3, 3) * self.seed_sd
        return Curve(kappa, win, float(win[-1]))

    def observe(
        self, arm: str, seed: int, truth: Curve, prompts: dict[str, NDArray[np.float64]], rng: np.random.Generator
    ) -> Run:
        shape = (len(truth.kappa), self.n_prompts)
        chance = truth.win[:, None] + prompts["shared"] + prompts[arm]
        win = (rng.random(shape) < np.clip(chance, 0, 1)).astype(np.float64)
        kl = np.exp(truth.kappa)[:, None] * prompts["length"] * rng.gamma(4, 1 / 4, shape)
        return Run(arm, seed, np.arange(1, shape[0] + 1), kl, win)

    def prompts(self, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
        n = self.n_prompts
        effects = {arm: rng.uniform(-self.prompt_share, self.prompt_share, n) for arm in ARMS}
        return {"shared": 0.3 * (rng.beta(2, 2, n) - 0.5), "length": rng.gamma(4, 1 / 4, n), **effects}


def measure(
    world: World, n_seeds: int, repetitions: int, replicates: int, interval: Interval, seed: int, band: bool
) -> list[dict[str, float | str]]:
    rng = np.random.default_rng(seed)
    population = [(world.truth("online", rng), world.truth("offline", rng)) for _ in range(20_000)]
    target = {
        "average_gap": float(np.mean([average_gap(a, b) for a, b in population])),
        "peak_difference": float(np.mean([peak_difference(a, b) for a, b in population])),
    }
    fine = np.linspace(PATH[0] - 1, PATH[-1] + 1, 400)
    if band:
        on, off = (np.mean([interpolate(p[i], fine) for p in population[:4000]], axis=0) for i in (0, 1))
        # Outside the range all seeds share, the noise-free law itself stands in for the mean of the seeds.
        law = world.ideal("online", fine) - world.ideal("offline", fine)
        mean_gap = np.where(np.isfinite(on - off), on - off, law)
    hits: dict[str, list[bool]] = {name: [] for name in (*STATISTICS, "band")}
    widths: dict[str, list[float]] = {name: [] for name in hits}
    errors: dict[str, list[float]] = {name: [] for name in hits}
    for _ in range(repetitions):
        prompts = world.prompts(rng)
        truths = {arm: [world.truth(arm, rng) for _ in range(n_seeds)] for arm in ARMS}
        runs = {
            arm: [world.observe(arm, s, truth, prompts, rng) for s, truth in enumerate(truths[arm])] for arm in ARMS
        }
        result = gap_estimates(runs["online"], runs["offline"], rng, replicates=replicates, interval=interval)
        for name in STATISTICS:
            true = target[name]
            if n_seeds == 1:
                statistic = average_gap if name == "average_gap" else peak_difference
                true = statistic(truths["online"][0], truths["offline"][0])
            hits[name].append(result[name].low <= true <= result[name].high)
            widths[name].append(result[name].high - result[name].low)
            errors[name].append(result[name].value - true)
        if band:
            b = gap_band(runs["online"], runs["offline"], rng, replicates=replicates, interval=interval)
            if n_seeds == 1:
                curve = interpolate(truths["online"][0], b.kappa) - interpolate(truths["offline"][0], b.kappa)
                inside = np.isfinite(curve)  # the observed KL range may reach past the true one
            else:
                curve, inside = np.interp(b.kappa, fine, mean_gap), np.ones(len(b.kappa), dtype=np.bool_)
            hits["band"].append(bool(((b.low <= curve) & (curve <= b.high))[inside].all()))
            widths["band"].append(float(np.mean(b.high - b.low)))
            errors["band"].append(float(np.mean((b.value - curve)[inside])))
    rows: list[dict[str, float | str]] = []
    for name in hits:
        if hits[name]:
            share = float(np.mean(hits[name]))
            rows.append(
                {
                    "statistic": name,
                    "interval": interval,
                    "seeds": n_seeds,
                    "coverage": share,
                    "standard_error": float(np.sqrt(share * (1 - share) / repetitions)),
                    "mean_width": float(np.mean(widths[name])),
                    "bias": float(np.mean(errors[name])),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--replicates", type=int, default=300, help="bootstrap draws for each interval")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 3, 5, 10])
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--seed-sd", type=float, default=0.02, help="between-seed sd of an arm's win rate")
    parser.add_argument("--prompt-effect", type=float, default=0.1, help="half-range of the arm-specific prompt effect")
    parser.add_argument("--intervals", nargs="+", default=["t", "percentile"], choices=["t", "percentile"])
    parser.add_argument("--band", action="store_true", help="also the simultaneous band (about doubles the time)")
    parser.add_argument("--random-seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write settings and rows here")
    args = parser.parse_args()
    world = World(args.seed_sd, args.prompt_effect, args.prompts)
    started, rows = time.perf_counter(), []
    print(f"{'statistic':<16}{'interval':<12}{'seeds':>5}{'coverage':>10}{'± s.e.':>8}{'width':>8}{'bias':>9}")
    for interval in args.intervals:
        for n_seeds in args.seeds:
            for row in measure(
                world, n_seeds, args.repetitions, args.replicates, cast(Interval, interval), args.random_seed, args.band
            ):
                rows.append(row)
                print(
                    f"{row['statistic']:<16}{row['interval']:<12}{row['seeds']:>5}{row['coverage']:>10.3f}"
                    f"{row['standard_error']:>8.3f}{row['mean_width']:>8.3f}{row['bias']:>9.4f}",
                    flush=True,
                )
    if args.json:
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        settings["wall_seconds"] = round(time.perf_counter() - started, 1)
        args.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
