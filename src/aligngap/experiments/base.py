"""What an experiment is, and what it is given to analyse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import TypeVar

import numpy as np
import polars as pl

from aligngap.experiments.bench import ArmEntry, Bench, Measure
from aligngap.experiments.spec import AnalysisSpec
from aligngap.pipeline.stages import SPLITS
from aligngap.results import Figure as Figure
from aligngap.results import FigurePoint as FigurePoint
from aligngap.results import Verdict
from aligngap.seeds import numpy_stream
from aligngap.stats.budget import KL, Budget, Floats, Run
from aligngap.stats.estimands import fraction_closed, gap_estimates
from aligngap.stats.intervals import Estimate, Groups, Seed, intervals, prompt_means
from aligngap.stats.items import item_estimate
from aligngap.stats.overoptimisation import overoptimisation


@dataclass(frozen=True)
class Labelled:
    """An estimate as the report shows it. null: the value that the verdict's rule holds the interval against; None
    where the rule is not a test of one value (an equivalence, say).
    """

    label: str
    estimate: Estimate
    unit: str = "win rate"
    null: float | None = 0.0


@dataclass(frozen=True)
class Analysis:
    """What an experiment concludes on one task. The verdict rests on the first estimate."""

    verdict: Verdict
    sentence: str
    estimates: dict[str, Labelled] = field(default_factory=dict)
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class Finished:
    """An arm that was trained and evaluated: its per-prompt outcomes by (split, opponent, judge), and its final
    weights' hash.

    per_pair: what it makes of `D_golden` pairs, with columns step, split, prompt_number, correct (1, 0 or 0.5) and
    drift (log pi/pi_sft of the preferred response, nats). per_prompt: step, split, prompt_number, kl, tokens, utility,
    response_ids, win_*, margin_*. parameters: the policy's number of weights. costs: what it had cost at each step that
    it kept, a column a budget (`stats.budget`).
    """

    entry: ArmEntry
    runs: dict[tuple[str, str, str], Run]
    weights_sha256: str
    per_pair: pl.DataFrame = field(default_factory=pl.DataFrame)
    per_prompt: pl.DataFrame = field(default_factory=pl.DataFrame)
    parameters: int = 0
    costs: pl.DataFrame = field(default_factory=pl.DataFrame)


@dataclass(frozen=True)
class View:
    """On which prompts, against whom, by which judge and over which budget runs are compared; None is the study's own.
    name: for the keys of estimates; empty for the primary view.
    """

    name: str = ""
    split: str | None = None
    opponent: str | None = None
    judge: str | None = None
    budget: Budget = KL

    @property
    def words(self) -> str:
        """`train prompts`, or `by true utility`."""
        if self.judge == "true":
            return "by true utility"
        return f"{(self.split or '').replace('_', '-')} prompts"


PRIMARY = View()

PAIR_OUTCOMES = {
    "seed": pl.Int64(),
    "step": pl.Int64(),
    "prompt_number": pl.Int64(),
    "correct": pl.Float64(),
    "drift": pl.Float64(),
}
"""What arms make of `D_golden` pairs; see `Finished.per_pair`."""


@dataclass(frozen=True)
class TaskData:
    """Everything measured on one task. Failed arms are missing here, and are named in the results. tables: what the
    experiments' own measures wrote, by (name, seed). truth: whether the task's true utility is known.
    """

    task: str
    settings: AnalysisSpec
    arms: Sequence[Finished]
    tables: Mapping[tuple[str, int], pl.DataFrame] = field(default_factory=dict)
    truth: bool = True

    def table(self, name: str) -> pl.DataFrame:
        """A measure's tables of all seeds, one below the other, with a column `seed`; empty when there is none."""
        result = [
            table.with_columns(seed=pl.lit(seed)) for (key, seed), table in sorted(self.tables.items()) if key == name
        ]
        return pl.concat(result) if result else pl.DataFrame()

    def finished(self, family: str, *, baseline: bool | None = None) -> list[Finished]:
        """Arms of a family, by seed; `baseline` restricts to (or excludes) the baseline configuration."""
        chosen = [arm for arm in self.arms if arm.entry.family == family and baseline in (None, arm.entry.baseline)]
        return sorted(chosen, key=lambda arm: (arm.entry.stage.seed, arm.entry.name))

    def runs(self, family: str, view: View = PRIMARY, *, baseline: bool | None = None) -> list[Run]:
        """Curves of a family: the study's primary split, opponent and judge, over KL, unless the view differs."""
        key = self.curve(view)
        # On a task without a true utility, no arm has curves by it.
        arms = self.finished(family, baseline=baseline)
        return [arm.runs[key].over(view.budget) for arm in arms if key in arm.runs]

    def curve(self, view: View = PRIMARY) -> tuple[str, str, str]:
        """Which of `Finished.runs` a view looks at."""
        given = self.settings
        return view.split or given.split, view.opponent or given.opponent, view.judge or given.judge

    def pair_outcomes(self, family: str, split: str, *, baseline: bool | None = None) -> pl.DataFrame:
        """`per_pair` of a family's arms on a split's `D_golden` pairs, by arm, with a column `seed`; columns of
        `PAIR_OUTCOMES` alone.
        """
        arms = [arm for arm in self.finished(family, baseline=baseline) if len(arm.per_pair)]
        tables = (
            arm.per_pair.filter(pl.col("split") == split)
            .with_columns(seed=pl.lit(arm.entry.stage.seed))
            .select(pl.col(name).cast(kind) for name, kind in PAIR_OUTCOMES.items())
            for arm in arms
        )
        return pl.concat([pl.DataFrame(schema=PAIR_OUTCOMES), *tables])

    @property
    def other_split(self) -> str:
        """The split that is not the study's primary one."""
        return next(split for split in SPLITS if split != self.settings.split)

    def gap(self, a: Sequence[Run], b: Sequence[Run], *purpose: str) -> dict[str, Estimate]:
        """All estimates that compare `a` (as online) with `b` (as offline); see `stats.estimands.gap_estimates`."""
        return gap_estimates(a, b, self.rng(*purpose), replicates=self.settings.replicates)

    def share_closed(self, x: Sequence[Run], offline: Sequence[Run], online: Sequence[Run], *purpose: str) -> Estimate:
        """Share of the online-offline gap that `x` closes; see `stats.estimands.fraction_closed`."""
        return fraction_closed(x, offline, online, self.rng(*purpose), replicates=self.settings.replicates)

    def estimate(self, groups: Groups, statistic: Callable[[Seed], float], *purpose: str) -> Estimate:
        """Any statistic of the curves of a seed's runs, by group; see `stats.intervals.intervals`."""
        (result,) = intervals(groups, statistic, rng=self.rng(*purpose), replicates=self.settings.replicates).values()
        return result

    def prompt_means(self, values: Mapping[str, tuple[pl.DataFrame, pl.Expr]], *purpose: str) -> dict[str, Estimate]:
        """Means over prompts and seeds of per-prompt values; see `stats.intervals.prompt_means`.

        values: by name, a table with the columns seed and prompt_number, a row a seed and prompt, and the value as an
        expression of its columns. A table without rows is no data.
        """
        result = {
            name: by_seed(table.sort("prompt_number") if len(table) else table, value)
            for name, (table, value) in values.items()
        }
        return prompt_means(result, rng=self.rng(*purpose), replicates=self.settings.replicates)

    def item_mean(self, values: Mapping[int, Floats], *purpose: str) -> Estimate:
        """Mean over a seed's own items, then over seeds; see `stats.items.item_estimate`."""
        return item_estimate(values, self.rng(*purpose), replicates=self.settings.replicates)

    def over_optimisation(self, runs: Sequence[Run], *purpose: str) -> dict[str, Estimate]:
        """Gao et al.'s form fitted to the gain over SFT; `runs` must be against the SFT policy's responses."""
        return overoptimisation(runs, self.rng(*purpose), replicates=self.settings.replicates)

    def rng(self, *purpose: str) -> np.random.Generator:
        """The bootstrap's named stream."""
        return numpy_stream("bootstrap", self.task, *purpose)


def by_seed(table: pl.DataFrame, value: pl.Expr) -> dict[int, Floats]:
    """A value of every row of a table with a column `seed`, as an expression of its columns; nothing without rows."""
    return {
        int(rows["seed"][0]): rows.select(value.cast(pl.Float64)).to_series().to_numpy()
        for rows in (table.partition_by("seed") if len(table) else [])
    }


def at_end(rows: pl.DataFrame) -> pl.DataFrame:
    """The last step of each seed."""
    return rows.filter(pl.col("step") == pl.col("step").max().over("seed"))


def points(rows: Iterable[tuple[str, float | str, Estimate]]) -> list[FigurePoint]:
    """Estimates as a figure shows them, by series and place; those without data have no point."""
    return [
        FigurePoint(series, x, result.value, result.low, result.high) for series, x, result in rows if result.n_seeds
    ]


Needed = TypeVar("Needed", ArmEntry, Measure)


def each_seed(needs: Callable[[Bench, int], Sequence[Needed]]) -> Callable[[Bench], list[Needed]]:
    """Makes an experiment's `arms` or `measures` of a function that names those of one seed."""

    @wraps(needs)
    def of_all(bench: Bench) -> list[Needed]:
        return [entry for seed in bench.study.seeds for entry in needs(bench.of(seed), seed)]

    return of_all


@dataclass(frozen=True)
class Experiment:
    """A question of the study. `rule` is fixed here, in code, before any run, and quoted in the report. obstacle: why
    the question cannot be asked on a task, in a sentence for the report; empty where it can. The name is also that of
    the study that asks it alone (`experiments.shipped`).
    """

    name: str
    title: str
    question: str
    finding: str
    rule: str
    arms: Callable[[Bench], list[ArmEntry]]
    analyse: Callable[[TaskData], Analysis]
    measures: Callable[[Bench], list[Measure]] = lambda bench: []
    obstacle: Callable[[Bench], str] = lambda bench: ""
