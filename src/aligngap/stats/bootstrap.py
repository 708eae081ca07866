"""Intervals for statistics of KL-win-rate curves, over seeds and prompts (protocol, "Estimating the gap").

Seeds and prompts are *crossed*: every seed is evaluated on the same prompts. A statistic is computed for each seed and
averaged over seeds. One replicate draws one multinomial weight vector over prompts and uses it for every arm,
checkpoint and seed; KL is recomputed under it, so a curve moves along both axes. (An own vector for each seed would
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
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from aligngap.stats.curves import (
    Curve,
    Floats,
    Run,
    average_gap,
    common_range,
    curve,
    curves,
    fall,
    interpolate,
    peak,
    weighted_means,
)

Groups = Mapping[str, Sequence[Run]]
Seed = Mapping[str, Sequence[Curve]]  # the curves of one seed, by group
Interval = Literal["t", "percentile"]

ONE_SEED = "1 seed: interval covers prompts only"
FEW_SEEDS: Mapping[Interval, str] = {
    "t": "fewer than 5 seeds: interval rests on near-normal seed effects",
    "percentile": "fewer than 5 seeds: interval is narrow",
}
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


@dataclass(frozen=True, eq=False)
class Band:
    """Simultaneous band for a difference curve: all of Delta(kappa) lies in [low, high]. All arrays [G]."""

    kappa: Floats
    value: Floats
    low: Floats
    high: Floats
    n_seeds: int
    note: str


@dataclass(frozen=True)
class _Sample:
    """Curves of each shared seed and group, for the observed prompts (index 0) and each replicate (1..B)."""

    seeds: list[dict[str, list[list[Curve]]]]
    n_prompts: int
    notes: list[str]

    def at(self, seed: int, replicate: int) -> Seed:
        return {name: [run[replicate] for run in runs] for name, runs in self.seeds[seed].items()}


def _weights(n: int, rng: np.random.Generator, replicates: int) -> Floats:
    """Resampling weights over n prompts [1 + B, n]; row 0 is the prompts as observed."""
    weights = np.ones((replicates + 1, n))
    if n:
        weights[1:] = rng.multinomial(n, np.full(n, 1 / n), size=replicates)
    return weights


def _sample(groups: Groups, rng: np.random.Generator, replicates: int) -> _Sample:
    runs = [run for group in groups.values() for run in group]
    sizes = {run.n_prompts for run in runs}
    if len(sizes) > 1:
        raise ValueError(f"runs that are compared must share their prompts; found {sorted(sizes)} prompts")
    present = [{run.seed for run in group} for group in groups.values()]
    shared = sorted(set.intersection(*present)) if present else []
    lost = len(set().union(*present)) - len(shared)
    notes = [f"{lost} seed(s) not present in every arm left out"] if lost else []
    n = sizes.pop() if sizes else 0
    if n == 0 or not shared:
        return _Sample([], n, notes)
    weights = _weights(n, rng, replicates)
    seeds = [
        {name: [curves(run, weights) for run in group if run.seed == seed] for name, group in groups.items()}
        for seed in shared
    ]
    judged = np.any([np.isfinite(run.win).any(axis=0) for run in runs], axis=0)
    return _Sample(seeds, int(judged.sum()), notes)


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


def _summarise(
    observed: Floats, draws: Floats, sample: _Sample, level: float, interval: Interval, prompt_se: float
) -> Estimate:
    """Estimate from the per-seed values (NaN: undefined for that seed) and the draws [B] of their mean."""
    defined = observed[np.isfinite(observed)]
    n, notes = len(defined), list(sample.notes)
    if n < len(observed):
        notes.append(f"undefined for {len(observed) - n} of {len(observed)} seeds")
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0, sample.n_prompts, 0, "; ".join(["no data", *notes]))
    if n < 5:
        notes.insert(0, ONE_SEED if n == 1 else FEW_SEEDS[interval])
    usable = draws[np.isfinite(draws)]
    undefined = len(draws) - len(usable)
    low = high = np.nan
    if undefined > MAX_UNDEFINED * len(draws):
        notes.append(f"{undefined} of {len(draws)} replicates undefined: no interval")
    else:
        low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2]).tolist()
        if undefined:
            notes.append(f"{undefined} of {len(draws)} replicates undefined")
    value = float(defined.mean())
    return Estimate(value, low, high, n, sample.n_prompts, len(usable), "; ".join(notes), usable, defined, prompt_se)


def _columns(
    sample: _Sample,
    statistic: Callable[[Seed], Sequence[float] | Floats],
    width: int,
    rng: np.random.Generator,
    replicates: int,
    interval: Interval,
    places: Collection[int] = (),
) -> tuple[Floats, Floats, Floats]:
    """A statistic of `width` M values -> per-seed values [S, M], joint draws [B, M], prompt standard errors [M].

    places: which of the M are where a maximum lies.
    """
    n_seeds = len(sample.seeds)
    values = np.array(
        [[statistic(sample.at(s, b)) for b in range(replicates + 1)] for s in range(n_seeds)], dtype=np.float64
    ).reshape(n_seeds, replicates + 1, width)
    return values[:, 0, :], *_joint_draws(values, rng, interval, places)


def _joint_draws(
    values: Floats, rng: np.random.Generator, interval: Interval, places: Collection[int] = ()
) -> tuple[Floats, Floats]:
    """Per-seed values [S, 1 + B, M], index 0 observed -> joint draws [B, M], prompt standard errors [M]."""
    n_seeds, replicates, width = values.shape[0], values.shape[1] - 1, values.shape[2]
    draws, errors = np.full((replicates, width), np.nan), np.full(width, np.nan)
    normal = rng.standard_normal((replicates, n_seeds))
    uniform = rng.random((replicates, n_seeds))
    level = rng.permutation((np.arange(replicates) + 0.5) / replicates)
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
        draws[:, m] = _draws(values[keep, :, m], normal[:, keep], chi2, pick, interval, place=m in places)
        prompts = values[keep, 1:, m].mean(axis=0)
        prompts = prompts[np.isfinite(prompts)]
        errors[m] = prompts.std(ddof=1) if len(prompts) > 1 else np.nan
    return draws, errors


def _check(replicates: int, level: float, interval: str) -> None:
    if replicates < 2 or not 0 < level < 1 or interval not in ("t", "percentile"):
        raise ValueError(
            f"need replicates >= 2, 0 < level < 1, interval 't' or 'percentile'; got "
            f"{replicates}, {level}, {interval!r}"
        )


def estimates(
    groups: Groups,
    statistic: Callable[[Seed], Mapping[str, float]],
    names: Sequence[str],
    *,
    rng: np.random.Generator,
    replicates: int = 1000,
    level: float = 0.95,
    interval: Interval = "t",
    places: Collection[str] = (),
) -> dict[str, Estimate]:
    """Several statistics from one set of draws; see `estimate`. `statistic` returns a value for each of `names`; those
    of `places` say where a maximum lies (module docstring).
    """
    _check(replicates, level, interval)
    sample = _sample(groups, rng, replicates)

    def row(seed: Seed) -> list[float]:
        result = statistic(seed)
        return [result[name] for name in names]

    of_places = [m for m, name in enumerate(names) if name in places]
    observed, draws, errors = _columns(sample, row, len(names), rng, replicates, interval, of_places)
    return {
        name: _summarise(observed[:, m], draws[:, m], sample, level, interval, float(errors[m]))
        for m, name in enumerate(names)
    }


def estimate(
    groups: Groups,
    statistic: Callable[[Seed], float],
    *,
    rng: np.random.Generator,
    replicates: int = 1000,
    level: float = 0.95,
    interval: Interval = "t",
) -> Estimate:
    """Seed mean of `statistic` with an interval over seeds and prompts (module docstring says how).

    `groups` names the arms compared; the seeds used are those present in every group, and a note counts the others.
    `statistic` receives the curves of *one* seed, `{group: [a curve for each run of the group under that seed]}`, and
    returns a number or NaN. A seed for which it is NaN on the observed prompts is left out and counted in the note;
    a replicate in which it is NaN (no common KL range) is counted, and above 10% of them the interval is withheld.

    Raises:
        ValueError: runs with different numbers of prompts, or a bad `replicates`, `level` or `interval`.
    """
    result = estimates(
        groups,
        lambda seed: {"": statistic(seed)},
        ("",),
        rng=rng,
        replicates=replicates,
        level=level,
        interval=interval,
    )
    return result[""]


def prompt_means(
    values: Mapping[str, Mapping[int, Floats]],
    *,
    rng: np.random.Generator,
    replicates: int = 1000,
    level: float = 0.95,
    interval: Interval = "t",
) -> dict[str, Estimate]:
    """Seed means of per-prompt values in any unit, with the intervals of `estimate`: for what is no win-rate curve.

    values: by name and seed, one value a prompt [N], NaN = missing. All hold the same N prompts in the same order, so
    one set of resampled prompts serves them all. For a paired difference pass the prompts' differences.

    Raises:
        ValueError: different numbers of prompts, or a bad `replicates`, `level` or `interval`.
    """
    _check(replicates, level, interval)
    sizes = {len(found) for by_seed in values.values() for found in by_seed.values()}
    if len(sizes) > 1:
        raise ValueError(f"values that are compared must share their prompts; found {sorted(sizes)} prompts")
    n = sizes.pop() if sizes else 0
    weights = _weights(n, rng, replicates)
    result = {}
    for name, by_seed in values.items():
        rows = np.array([by_seed[seed] for seed in sorted(by_seed)], dtype=np.float64).reshape(len(by_seed), n)
        means = weighted_means(rows, weights).T[:, :, None]
        draws, errors = _joint_draws(means, rng, interval)
        sample = _Sample([], int(np.isfinite(rows).any(axis=0).sum()), [])
        result[name] = _summarise(means[:, 0, 0], draws[:, 0], sample, level, interval, float(errors[0]))
    return result


def mean_statistics(
    values: Mapping[int, Floats],
    statistic: Callable[[int, Floats], Floats],
    names: Sequence[str],
    *,
    rng: np.random.Generator,
    replicates: int = 1000,
    level: float = 0.95,
    interval: Interval = "t",
) -> dict[str, Estimate]:
    """Seed means of statistics of several means over prompts, a rank correlation say, with the intervals of `estimate`.

    values: by seed, M quantities of the same N prompts, [M, N]; M may differ from seed to seed; NaN = missing.
    statistic: from a seed and the means of its quantities, [1 + B, M] (observed and resampled, a row each), to the
    statistics of each row, [1 + B, len(names)]; NaN where undefined.

    Raises:
        ValueError: different numbers of prompts, or a bad `replicates`, `level` or `interval`.
    """
    _check(replicates, level, interval)
    sizes = {rows.shape[1] for rows in values.values()}
    if len(sizes) > 1:
        raise ValueError(f"values that are compared must share their prompts; found {sorted(sizes)} prompts")
    weights = _weights(sizes.pop() if sizes else 0, rng, replicates)
    found = [statistic(seed, weighted_means(values[seed], weights)) for seed in sorted(values)]
    columns = np.array(found, dtype=np.float64).reshape(len(found), replicates + 1, len(names))
    draws, errors = _joint_draws(columns, rng, interval)
    judged = [np.isfinite(rows).any(axis=0) for rows in values.values()]
    sample = _Sample([], int(np.any(judged, axis=0).sum()), [])
    return {
        name: _summarise(columns[:, 0, m], draws[:, m], sample, level, interval, float(errors[m]))
        for m, name in enumerate(names)
    }


def _mean(values: Sequence[float]) -> float:
    """Mean of the defined values, NaN if none is."""
    defined = [v for v in values if v == v]
    return sum(defined) / len(defined) if defined else np.nan


def _gap(seed: Seed) -> dict[str, float]:
    online, offline = seed["online"], seed["offline"]
    row = {"average_gap": _mean([average_gap(a, b) for a in online for b in offline])}
    for name, group in (("online", online), ("offline", offline)):
        peaks = [peak(c) for c in group]
        row[f"{name}_peak"] = _mean([win for win, _ in peaks])
        row[f"{name}_kl_at_peak"] = _mean([float(np.log(kl)) for _, kl in peaks])
        row[f"{name}_fall"] = _mean([fall(c) for c in group])
    row["peak_difference"] = row["online_peak"] - row["offline_peak"]
    return row


GAP_NAMES = (
    "average_gap",
    "peak_difference",
    "online_peak",
    "offline_peak",
    "online_kl_at_peak",
    "offline_kl_at_peak",
    "online_fall",
    "offline_fall",
)
PLACES = ("online_kl_at_peak", "offline_kl_at_peak")
# What benchmarks/coverage.py measured; docs/statistics.md has all of it.
LEANS_UP = "the highest of noisy checkpoints leans upwards: 95% intervals held the truth in 88-99% of simulations"
PLACE = "rough where several checkpoints are about as high: 95% intervals held the truth in 84-97% of simulations"


def gap_estimates(
    online: Sequence[Run],
    offline: Sequence[Run],
    rng: np.random.Generator,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    interval: Interval = "t",
) -> dict[str, Estimate]:
    """The reported measures of figure 1: average gap, peaks, KL at the peaks (nats), falls; keys `GAP_NAMES`.

    Estimand (a), same configuration: pass one run for each seed on either side. A side with several runs for a seed is
    a pooled sweep, and its measures are the *mean over configurations* (pairs without a common KL range are left out of
    the mean), never the maximum over noisy points. For estimand (b), best of sweep, pass what `select_best` returns.

    KL at the peak is averaged as ln KL (a geometric mean over seeds), so that its interval stays positive. Notes say of
    which estimates the intervals are the least exact (docs/statistics.md).
    """
    result = estimates(
        {"online": online, "offline": offline},
        _gap,
        GAP_NAMES,
        rng=rng,
        replicates=replicates,
        level=level,
        interval=interval,
        places=PLACES,
    )
    result |= {name: result[name].exponential() for name in PLACES}
    for name in GAP_NAMES:
        caution = PLACE if name in PLACES else LEANS_UP if name.endswith(("_peak", "_fall")) else ""
        if result[name].n_seeds:
            result[name] = result[name].noted(caution)
    pairs = [common_range((curve(a), curve(b)))[0] for a in online for b in offline if a.seed == b.seed]
    apart = int(np.isnan(pairs).sum())
    if apart:
        result["average_gap"] = result["average_gap"].noted(f"{apart} of {len(pairs)} pairs of runs share no KL range")
    return result


@dataclass(frozen=True, eq=False)
class Best:
    """The arm a sweep chose, its runs on the *other* prompts, and every arm's mean peak on the selection prompts."""

    arm: str
    runs: list[Run]
    selection_peaks: dict[str, float]


def split_prompts(n_prompts: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A random half of the prompts [N] to select on; the rest is for reporting."""
    chosen = np.zeros(n_prompts, dtype=np.bool_)
    chosen[rng.permutation(n_prompts)[: n_prompts // 2]] = True
    return chosen


def select_best(sweeps: Mapping[str, Mapping[str, Sequence[Run]]], selection: NDArray[np.bool_]) -> dict[str, Best]:
    """Estimand (b): in each method's sweep `{method: {arm: runs}}`, the arm with the highest peak, averaged over seeds.

    Peaks are taken on the prompts marked in `selection` [N]; the runs returned hold only the others, so the choice
    cannot profit from the noise it is reported on. All methods are passed together because a larger sweep has more
    tries at a high peak: equal budgets are checked, not assumed. An arm whose peak is NaN is never chosen.

    Raises:
        ValueError: "sweep budgets must be equal" - different numbers of arms or of runs; or no arm has a peak.
    """
    budgets = {m: (len(arms), sum(len(runs) for runs in arms.values())) for m, arms in sweeps.items()}
    if len(set(budgets.values())) > 1:
        raise ValueError(f"sweep budgets must be equal; got (arms, runs): {budgets}")
    best = {}
    for method, arms in sweeps.items():
        peaks = {arm: _mean([peak(curve(run.on(selection)))[0] for run in runs]) for arm, runs in arms.items()}
        known = {arm: value for arm, value in peaks.items() if value == value}
        if not known:
            raise ValueError(f"sweep {method!r}: no arm has a peak on the selection prompts")
        arm = max(known, key=lambda name: known[name])
        best[method] = Best(arm, [run.on(~selection) for run in arms[arm]], peaks)
    return best


def gap_band(
    online: Sequence[Run],
    offline: Sequence[Run],
    rng: np.random.Generator,
    *,
    grid_points: int = 25,
    replicates: int = 1000,
    level: float = 0.95,
    interval: Interval = "t",
) -> Band:
    """Simultaneous max-t band for Delta(kappa) = online - offline, the seed mean, on a grid over the common KL range.

    The half-width at each point is one critical value times a standard error: the prompts' there, and the seeds', half
    from that point and half from the whole grid. The critical value is the `level` quantile, over draws, of the largest
    standardised deviation on the grid. Every seed contributes at every point, and the grid stops where resampled KL
    ranges would end in more than 10% of the replicates. Empty when there is no such range.

    The construction is the plug-in sup-t band of Montiel Olea and Plagborg-Moller (2019, "Simultaneous confidence
    bands", Journal of Applied Econometrics 34). It is wider than it need be with few seeds (docs/statistics.md).
    """
    _check(replicates, level, interval)
    sample = _sample({"online": online, "offline": offline}, rng, replicates)
    n_seeds = len(sample.seeds)
    empty = np.empty(0)
    ends = np.array(
        [
            common_range(c for s in range(n_seeds) for g in sample.at(s, b).values() for c in g)
            for b in range(replicates + 1)
        ]
    )
    defined = np.isfinite(ends[:, 0])
    if n_seeds == 0 or not defined[0] or (~defined).sum() > MAX_UNDEFINED / 2 * replicates:
        return Band(empty, empty, empty, empty, n_seeds, "; ".join(["no common KL range", *sample.notes]))
    # A quarter of the allowance on either side, half for replicates that have no common range at all.
    low = float(max(np.quantile(ends[defined, 0], 1 - MAX_UNDEFINED / 4), ends[0, 0]))
    high = float(min(np.quantile(ends[defined, 1], MAX_UNDEFINED / 4), ends[0, 1]))
    if not low < high:
        return Band(empty, empty, empty, empty, n_seeds, "; ".join(["no common KL range", *sample.notes]))
    grid = np.linspace(low, high, grid_points)

    def difference(seed: Seed) -> Floats:
        mean = {name: np.mean([interpolate(c, grid) for c in group], axis=0) for name, group in seed.items()}
        return np.asarray(mean["online"] - mean["offline"])

    observed, draws, errors = _columns(sample, difference, grid_points, rng, replicates, interval)
    draws = draws[np.isfinite(draws).all(axis=1)]
    value = observed.mean(axis=0)
    # Few seeds coincide by chance somewhere on the grid, and a scale of each point's own seeds would pinch the band
    # there (measured: 81% coverage with 3 seeds). Half-way to the grid's mean variance it is not pinched.
    own = observed.var(axis=0, ddof=1) / n_seeds if n_seeds > 1 else np.zeros(grid_points)
    scale = np.sqrt((own + own.mean()) / 2 + errors**2)
    deviation = np.divide(np.abs(draws - value), scale, out=np.zeros_like(draws), where=scale > 0)
    half = np.quantile(deviation.max(axis=1), level) * scale
    notes = list(sample.notes)
    if n_seeds < 5:
        notes.insert(0, ONE_SEED if n_seeds == 1 else FEW_SEEDS[interval])
    return Band(grid, value, value - half, value + half, n_seeds, "; ".join(notes))


def fraction_closed(
    x: Sequence[Run],
    offline: Sequence[Run],
    online: Sequence[Run],
    rng: np.random.Generator,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    interval: Interval = "t",
) -> Estimate:
    """Share of the online-offline gap that arm `x` closes: 0 is offline, 1 is online; not confined to [0, 1].

    Average gap of x over offline divided by that of online over offline, both over the KL range common to all three,
    as a ratio of seed means (a mean of ratios would be ruled by the seed with the smallest gap). NaN, with a note,
    when the interval of the denominator contains 0: there is then no gap of which to close a share.
    """
    _check(replicates, level, interval)
    sample = _sample({"x": x, "offline": offline, "online": online}, rng, replicates)

    def both(seed: Seed) -> list[float]:
        rows = [
            (average_gap(a, b, within), average_gap(c, b, within))
            for a in seed["x"]
            for b in seed["offline"]
            for c in seed["online"]
            for within in (common_range((a, b, c)),)
        ]
        return [_mean([top for top, _ in rows]), _mean([bottom for _, bottom in rows])]

    observed, draws, errors = _columns(sample, both, 2, rng, replicates, interval)
    top, bottom = (_summarise(observed[:, m], draws[:, m], sample, level, interval, float(errors[m])) for m in range(2))
    if not (bottom.low > 0 or bottom.high < 0):
        reason = "gap between online and offline not distinguishable from 0: fraction undefined"
        note = bottom.note if bottom.n_seeds == 0 else "; ".join(filter(None, [bottom.note, reason]))
        return Estimate(np.nan, np.nan, np.nan, bottom.n_seeds, bottom.n_prompts, 0, note)
    ratio = draws[:, 0] / draws[:, 1]
    ratio = ratio[np.isfinite(ratio)]
    low, high = np.quantile(ratio, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Estimate(top.value / bottom.value, low, high, top.n_seeds, top.n_prompts, len(ratio), top.note, ratio)
