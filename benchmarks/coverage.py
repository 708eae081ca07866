"""How often does the complete decision rule say a false word? Simulated studies whose truth is known.

    python -m benchmarks.coverage --repetitions 20000 --csv benchmarks/coverage.csv

A **study** is four worlds that differ in how far seeds scatter. In each, both methods sweep four configurations, a
run a seed of each: a path of KL with a checkpoint at step 0 and sixteen evenly in ln KL (ratio 1.2 to 1.5), and by
truth and by golden a win rate there. A pilot of five seeds of its own registers which k are compared, and by which
configuration of either method. Claim A is `delta_eq`, claim B `within_budget` at 4. What the rule itself computes is
the package's own code (`crossings`, `leave_one_out`, `adjust`, `classify`, the p-values); only the runs are made
here, at the level of means over prompts, so that thousands of studies of a kind take minutes.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from aligngap.stats.ceiling import w_star
from aligngap.stats.contrast import correlation, critical, max_t, p_different, p_inside, satterthwaite
from aligngap.stats.gaps import BEYOND, leave_one_out
from aligngap.stats.passages import crossings, is_hole
from aligngap.stats.verdict import holm
from aligngap.stats.words import MARGIN, WORDS, adjust, classify
from benchmarks import markdown

Floats = NDArray[np.float64]
Gap = Callable[[Floats], Floats]

WORLD_SDS = (0.015, 0.025, 0.035, 0.045)
"""Over seeds, of the difference of two runs at equal KL and configuration, by world."""
SEEDS = (3, 5, 8, 10)
EFFECTS = (0.0, MARGIN)
CANDIDATES = (1.0, 2.0, 4.0)
PILOT = 5
CHECKPOINTS = 16
BUDGET = 4.0
CHUNK = 1000
METHOD, RUN, WOBBLE = 0.25, 0.2, 0.05
"""A method's, a run's and a checkpoint's share of the variance of a difference over seeds, each method's."""
PROMPT_VARIANCE, GOLDEN_VARIANCE = 0.043, 0.117
"""Of a prompt's outcome at KL 1 by truth (four opponents) and by golden (one)."""
SHARES = {"method": 0.2, "run": 0.16, "checkpoint": 0.11}
"""Of a prompt's variance: what all runs of a method share, of a run, of a checkpoint. What both methods share drops out
of every difference. Measured in a study of two seeds, the first of them doubled (docs/lab-log.md).
"""
OFFSETS = np.array(
    [-0.01, -0.006, -0.003, 0.0], dtype=np.float32
)  # the configuration that reaches furthest is the best: the frontier is known
ONE = 2  # the configuration that the rules before this one compared


@dataclass(frozen=True)
class Scenario:
    """gap: online - offline of the curves, from sqrt(KL) and the effect (the mean over KL 1, 2, 4). ends: KL at the
    end of each configuration, online's and offline's. turn: sd of ln KL at each checkpoint. reach: sd over runs of the
    end's ln KL, of which `tied` of the correlation is with the run's win rate. lost: share of checkpoints that are
    missing. collapse: share of runs that lose 12 points from KL .5 to .8 on, online's and offline's. noise: by
    configuration, factor on a run's own sd.
    """

    name: str
    gap: Callable[[Floats, float], Floats] = lambda x, effect: np.full_like(x, effect)
    online: tuple[float, ...] = (3.5, 6, 12, 30)
    offline: tuple[float, ...] = (1.06, 2.2, 5.5, 9.9)
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
    Scenario("different reach", offline=(0.9, 1.2, 1.6, 2.4)),
    Scenario("holes", lost=0.08),
    Scenario("collapse: 10% of all runs, 12 points", collapse=(0.1, 0.1)),
    Scenario("collapse: 10% of online's runs alone", mends_collapse, collapse=(0.1, 0.0)),
    Scenario("KL turns back", turn=0.15),
    Scenario("seeds that do not reach k", offline=(1.06, 2.2, 3.3, 7), reach=0.3, tied=0.5),
    Scenario("betas differ in run noise", noise=(0.4, 0.8, 1.4, 2.2)),
)


def base(x: Floats) -> Floats:
    """Win rate over SFT by sqrt(KL): .67 at KL 1, .72 at 2, .78 at 4, at most .83 at 11, then less."""
    return np.asarray(0.5 + 0.2 * x - 0.03 * x**2)


def curve(scenario: Scenario, x: Floats, effect: float) -> Floats:
    """The curves of both methods at x [..., 2, C, S, K], without seeds."""
    win = base(x) + OFFSETS[:, None, None] * np.minimum(x, 1)
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
        return rng.standard_normal(size, dtype=np.float32)  # half the memory; means over seeds are in double

    run = normal(*shape[:4], 1) * np.array(scenario.noise, dtype=np.float32)[:, None, None]
    own = float(np.sqrt(METHOD)) * normal(n, 2, 1, seeds, 1) + float(np.sqrt(RUN)) * run
    ends = np.log(np.array([scenario.online, scenario.offline], dtype=np.float32))[:, :, None, None]
    further = scenario.tied * own / float(np.sqrt(METHOD + RUN)) + float(np.sqrt(1 - scenario.tied**2)) * normal(
        *shape[:4], 1
    )
    ends = ends + scenario.reach * further
    path = float(np.log(0.1)) + (ends - float(np.log(0.1))) * np.linspace(0, 1, CHECKPOINTS, dtype=np.float32)
    kl = np.exp(path + scenario.turn * normal(*shape))
    x = np.sqrt(kl)
    win = curve(scenario, x, effect) + sd * np.minimum(1, x) * (own + float(np.sqrt(WOBBLE)) * normal(*shape))
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
    return np.asarray(sum(float(np.sqrt(share * variance)) * part for share, part in parts))


def at(kl: Floats, win: Floats, k: float) -> Floats:
    """w(k), NaN where it is not reached or in a hole."""
    before, after, share = crossings(kl, k)
    ends = [
        np.take_along_axis(values, np.maximum(place, 0)[..., None], -1)[..., 0]
        for place in (before, after)
        for values in (kl, win)
    ]
    reached = (before >= 0) & (after >= 0) & ~is_hole(np.nan_to_num(ends[0]), np.nan_to_num(ends[2]))
    return np.where(reached, ends[1] + share * (ends[3] - ends[1]), np.nan)


Means = tuple[Floats, Floats]


def seed_means(values: Floats, shared: float) -> Means:
    """Mean over seeds, NaN where one lacks it, and its variance. [R, S] -> [R], [R]."""
    values = values.astype(np.float64)
    return values.mean(axis=-1), values.var(axis=-1, ddof=1) / values.shape[-1] + shared


@dataclass(frozen=True, eq=False)
class Registered:
    """What R pilots register, by candidate k: the configuration of each method, [R, 2, 3], -1 = not registered."""

    configuration: NDArray[np.int64]

    @property
    def ks(self) -> NDArray[np.bool_]:
        """[R, 3]."""
        return (self.configuration >= 0).all(axis=1)


def piloted(made: Studies) -> Registered:
    """`gaps.choose` for R pilots at once."""
    win = made.win + made.noise.mean(axis=0) / float(np.sqrt(2))
    chosen = []
    for k in CANDIDATES:
        values, beyond = at(made.kl, win, k), at(made.kl, win, BEYOND * k)
        means = np.where(np.isfinite(values + beyond).all(axis=-1), values.mean(axis=-1), np.nan)
        best = np.nan_to_num(means, nan=-np.inf).argmax(axis=-1)
        chosen.append(np.where(np.isfinite(means).any(axis=-1), best, -1))
    return Registered(np.stack(chosen, axis=-1))


def over_ks(values: Sequence[Floats], ks: NDArray[np.bool_]) -> Floats:
    """Mean over the registered k of values by k [R, ...]; NaN where a registered one is missing or none is."""
    shape = (-1, *(1,) * (values[0].ndim - 1))
    total = sum(np.where(on.reshape(shape), value, 0.0) for value, on in zip(values, ks.T, strict=True))
    count = ks.sum(axis=1).reshape(shape)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def claim_a(made: Studies, registered: Registered) -> tuple[Floats, Floats]:
    """`delta_eq`, a value a seed, [R, S], by the registered configurations and by those chosen on the other seeds.
    1,024 prompts are both halves of the 512 that B has, and as many more.
    """
    win = made.win + made.noise.mean(axis=0) / float(np.sqrt(2))
    fixed, others = [], []
    for number, k in enumerate(CANDIDATES):
        values = at(made.kl, win, k)  # [R, 2, C, S]
        pick = np.maximum(registered.configuration[..., number], 0)[..., None, None]
        best = np.take_along_axis(values, pick, 2)[:, :, 0]
        fixed.append(best[:, 0] - best[:, 1])
        chosen = leave_one_out(values)
        best = np.take_along_axis(values, np.maximum(chosen, 0)[:, :, None], 2)[:, :, 0]
        best = np.where(chosen >= 0, best, np.nan)
        others.append(best[:, 0] - best[:, 1])
    return over_ks(fixed, registered.ks), over_ks(others, registered.ks)


def true_a(scenario: Scenario, effect: float, registered: Registered) -> tuple[Floats, Floats]:
    """By what was registered, and by the best configuration, the last; [R] each."""
    x = np.sqrt(np.array(CANDIDATES))
    gap = scenario.gap(x, effect) - 0.12 * (scenario.collapse[0] - scenario.collapse[1])
    offset = OFFSETS.astype(np.float64)[np.maximum(registered.configuration, 0)]
    between = offset[:, 0] - offset[:, 1]
    fixed = over_ks(list((gap + between).T), registered.ks)
    return fixed, over_ks(list(np.broadcast_to(gap, between.shape).T), registered.ks)


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
    win = (made.win + made.noise.mean(axis=0) / float(np.sqrt(2)))[:, :, ONE]
    place = np.log(kl[..., 1:])
    order = np.argsort(place, axis=-1)  # NaN last
    place, sorted_win = np.take_along_axis(place, order, -1), np.take_along_axis(win[..., 1:], order, -1)
    low, high = place[..., 0].max(axis=1), np.nanmax(place, axis=-1).min(axis=1)
    nodes = low[..., None] + (high - low)[..., None] * (np.arange(24) + 0.5) / 24
    on, off = (interpolated(place[:, side], sorted_win[:, side], nodes) for side in (0, 1))
    peaks = np.nanmax(np.where(np.isnan(place), np.nan, sorted_win), axis=-1)
    ks = np.geomspace(0.5, 4, 9)
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


def simulate(
    rng: np.random.Generator, scenario: Scenario, effect: float, sd: float, repetitions: int, seeds: int
) -> Judged:
    parts, trues, practitioners = [], [], []
    for start in range(0, repetitions, CHUNK):
        n = min(CHUNK, repetitions - start)
        registered = piloted(studies(rng, scenario, effect, sd, n, PILOT))
        made = studies(rng, scenario, effect, sd, n, seeds)
        seen, true = claim_b(rng, made)
        by_registered, by_others = (seed_means(values, shared_variance()) for values in claim_a(made, registered))
        parts.append((by_registered, by_others, seed_means(seen, shared_variance(512)), *before(made)))
        trues.append(true_a(scenario, effect, registered))
        practitioners.append(true)
    a, first, b, *older = [tuple(np.concatenate([p[i][j] for p in parts]) for j in (0, 1)) for i in range(6)]
    everyone = np.concatenate(practitioners)
    pairs = [np.concatenate([true[i] for true in trues]) for i in (0, 1)]
    return Judged(
        claims=tuple(np.stack(both, axis=-1) for both in zip(a, b, strict=True)),
        first=tuple(np.stack(both, axis=-1) for both in zip(first, b, strict=True)),
        older=tuple(older),
        true=np.stack((pairs[0], np.full(repetitions, everyone.mean())), axis=-1),
        true_first=np.stack((pairs[1], np.full(repetitions, everyone.mean())), axis=-1),
        error=float(everyone.mean(axis=1).std() / np.sqrt(len(everyone))),
    )


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
        for effect in EFFECTS:
            for seeds in SEEDS:
                worlds = []
                for place, sd in enumerate(WORLD_SDS):
                    rng = np.random.default_rng([seed, number, round(effect * 1000), seeds, place])
                    worlds.append(simulate(rng, scenario, effect, sd, repetitions, seeds))
                    yield of_world(worlds[-1], scenario, effect, seeds, sd)
                yield of_mean(worlds, scenario, effect, seeds)


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
    for row in bands(seed, band) if band else ():
        print(markdown.row(list(row.items())))
    print(f"{repetitions} repetitions, {time.process_time() - started:.0f} processor seconds")
    if csv_file:
        write(csv_file, rows)


def write(path: Path, rows: Sequence[Row]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    typer.run(main)
