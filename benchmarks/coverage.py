"""How often does the complete decision rule say a false word? Simulated studies whose truth is known.

    python -m benchmarks.coverage --repetitions 20000 --csv benchmarks/coverage.csv

A **study** is four worlds that differ in how far seeds scatter. In each, both methods sweep four configurations, a
run a seed of each: a path of KL with a checkpoint at step 0 and sixteen evenly in ln KL (ratio 1.2 to 1.5), and by
truth and by golden a win rate there. A pilot of five seeds of its own registers which k are compared, and by which
configuration of either method. Claim A is `delta_eq`, claim B `within_budget` at 4. What the rule itself computes is
the package's own code (`crossings`, `leave_one_out`, `adjust`, `classify`, the p-values); only the runs are made
here (benchmarks/simulated.py), at the level of means over prompts, so that ten thousand studies of a kind take a
minute or two.

**A false word** is one that the true value denies: *supported* where it is 0 or below, *contradicted* where it is 0
or above, *equivalent* or "smaller than 4 points" where it is 4 points or more. The true value of A is that of the
curves of what was registered; of B, what practitioners get on average over all simulated seeds, without evaluation's
noise.

**Beside it**, in the same studies: the rule as it was first written, which chose configurations on the other seeds
("loo"), and took plain Holm and the 90% interval against the margin whatever the number of claims ("holm"); each
change alone and both ("first"). The first laboratory's rule (mean gap over ln KL and peak difference of one
configuration, margin 2 points) and a word from `gap_weighted`, the mean weighted by attainable gain, are held against
the true value of A. docs/statistics.md says what follows.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from aligngap.stats.contrast import correlation, critical, max_t, p_different, p_inside, satterthwaite
from aligngap.stats.words import MARGIN, WORDS, adjust, classify
from benchmarks import markdown
from benchmarks.simulated import (
    CHUNK,
    EFFECTS,
    SCENARIOS,
    SEEDS,
    WORLD_SDS,
    Floats,
    Means,
    PerSeed,
    Registered,
    Scenario,
    chunk,
    seed_means,
    shared_variance,
    true_a,
)


@dataclass(frozen=True, eq=False)
class Judged:
    """R studies of one world. claims: (value, variance) of A and B, [R, 2] each; first: the same with A's
    configurations chosen on the other seeds; older: what the older rules go by; true, true_first: values of A and B,
    [R, 2]; error: the Monte Carlo error of B's.
    """

    claims: Means
    first: Means
    older: tuple[Means, Means, Means]
    true: Floats
    true_first: Floats
    error: float


Cell = tuple[float, int]  # effect, seeds


def simulate(rng: np.random.Generator, scenario: Scenario, sd: float, repetitions: int) -> dict[Cell, Judged]:
    """One world."""
    parts: dict[float, list[PerSeed]] = {effect: [] for effect in EFFECTS}
    pilots: dict[float, list[Registered]] = {effect: [] for effect in EFFECTS}
    for start in range(0, repetitions, CHUNK):
        for effect, of_seeds, registered in chunk(rng, scenario, sd, min(CHUNK, repetitions - start)):
            parts[effect].append(of_seeds)
            pilots[effect].append(registered)
    judged = {}
    for effect, of_effect in parts.items():
        values = {name: np.concatenate([part[name] for part in of_effect]) for name in of_effect[0]}
        registered = Registered(np.concatenate([one.order for one in pilots[effect]]))
        for seeds in SEEDS:
            judged[effect, seeds] = judge(values, registered, scenario, effect, seeds)
    return judged


def judge(values: PerSeed, registered: Registered, scenario: Scenario, effect: float, seeds: int) -> Judged:
    """R studies of the first `seeds` seeds."""
    picks = values[f"picks {seeds}"].astype(np.int64)
    b = seed_means(values["B"][:, :seeds], shared_variance(512))
    claims = [
        seed_means(values[f"A {seeds}"], shared_variance()),
        seed_means(values[f"others {seeds}"], shared_variance()),
    ]
    practitioners = values["true_B"].astype(np.float64)
    true_b = np.full(len(practitioners), practitioners.mean())
    pairs = [tuple(np.stack(both, axis=-1) for both in zip(a, b, strict=True)) for a in claims]
    older = tuple(seed_means(values[name][:, :seeds], shared_variance()) for name in ("average", "peaks", "weighted"))
    true, true_first = (np.stack((a, true_b), axis=-1) for a in true_a(scenario, effect, registered, picks))
    error = float(practitioners.mean(axis=1).std() / np.sqrt(len(practitioners)))
    return Judged(pairs[0], pairs[1], older, true, true_first, error)


def denied(word: NDArray[np.int64], small: NDArray[np.bool_], true: Floats, near: Floats) -> NDArray[np.bool_]:
    """Is a word denied by the true value? near: as good as 0, or as the margin."""
    large = np.abs(true) >= MARGIN - near
    wrong_side = ((word == 0) & (true <= near)) | ((word == 1) & (true >= -near))
    return np.asarray(wrong_side | ((word == 2) & large) | (small & large))


def said(value: Floats, variance: Floats, df: float | Floats) -> dict[str, tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Words on claims [R, m] by the rule, and by the rule as it was first written."""
    different, inside = p_different(value, variance, df), p_inside(value, variance, df, MARGIN)
    lacking = np.isnan(value)
    different, inside = np.where(lacking, np.nan, different), np.where(lacking, np.nan, inside)
    adjusted = adjust(different, inside)
    plain = adjust(different, np.full_like(different, np.nan))[0]  # without margins it is Holm's
    return {"rule": classify(value, *adjusted[:2]), "first": classify(value, plain, inside)}


def old_word(average: Means, peak: Means, df: int) -> NDArray[np.int64]:
    """The first laboratory's rule on figure 1: supported if both 95% intervals lie above 0; contradicted if either lies
    below, or both within 2 points.
    """
    ends = []
    for value, variance in (average, peak):
        half = critical(df, 0.95) * np.sqrt(variance)
        ends.append((value - half, value + half))
    above = (ends[0][0] > 0) & (ends[1][0] > 0)
    below = (ends[0][1] < 0) | (ends[1][1] < 0)
    none = np.all([(low > -0.02) & (high < 0.02) for low, high in ends], axis=0)
    return np.select([above, below | none], [0, 1], 4)


Row = dict[str, object]
COUNTED = ("supported", "contradicted", "equivalent", "not reached")


def rates(row: Row, name: str, word: NDArray[np.int64], small: NDArray[np.bool_], false: NDArray[np.bool_]) -> Row:
    found: Row = {f"{name}_{one}": round(float((word == WORDS.index(one)).mean()), 4) for one in COUNTED}
    return (
        row | found | {f"{name}_small": round(float(small.mean()), 4), f"{name}_false": round(float(false.mean()), 4)}
    )


def of_claims(row: Row, claims: Means, first: Means, df: Sequence[float | Floats], judged: Sequence[Floats]) -> Row:
    """Rates of the words on A and B by the rule, and of studies with a false word by it and by what it was before.
    judged: the true values by the rule and as first written, and what is as good as 0.
    """
    near = judged[2]
    now, then = said(*claims, df[0]), said(*first, df[1])
    variants = {
        "rule": (now["rule"], judged[0]),
        "holm": (now["first"], judged[0]),
        "loo": (then["rule"], judged[1]),
        "first": (then["first"], judged[1]),
    }
    for name, ((word, small), true) in variants.items():
        false = denied(word, small, true, near)
        row = row | {f"{name}_false": round(float(false.any(axis=-1).mean()), 4)}
        if name == "rule":
            for number, claim in enumerate("AB"):
                row = rates(row, claim, word[:, number], small[:, number], false[:, number])
    return row | {"first_A_supported": round(float((then["first"][0][:, 0] == 0).mean()), 4)}


def of_older(row: Row, older: tuple[Means, Means, Means], df: int, true: Floats) -> Row:
    near = np.array(1e-9)
    word = old_word(*older[:2], df)
    row = rates(row, "old", word, np.zeros(len(word), dtype=np.bool_), _denied_old(word, true))
    value, variance = (one[:, None] for one in older[2])
    word, small = (one[:, 0] for one in said(value, variance, df)["rule"])
    return rates(row, "weighted", word, small, denied(word, small, true, near))


def _denied_old(word: NDArray[np.int64], true: Floats) -> NDArray[np.bool_]:
    """The old rule's "contradicted" says that there is no gap as predicted, which one of 0 does not deny."""
    return ((word == 0) & (true <= 1e-9)) | ((word == 1) & (true > 1e-9))


def report(seed: int, repetitions: int, scenarios: Sequence[Scenario] = SCENARIOS) -> Iterator[Row]:
    """A row for each scenario, effect, number of seeds and world, and for the mean over worlds."""
    for scenario in scenarios:
        number = SCENARIOS.index(scenario)
        rngs = [np.random.default_rng([seed, number, place]) for place in range(len(WORLD_SDS))]
        worlds = [simulate(rng, scenario, sd, repetitions) for rng, sd in zip(rngs, WORLD_SDS, strict=True)]
        for effect, seeds in worlds[0]:
            cells = [world[effect, seeds] for world in worlds]
            for sd, judged in zip(WORLD_SDS, cells, strict=True):
                yield of_world(judged, scenario, effect, seeds, sd)
            yield of_mean(cells, scenario, effect, seeds)


def heading(scenario: Scenario, effect: float, seeds: int, world: float | str, true: Floats) -> Row:
    row: Row = {"scenario": scenario.name, "effect": effect, "seeds": seeds, "world_sd": world}
    known = np.isfinite(true[:, 0])
    a = round(float(true[known, 0].mean()), 5) if known.any() else ""
    return row | {"registered": round(float(known.mean()), 4), "true_A": a, "true_B": round(float(true[0, 1]), 5)}


def of_world(judged: Judged, scenario: Scenario, effect: float, seeds: int, sd: float) -> Row:
    row = heading(scenario, effect, seeds, sd, judged.true)
    near = np.array([1e-9, 3 * judged.error])
    df = (seeds - 1, seeds - 1)
    row = of_claims(row, judged.claims, judged.first, df, (judged.true, judged.true_first, near))
    return of_older(row, judged.older, seeds - 1, judged.true_first[:, 0])


def of_mean(worlds: Sequence[Judged], scenario: Scenario, effect: float, seeds: int) -> Row:
    """The mean over the four worlds."""
    true, true_first = (np.mean([getattr(w, name) for w in worlds], axis=0) for name in ("true", "true_first"))
    near = np.array([1e-9, 3 * float(np.linalg.norm([w.error for w in worlds])) / len(worlds)])
    claims, dfs = [], []
    for name in ("claims", "first"):
        parts = [getattr(w, name) for w in worlds]
        variance, df = satterthwaite(np.stack([part[1] for part in parts], axis=-1), seeds - 1)
        claims.append((np.mean([part[0] for part in parts], axis=0), variance))
        dfs.append(df)
    row = heading(scenario, effect, seeds, "mean", true)
    return of_claims(row, *claims, dfs, (true, true_first, near))


def bands(seed: int, repetitions: int) -> Iterator[Row]:
    """How often the simultaneous band over five KLs holds them all, by correlation of neighbours and seeds."""
    rng = np.random.default_rng([seed, 99])
    for seeds in SEEDS:
        for rho in (0.0, 0.5, 0.8, 0.95):
            root = np.linalg.cholesky(rho ** np.abs(np.subtract.outer(np.arange(5), np.arange(5))))
            sample = rng.standard_normal((repetitions, seeds, 5)) @ root.T
            t = np.abs(sample.mean(axis=1) / (sample.std(axis=1, ddof=1) / np.sqrt(seeds))).max(axis=-1)
            wide = np.array([max_t(correlation(one), seeds, draws=4000) for one in sample])
            held, factor = float((t <= wide).mean()), float(wide.mean()) / critical(seeds - 1, 0.95)
            yield {"seeds": seeds, "rho": rho, "held": round(held, 4), "wider": round(factor, 3)}


def main(
    seed: int = 0,
    repetitions: int = 2000,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="write all rows here")] = None,
    only: Annotated[str, typer.Option(help="scenarios whose name contains this")] = "",
    band: Annotated[int, typer.Option(help="repetitions for the band, 0 = none")] = 0,
) -> None:
    """How often does the decision rule say a false word?"""
    started, rows = time.process_time(), []
    names = (
        "scenario",
        "effect",
        "seeds",
        "world_sd",
        "true_A",
        "true_B",
        "rule_false",
        "holm_false",
        "loo_false",
        "first_false",
        "A_supported",
    )
    print(markdown.table(names, []))
    chosen = [one for one in SCENARIOS if only in one.name]
    for row in report(seed, repetitions, chosen):
        rows.append(row)
        print(markdown.row([row[name] for name in names]), flush=True)
    held = list(bands(seed, band)) if band else []
    for row in held:
        print(markdown.row(list(row.items())))
    print(f"{repetitions} repetitions, {time.process_time() - started:.0f} processor seconds")
    if csv_file:
        write(csv_file, rows)
    if csv_file and held:
        write(csv_file.with_name(f"{csv_file.stem}-bands.csv"), held)


def write(path: Path, rows: Sequence[Row]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    typer.run(main)
