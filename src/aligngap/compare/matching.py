"""Two results side by side: what of a task is where in both runs, and what only one has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import polars as pl

from aligngap.compare.comparable import Ground, Side
from aligngap.experiments.spec import AnalysisSpec
from aligngap.report.style import SPLIT_NAMES
from aligngap.results import FINISHED, ArmRecord, Conclusion


@dataclass
class MatchedArm:
    """All finished seeds of an arm of one run: by seed, what results say of it, and its rows of outcomes on the prompts
    that the runs share.
    """

    family: str
    name: str
    baseline: bool
    records: dict[int, ArmRecord] = field(default_factory=dict)
    rows: dict[int, pl.DataFrame] = field(default_factory=dict)


@dataclass(frozen=True)
class Matched:
    """A task of two runs, in step. What is by run is a pair, the first run's first."""

    sides: tuple[Side, Side]
    ground: Ground

    @property
    def task(self) -> str:
        """Its name."""
        return self.ground.task

    @cached_property
    def settings(self) -> AnalysisSpec:
        """By which both are compared: the first run's, against an opponent that they share."""
        settings = self.sides[0].analysis
        if settings.opponent in self.ground.opponents:
            return settings
        return settings.model_copy(update={"opponent": self.ground.opponents[0]})

    @property
    def published(self) -> bool:
        """Whether the runs' own estimates are on the common scale, of which nothing had to be replaced."""
        return self._scales[0] == self._scales[1] == _scale(self.settings)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the common scale."""
        notes = list(self.ground.notes)
        first, second = (" ".join(scale) for scale in self._scales)
        if first != second:
            notes.append(
                f"The runs' own estimates are by different prompts, opponents or judges ({first}; {second}); here both "
                "are by the first run's."
            )
        split = self.settings.split
        if not self._prompts.filter(pl.col("split") == split).height:
            notes.append(f"The runs share no {SPLIT_NAMES.get(split, split)}.")
        return tuple(notes)

    @cached_property
    def arms(self) -> tuple[list[MatchedArm], list[MatchedArm]]:
        """The finished arms of both, in the order of their results."""
        return self._arms(self.sides[0]), self._arms(self.sides[1])

    @cached_property
    def pairs(self) -> list[tuple[MatchedArm, MatchedArm]]:
        """Arms in the same place: a family's one baseline in either run, whatever its settings; others by name."""
        pairs: list[tuple[MatchedArm, MatchedArm]] = []
        for arm in self.arms[0]:
            ours, others = ([x for x in arms if _place(x) == _place(arm)] for arms in self.arms)
            alone = arm.baseline and len(others) == len(ours) == 1
            free = [x for x in others if not any(x is taken for _, taken in pairs)]
            pairs += [(arm, other) for other in free if alone or other.name == arm.name][:1]
        return pairs

    @property
    def all_matched(self) -> bool:
        """Whether every arm of either run has one in its place."""
        return all(len(arms) == len(self.pairs) for arms in self.arms)

    @cached_property
    def paired(self) -> bool:
        """Whether the runs share a seed of any arm but the golden policy, whose seed is that of no study."""
        return any(one.rows.keys() & other.rows.keys() for one, other in self.pairs if one.family != "golden_policy")

    def in_both(self, arm: MatchedArm, seed: int) -> bool:
        """Whether the arm in the place of this one, if there is one, has the seed; all have the golden policy's."""
        others = [b if a is arm else a for a, b in self.pairs if arm is a or arm is b]
        return arm.family == "golden_policy" or all(seed in other.rows for other in others)

    @property
    def conclusions(self) -> list[tuple[Conclusion, Conclusion]]:
        """Of the experiments that both asked."""
        first, second = ({x.name: x for x in side.data.task(self.task).experiments} for side in self.sides)
        return [(result, second[name]) for name, result in first.items() if name in second]

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """What only one run has, or did not finish, and why."""
        result = []
        for run, side, arms, place in zip(("first", "second"), self.sides, self.arms, (0, 1), strict=True):
            matched = {id(pair[place]) for pair in self.pairs}
            result += [f"Only the {run} run has the arm {arm.name}." for arm in arms if id(arm) not in matched]
            for arm in side.data.task(self.task).arms:
                if arm.status != FINISHED:
                    reason = arm.reason or "no reason recorded"
                    result.append(f"{run} run, arm {arm.name}, seed {arm.seed}: {arm.status}, {reason}.")
        asked = [{x.name for x in side.data.task(self.task).experiments} for side in self.sides]
        if alone := sorted(asked[0] ^ asked[1]):
            result.append(f"Asked in one run only: {', '.join(alone)}.")
        return tuple(result)

    @property
    def _scales(self) -> Sequence[tuple[str, str, str]]:
        return [_scale(side.analysis) for side in self.sides]

    @cached_property
    def _prompts(self) -> pl.DataFrame:
        """Split and number of the prompts that both runs were evaluated on."""
        asked = [self._outcomes(side).select("split", "prompt_number").unique() for side in self.sides]
        return asked[0].join(asked[1], on=["split", "prompt_number"], how="semi")

    def _outcomes(self, side: Side) -> pl.DataFrame:
        if side.per_prompt.is_empty():
            return pl.DataFrame(schema={"split": pl.String, "prompt_number": pl.Int64})
        return side.per_prompt.filter(pl.col("task") == self.task)

    def _arms(self, side: Side) -> list[MatchedArm]:
        outcomes = self._outcomes(side).join(
            self._prompts, on=["split", "prompt_number"], how="semi", maintain_order="left"
        )
        if outcomes.is_empty():
            return []
        by_run = outcomes.partition_by("family", "arm", "seed", as_dict=True)
        result: dict[tuple[str, str], MatchedArm] = {}
        for arm in side.data.task(self.task).arms:
            rows = by_run.get((arm.family, arm.name, arm.seed))
            if arm.status == FINISHED and arm.seed is not None and rows is not None:
                entry = result.setdefault((arm.family, arm.name), MatchedArm(arm.family, arm.name, arm.baseline))
                entry.records[arm.seed], entry.rows[arm.seed] = arm, rows
        return list(result.values())


def _scale(settings: AnalysisSpec) -> tuple[str, str, str]:
    return settings.split, settings.opponent, settings.judge


def _place(arm: MatchedArm) -> tuple[str, bool]:
    return arm.family, arm.baseline
