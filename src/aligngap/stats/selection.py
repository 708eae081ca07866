"""What a budget of KL buys: `within_budget` (docs/statistics.md, "What is estimated").

One seed is one practitioner with one run of each configuration, who keeps the policy that a judge likes best among
those with a KL of at most B. The choice is made on one half of the prompts and valued on the other, and the halves are
swapped, so that no noise is chosen and counted at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aligngap.stats.budget import Floats, Run
from aligngap.stats.contrast import Contrast, over_seeds
from aligngap.stats.gaps import Sweep, all_seeds
from aligngap.stats.passages import KL_GRID, crossings, mean_kl, tenths
from aligngap.stats.seedvalue import SeedValue, average, prompt_mean, undefined

Bools = NDArray[np.bool_]


def halves(n_prompts: int, rng: np.random.Generator) -> Bools:
    """One half of the prompts, [N]: of each two neighbours one, by a coin, so that the first 256 or 512 of the list are
    halved as evenly as all of it.
    """
    coin = rng.random(-(-n_prompts // 2)) < 0.5
    return np.stack((coin, ~coin), axis=1).reshape(-1)[:n_prompts]


@dataclass(frozen=True)
class Pick:
    """What one practitioner kept, chosen on one half. candidates: among how many. kl: on the selecting half; kl_other:
    on the valuing half, where it may exceed the budget.
    """

    configuration: str
    step: int
    candidates: int
    kl: float
    kl_other: float


@dataclass(frozen=True, eq=False)
class Bought:
    """A method's side of `within_budget`: by valuing judge what each seed got, and what was picked, by seed a pick for
    each half; None where a seed lacks a configuration or has no candidate.
    """

    values: Mapping[str, list[SeedValue]]
    picks: list[tuple[Pick, Pick] | None]


@dataclass(frozen=True, eq=False)
class Within:
    """Online - offline within a budget of B nats. contrasts: by valuing judge."""

    budget: float
    contrasts: Mapping[str, Contrast]
    online: Bought
    offline: Bought


def within_budget(
    online: Mapping[str, Sweep],
    offline: Mapping[str, Sweep],
    budget: float,
    half: Bools,
    *,
    selecting: str = "golden",
    passages_only: bool = False,
) -> Within:
    """Claim B: the best win rate with KL <= `budget`, online - offline.

    online, offline: by judge, the method's sweep; all judges' runs have the same checkpoints, those that training
    kept. Candidates are the checkpoints whose KL on the selecting half is at most `budget`: step 0, first passages of
    the grid, tenths. They are compared on the prompts of the selecting half that the selecting judge has answered for
    every one of them, so that none is favoured for having been asked less. Every judge is a valuing judge, over what it
    was asked on the other half. A checkpoint that the selecting judge was never asked about is none.

    half: [N] one half of the prompts (`halves`), the same for all seeds and methods. selecting: the judge that chooses;
    "truth" is the oracle, a sensitivity. passages_only: without the tenths that are no passages, another.

    Raises:
        ValueError: the sweeps differ in the number of configurations (best of 4 beats best of 2 out of nothing); a
            judge has other runs or checkpoints than the selecting one; `half` has another length; a method lacks the
            selecting judge.
    """
    counts = {name: len(sweep) for side in (online, offline) for name, sweep in side.items()}
    if selecting not in online or selecting not in offline or set(online) != set(offline):
        raise ValueError(
            f"both methods need {selecting!r} and the same judges; got {sorted(online)}, {sorted(offline)}"
        )
    if len(online[selecting]) != len(offline[selecting]) or len(set(counts.values())) > 1:
        raise ValueError(
            f"sweeps must have equally many configurations, got {len(online[selecting])} and {len(offline[selecting])}"
        )
    seeds = all_seeds(online[selecting], offline[selecting])
    sides = [_bought(side, seeds, budget, half, selecting, passages_only) for side in (online, offline)]
    contrasts = {
        judge: over_seeds([a - b for a, b in zip(sides[0].values[judge], sides[1].values[judge], strict=True)])
        for judge in online
    }
    return Within(budget, contrasts, *sides)


def _bought(
    method: Mapping[str, Sweep], seeds: Sequence[int], budget: float, half: Bools, selecting: str, passages_only: bool
) -> Bought:
    values: dict[str, list[SeedValue]] = {judge: [] for judge in method}
    picks: list[tuple[Pick, Pick] | None] = []
    for seed in seeds:
        runs = _of_seed(method, seed, half, selecting)
        found = None if runs is None else [_pick(runs[selecting], one, budget, passages_only) for one in (half, ~half)]
        if runs is None or found is None or None in found:
            picks.append(None)
            for judge in method:
                values[judge].append(undefined(len(half)))
            continue
        pair = [one for one in found if one is not None]
        picks.append((pair[0][0], pair[1][0]))
        for judge in method:
            halved = zip(pair, (~half, half), strict=True)
            values[judge].append(average([_valued(runs[judge][place], other) for (_, place), other in halved]))
    return Bought(values, picks)


Place = tuple[int, int]  # of a run among the configurations, of a checkpoint in it


def _of_seed(method: Mapping[str, Sweep], seed: int, half: Bools, selecting: str) -> dict[str, _Runs] | None:
    """By judge the seed's run of each configuration, None where one is missing."""
    found = {
        judge: _Runs({name: run for name, runs in sweep.items() for run in runs if run.seed == seed})
        for judge, sweep in method.items()
    }
    chosen = found[selecting]
    for judge, runs in found.items():
        if list(runs.by_name) != list(chosen.by_name) or any(
            run.steps.tolist() != chosen.by_name[name].steps.tolist() for name, run in runs.by_name.items()
        ):
            raise ValueError(f"seed {seed}: {judge!r} and {selecting!r} judged different runs or checkpoints")
        if any(run.n_prompts != len(half) for run in runs.by_name.values()):
            raise ValueError(f"seed {seed}: runs by {judge!r} have other than the {len(half)} prompts that were halved")
    return found if len(chosen.by_name) == len(method[selecting]) else None


@dataclass(frozen=True, eq=False)
class _Runs:
    """One seed's runs by configuration, by one judge."""

    by_name: Mapping[str, Run]

    def __getitem__(self, place: Place) -> Floats:
        return np.asarray(list(self.by_name.values())[place[0]].win[place[1]])


def candidates(run: Run, half: Bools, budget: float, passages_only: bool = False) -> Bools:
    """Which checkpoints of a run may be chosen on one half of the prompts, [K]."""
    kl = mean_kl(run, half)
    asked: Bools = np.asarray(np.isfinite(run.win[:, half]).any(axis=1))
    allowed: Bools = asked & np.less_equal(kl, budget, out=np.zeros(len(kl), dtype=np.bool_), where=np.isfinite(kl))
    if not passages_only:
        return allowed
    order = np.argsort(run.steps, kind="stable")
    passed = np.zeros(len(kl), dtype=np.bool_)
    over_all = mean_kl(run)[order]
    for k in KL_GRID[budget >= KL_GRID]:
        after = int(crossings(over_all, float(k))[1])
        if after >= 0:
            passed[order[after]] = True
    last = int(run.steps.max()) if len(run.steps) else 0
    no_tenth = ~np.isin(run.steps, tenths(last)) if last else np.ones(len(kl), dtype=np.bool_)
    return np.asarray(allowed & (passed | (run.steps == 0) | no_tenth))


def _pick(runs: _Runs, half: Bools, budget: float, passages_only: bool) -> tuple[Pick, Place] | None:
    """The candidate that the judge likes best on this half; the first of equals, configurations in their order."""
    places: list[Place] = []
    rows: list[Floats] = []
    for number, run in enumerate(runs.by_name.values()):
        for checkpoint in np.flatnonzero(candidates(run, half, budget, passages_only)).tolist():
            places.append((number, checkpoint))
            rows.append(run.win[checkpoint, half])
    if not rows:
        return None
    wins = np.array(rows)
    shared = np.isfinite(wins).all(axis=0)
    if not shared.any():
        return None
    best = int(wins[:, shared].mean(axis=1).argmax())
    number, checkpoint = places[best]
    name, run = list(runs.by_name.items())[number]
    kls = [float(mean_kl(run, one)[checkpoint]) for one in (half, ~half)]
    return Pick(name, int(run.steps[checkpoint]), len(rows), *kls), places[best]


def _valued(win: Floats, other: Bools) -> SeedValue:
    return prompt_mean(np.where(other, win, np.nan))
