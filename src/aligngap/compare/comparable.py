"""What makes two runs comparable: one scale to measure on.

A win rate means something only beside the judge who gave it, the prompts it was given on and the responses it was
given against; a KL only beside the policy it starts from. Where one of these differs, numbers of the two runs are on
different scales, and no difference is formed. Losses, optimisers, proxies, sweeps and seeds may differ: they are what
people compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from aligngap.errors import UserError
from aligngap.experiments.plan import Plan
from aligngap.experiments.spec import AnalysisSpec
from aligngap.pipeline.graph import Stage
from aligngap.results import OPPONENTS, StudyResults, read, read_per_prompt

#: What a run is called by; not what it does.
_NAMES = ("name", "title", "description", "smoke")
#: Parts of the yardstick that everything is measured with, each before those made from it.
_COMMON = {"pairs": "the pairs and prompts", "golden": "the golden judge", "sft": "the SFT policy"}


@dataclass(frozen=True)
class Side:
    """One of the two runs. per_prompt: its outcomes; plan: None where this version cannot read its settings, or
    where they name an experiment of a plugin, which is not imported to look at results.
    """

    folder: Path
    data: StudyResults
    per_prompt: pl.DataFrame
    plan: Plan | None

    @classmethod
    def read(cls, folder: Path) -> Side:
        """Raises UserError when the folder holds no results, or none that can be recomputed."""
        data, frame = read(folder), read_per_prompt(folder)
        try:
            plan = Plan.recorded(data.study)
        except UserError:
            plan = None
        return cls(folder, data, frame, plan)

    @property
    def title(self) -> str:
        """What the study is called."""
        return str(self.data.study.get("title") or self.data.study.get("name") or self.folder.name)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting, with today's defaults for what an older version did not write down."""
        return dict(self.plan.specification) if self.plan else self.data.study

    @property
    def analysis(self) -> AnalysisSpec:
        """By which split, opponent and judge the run's estimates are taken."""
        if self.plan:
            return self.plan.analysis
        try:
            return AnalysisSpec.model_validate(self.data.study.get("analysis") or {})
        except ValidationError:
            return AnalysisSpec()

    def yardstick(self, task: str) -> tuple[dict[str, str], str]:
        """Identities of what the task's numbers are measured with, and a caveat where they are not on record and were
        derived from the settings. Raises UserError when they cannot be.
        """
        recorded = self.data.task(task).yardstick
        if recorded:
            return recorded, ""
        if self.plan is None:
            raise UserError(
                "these results do not say what they were measured with, and this version cannot read their settings",
                where=str(self.folder),
                hint="Run the study again with this version.",
            )
        try:
            result = self.plan.tasks[task].yardstick
        except UserError as error:
            raise UserError(
                "these results do not say what they were measured with, and it cannot be told from their settings: "
                + error.what,
                where=str(self.folder),
                hint="Run the study again with this version.",
            ) from error
        return result, f"{self.title}: judges and opponents are told from the settings alone, as none are on record."


@dataclass(frozen=True)
class Ground:
    """What the two runs share on a task. opponents: against whom win rates are on one scale; none where nothing is,
    and `refused` says why. notes: what a reader must know of the rest.
    """

    task: str
    opponents: tuple[str, ...] = ()
    refused: str = ""
    notes: tuple[str, ...] = ()


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings by their dotted keys; lists whole."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        path = f"{above}{key}"
        result |= flat(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return result


def settings_that_differ(first: Side, second: Side) -> list[tuple[str, Any, Any]]:
    """(dotted key, first's value, second's value) of each; None where a run does not have the key."""
    a, b = (flat(side.settings) for side in (first, second))
    keys = [key for key in dict.fromkeys([*a, *b]) if key not in _NAMES and a.get(key) != b.get(key)]
    return [(key, a.get(key), b.get(key)) for key in keys]


def ground(first: Side, second: Side, task: str) -> Ground:
    """Whether the two runs measure a task on one scale."""
    try:
        (a, doubt_a), (b, doubt_b) = (side.yardstick(task) for side in (first, second))
    except UserError as error:
        return Ground(task, refused=f"{error.where}: {error.what}.")
    notes = [doubt for doubt in (doubt_a, doubt_b) if doubt]
    unlike = [part for part in _COMMON if a.get(part) != b.get(part)]
    reasons, named = [], set[str]()
    for part in unlike:
        keys = _culprits(first, second, task, part)
        # What was made from something that differs differs with it, and needs no second mention.
        if not keys or not set(keys) <= named:
            reasons.append(f"{_COMMON[part]} ({_because(first, second, keys)})")
            named |= set(keys)
    seeds = [flat(side.settings).get("evaluation.seed") for side in (first, second)]
    if seeds[0] != seeds[1]:
        reasons.append(f"the opponents' responses (evaluation.seed: {seeds[0]} and {seeds[1]})")
    if reasons:
        return Ground(task, refused=f"measured on different scales: {'; '.join(reasons)} differ between the runs.")
    if a.get("golden_policy") == b.get("golden_policy") or _same_weights(first, second, task):
        return Ground(task, OPPONENTS, notes=tuple(notes))
    why = _because(first, second, _culprits(first, second, task, "golden_policy"))
    notes.append(
        f"The golden policies differ ({why}), so win rates against their responses are on different scales and are not "
        "compared. All win rates here are against the responses of the SFT policy, which the runs share."
    )
    return Ground(task, ("sft",), notes=tuple(notes))


def _same_weights(first: Side, second: Side, task: str) -> bool:
    """Whether the golden policies are the same bit for bit, however they came about (with more checkpoints, say)."""
    result = [
        [arm.weights_sha256 for arm in side.data.task(task).arms if arm.family == "golden_policy"]
        for side in (first, second)
    ]
    return result[0] == result[1] and all(result[0]) and bool(result[0])


def _because(first: Side, second: Side, keys: list[str]) -> str:
    a, b = (flat(side.settings) for side in (first, second))
    if keys:
        return "; ".join(f"{key}: {a.get(key)} and {b.get(key)}" for key in keys)
    revisions = [side.data.revision.commit_or("unknown") for side in (first, second)]
    return f"made by different versions of the code, revisions {revisions[0]} and {revisions[1]}"


def _culprits(first: Side, second: Side, task: str, part: str) -> list[str]:
    """The settings that make a part of the yardstick differ: those which, alone, would give the first run another one.

    Found by trying, with the code that the runs themselves use, so that no list of settings can fall behind it.
    """
    differing = [key for key, _, _ in settings_that_differ(first, second)]
    if first.plan is None or second.plan is None:
        return differing
    try:
        given, wanted = (_identity(plan, task, part) for plan in (first.plan, second.plan))
    except UserError:
        return differing
    if given == wanted:
        return []  # not the settings, then
    other = flat(second.settings)
    result = []
    for key in differing:
        changed = deepcopy(first.settings)
        place, (*parents, last) = changed, key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                break
        else:
            place[last] = other.get(key)
            try:
                plan = Plan.recorded(changed)
                if task in plan.tasks and _identity(plan, task, part) != given:
                    result.append(key)
            except UserError:
                continue  # a value that makes no sense without another setting
    return result or differing


def _identity(plan: Plan, task: str, part: str) -> str:
    stage: Stage = getattr(plan.tasks[task].bench, part)
    return stage.identity
