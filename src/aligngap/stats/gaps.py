"""Estimands of two methods at equal KL (docs/statistics.md, "What is estimated"): `gap_at_kl`, `delta_eq` on frontiers,
`head_to_head`, and the descriptions `goodhart_area`, `gap_weighted`, `q90`.

A method is a `Sweep`: a run a seed of each of its configurations. With one configuration its frontier is that arm's own
curve, so that every comparison, of sweeps or of two arms, goes the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from aligngap.stats.budget import Floats, Run
from aligngap.stats.ceiling import w_star
from aligngap.stats.contrast import LEVEL, Asked, Contrast, over_seeds, simultaneous
from aligngap.stats.passages import KL_GRID, ROWS, Passage, Which, mean_over, passage
from aligngap.stats.seedvalue import SeedValue, average, prompt_mean, undefined

Sweep = Mapping[str, Sequence[Run]]
"""By configuration, its runs, one a seed."""
Choice = Mapping[float, Sequence[str]]
"""By k, a method's configurations in the order in which they were registered: its frontier there is the first of them
that every seed passes.
"""
BEYOND = 1.3
"""A k is registered if every pilot seed of the configuration goes this much further."""
ONE_OF_MANY = "a frontier of several configurations needs two seeds: each is chosen on the others"
SAME_SEEDS = "configurations chosen on the same seeds: the interval is too narrow, and no word rests on it"


def choose(pilot: Sweep, ks: Sequence[float] = (1.0, 2.0, 4.0), beyond: float = BEYOND) -> dict[float, list[str]]:
    """What a method's pilot registers: by k the configurations of which every pilot seed passes `beyond` times k, the
    highest mean w(k) first; without those k where there is none. A study's registered k are those that both methods'
    choices hold.

    It compares configurations of one method, and never the methods.
    """
    seeds, choice = all_seeds(pilot), {}
    for k in ks:
        means = {}
        for name, runs in pilot.items():
            found = [(passage(run, k), passage(run, beyond * k)) for run in runs]
            if len(found) == len(seeds) and all(at.reached and past.reached for at, past in found):
                means[name] = float(np.mean([at.value for at, _ in found]))
        if means:
            choice[k] = sorted(means, key=lambda name: -means[name])
    return choice


def leave_one_out(values: Floats) -> NDArray[np.int64]:
    """For each seed the configuration with the highest mean over the *other* seeds. values: [..., C, S] -> [..., S].

    A configuration that any seed lacks (NaN) is not among them. -1 where none is left, or where a single seed would
    have to choose among several.
    """
    n = values.shape[-1]
    complete = np.asarray(np.isfinite(values).all(axis=-1, keepdims=True))
    filled = np.where(complete, values, 0.0)
    others = np.where(complete, filled.sum(axis=-1, keepdims=True) - filled, -np.inf)
    possible = complete[..., 0].any(axis=-1) & ((n > 1) | (complete[..., 0].sum(axis=-1) == 1))
    return np.where(possible[..., None], others.argmax(axis=-2), -1)


def all_seeds(*sweeps: Sweep) -> list[int]:
    """Every seed of any run, in order: a seed that one configuration lacks is a seed that does not reach there."""
    return sorted({run.seed for sweep in sweeps for runs in sweep.values() for run in runs})


@dataclass(frozen=True, eq=False)
class Frontier:
    """The best curve of a sweep at one k. seeds: what each seed says there. chosen: its configuration, "" = none.
    reached: seeds that pass k in the configuration that most do, of all. passages: by configuration and seed.
    """

    k: float
    seeds: list[SeedValue]
    chosen: list[str]
    reached: Asked
    passages: Mapping[str, Mapping[int, Passage]]
    note: str = ""

    @property
    def defined(self) -> bool:
        return all(one.defined for one in self.seeds)


def frontier(
    sweep: Sweep, k: float, seeds: Sequence[int], which: Which = "first", choice: Choice | None = None
) -> Frontier:
    """Frontier of a sweep at KL k: the first registered configuration that every seed passes, if there is a `choice`,
    so that in the campaign reach alone decides between configurations.

    Else, a description: for seed s the configuration with the highest mean w(k) over the *other* seeds, among those
    that every seed passes; its value is seed s's. That lets each seed's luck choose for the others, so that their
    values are no longer independent and the t interval over them is too narrow (docs/statistics.md); the note says so.

    Raises:
        ValueError: a configuration has two runs of a seed; runs over different numbers of prompts; no runs; `choice`
            names none or no such configuration for k.
    """
    if choice is not None:
        registered = choice.get(k, ())
        if not registered or not set(registered) <= set(sweep):
            raise ValueError(f"no registered configuration for k = {k:g}: {dict(choice)} of {sorted(sweep)}")
        each = [frontier({name: sweep[name]}, k, seeds, which) for name in registered]
        return next((one for one in each if one.defined), max(each, key=lambda one: one.reached))
    size = _prompts(sweep)
    found: dict[str, dict[int, Passage]] = {}
    for name, runs in sweep.items():
        found[name] = {run.seed: passage(run, k, which) for run in runs}
        if len(found[name]) < len(runs):
            raise ValueError(f"configuration {name!r} has two runs of one seed")
    names = list(found)
    values = np.array([[found[c][s].value if s in found[c] else np.nan for s in seeds] for c in names])
    chosen = [names[c] if c >= 0 else "" for c in leave_one_out(values).tolist()]
    of_seed = [found[c][s].seed_value if c else undefined(size) for c, s in zip(chosen, seeds, strict=True)]
    passed = int(np.isfinite(values).sum(axis=1).max())
    some = sum(bool(np.isfinite(row).all()) for row in values) > 1
    note = (ONE_OF_MANY if "" in chosen else SAME_SEEDS) if some else ""
    return Frontier(k, of_seed, chosen, (passed, len(seeds)), found, note)


def _prompts(*sweeps: Sweep) -> int:
    sizes = {run.n_prompts for sweep in sweeps for runs in sweep.values() for run in runs}
    if len(sizes) != 1:
        raise ValueError(f"runs that are compared must share one list of prompts; found {sorted(sizes)} prompts")
    return sizes.pop()


@dataclass(frozen=True, eq=False)
class Row:
    """Online - offline at one k. reached: by each side, (n, S). chosen: configurations by seed, of each side. band: the
    simultaneous interval over all rows that are defined. seeds: the differences.
    """

    k: float
    contrast: Contrast
    band: tuple[float, float]
    reached: tuple[Asked, Asked]
    chosen: tuple[list[str], list[str]]
    seeds: list[SeedValue]
    note: str = ""


def gap_at_kl(
    online: Sweep,
    offline: Sweep,
    ks: Sequence[float] = ROWS,
    which: Which = "first",
    level: float = LEVEL,
    choices: tuple[Choice, Choice] | None = None,
) -> list[Row]:
    """Online - offline in w(k), a row for each k, on frontiers, with a simultaneous band (max-t) over the rows.
    choices: the registered configurations of either side (`frontier`).

    A difference exists only where every seed of both sides has one configuration that passes k; else the row is
    undefined and says how many of S seeds reached it.

    Raises:
        ValueError: as `frontier`.
    """
    seeds = all_seeds(online, offline)
    _prompts(online, offline)
    both = ((online, choices[0] if choices else None), (offline, choices[1] if choices else None))
    sides = [[frontier(sweep, k, seeds, which, choice) for k in ks] for sweep, choice in both]
    differences = [[a - b for a, b in zip(on.seeds, off.seeds, strict=True)] for on, off in zip(*sides, strict=True)]
    contrasts = [over_seeds(row) for row in differences]
    there = [row for row, contrast in zip(differences, contrasts, strict=True) if contrast.defined]
    wide = simultaneous(there, level) if there else np.nan
    return [
        Row(
            on.k,
            contrast,
            (contrast.value - wide * contrast.se, contrast.value + wide * contrast.se),
            (on.reached, off.reached),
            (on.chosen, off.chosen),
            difference,
            "; ".join(dict.fromkeys(filter(None, (on.note, off.note)))),
        )
        for on, off, difference, contrast in zip(*sides, differences, contrasts, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class EqualKL:
    """`delta_eq`. contrast: the mean over `averaged`, those of the `registered` k that every seed of both sides has.
    Only if that is all of them does a word rest on it (`reached`); seeds: what each says. note: why no word may rest on
    it otherwise, "" = one may.
    """

    registered: tuple[float, ...]
    averaged: tuple[float, ...]
    contrast: Contrast
    rows: list[Row]
    seeds: list[SeedValue]

    @property
    def reached(self) -> bool:
        return self.averaged == self.registered

    @property
    def note(self) -> str:
        return "; ".join(dict.fromkeys(row.note for row in self.rows if row.note))


def delta_eq(
    online: Sweep, offline: Sweep, registered: Sequence[float], choices: tuple[Choice, Choice] | None = None
) -> EqualKL:
    """Claim A: the plain mean over the registered k of w_online(k) - w_offline(k), on frontiers. Its weight on what
    lies below the smallest registered k, the warm-up, is 0. Of sweeps a word needs the registered `choices`.

    Raises:
        ValueError: no registered k; as `frontier`.
    """
    if not registered:
        raise ValueError("delta_eq needs a registered k")
    rows = gap_at_kl(online, offline, registered, choices=choices)
    there = [row for row in rows if row.contrast.defined]
    seeds = [average(of_seed) for of_seed in zip(*(row.seeds for row in there or rows), strict=True)]
    return EqualKL(tuple(registered), tuple(row.k for row in there), over_seeds(seeds), rows, seeds)


def opposite_signs(rows: Sequence[Row], low: float = 0.5) -> tuple[Row, Row] | None:
    """The rows at `low` and at the largest k that is defined, where their differences have opposite signs: a report
    says so before it prints any mean. None where they agree or either is not there.
    """
    there = [row for row in rows if row.contrast.defined]
    first = next((row for row in there if row.k == low), None)
    if first is None or not there:
        return None
    last = max(there, key=lambda row: row.k)
    return (first, last) if first.contrast.value * last.contrast.value < 0 else None


def head_to_head(online: Passage, offline: Passage, wins: Floats) -> SeedValue:
    """Win rate of one run's policy at KL k over another's: bilinear in sqrt(KL) over the 2 x 2 checkpoints around both
    first passages.

    wins: [2, 2, N], online's checkpoint before and after by offline's before and after, per-prompt outcomes with both
    orders of the two responses averaged; NaN = missing. Undefined unless both reach k.

    Raises:
        ValueError: passages of different k, wins of another shape.
    """
    if online.k != offline.k or wins.ndim != 3 or wins.shape[:2] != (2, 2):
        raise ValueError(f"need passages of one k and wins [2, 2, N]; got {online.k}, {offline.k}, {wins.shape}")
    if not (online.reached and offline.reached):
        return undefined(wins.shape[2])
    rows = [1 - online.share, online.share]
    columns = [1 - offline.share, offline.share]
    parts = [rows[i] * columns[j] * prompt_mean(wins[i, j]) for i in (0, 1) for j in (0, 1)]
    return parts[0] + parts[1] + parts[2] + parts[3]


def goodhart_area(proxy: Run, truth: Run, high: float, low: float = 0.5) -> SeedValue:
    """How far a proxy's opinion runs ahead of the truth: the mean over d sqrt(k), k in [low, high], of w_proxy(k) -
    w_truth(k). proxy, truth: the same run by either judge.

    Raises:
        ValueError: not the same run.
    """
    if (proxy.arm, proxy.seed) != (truth.arm, truth.seed):
        raise ValueError(f"two runs: {proxy.arm!r} seed {proxy.seed}, {truth.arm!r} seed {truth.seed}")
    return mean_over(proxy, low, high) - mean_over(truth, low, high)


Weight = Literal["w*", "sqrt KL"]


def gap_weighted(online: Run, offline: Run, weight: Weight, low: float = 0.5, high: float = 4.0) -> SeedValue:
    """Description only: mean of w_online - w_offline over [low, high], weighted by d w*(k) or d sqrt(k). By d w* half
    of the weight lies below KL 1, so that a gap which opens at KL 2 is hidden.
    """
    measure: Callable[[Floats], Floats] = np.sqrt if weight == "sqrt KL" else _w_stars
    pieces = 1 if weight == "sqrt KL" else 8
    return mean_over(online, low, high, measure, pieces) - mean_over(offline, low, high, measure, pieces)


def _w_stars(ks: Floats) -> Floats:
    return np.array([w_star(float(k)) for k in ks])


def q90(sweep: Sweep, seed: int, grid: Floats = KL_GRID) -> float:
    """Description only (figure 11 of the paper): the 90% quantile of w over the grid's points that the runs of a seed
    pass, all configurations together. NaN where none is passed.
    """
    runs = [run for of_one in sweep.values() for run in of_one if run.seed == seed]
    values = [found.value for run in runs for found in (passage(run, float(k)) for k in grid) if found.reached]
    return float(np.quantile(values, 0.9)) if values else np.nan
