"""Intervals for any statistic of runs, over seeds and prompts: `intervals` (protocol, "Estimating the gap").

Seeds and prompts are *crossed*: every seed is evaluated on the same prompts. A statistic is computed for each seed and
averaged over seeds. One replicate draws one multinomial weight vector over prompts and uses it for every arm,
checkpoint and seed; a budget that differs between prompts, as KL does, is recomputed under it, so a curve moves along
both axes. (An own vector for each seed would
average away what the prompts have in common, which more seeds do not.)

Two intervals, from draws around the estimate:

`percentile`
    The textbook hierarchical bootstrap: seeds resampled with replacement (the same seeds for every arm), then prompts
    (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1). With S seeds it understates the seed
    variance by (S - 1)/S and ignores that S is small: too narrow below ~10 seeds.
`t` (default)
    Split the variance in two. The per-seed values of S runs scatter with the seed effect *and* the seed-specific part
    of the prompt noise; their mean has a t distribution with S - 1 degrees of freedom. What the prompts do to all seeds
    alike is taken from the prompt bootstrap, less the seed-specific part already counted. The draws are the sum of the
    two (the Behrens-Fisher distribution), so intervals, p-values and joint bands come from one set of draws.

With one seed either interval covers the prompts only, and says so: the estimate plus the replicates' deviations from
their mean; for the place of a maximum, which takes a checkpoint's value or another's and nothing between, the
replicates themselves. docs/statistics.md has what `benchmarks/coverage.py` measured of both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from aligngap.stats.budget import Curve, Floats, Run, curves, weighted_means

Groups = Mapping[str, Sequence[Run]]
Seed = Mapping[str, Sequence[Curve]]  # the curves of one seed, by group
Interval = Literal["t", "percentile"]


class Resampling(TypedDict, total=False):
    """How intervals are drawn, where the defaults of `intervals` are not wanted."""

    replicates: int
    level: float
    interval: Interval


ONE_SEED = "1 seed: interval covers prompts only"
FEW_SEEDS: Mapping[Interval, str] = {
    "t": "fewer than 5 seeds: interval rests on near-normal seed effects",
    "percentile": "fewer than 5 seeds: interval is narrow",
}


def few_seeds(n: int, interval: Interval = "t", one: str = ONE_SEED) -> list[str]:
    """The note that an interval over n seeds needs, if any."""
    return [] if n >= 5 else [one if n == 1 else FEW_SEEDS[interval]]


MAX_UNDEFINED = 0.1  # share of replicates that may lack a common range before the interval is withheld


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, in the statistic's own unit, and what it rests on; NaN where there is no data."""

    value: float
    low: float
    high: float
    n_seeds: int
    n_prompts: int
    replicates: int  # usable draws, at most those asked for
    note: str
    draws: Floats = field(default_factory=lambda: np.empty(0), compare=False, repr=False)  # [replicates]
    seed_values: Floats = field(default_factory=lambda: np.empty(0), compare=False, repr=False)  # [n_seeds]
    prompt_se: float = field(default=np.nan, compare=False, repr=False)  # of the seed mean, prompts alone

    def __format__(self, spec: str) -> str:
        """Value and interval, each as `spec` has numbers: for `.1%` it is `12.3% [8.1%, 16.0%]`, `12.3% [no interval]`
        where that was withheld, or `(no data)`.
        """
        if np.isnan(self.value):
            return "(no data)"
        interval = "no interval" if np.isnan(self.low) else f"{self.low:{spec}}, {self.high:{spec}}"
        return f"{self.value:{spec}} [{interval}]"

    def across(self, items: str = "prompts") -> str:
        """What the interval covers, in words; `items`: what the estimate counts as its prompts."""
        if self.n_seeds == 1:
            return f"1 seed: the interval covers the {self.n_prompts} {items} only, not another training run"
        note = ", few: read the interval with care" if self.n_seeds < 5 else ""
        return f"{self.n_seeds} seeds{note}, {self.n_prompts} {items}"

    def clipped(self, low: float, high: float) -> Estimate:
        """The same with its interval within what the statistic can be: draws are centred on the value, and may pass
        that.
        """
        ends = np.clip([self.low, self.high], low, high).tolist()
        return replace(self, low=ends[0], high=ends[1])

    def noted(self, text: str) -> Estimate:
        """The same with `text`, if any, at the end of its note."""
        return replace(self, note="; ".join(filter(None, [self.note, text])))

    def exponential(self) -> Estimate:
        """The same estimate of exp(statistic): for what was averaged as a logarithm and is read as a quantity."""
        # The draws of two seeds' t distribution, of one degree of freedom, go further than numbers do.
        with np.errstate(over="ignore"):
            value, low, high = (float(np.exp(v)) for v in (self.value, self.low, self.high))
            draws, seed_values = np.exp(self.draws), np.exp(self.seed_values)
        return replace(
            self,
            value=value,
            low=low,
            high=high,
            draws=draws,
            seed_values=seed_values,
            prompt_se=value * self.prompt_se,
        )


@dataclass(frozen=True)
class Resampler:
    """Draws what intervals are made of. Raises ValueError for what none can be drawn with."""

    rng: np.random.Generator
    replicates: int = 1000
    level: float = 0.95
    interval: Interval = "t"

    def __post_init__(self) -> None:
        if self.replicates < 2 or not 0 < self.level < 1 or self.interval not in ("t", "percentile"):
            raise ValueError(
                f"need replicates >= 2, 0 < level < 1, interval 't' or 'percentile'; got "
                f"{self.replicates}, {self.level}, {self.interval!r}"
            )

    def prompts(self, sizes: set[int]) -> Floats:
        """Resampling weights over the N prompts that all `sizes` agree on, [1 + B, N]; row 0 is the prompts as
        observed.

        Raises:
            ValueError: the sizes differ.
        """
        if len(sizes) > 1:
            raise ValueError(
                f"runs or values that are compared must share their prompts; found {sorted(sizes)} prompts"
            )
        n = max(sizes, default=0)
        weights = np.ones((self.replicates + 1, n))
        if n:
            weights[1:] = self.rng.multinomial(n, np.full(n, 1 / n), size=self.replicates)
        return weights

    def quantiles(self, draws: Floats) -> tuple[float, float]:
        """The interval of these draws."""
        low, high = np.quantile(draws, [(1 - self.level) / 2, (1 + self.level) / 2]).tolist()
        return low, high

    def joint_draws(self, values: Floats, places: Collection[int] = ()) -> tuple[Floats, Floats]:
        """Per-seed values [S, 1 + B, M], index 0 observed -> joint draws [B, M], prompt standard errors [M]."""
        n_seeds, replicates, width = values.shape[0], values.shape[1] - 1, values.shape[2]
        draws, errors = np.full((replicates, width), np.nan), np.full(width, np.nan)
        normal = self.rng.standard_normal((replicates, n_seeds))
        uniform = self.rng.random((replicates, n_seeds))
        level = self.rng.permutation((np.arange(replicates) + 0.5) / replicates)
        for m in range(width):
            keep = np.isfinite(values[:, 0, m])
            k = int(keep.sum())
            if k == 0:
                continue
            if k > 1:
                from scipy import stats  # a quarter of a second, which nothing with one seed need wait for

                chi2 = stats.chi2.ppf(level, k - 1)
            else:
                chi2 = np.ones(replicates)
            pick = (uniform[:, :k] * k).astype(np.int64)
            draws[:, m] = _draws(values[keep, :, m], normal[:, keep], chi2, pick, self.interval, place=m in places)
            prompts = values[keep, 1:, m].mean(axis=0)
            prompts = prompts[np.isfinite(prompts)]
            errors[m] = prompts.std(ddof=1) if len(prompts) > 1 else np.nan
        return draws, errors

    def estimates(
        self,
        values: Floats,
        names: Sequence[str],
        n_prompts: int,
        notes: Sequence[str] = (),
        places: Collection[str] = (),
    ) -> dict[str, Estimate]:
        """Estimates by name from per-seed values [S, 1 + B, M], index 0 observed. places: those of the names that say
        where a maximum lies.
        """
        draws, errors = self.joint_draws(values, [m for m, name in enumerate(names) if name in places])
        return {
            name: self._summarise(values[:, 0, m], draws[:, m], float(errors[m]), n_prompts, notes)
            for m, name in enumerate(names)
        }

    def _summarise(
        self, observed: Floats, draws: Floats, prompt_se: float, n_prompts: int, notes: Sequence[str]
    ) -> Estimate:
        """Estimate from the per-seed values (NaN: undefined for that seed) and the draws [B] of their mean."""
        defined = observed[np.isfinite(observed)]
        n, notes = len(defined), list(notes)
        if n < len(observed):
            notes.append(f"undefined for {len(observed) - n} of {len(observed)} seeds")
        if n == 0:
            return Estimate(np.nan, np.nan, np.nan, 0, n_prompts, 0, "; ".join(["no data", *notes]))
        notes = [*few_seeds(n, self.interval), *notes]
        usable = draws[np.isfinite(draws)]
        undefined = len(draws) - len(usable)
        low = high = np.nan
        if undefined > MAX_UNDEFINED * len(draws):
            notes.append(f"{undefined} of {len(draws)} replicates undefined: no interval")
        else:
            low, high = self.quantiles(usable)
            if undefined:
                notes.append(f"{undefined} of {len(draws)} replicates undefined")
        value = float(defined.mean())
        return Estimate(value, low, high, n, n_prompts, len(usable), "; ".join(notes), usable, defined, prompt_se)


@dataclass(frozen=True)
class Sample:
    """Curves of each shared seed and group, for the observed prompts (index 0) and each replicate (1..B)."""

    seeds: list[dict[str, list[list[Curve]]]]
    n_prompts: int
    replicates: int
    notes: list[str]

    @classmethod
    def of(cls, groups: Groups, resampler: Resampler) -> Sample:
        """Raises ValueError for runs with different numbers of prompts."""
        runs = [run for group in groups.values() for run in group]
        present = [{run.seed for run in group} for group in groups.values()]
        shared = sorted(set.intersection(*present)) if present else []
        lost = len(set().union(*present)) - len(shared)
        notes = [f"{lost} seed(s) not present in every arm left out"] if lost else []
        sizes = {run.n_prompts for run in runs}
        if len(sizes) == 1 and (sizes == {0} or not shared):
            return cls([], max(sizes), resampler.replicates, notes)
        weights = resampler.prompts(sizes)
        seeds = [
            {name: [curves(run, weights) for run in group if run.seed == seed] for name, group in groups.items()}
            for seed in shared
        ]
        return cls(seeds, _judged([run.win for run in runs]), resampler.replicates, notes)

    def at(self, seed: int, replicate: int) -> Seed:
        """The curves of a seed, by its place, in a replicate."""
        return {name: [run[replicate] for run in runs] for name, runs in self.seeds[seed].items()}

    def values(self, statistic: Callable[[Seed], Sequence[float] | Floats], width: int) -> Floats:
        """A statistic of `width` M values, for each seed and replicate, [S, 1 + B, M]."""
        rows = [[statistic(self.at(s, b)) for b in range(self.replicates + 1)] for s in range(len(self.seeds))]
        return np.array(rows, dtype=np.float64).reshape(len(self.seeds), self.replicates + 1, width)


def _draws(
    values: Floats, normal: Floats, chi2: Floats, pick: NDArray[np.int64], interval: Interval, *, place: bool
) -> Floats:
    """Draws around the seed mean of one statistic. `values` [S, 1 + B], column 0 observed; NaN where undefined.

    `normal` [B, S], `chi2` [B] and `pick` [B, S] are shared by all statistics, so that their draws are joint. place: it
    is where a maximum lies.
    """
    observed, replicated = values[:, 0], values[:, 1:]
    n_seeds, n = replicated.shape
    if interval == "percentile":
        return np.asarray(replicated[pick, np.arange(n)[:, None]].mean(axis=1))
    joint = replicated.mean(axis=0)  # NaN if any seed is
    usable = np.isfinite(joint)
    if usable.sum() < 2:
        return np.full(n, np.nan)
    prompt = joint - joint[usable].mean()
    if n_seeds == 1:
        return joint if place else np.asarray(observed[0] + prompt)
    from scipy import stats

    v_prompt = joint[usable].var(ddof=1)
    v_seed_specific = (replicated[:, usable].var(axis=1, ddof=1).mean() - v_prompt) / (n_seeds - 1)
    share = np.clip(1 - v_seed_specific / v_prompt, 0, 1) if v_prompt > 0 else 0.0
    # A combination of the seeds' deviations over sqrt(chi2) is t; ranks then pin its margin to the exact quantiles.
    deviation = normal @ (observed - observed.mean()) / np.sqrt(chi2)
    quantile = stats.t.ppf((stats.rankdata(deviation) - 0.5) / n, n_seeds - 1)
    seed = quantile * observed.std(ddof=1) / np.sqrt(n_seeds)
    return np.asarray(observed.mean() + seed + np.sqrt(share) * prompt)


def intervals(
    groups: Groups,
    statistic: Callable[[Seed], float | Mapping[str, float]],
    names: Sequence[str] = ("",),
    *,
    rng: np.random.Generator,
    places: Collection[str] = (),
    **how: Unpack[Resampling],
) -> dict[str, Estimate]:
    """Seed means of any statistic of runs, with intervals over seeds and prompts (module docstring says how).

    `groups` names the arms compared, `{name: runs}`; the seeds used are those present in every group, and a note counts
    the others. `statistic` receives the curves of *one* seed, `{group: [a curve for each run of the group under that
    seed]}`, over the budget that the runs are along, and returns a number, or one for each of `names`; NaN where it is
    undefined. Those of `places` say where a maximum lies (module docstring). All come from one set of draws.

    A seed for which a statistic is NaN on the observed prompts is left out and counted in the note; a replicate in
    which it is NaN (no common range) is counted, and above 10% of them the interval is withheld.

    Raises:
        ValueError: runs with different numbers of prompts, or a bad `replicates`, `level` or `interval`.
    """
    resampler = Resampler(rng, **how)
    sample = Sample.of(groups, resampler)

    def row(seed: Seed) -> list[float]:
        result = statistic(seed)
        return [result[name] for name in names] if isinstance(result, Mapping) else [result]

    return resampler.estimates(sample.values(row, len(names)), names, sample.n_prompts, sample.notes, places)


def _judged(rows: Sequence[Floats]) -> int:
    """Prompts of which any of the rows [M, N] has a value."""
    return int(np.any([np.isfinite(row).any(axis=0) for row in rows], axis=0).sum())


def prompt_means(
    values: Mapping[str, Mapping[int, Floats]],
    *,
    rng: np.random.Generator,
    **how: Unpack[Resampling],
) -> dict[str, Estimate]:
    """Seed means of per-prompt values in any unit, with the intervals of `intervals`: for what is no win-rate curve.

    values: by name and seed, one value a prompt [N], NaN = missing. All hold the same N prompts in the same order, so
    one set of resampled prompts serves them all. For a paired difference pass the prompts' differences.

    Raises:
        ValueError: different numbers of prompts, or a bad `replicates`, `level` or `interval`.
    """
    resampler = Resampler(rng, **how)
    weights = resampler.prompts({len(row) for by_seed in values.values() for row in by_seed.values()})
    result: dict[str, Estimate] = {}
    for name, by_seed in values.items():
        rows = np.array([by_seed[seed] for seed in sorted(by_seed)], dtype=np.float64)
        rows = rows.reshape(len(by_seed), weights.shape[1])
        means = weighted_means(rows, weights).T[:, :, None]
        result |= resampler.estimates(means, (name,), _judged([rows]))
    return result


def mean_statistics(
    values: Mapping[int, Floats],
    statistic: Callable[[int, Floats], Floats],
    names: Sequence[str],
    *,
    rng: np.random.Generator,
    **how: Unpack[Resampling],
) -> dict[str, Estimate]:
    """Seed means of statistics of several means over prompts, a rank correlation say, with the same intervals.

    values: by seed, M quantities of the same N prompts, [M, N]; M may differ from seed to seed; NaN = missing.
    statistic: from a seed and the means of its quantities, [1 + B, M] (observed and resampled, a row each), to the
    statistics of each row, [1 + B, len(names)]; NaN where undefined.

    Raises:
        ValueError: different numbers of prompts, or a bad `replicates`, `level` or `interval`.
    """
    resampler = Resampler(rng, **how)
    weights = resampler.prompts({rows.shape[1] for rows in values.values()})
    rows = [statistic(seed, weighted_means(values[seed], weights)) for seed in sorted(values)]
    columns = np.array(rows, dtype=np.float64).reshape(len(rows), len(weights), len(names))
    return resampler.estimates(columns, names, _judged(list(values.values())))
