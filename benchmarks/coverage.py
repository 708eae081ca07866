"""How often does the complete decision rule say a false word? Simulated studies whose truth is known.

    python -m benchmarks.coverage --repetitions 20000 --csv benchmarks/coverage.csv

A **study** is four worlds that differ in how far seeds scatter. In each, both methods sweep four configurations, a run
a seed of each: a path of KL with a checkpoint at step 0 and sixteen evenly in ln KL (ratio 1.2 to 1.5), and by truth and
by golden a win rate there. Claim A is `delta_eq` on frontiers, claim B `within_budget` at 4. What the rule itself
computes is the package's own code (`crossings`, `leave_one_out`, `adjust`, `classify`, the p-values); only the runs are
made here, at the level of means over prompts, so that 20,000 studies of a kind take minutes.

**A false word** is one that the scenario's true value denies: *supported* where it is 0 or below, *contradicted* where
it is 0 or above, *equivalent* or "smaller than 4 points" where it is 4 points or more. The true value of A is that of
the curves; of B, what practitioners get on average over all simulated seeds, without evaluation's noise.

**Beside it**: the rule as it was first written (plain Holm, and the 90% interval against the margin whatever the number
of claims), the first laboratory's (mean gap over ln KL and peak difference of one configuration, margin 2 points), and a
word from `gap_weighted`, the mean weighted by attainable gain. All are held against the true value of A.
docs/statistics.md says what follows.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from aligngap.stats.ceiling import w_star
from aligngap.stats.contrast import correlation, critical, max_t, p_different, p_inside, satterthwaite
from aligngap.stats.gaps import leave_one_out
from aligngap.stats.passages import crossings, is_hole
from aligngap.stats.verdict import holm
from aligngap.stats.words import ALPHA, MARGIN, WORDS, adjust, classify
from benchmarks import markdown

Floats = NDArray[np.float64]
Gap = Callable[[Floats], Floats]

WORLD_SDS = (0.015, 0.025, 0.035, 0.045)
"""Over seeds, of the difference of two runs at equal KL and configuration, by world."""
SEEDS = (3, 5, 8, 10)
EFFECTS = (0.0, MARGIN)
CHECKPOINTS = 16
BUDGET = 4.0
CHUNK = 1000
METHOD, RUN, WOBBLE = 0.3, 0.15, 0.05
"""A method's, a run's and a checkpoint's share of the variance of a difference over seeds, each method's."""
PROMPT_VARIANCE, GOLDEN_VARIANCE = 0.043, 0.117
"""Of a prompt's outcome at KL 1 by truth (four opponents) and by golden (one)."""
SHARES = {"method": 0.2, "run": 0.16, "checkpoint": 0.11}
"""Of a prompt's variance: what all runs of a method share, of a run, of a checkpoint. What both methods share drops out
of every difference. Measured in a study of two seeds, the first of them doubled (docs/lab-log.md).
"""
OFFSETS = np.array([0.0, -0.003, -0.006, -0.01])  # smaller betas are a little lower at equal KL
ONE = 2  # the configuration that the rules before this one compared


@dataclass(frozen=True)
class Scenario:
    """gap: online - offline of the curves, from sqrt(KL) and the effect (the mean over `registered`). ends: KL at the
    end of each configuration, online's and offline's. turn: sd of ln KL at each checkpoint. reach: sd over runs of the
    end's ln KL, of which `tied` of the correlation is with the run's win rate. lost: share of checkpoints that are
    missing. collapse: share of runs that lose 12 points from KL .5 to .8 on, online's and offline's. noise: by
    configuration, factor on a run's own sd.
    """

    name: str
    gap: Callable[[Floats, float], Floats] = lambda x, effect: np.full_like(x, effect)
    online: tuple[float, ...] = (3.5, 6, 12, 30)
    offline: tuple[float, ...] = (1.06, 2.2, 5.5, 9.9)
    registered: tuple[float, ...] = (1.0, 2.0, 4.0)
    turn: float = 0.05
    reach: float = 0.1
    tied: float = 0.0
    lost: float = 0.0
    collapse: tuple[float, float] = (0.0, 0.0)
    noise: tuple[float, ...] = (1, 1, 1, 1)


def opens_at_one(x: Floats, effect: float) -> Floats:
    """None up to KL 1, 3/2 of the effect from KL 2 on: the effect in the mean over 1, 2, 4."""
    return 1.5 * effect * np.clip((x - 1) / (np.sqrt(2) - 1), 0, 1)


def turns_round(x: Floats, effect: float) -> Floats:
    """Three points less at KL 1, three more at KL 4, than the effect."""
    return effect + 0.03 * np.clip(2 * np.log2(np.maximum(x, 0.1)) - 1, -2.0, 1.5)


def mends_collapse(x: Floats, effect: float) -> Floats:
    """The effect, and what one run in ten loses on average."""
    return effect + 0.1 * fallen(x)


def fallen(x: Floats) -> Floats:
    return 0.12 * np.clip((x - 0.7) / 0.2, 0, 1)


SCENARIOS = (
    Scenario("one gap at every KL"),
    Scenario("gap from KL 1 on only", opens_at_one),
    Scenario("opposite signs at low and high KL", turns_round),
    Scenario("different reach", offline=(0.9, 1.2, 1.6, 2.4), registered=(1.0,)),
    Scenario("holes", lost=0.05),
    Scenario("collapse: 10% of all runs, 12 points", collapse=(0.1, 0.1)),
    Scenario("collapse: 10% of online's runs alone", mends_collapse, collapse=(0.1, 0.0)),
    Scenario("KL turns back", turn=0.3),
    Scenario("seeds that do not reach k", offline=(1.06, 2.2, 3.3, 5), reach=0.2, tied=0.5),
    Scenario("betas differ in run noise", noise=(0.4, 0.8, 1.4, 2.2)),
)


def base(x: Floats) -> Floats:
    """Win rate over SFT by sqrt(KL): .67 at KL 1, .72 at 2, .78 at 4, at most .83 at 11, then less."""
    return np.asarray(0.5 + 0.2 * x - 0.03 * x**2)


def curve(scenario: Scenario, x: Floats, effect: float) -> Floats:
    """The curves of both methods at x [..., 2, C, S, K], without seeds."""
    win = base(x) + (OFFSETS * 1.0)[:, None, None] * np.minimum(x, 1)
    win[:, 0] += scenario.gap(x[:, 0], effect) * np.minimum(1, 2 * x[:, 0])
    return win


@dataclass(frozen=True, eq=False)
class Studies:
    """R studies of one world. kl, win (no noise of prompts): [R, 2, C, S, 1 + K]; noise: a half's, [2, ...]; golden:
    what it sees on a half.
    """

    kl: Floats
    win: Floats
    noise: Floats
    golden: Floats


def studies(rng: np.random.Generator, scenario: Scenario, effect: float, sd: float, n: int, seeds: int) -> Studies:
    shape = (n, 2, 4, seeds, CHECKPOINTS)

    def normal(*size: int) -> Floats:
        return rng.standard_normal(size, dtype=np.float32).astype(np.float64)

    run = normal(*shape[:4], 1) * np.array(scenario.noise)[:, None, None]
    own = np.sqrt(METHOD) * normal(n, 2, 1, seeds, 1) + np.sqrt(RUN) * run
    ends = np.log(np.array([scenario.online, scenario.offline]))[:, :, None, None]
    further = scenario.tied * own / np.sqrt(METHOD + RUN) + np.sqrt(1 - scenario.tied**2) * normal(*shape[:4], 1)
    ends = ends + scenario.reach * further
    path = np.log(0.1) + (ends - np.log(0.1)) * np.linspace(0, 1, CHECKPOINTS)
    kl = np.exp(path + scenario.turn * normal(*shape))
    x = np.sqrt(kl)
    win = curve(scenario, x, effect) + sd * np.minimum(1, x) * (own + np.sqrt(WOBBLE) * normal(*shape))
    if any(scenario.collapse):
        falls = rng.random((*shape[:4], 1)) < np.array(scenario.collapse)[:, None, None, None]
        win = win - falls * fallen(x)
    if scenario.lost:
        kl = np.where(rng.random(shape) < scenario.lost, np.nan, kl)
    noise = np.stack([prompts(normal, shape, PROMPT_VARIANCE / 256, SHARES["method"]) for _ in range(2)])
    seen = np.stack([prompts(normal, shape, GOLDEN_VARIANCE / 128, 0.0) for _ in range(2)])
    start = ((0, 0),) * 4 + ((1, 0),)  # step 0: KL 0, one half, without noise that would matter
    win, kl = np.pad(win, start, constant_values=0.5), np.pad(kl, start)
    golden = win + 0.02 * np.sqrt(np.nan_to_num(kl)) + np.pad(seen, ((0, 0), *start))
    return Studies(kl, win, np.pad(noise, ((0, 0), *start)), golden)


def prompts(normal: Callable[..., Floats], shape: tuple[int, ...], variance: float, method: float) -> Floats:
    """Noise of a mean over prompts: what seeds share, of the run, of the checkpoint."""
    n, sides, configurations, seeds, checkpoints = shape
    parts = (
        (method, normal(n, sides, 1, 1, 1)),
        (SHARES["run"], normal(n, sides, configurations, seeds, 1)),
        (SHARES["checkpoint"], normal(n, sides, configurations, seeds, checkpoints)),
    )
    return np.asarray(sum(np.sqrt(share * variance) * part for share, part in parts))


def at(kl: Floats, win: Floats, k: float) -> Floats:
    """w(k), NaN where it is not reached or in a hole."""
    before, after, share = crossings(kl, k)
    ends = [np.take_along_axis(values, np.maximum(place, 0)[..., None], -1)[..., 0] for place in (before, after)
            for values in (kl, win)]
    reached = (before >= 0) & (after >= 0) & ~is_hole(np.nan_to_num(ends[0]), np.nan_to_num(ends[2]))
    return np.where(reached, ends[1] + share * (ends[3] - ends[1]), np.nan)


Means = tuple[Floats, Floats]


def seed_means(values: Floats, shared: float) -> Means:
    """Mean over seeds, NaN where one lacks it, and its variance. [R, S] -> [R], [R]."""
    return values.mean(axis=-1), values.var(axis=-1, ddof=1) / values.shape[-1] + shared


def claim_a(made: Studies, scenario: Scenario) -> Floats:
    """`delta_eq` on frontiers, a value a seed, [R, S]: 1,024 prompts are both halves of the 512 that B has, and as many
    more.
    """
    win = made.win + made.noise.mean(axis=0) / np.sqrt(2)
    differences = []
    for k in scenario.registered:
        values = at(made.kl, win, k)  # [R, 2, C, S]
        chosen = leave_one_out(values)
        best = np.take_along_axis(values, np.maximum(chosen, 0)[:, :, None], 2)[:, :, 0]
        best = np.where(chosen >= 0, best, np.nan)
        differences.append(best[:, 0] - best[:, 1])
    return np.asarray(np.mean(differences, axis=0))


def claim_b(rng: np.random.Generator, made: Studies) -> tuple[Floats, Floats]:
    """`within_budget` at 4, a value a seed, [R, S], as observed and without prompts' noise."""
    seen, true = 0.0, 0.0
    flat = (*made.kl.shape[:2], made.kl.shape[3], -1)

    def by_seed(values: Floats) -> Floats:
        return np.moveaxis(values, 2, 3).reshape(flat)

    for half in (0, 1):
        kl = made.kl * (1 + 0.02 * rng.standard_normal(made.kl.shape, dtype=np.float32))  # of the selecting half
        liked = by_seed(np.where(kl <= BUDGET, made.golden[half], -np.inf))
        pick = liked.argmax(axis=-1)[..., None]
        got = np.take_along_axis(by_seed(made.win), pick, -1)[..., 0]
        noise = np.take_along_axis(by_seed(made.noise[1 - half]), pick, -1)[..., 0]
        true = true + (got[:, 0] - got[:, 1]) / 2
        seen = seen + (got[:, 0] - got[:, 1] + noise[:, 0] - noise[:, 1]) / 2
    return np.asarray(seen), np.asarray(true)


def before(made: Studies) -> tuple[Means, Means, Means]:
    """The first laboratory's average gap and peak difference of one configuration, and `gap_weighted`."""
    kl = made.kl[:, :, ONE]
    win = (made.win + made.noise.mean(axis=0) / np.sqrt(2))[:, :, ONE]
    place = np.log(kl[..., 1:])
    order = np.argsort(place, axis=-1)  # NaN last
    place, sorted_win = np.take_along_axis(place, order, -1), np.take_along_axis(win[..., 1:], order, -1)
    low, high = place[..., 0].max(axis=1), np.nanmax(place, axis=-1).min(axis=1)
    nodes = low[..., None] + (high - low)[..., None] * (np.arange(24) + 0.5) / 24
    on, off = (interpolated(place[:, side], sorted_win[:, side], nodes) for side in (0, 1))
    peaks = np.nanmax(np.where(np.isnan(place), np.nan, sorted_win), axis=-1)
    ks = np.geomspace(0.5, 4, 13)
    weights = np.diff([w_star(float(k)) for k in ks])
    middles = np.sqrt(ks[1:] * ks[:-1])
    weighted = sum(w * (at(kl, win, k)[:, 0] - at(kl, win, k)[:, 1]) for w, k in zip(weights, middles, strict=True))
    shared = shared_variance()
    return (
        seed_means((on - off).mean(axis=-1), shared),
        seed_means(peaks[:, 0] - peaks[:, 1], shared),
        seed_means(np.asarray(weighted) / weights.sum(), shared),
    )


def interpolated(x: Floats, y: Floats, nodes: Floats) -> Floats:
    """Lines through points [..., K] at nodes [..., G] within them."""
    right = (x[..., None, :] <= nodes[..., None]).sum(axis=-1).clip(1, x.shape[-1] - 1)
    x0, x1, y0, y1 = (np.take_along_axis(v, right + d, -1) for v in (x, y) for d in (-1, 0))
    return np.asarray(y0 + (y1 - y0) * (nodes - x0) / (x1 - x0))


def shared_variance(n: int = 1024) -> float:
    """Of a difference: what prompts do to all seeds alike. The estimate from so many prompts is near to it."""
    return 2 * SHARES["method"] * PROMPT_VARIANCE / n


@dataclass(frozen=True, eq=False)
class Judged:
    """Two claims in R studies of one world, [R, 2] each; and what the older rules go by, [R]."""

    value: Floats
    variance: Floats
    older: tuple[Means, Means, Means]


def simulate(
    rng: np.random.Generator, scenario: Scenario, effect: float, sd: float, repetitions: int, seeds: int
) -> tuple[Judged, Floats, float]:
    """One world: what is judged, the true values of A and B, and the Monte Carlo error of the latter."""
    parts, true_b = [], []
    for first in range(0, repetitions, CHUNK):
        made = studies(rng, scenario, effect, sd, min(CHUNK, repetitions - first), seeds)
        seen, true = claim_b(rng, made)
        means = (seed_means(claim_a(made, scenario), shared_variance()), seed_means(seen, shared_variance(512)))
        parts.append((*means, *before(made)))
        true_b.append(true)
    joined = [(np.concatenate([p[i][0] for p in parts]), np.concatenate([p[i][1] for p in parts])) for i in range(5)]
    practitioners = np.concatenate(true_b)
    error = float(practitioners.mean(axis=1).std() / np.sqrt(len(practitioners)))
    ks = np.sqrt(np.array(scenario.registered))
    true_a = float(scenario.gap(ks, effect).mean()) - scenario.collapse[0] * 0.12 + scenario.collapse[1] * 0.12
    value, variance = (np.stack([joined[0][i], joined[1][i]], axis=-1) for i in (0, 1))
    older = (joined[2], joined[3], joined[4])
    return Judged(value, variance, older), np.array([true_a, practitioners.mean()]), error


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
    plain = np.apply_along_axis(holm, -1, different) if different.shape[-1] > 2 else holm_of_two(different)
    return {"rule": classify(value, *adjusted[:2]), "first": classify(value, plain, inside)}


def holm_of_two(p: Floats) -> Floats:
    """`verdict.holm` for one or two claims at once, [R, m]; a test holds the two together."""
    if p.shape[-1] == 1:
        return p
    least = np.fmin(p[..., 0], p[..., 1])[..., None]
    second = np.maximum(2 * least, p)
    return np.where(np.isnan(p), np.nan, np.minimum(np.where(p == least, 2 * p, second), 1))


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
    return row | found | {f"{name}_small": round(float(small.mean()), 4), f"{name}_false": round(float(false.mean()), 4)}


def of_claims(row: Row, value: Floats, variance: Floats, df: float | Floats, true: Floats, near: Floats) -> Row:
    """Rates of the words on A and B by the rule, and of studies with a false word by it and as first written."""
    both = said(value, variance, df)
    for rule, (word, small) in both.items():
        false = denied(word, small, true, near)
        row = row | {f"{rule}_false": round(float(false.any(axis=-1).mean()), 4)}
        if rule == "rule":
            for number, claim in enumerate("AB"):
                row = rates(row, claim, word[:, number], small[:, number], false[:, number])
    return row


def of_older(row: Row, older: tuple[Means, Means, Means], df: int, true: float) -> Row:
    near = np.array(1e-9)
    word = old_word(*older[:2], df)
    row = rates(row, "old", word, np.zeros(len(word), dtype=np.bool_), _denied_old(word, true))
    value, variance = (one[:, None] for one in older[2])
    word, small = (one[:, 0] for one in said(value, variance, df)["rule"])
    return rates(row, "weighted", word, small, denied(word, small, np.array(true), near))


def _denied_old(word: NDArray[np.int64], true: float) -> NDArray[np.bool_]:
    """The old rule's "contradicted" says that there is no gap as predicted, which one of 0 does not deny."""
    return ((word == 0) & (true <= 1e-9)) | ((word == 1) & (true > 1e-9))


def report(seed: int, repetitions: int, scenarios: Sequence[Scenario] = SCENARIOS) -> Iterator[Row]:
    """A row for each scenario, effect, number of seeds and world, and for the mean over worlds."""
    for number, scenario in enumerate(scenarios):
        for effect in EFFECTS:
            for seeds in SEEDS:
                worlds, trues, errors = [], [], []
                for place, sd in enumerate(WORLD_SDS):
                    rng = np.random.default_rng([seed, number, round(effect * 1000), seeds, place])
                    judged, true, error = simulate(rng, scenario, effect, sd, repetitions, seeds)
                    worlds.append(judged)
                    trues.append(true)
                    errors.append(error)
                    near = np.array([1e-9, 3 * error])
                    row: Row = {"scenario": scenario.name, "effect": effect, "seeds": seeds, "world_sd": sd}
                    row |= {"true_A": round(float(true[0]), 5), "true_B": round(float(true[1]), 5)}
                    row = of_claims(row, judged.value, judged.variance, seeds - 1, true, near)
                    yield of_older(row, judged.older, seeds - 1, float(true[0]))
                value = np.mean([one.value for one in worlds], axis=0)
                variance, df = satterthwaite(np.stack([one.variance for one in worlds], axis=-1), seeds - 1)
                true, near = np.mean(trues, axis=0), np.array([1e-9, 3 * float(np.linalg.norm(errors)) / 4])
                row = {"scenario": scenario.name, "effect": effect, "seeds": seeds, "world_sd": "mean"}
                row |= {"true_A": round(float(true[0]), 5), "true_B": round(float(true[1]), 5)}
                yield of_claims(row, value, variance, df, true, near)


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
    names = ("scenario", "effect", "seeds", "world_sd", "true_A", "true_B", "rule_false", "first_false", "A_supported")
    print(markdown.table(names, []))
    chosen = [one for one in SCENARIOS if only in one.name]
    for row in report(seed, repetitions, chosen):
        rows.append(row)
        print(markdown.row([row[name] for name in names]), flush=True)
    for row in bands(seed, band) if band else ():
        print(markdown.row(list(row.items())))
    print(f"{repetitions} repetitions, {time.process_time() - started:.0f} processor seconds")
    if csv_file:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with csv_file.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    typer.run(main)
