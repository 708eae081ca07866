"""Do the intervals and tests of aligngap.stats keep what they promise? Simulated runs whose truth is known.

    python -m benchmarks.coverage --seed 1 --repetitions 400 --json coverage.json

**Runs** are as studies make them. Seeds are paired: a seed moves both arms' win rates, each arm's a little further, and
lets it wobble from checkpoint to checkpoint. All arms, seeds and checkpoints are judged on the same prompts, so their
outcomes are correlated. KL is a noisy mean over these prompts, neither evenly spaced nor always rising. Seeds and
prompts are new in each repetition.

**The truth** of a statistic is its value on noise-free curves, averaged over the population of seeds. With one seed it
is the value on that seed's own noise-free curves, because such an interval claims to cover prompts only.

**Printed** are, for 1, 3 and 5 seeds: the share of 95% intervals that hold the truth, with its standard error; their
mean width; the bias of the estimate; how many intervals were withheld. Then, how often the rules of the verdicts, the
equivalence test and Holm's correction say what they should not. docs/statistics.md says what follows.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.special import ndtri

from aligngap.stats.budget import Run, common_range, curve, interpolate
from aligngap.stats.estimands import (
    GAP_NAMES,
    average_gap,
    fall,
    fraction_closed,
    gap_band,
    gap_estimates,
    peak,
    peak_difference,
    select_best,
    split_prompts,
)
from aligngap.stats.intervals import Estimate, prompt_means
from aligngap.stats.overoptimisation import fit, overoptimisation
from aligngap.stats.verdict import (
    Verdict,
    bootstrap_p,
    equivalence_verdict,
    gap_verdict,
    holm,
    sign_verdict,
    threshold_verdict,
)
from aligngap.store.disk import write_json
from benchmarks import markdown

Floats = NDArray[np.float64]
Law = Callable[[Floats], Floats]  # win rate at kappa = ln KL, before a seed moves it
Truth = Mapping[str, Run]  # one seed's noise-free runs by arm: a single prompt that stands for all

SEEDS = (1, 3, 5)
PROMPTS = 256
MARGIN = 0.02  # the studies' largest difference that counts as none
HYPOTHESES = 17  # as many as `paper` has
SHARES = (0.45, 0.08, 0.2, 0.16, 0.11)
"""Of an outcome's latent variance: of the prompt, and of the prompt with the arm, the seed, the run, the checkpoint.
Measured in a study of two seeds (docs/lab-log.md).
"""
PAIR = ("online", "offline")
UNTOLD: Verdict = "inconclusive"
POPULATION = 2000  # seeds that stand for all


def gao(a: float, b: float, less: float = 0.0) -> Law:
    """Win rate against SFT that rises, peaks at d = sqrt(KL) = exp(a/b - 1), and falls (Gao et al.)."""
    return lambda kappa: 0.5 + np.exp(kappa / 2) * (a - b * kappa / 2) - less


def saturating(kappa: Floats) -> Floats:
    """Win rate against the golden policy about as in the shipped five-seed study: from 1% to 20%, then no further."""
    return np.asarray(0.01 + 0.26 / (1 + np.exp(-2.2 * (kappa - 1.1))))


@dataclass(frozen=True)
class World:
    """arms: by name, the KL of each checkpoint in nats, and the law. wobble: sd of a seed's and arm's win rate from
    checkpoint to checkpoint, in units of p (1 - p), as its other effects.
    """

    name: str
    arms: Mapping[str, tuple[Floats, Law]]
    wobble: float = 0.08

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The arms compared: every online one with every offline one."""
        online, offline = ([arm for arm in self.arms if arm.startswith(method)] for method in PAIR)
        return list(product(online, offline))

    def truth(self, rng: np.random.Generator, seed: int = 0) -> Truth:
        """A seed's effects have mean 0 at every KL, so a constant gap between laws is the mean gap."""
        shared, stretch = rng.normal(0, [0.12, 0.08])
        runs = {}
        for arm, (path, law) in self.arms.items():
            own, own_stretch = rng.normal(0, [0.08, 0.05])
            kl = path * np.exp(stretch + own_stretch)
            win = law(np.log(kl))
            win = win + (shared + own + rng.normal(0, self.wobble, len(path))) * win * (1 - win)
            runs[arm] = Run(arm, seed, np.arange(1, len(path) + 1), win[:, None], {"kl": kl[:, None]})
        return runs

    def observe(self, truths: Sequence[Truth], rng: np.random.Generator) -> dict[str, list[Run]]:
        """Runs of every arm and seed on the same new prompts. Outcomes by a Gaussian copula, so that their means are
        the truth's; KL of a prompt is gamma around it.
        """
        of_prompt, length = rng.normal(size=PROMPTS), gamma(rng, PROMPTS)
        of_arm = {arm: rng.normal(size=PROMPTS) for arm in self.arms}
        runs: dict[str, list[Run]] = {arm: [] for arm in self.arms}
        for truth in truths:
            of_seed = rng.normal(size=PROMPTS)
            for arm, run in truth.items():
                shape = (len(run.steps), PROMPTS)
                parts = (of_prompt, of_arm[arm], of_seed, rng.normal(size=PROMPTS), rng.normal(size=shape))
                latent = sum(np.sqrt(share) * part for share, part in zip(SHARES, parts, strict=True))
                kl, win = run.amount * length * gamma(rng, shape), latent < ndtri(run.win)
                runs[arm].append(Run(arm, run.seed, run.steps, win.astype(np.float64), {"kl": kl}))
        return runs


def gamma(rng: np.random.Generator, shape: int | tuple[int, int]) -> Floats:
    """Positive, of mean 1. Two of them multiplied scatter as prompts' KL does, by a third of their mean."""
    return rng.gamma(18, 1 / 18, shape)


LONG = np.geomspace(0.5, 40, 10)
FAR = np.array([0.05, 0.42, 1.8, 2.9, 4.2, 4.7, 4.95, 4.9])  # online's and offline's mean KL in the five-seed study
NEAR = np.array([0.13, 0.65, 1.15, 1.35, 1.57, 1.6, 1.76, 1.7])
TOP, LOW = gao(0.16, 0.08), gao(0.13, 0.075)
RISE_AND_FALL = World(
    "rise and fall", {"online": (LONG, TOP), "offline": (LONG, LOW), "middle": (LONG, gao(0.145, 0.0775))}
)
PLATEAU = World("plateau", {"online": (FAR, saturating), "offline": (NEAR, saturating)})
NO_GAP = World("no gap, no fall", {"online": (FAR[:-1], saturating), "offline": (FAR[:-1], saturating)}, wobble=0.0)
AT_MARGIN = World("gap at the margin", {"online": (LONG, TOP), "offline": (LONG, gao(0.16, 0.08, MARGIN))})
SWEEP = World(
    "sweep",
    {
        f"{method} {number}": (LONG, gao(*numbers, less))
        for method, numbers in (("online", (0.16, 0.08)), ("offline", (0.13, 0.075)))
        for number, less in enumerate((0.0, 0.005, 0.015, 0.04))
    },
)


@dataclass
class Tally:
    """Intervals by statistic, and answers by question, over the repetitions. promised: how often at most the answer may
    be yes, where yes is wrong.
    """

    intervals: dict[str, list[tuple[float, float, float]]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[tuple[str, float | None], list[bool]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, estimate: Estimate, truth: float) -> None:
        hit = float(estimate.low <= truth <= estimate.high) if np.isfinite(estimate.low) else np.nan
        self.intervals[name].append((hit, estimate.high - estimate.low, estimate.value - truth))

    def ask(self, question: str, answer: bool, promised: float | None = None) -> None:
        self.answers[question, promised].append(answer)

    def rows(self) -> Iterator[dict[str, Any]]:
        for name, rows in self.intervals.items():
            hits, widths, errors = np.array(rows).T
            given = hits[np.isfinite(hits)]
            measured = {"width": mean(widths), "bias": mean(errors), "withheld": len(hits) - len(given)}
            yield {"statistic": name, **share(given), **measured}
        for (question, promised), answers in self.answers.items():
            yield {"question": question, **share(np.array(answers, dtype=np.float64)), "promised": promised}


def mean(values: Floats) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def share(hits: Floats) -> dict[str, float]:
    rate = mean(hits)
    return {"rate": rate, "standard_error": float(np.sqrt(rate * (1 - rate) / len(hits))) if len(hits) else np.nan}


def values(truth: Truth, a: str = "online", b: str = "offline") -> dict[str, float]:
    """What the estimators of `GAP_NAMES`, Gao et al.'s law and the share closed estimate, for one seed. `ln_`: what
    they average as a logarithm.
    """
    online, offline = curve(truth[a]), curve(truth[b])
    row = {"average_gap": average_gap(online, offline), "peak_difference": peak_difference(online, offline)}
    for name, one in (("online", online), ("offline", offline)):
        row |= {f"{name}_peak": peak(one)[0], f"{name}_fall": fall(one)}
        row[f"ln_{name}_at_peak"] = float(np.log(peak(one)[1]))
    law = fit(np.exp(online.x), online.win - 0.5)
    row |= {"gao_a": law.a, "gao_b": law.b}
    if "middle" in truth:
        middle = curve(truth["middle"])
        within = common_range((online, offline, middle))
        row |= {"top": average_gap(middle, offline, within), "bottom": average_gap(online, offline, within)}
    return row


def average(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over seeds, as the estimators do it: geometric means where they take them, the ratio of means for the share."""
    means = {name: mean(np.array([row[name] for row in rows])) for name in rows[0]}
    if "top" in means:
        means["share_closed"] = means.pop("top") / means.pop("bottom")
    return {k.removeprefix("ln_"): float(np.exp(v)) if k.startswith("ln_") else v for k, v in means.items()}


FINE = np.linspace(-4, 5, 600)


@dataclass(frozen=True)
class Target:
    """True values by the pair of arms compared, over the seeds that an interval is about: all of them or, where one was
    run, that one. difference: online minus offline over `FINE`, NaN where no seed has it.
    """

    by_pair: Mapping[tuple[str, str], Mapping[str, float]]
    difference: Floats

    @classmethod
    def of(cls, world: World, truths: Sequence[Truth]) -> Target:
        by_pair = {pair: average([values(truth, *pair) for truth in truths]) for pair in world.pairs}
        wins = [[interpolate(curve(truth[arm]), FINE) for arm in world.pairs[0]] for truth in truths]
        apart = np.array([online - offline for online, offline in wins])
        count = np.isfinite(apart).sum(axis=0)
        apart = np.divide(np.nansum(apart, axis=0), count, out=np.full(len(FINE), np.nan), where=count > 0)
        return cls(by_pair, apart)


@dataclass(frozen=True)
class Case:
    """One repetition."""

    tally: Tally
    true: Target
    runs: Mapping[str, Sequence[Run]]
    rng: np.random.Generator
    replicates: int

    @property
    def target(self) -> Mapping[str, float]:
        return self.true.by_pair[PAIR]

    def ask(self, question: str, answer: bool, promised: float | None = None) -> None:
        """With one seed nothing is promised of other seeds."""
        self.tally.ask(question, answer, promised if len(self.runs["online"]) > 1 else None)

    @cached_property
    def gaps(self) -> dict[str, Estimate]:
        return gap_estimates(self.runs["online"], self.runs["offline"], self.rng, replicates=self.replicates)

    @property
    def figure_1(self) -> Verdict:
        return gap_verdict(self.gaps["average_gap"], self.gaps["peak_difference"], MARGIN)

    def same(self, name: str, margin: float = MARGIN) -> bool:
        """Does the equivalence test say that there is no difference?"""
        return equivalence_verdict(self.gaps[name], margin) == "supported"


Check = Callable[[Case], None]


def gap(case: Case) -> None:
    """Average gap, peaks, KL at the peaks, falls."""
    for name in GAP_NAMES:
        case.tally.add(name, case.gaps[name], case.target[name])


def percentile(case: Case) -> None:
    """The textbook hierarchical bootstrap, for comparison."""
    online, offline = case.runs["online"], case.runs["offline"]
    estimate = gap_estimates(online, offline, case.rng, replicates=case.replicates, interval="percentile")[
        "average_gap"
    ]
    case.tally.add("average_gap, percentile", estimate, case.target["average_gap"])


def gap_there(case: Case) -> None:
    """Rules where online is ahead, and falls. The equivalence test with a margin as large as the gap: a test has its
    largest size where noise is small beside the margin.
    """
    case.ask("figure 1: supported", case.figure_1 == "supported")
    case.ask("figure 1: contradicted", case.figure_1 == "contradicted", 0.025)
    case.ask("online falls after its peak", case.gaps["online_fall"].low > 0)
    same = case.same("average_gap", abs(case.target["average_gap"]))
    case.tally.ask("no average gap, margin as large as the gap", same, 0.025)


def one_curve(case: Case) -> None:
    """Arms on the same law of KL, with checkpoints at different places: what straight lines between checkpoints add."""
    case.tally.add("average_gap, of the laws", case.gaps["average_gap"], 0.0)


def no_gap(case: Case) -> None:
    """Rules where arms are alike, and both best at the end."""
    average_, peaks = case.gaps["average_gap"], case.gaps["peak_difference"]
    case.ask("average gap: interval excludes 0", sign_verdict(average_, 1, 0.0) != UNTOLD, 0.05)
    case.ask("peak difference: interval excludes 0", sign_verdict(peaks, 1, 0.0) != UNTOLD, 0.05)
    case.ask("figure 1: supported", case.figure_1 == "supported", 0.025)
    case.ask("online falls after its peak", case.gaps["online_fall"].low > 0, 0.025)
    case.ask("no average gap", case.same("average_gap"))


def gap_of_the_margin(case: Case) -> None:
    """The equivalence test where the gap is just as large as it may not be."""
    for name in ("average_gap", "peak_difference"):
        case.ask(f"no {name.replace('_', ' ')}", case.same(name), 0.025)
    case.ask("figure 1: contradicted", case.figure_1 == "contradicted", 0.025)


def law(case: Case) -> None:
    """Gao et al.'s form fitted to online."""
    fitted = overoptimisation(case.runs["online"], case.rng, replicates=case.replicates)
    for name in ("a", "b"):
        case.tally.add(f"gao_{name}", fitted[name], case.target[f"gao_{name}"])


def closed(case: Case) -> None:
    """The share of the gap that an arm half-way closes."""
    middle, offline, online = (case.runs[arm] for arm in ("middle", "offline", "online"))
    estimate = fraction_closed(middle, offline, online, case.rng, replicates=case.replicates)
    case.tally.add("share_closed", estimate, case.target["share_closed"])
    case.ask("share closed: interval excludes one half", threshold_verdict(estimate, 0.5, 1) != UNTOLD, 0.05)


def band(case: Case) -> None:
    """All of the true difference at once, wherever the band is."""
    band_ = gap_band(case.runs["online"], case.runs["offline"], case.rng, replicates=case.replicates)
    truth = np.interp(band_.x, FINE, case.true.difference)
    known = np.isfinite(truth)  # with one seed the observed KL range may reach past the true one
    hit = bool(np.all((band_.low <= truth) & (truth <= band_.high), where=known)) if known.any() else np.nan
    case.tally.intervals["band"].append((hit, mean(band_.high - band_.low), mean(band_.value - truth)))


def best(case: Case) -> None:
    """Estimand (b): the difference between the sweeps' best, chosen on half of the prompts, compared on the other.
    Held against the truth of the two that were chosen, and against that of the two that truly are best.
    """
    swept = {method: {arm: runs for arm, runs in case.runs.items() if arm.startswith(method)} for method in PAIR}
    chosen = select_best(swept, split_prompts(PROMPTS, case.rng))
    estimates = gap_estimates(chosen["online"].runs, chosen["offline"].runs, case.rng, replicates=case.replicates)
    by_pair = case.true.by_pair
    truly = max(by_pair, key=lambda pair: by_pair[pair]["online_peak"] + by_pair[pair]["offline_peak"])
    for label, pair in (("chosen", (chosen["online"].arm, chosen["offline"].arm)), ("truly best", truly)):
        for name in ("average_gap", "peak_difference"):
            case.tally.add(f"best of sweep, {label}: {name}", estimates[name], by_pair[pair][name])


PLAN: Sequence[tuple[World, Sequence[Check]]] = (
    (RISE_AND_FALL, (gap, percentile, band, law, closed, gap_there)),
    (PLATEAU, (gap, band, one_curve)),
    (NO_GAP, (gap, band, no_gap)),
    (AT_MARGIN, (gap_of_the_margin,)),
    (SWEEP, (best,)),
)


def simulate(
    world: World, checks: Sequence[Check], repetitions: int, replicates: int, rng: np.random.Generator
) -> Iterator[tuple[int, Tally]]:
    """By number of seeds."""
    everyone = Target.of(world, [world.truth(rng) for _ in range(POPULATION)])
    for n_seeds in SEEDS:
        tally = Tally()
        for _ in range(repetitions):
            truths = [world.truth(rng, seed) for seed in range(n_seeds)]
            true = everyone if n_seeds > 1 else Target.of(world, truths)
            case = Case(tally, true, world.observe(truths, rng), rng, replicates)
            for check in checks:
                check(case)
        yield n_seeds, tally


def family_wise(repetitions: int, rng: np.random.Generator) -> Iterator[tuple[int, Tally]]:
    """Holm over as many experiments as `paper` has, all without effect, that share online's run, seeds and prompts: how
    often at least one is called an effect, with the correction and without.
    """
    arms = {f"arm {number}": (FAR[-1:], saturating) for number in range(HYPOTHESES)}
    world = World("Holm", {"online": (FAR[-1:], saturating)} | arms)
    for n_seeds in SEEDS[1:]:
        tally = Tally()
        for _ in range(repetitions):
            runs = world.observe([world.truth(rng, seed) for seed in range(n_seeds)], rng)
            wins = {arm: {run.seed: run.win[0] for run in of_arm} for arm, of_arm in runs.items()}
            gaps = {arm: {seed: wins[arm][seed] - win for seed, win in wins["online"].items()} for arm in arms}
            p = np.array(
                [bootstrap_p(estimate.draws) for estimate in prompt_means(gaps, rng=rng, replicates=1000).values()]
            )
            tally.ask("any effect, without correction", bool((p < 0.05).any()))
            tally.ask("any effect, with Holm's", bool((holm(p) < 0.05).any()), 0.05)
        yield n_seeds, tally


def report(seed: int, repetitions: int, replicates: int) -> Iterator[dict[str, Any]]:
    """Rows of all tables, as they come; the same for the same arguments."""
    jobs = [(world.name, partial(simulate, world, checks, repetitions, replicates)) for world, checks in PLAN] + [
        ("Holm", partial(family_wise, repetitions))
    ]
    for number, (name, job) in enumerate(jobs):
        for n_seeds, tally in job(np.random.default_rng([seed, number])):
            yield from ({"world": name, "seeds": n_seeds, **row} for row in tally.rows())


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the table; of a question, the rate of yes and how often at most it may be."""
    rate = f"{row['rate']:.3f} ± {row['standard_error']:.3f}"
    if "question" in row:
        most = f"at most {row['promised']}" if row["promised"] else ""
        return row["world"], str(row["seeds"]), f"{row['question']}?", rate, most, "", ""
    numbers = (f"{row['width']:.3f}", f"{row['bias']:+.4f}", str(row["withheld"]))
    return row["world"], str(row["seeds"]), row["statistic"], rate, *numbers


def main(
    seed: int = 0,
    repetitions: int = 400,
    replicates: Annotated[int, typer.Option(help="bootstrap draws for each interval")] = 300,
    json: Annotated[Path | None, typer.Option(help="write settings and rows here")] = None,
) -> None:
    """Do the intervals and tests of aligngap.stats keep what they promise?"""
    started, rows = time.perf_counter(), []
    print(markdown.table(("world", "seeds", "statistic, or question?", "rate ± s.e.", "width", "bias", "withheld"), []))
    for one in report(seed, repetitions, replicates):
        # JSON has no NaN: where all intervals were withheld there is no rate.
        rows.append({key: None if value != value else value for key, value in one.items()})
        print(markdown.row(cells(one)), flush=True)
    if json:
        settings = {"seed": seed, "repetitions": repetitions, "replicates": replicates}
        settings["wall_seconds"] = round(time.perf_counter() - started)
        write_json(json, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
