"""Simulated studies for `benchmarks.coverage`: scenarios, runs at the level of means over prompts, and what the claims
say of each seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aligngap.stats.ceiling import w_star
from aligngap.stats.gaps import BEYOND, leave_one_out
from aligngap.stats.passages import crossings, is_hole
from aligngap.stats.words import MARGIN

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
ONE = 2  # the configuration that the rules before this one compared


@dataclass(frozen=True)
class Scenario:
    """gap: online - offline of the curves, from sqrt(KL) and the effect (the mean over KL 1, 2, 4). ends: KL at the
    end of each configuration, online's and offline's. turn: sd of ln KL at each checkpoint. reach: sd over runs of the
    end's ln KL, of which `tied` of the correlation is with the run's win rate. lost: share of checkpoints that are
    missing. collapse: share of runs that lose 12 points from KL .5 to .8 on, online's and offline's. noise: by
    configuration, factor on a run's own sd. lower: by configuration, how much lower it is than the best from KL 1 on.
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
    lower: tuple[float, ...] = (0, 0, 0, 0)


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
    Scenario("betas differ in height", lower=(0.01, 0.006, 0.003, 0)),
)


def base(x: Floats) -> Floats:
    """Win rate over SFT by sqrt(KL): .67 at KL 1, .72 at 2, .78 at 4, at most .83 at 11, then less."""
    return np.asarray(0.5 + 0.2 * x - 0.03 * x**2)


Places = tuple[NDArray[np.int64], NDArray[np.int64], Floats]


@dataclass(frozen=True, eq=False)
class Studies:
    """R studies of one world. kl, win (no noise of prompts): [R, 2, C, S, 1 + K]; noise: a half's, [2, ...]; golden:
    what it sees on a half.
    """

    kl: Floats
    win: Floats
    noise: Floats
    golden: Floats

    @property
    def seen(self) -> Floats:
        """By truth on 1,024 prompts: both halves of the 512 that B has, and as many more."""
        return np.asarray(self.win + self.noise.mean(axis=0) / float(np.sqrt(2)))

    def with_gap(self, scenario: Scenario, effect: float) -> Studies:
        """Online's runs lifted by the scenario's gap."""
        x = np.nan_to_num(np.sqrt(self.kl[:, 0]))
        lift = np.zeros_like(self.win)
        lift[:, 0] = scenario.gap(x, effect) * np.minimum(1, 2 * x)
        return Studies(self.kl, self.win + lift, self.noise, self.golden + lift)


def studies(rng: np.random.Generator, scenario: Scenario, sd: float, n: int, seeds: int) -> Studies:
    """Without a gap."""
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
    win = (
        base(x)
        - np.array(scenario.lower, dtype=np.float32)[:, None, None] * np.minimum(x, 1)
        + sd * np.minimum(1, x) * (own + float(np.sqrt(WOBBLE)) * normal(*shape))
    )
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


def places(kl: Floats, k: float) -> Places:
    """Where runs pass k; the share is NaN where k is not reached or in a hole."""
    before, after, share = crossings(kl, k)
    low, high = (np.take_along_axis(kl, np.maximum(place, 0)[..., None], -1)[..., 0] for place in (before, after))
    reached = (before >= 0) & (after >= 0) & ~is_hole(low, high)
    return np.maximum(before, 0), np.maximum(after, 0), np.where(reached, share, np.nan)


def line(win: Floats, where: Places) -> Floats:
    """w(k), NaN where it is not reached."""
    low, high = (np.take_along_axis(win, place[..., None], -1)[..., 0] for place in where[:2])
    return np.asarray(low + where[2] * (high - low))


Means = tuple[Floats, Floats]


def seed_means(values: Floats, shared: float) -> Means:
    """Mean over seeds, NaN where one lacks it, and its variance. [R, S] -> [R], [R]."""
    values = values.astype(np.float64)
    return values.mean(axis=-1), values.var(axis=-1, ddof=1) / values.shape[-1] + shared


@dataclass(frozen=True, eq=False)
class Registered:
    """What R pilots register, by candidate k: each method's configurations in order, [R, 2, 3, C], -1 = none."""

    order: NDArray[np.int64]

    @property
    def ks(self) -> NDArray[np.bool_]:
        """[R, 3]."""
        return np.asarray((self.order[..., 0] >= 0).all(axis=1))


def piloted(win: Floats, at: Sequence[Places], beyond: Sequence[Places]) -> Registered:
    """`gaps.choose` for R pilots at once: what they see, where they pass each k, and where `BEYOND` times it."""
    orders = []
    for where, further in zip(at, beyond, strict=True):
        values = line(win, where)
        means = np.where(np.isfinite(values + further[2]).all(axis=-1), values.mean(axis=-1), np.nan)
        order = np.argsort(-means, axis=-1, kind="stable")  # NaN last
        orders.append(np.where(np.isfinite(np.take_along_axis(means, order, -1)), order, -1))
    return Registered(np.stack(orders, axis=2))


def over_ks(values: Sequence[Floats], ks: NDArray[np.bool_]) -> Floats:
    """Mean over the registered k of values by k [R, ...]; NaN where a registered one is missing or none is."""
    shape = (-1, *(1,) * (values[0].ndim - 1))
    total = sum(np.where(on.reshape(shape), value, 0.0) for value, on in zip(values, ks.T, strict=True))
    count = ks.sum(axis=1).reshape(shape)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def by_registered(values: Sequence[Floats], registered: Registered) -> tuple[Floats, NDArray[np.int64]]:
    """`delta_eq` by the first registered configurations that every seed passes, a value a seed, [R, S], and which they
    are, [R, 2, 3]. values: w(k) by candidate k, [R, 2, C, S].
    """
    differences, picks = [], []
    for number, of_k in enumerate(values):
        order = registered.order[:, :, number]
        passed = np.take_along_axis(np.isfinite(of_k).all(axis=-1), np.maximum(order, 0), -1) & (order >= 0)
        pick = np.maximum(np.take_along_axis(order, passed.argmax(axis=-1)[..., None], -1)[..., 0], 0)
        best = np.take_along_axis(of_k, pick[..., None, None], 2)[:, :, 0]
        best = np.where(passed.any(axis=-1)[..., None], best, np.nan)
        differences.append(best[:, 0] - best[:, 1])
        picks.append(pick)
    return over_ks(differences, registered.ks), np.stack(picks, axis=-1)


def by_others(values: Sequence[Floats], registered: Registered) -> Floats:
    """The same by the configurations that do best on the other seeds."""
    differences = []
    for of_k in values:
        chosen = leave_one_out(of_k)
        best = np.take_along_axis(of_k, np.maximum(chosen, 0)[:, :, None], 2)[:, :, 0]
        best = np.where(chosen >= 0, best, np.nan)
        differences.append(best[:, 0] - best[:, 1])
    return over_ks(differences, registered.ks)


def true_a(
    scenario: Scenario, effect: float, registered: Registered, picks: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """By what was compared, and by the best configuration, which both methods have; [R] each."""
    x = np.sqrt(np.array(CANDIDATES))
    gap = scenario.gap(x, effect) - 0.12 * (scenario.collapse[0] - scenario.collapse[1])
    lower = np.array(scenario.lower)[picks]
    between = lower[:, 1] - lower[:, 0]
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


WEIGHTED_AT = np.geomspace(0.5, 4, 9)


def before(made: Studies, win: Floats, middles: Sequence[Places]) -> tuple[Floats, Floats, Floats]:
    """The first laboratory's average gap and peak difference of one configuration, and `gap_weighted`; values a seed,
    [R, S]. middles: where that configuration passes the middles of `WEIGHTED_AT`.
    """
    win = win[:, :, ONE]
    place = np.log(made.kl[:, :, ONE, :, 1:])
    order = np.argsort(place, axis=-1)  # NaN last
    place, sorted_win = np.take_along_axis(place, order, -1), np.take_along_axis(win[..., 1:], order, -1)
    low, high = place[..., 0].max(axis=1), np.nanmax(place, axis=-1).min(axis=1)
    nodes = low[..., None] + (high - low)[..., None] * (np.arange(16, dtype=np.float32) + 0.5) / 16
    on, off = (interpolated(place[:, side], sorted_win[:, side], nodes) for side in (0, 1))
    peaks = np.nanmax(np.where(np.isnan(place), np.nan, sorted_win), axis=-1)
    weights = np.diff([w_star(float(k)) for k in WEIGHTED_AT])
    lines = [line(win, where) for where in middles]
    weighted = sum(float(w) * (at_k[:, 0] - at_k[:, 1]) for w, at_k in zip(weights / weights.sum(), lines, strict=True))
    return (on - off).mean(axis=-1), peaks[:, 0] - peaks[:, 1], np.asarray(weighted)


def interpolated(x: Floats, y: Floats, nodes: Floats) -> Floats:
    """Lines through points [..., K] at nodes [..., G] within them."""
    right = (x[..., None, :] <= nodes[..., None]).sum(axis=-1).clip(1, x.shape[-1] - 1)
    x0, x1, y0, y1 = (np.take_along_axis(v, right + d, -1) for v in (x, y) for d in (-1, 0))
    return np.asarray(y0 + (y1 - y0) * (nodes - x0) / (x1 - x0))


def shared_variance(n: int = 1024) -> float:
    """Of a difference: what prompts do to all seeds alike. The estimate from so many prompts is near to it."""
    return 2 * SHARES["method"] * PROMPT_VARIANCE / n


PerSeed = dict[str, Floats]


def chunk(
    rng: np.random.Generator, scenario: Scenario, sd: float, n: int
) -> Iterator[tuple[float, PerSeed, Registered]]:
    """n studies of the largest number of seeds, of which smaller ones are the first: by effect the values a seed,
    [n, S], of both claims and of the older rules, and what the pilot registered. The runs of both effects are the same
    but for the gap.
    """
    pilots, runs = studies(rng, scenario, sd, n, PILOT), studies(rng, scenario, sd, n, max(SEEDS))
    at, beyond = ([places(pilots.kl, factor * k) for k in CANDIDATES] for factor in (1, BEYOND))
    where = [places(runs.kl, k) for k in CANDIDATES]
    one = runs.kl[:, :, ONE]
    middles = [places(one, float(k)) for k in np.sqrt(WEIGHTED_AT[1:] * WEIGHTED_AT[:-1])]
    for effect in EFFECTS:
        registered = piloted(pilots.with_gap(scenario, effect).seen, at, beyond)
        made = runs.with_gap(scenario, effect)
        win = made.seen
        values = [line(win, place) for place in where]
        b, true_b = claim_b(rng, made)
        average, peaks, weighted = before(made, win, middles)
        of_seeds = {"B": b, "true_B": true_b}
        of_seeds |= {"average": average, "peaks": peaks, "weighted": weighted}
        for seeds in SEEDS:
            some = [value[..., :seeds] for value in values]
            of_seeds[f"A {seeds}"], of_seeds[f"picks {seeds}"] = by_registered(some, registered)
            of_seeds[f"others {seeds}"] = by_others(some, registered)
        yield effect, of_seeds, registered
