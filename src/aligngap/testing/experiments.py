"""What every experiment must do, and finished arms whose truth is known, for tests of what analyses conclude. The
numbers are made up, and are no results.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import product

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aligngap.experiments.base import Analysis, Experiment, Figure, Finished, Labelled, TaskData
from aligngap.experiments.bench import ArmEntry, Bench, Measure
from aligngap.experiments.conclusions import conclusion
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.experiments.spec import AnalysisSpec
from aligngap.experiments.study import load_study
from aligngap.pipeline.graph import Stage
from aligngap.pipeline.stages import Arm
from aligngap.results import COMPARISONS, SPLITS, VERDICTS
from aligngap.stats.budget import Run
from aligngap.stats.intervals import Estimate
from aligngap.testing.contract import must, run

PROMPTS, PAIRS = 400, 100
KL = np.geomspace(0.05, 5.0, 6)

RISING = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
HALFWAY = (0.1, 0.15, 0.22, 0.3, 0.35, 0.4)
LOW = (0.1, 0.1, 0.15, 0.2, 0.2, 0.2)


@cache
def bench(seeds: int = 1) -> Bench:
    """The shipped study `quick` on its task."""
    return Bench(load_study("quick", seeds=seeds), "summarisation")


def entries(experiment: Experiment | str, seeds: int) -> dict[tuple[str, int], ArmEntry]:
    """An experiment's arms by family and seed; the baseline's where a family has several."""
    return {(entry.family, entry.stage.seed): entry for entry in _the(experiment).arms(bench(seeds))}


def finished(
    entry: ArmEntry,
    wins: Sequence[float],
    *,
    kl_factor: float = 1.0,
    drift: float | None = None,
    judged: Mapping[str, Sequence[float]] | None = None,
    prompts: int = PROMPTS,
) -> Finished:
    """An arm whose win rate at the six KLs is as given; `judged`: by other judges.

    Some prompts are easy, for all arms and seeds.

    drift: mean log pi/pi_sft of the winners at the end, reached in equal steps; one pair is a tie.
    """
    seed = entry.stage.seed
    luck = np.random.default_rng(0).permutation((np.arange(prompts) + 0.5) / prompts)
    kl = np.repeat((KL * kl_factor)[:, None], prompts, 1)
    steps = np.arange(1, len(KL) + 1)
    won = {
        judge: (luck < np.array((judged or {}).get(judge, wins))[:, None]).astype(float)
        for judge in ("golden", "true", "proxy")
    }
    amounts = _amounts(entry.stage, steps)
    runs = {
        (split, opponent, judge): Run(entry.name, seed, steps, won[judge], {"kl": kl, **amounts})
        for split, opponent, judge in product(SPLITS, COMPARISONS, won)
    }
    pairs = pl.DataFrame() if drift is None else per_pair(seed, steps.tolist(), drift)
    costs = pl.DataFrame({"steps": steps} | amounts)
    return Finished(entry, runs, "w", pairs, _per_prompt(entry, steps, kl, won), 1000, costs)


def _amounts(arm: Arm, steps: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """What the checkpoints have cost: a judge call a pair, and for a live source 18 tokens; 250 labels behind a
    proxy's.
    """
    calls = np.asarray(steps * arm.optim.batch, dtype=np.float64)
    live = arm.source.needs_judge
    return {
        "judge_calls": calls,
        "labels": np.full_like(calls, 250) if live else calls,
        "tokens_sampled": 18 * calls if live else np.zeros_like(calls),
        "seconds": calls / 1000,
    }


def _per_prompt(
    entry: ArmEntry,
    steps: NDArray[np.int64],
    kl: NDArray[np.float64],
    won: Mapping[str, NDArray[np.float64]],
) -> pl.DataFrame:
    """The rows of per_prompt.parquet behind an arm's curves."""
    prompts = kl.shape[1]
    frames = []
    for split, (at, step) in product(SPLITS, enumerate(steps.tolist())):
        columns = {
            "prompt_number": np.arange(prompts) + (prompts if split == "held_out" else 0),
            "kl": kl[at],
            "tokens": np.full(prompts, 9),
            "utility": won["true"][at],
            **{f"win_{who}_{judge}": won[judge][at] for who, judges in COMPARISONS.items() for judge in judges},
            **{f"margin_{judge}": 2 * won[judge][at] - 1 for judge in ("golden", "proxy")},
        }
        frames.append(pl.DataFrame(columns).with_columns(step=pl.lit(step), split=pl.lit(split)))
    labels = {"arm": entry.name, "family": entry.family, "seed": entry.stage.seed}
    named = (pl.lit(value).alias(name) for name, value in labels.items())
    return pl.concat(frames).with_columns(*named, response_ids=pl.lit([5, 2], pl.List(pl.Int32)))


def per_pair(seed: int, steps: Sequence[int], drift: float) -> pl.DataFrame:
    """What an arm makes of the pairs of both splits; train pairs drift a nat further down."""
    rng = np.random.default_rng(seed + 100)
    noise = rng.normal(0, 0.5, PAIRS)
    noise[0] = np.nan
    noise[1:] -= noise[1:].mean()
    right = (rng.random(PAIRS) < 0.6).astype(float)
    return pl.concat(
        pl.DataFrame(
            {
                "prompt_number": np.arange(PAIRS),
                "correct": right,
                "drift": (drift - (split == "train")) * share + noise,
            }
        )
        .with_columns(step=pl.lit(step), split=pl.lit(split))
        .reverse()
        for split in SPLITS
        for step in steps
        for share in (step / max(steps),)
    )


def analysed(
    experiment: Experiment | str,
    arms: Sequence[Finished],
    tables: Mapping[tuple[str, int], pl.DataFrame] | None = None,
) -> Analysis:
    """The experiment's analysis of these arms alone."""
    data = TaskData("summarisation", AnalysisSpec(replicates=200), arms, tables or {})
    return _the(experiment).analyse(data)


def check_experiment(experiment: Experiment) -> None:
    """Raises Broken, which says how, and whatever the experiment's own code raises, for one that a study cannot ask as
    it asks ours. What its measures write is made up by nobody: as far as this is concerned, they have all failed.
    """
    run(EXPERIMENT_CHECKS, experiment)


def says_what_it_is(experiment: Experiment) -> None:
    """Title, question and rule, which the report quotes."""
    for what in ("name", "title", "question", "rule"):
        value: object = getattr(experiment, what)
        must(isinstance(value, str) and bool(value), f"its {what} is not a text with something in it")


def asks_for_arms_and_measures(experiment: Experiment) -> None:
    """Of each seed; the same when asked again; and each can be sent to the process that is to make it."""
    place = bench(2)
    reason: object = experiment.obstacle(place)
    must(isinstance(reason, str), "its obstacle is no text")
    if reason:
        return
    arms, measures = experiment.arms(place), experiment.measures(place)
    must(bool(arms or measures), "it asks for no arm and no measure")
    parts: list[tuple[Sequence[object], type]] = [(arms, ArmEntry), (measures, Measure)]
    for given, kind in parts:
        strange = [type(entry).__name__ for entry in given if not isinstance(entry, kind)]
        must(not strange, f"it asks for {strange[:1]}, not for a {kind.__name__}")
    strange = [type(entry.stage).__name__ for entry in arms if not issubclass(type(entry.stage), Arm)]
    must(not strange, f"one of its arms is {strange[:1]}, not an Arm")
    stages = _stages(arms, measures)
    again = _stages(experiment.arms(place), experiment.measures(place))
    same = [stage.identity for stage in stages] == [stage.identity for stage in again]
    must(same, "it asks for other stages when asked again")
    for stage in stages:
        copy = pickle.loads(pickle.dumps(stage))
        must(copy.identity == stage.identity, f"'{stage.label}' is another stage in another process")
    names = [(entry.name, entry.family, entry.stage.seed) for entry in arms]
    must(len(set(names)) == len(names), "two of its arms have the same name, family and seed")
    seeds = {seed for _, _, seed in names}
    must(not arms or seeds == set(place.seeds), f"it asks for arms of the seeds {sorted(seeds)} only")


def _stages(arms: Sequence[ArmEntry], measures: Sequence[Measure]) -> list[Stage]:
    return [*(entry.stage for entry in arms), *(entry.stage for entry in measures)]


def concludes_nothing_from_nothing(experiment: Experiment) -> None:
    """Where every arm has failed, there is a sentence and no verdict; what was not measured is NaN."""
    analysis = _checked(experiment, [])
    must(analysis.verdict == "inconclusive", f"without any data it finds its claim {analysis.verdict}")
    for key, value in analysis.estimates.items():
        must(bool(np.isnan(value.estimate.value)), f"without any data its estimate '{key}' is {value.estimate.value}")


def analyses_whatever_is_there(experiment: Experiment) -> None:
    """Arms that rise alike, one that stays low, one that is missing; twice the same."""

    def arms(seeds: int, low: str | None = None, missing: str | None = None) -> list[Finished]:
        return [
            finished(entry, LOW if family == low else RISING, drift=-1.0, prompts=60)
            for (family, _), entry in entries(experiment, seeds).items()
            if family != missing
        ]

    one, two = (conclusion(experiment, _checked(experiment, arms(2))) for _ in range(2))
    must(one == two, "it concludes something else when asked again: draw random numbers from data.rng only")
    families = list(dict.fromkeys(family for family, _ in entries(experiment, 1)))
    for missing, low in zip(families, [*families[1:], *families[:1]], strict=True):
        _checked(experiment, arms(1, low, missing))


def _checked(experiment: Experiment, arms: Sequence[Finished]) -> Analysis:
    data = TaskData("summarisation", AnalysisSpec(replicates=100), arms)
    analysis: object = experiment.analyse(data)
    must(isinstance(analysis, Analysis), f"its analysis gives {type(analysis).__name__}, not an Analysis")
    assert isinstance(analysis, Analysis)
    must(analysis.verdict in VERDICTS, f"its verdict '{analysis.verdict}' is none of {', '.join(VERDICTS)}")
    must(bool(analysis.sentence), "it concludes in no sentence")
    for key, value in analysis.estimates.items():
        labelled: object = value
        right = isinstance(labelled, Labelled) and issubclass(type(labelled.estimate), Estimate)
        must(right, f"its estimate '{key}' is no Labelled(label, Estimate)")
    must(all(isinstance(figure, Figure) for figure in analysis.figures), "one of its figures is no Figure")
    names = [figure.name for figure in analysis.figures]
    must(len(set(names)) == len(names), "two of its figures have one name")
    conclusion(experiment, analysis)
    return analysis


def _the(experiment: Experiment | str) -> Experiment:
    return EXPERIMENTS[experiment] if isinstance(experiment, str) else experiment


EXPERIMENT_CHECKS: tuple[Callable[[Experiment], None], ...] = (
    says_what_it_is,
    asks_for_arms_and_measures,
    concludes_nothing_from_nothing,
    analyses_whatever_is_there,
)
