"""A study, compiled: what a study holds is asked of its plan, and worked out nowhere else.

An experiment is asked once what it needs on a task. Nothing is worked out before somebody wants it, then once: who
compares two runs needs no arms, and may not have the models that they start from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

from aligngap.errors import UserError
from aligngap.experiments.bench import SHARED_SEED, ArmEntry, Bench, Measure
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.experiments.spec import StudySpec
from aligngap.experiments.study import resolved_study
from aligngap.gates import Gate, Record, gates_of, own_gates
from aligngap.gates.plan import PROBE_BETAS
from aligngap.models.check import check_alike, check_vocabulary
from aligngap.models.folder import load_config
from aligngap.models.sharding import check_divisible
from aligngap.models.tokenizer import load_tokenizer
from aligngap.pipeline.executors.schedule import estimate
from aligngap.pipeline.graph import Stage, all_stages
from aligngap.pipeline.stages import Base, Evaluate, Given, Measured, Preference, Sft
from aligngap.pipeline.stages.pairs import Reading, check_beforehand, check_held_out
from aligngap.results import GateResult
from aligngap.tasks.preview import preview
from aligngap.tasks.spec import DatasetTask

T = TypeVar("T")

_MANY_PASSES = 20
"""Times that training may go over its pairs before a warning: the paper's longest offline run makes some ten."""


@dataclass(frozen=True)
class PlannedArm:
    """An arm, its evaluation, and the further measures of it that the study names."""

    entry: ArmEntry
    evaluation: Evaluate
    measured: tuple[Measured, ...]


@dataclass(frozen=True)
class Needs:
    """What an experiment needs on a task."""

    arms: tuple[ArmEntry, ...]
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class TaskPlan:
    """What a study holds on one task. Properties raise UserError where a plugin's experiment fails to say what it
    needs, and where a model that a stage starts from cannot be had.
    """

    bench: Bench
    experiments: tuple[str, ...]

    @property
    def task(self) -> str:
        """The task's name."""
        return self.bench.task

    @cached_property
    def not_asked(self) -> dict[str, str]:
        """The experiments that cannot be asked on this task, and why."""
        reasons = {name: self._ask(name, "obstacle", EXPERIMENTS[name].obstacle) for name in self.experiments}
        return {name: reason for name, reason in reasons.items() if reason}

    @cached_property
    def asked(self) -> dict[str, Needs]:
        """The other experiments, with what each needs."""
        return {
            name: Needs(
                tuple(self._ask(name, "arms", EXPERIMENTS[name].arms)),
                tuple(self._ask(name, "measures", EXPERIMENTS[name].measures)),
            )
            for name in self.experiments
            if name not in self.not_asked
        }

    @cached_property
    def arms(self) -> list[PlannedArm]:
        """Every arm that the experiments need, each once, the golden policy last."""
        entries = [entry for needs in self.asked.values() for entry in needs.arms]
        benches = [self.bench.of(seed) for seed in self.bench.seeds]
        entries += [ArmEntry("golden policy", "golden_policy", bench.golden_policy, baseline=True) for bench in benches]
        once = {(entry.family, entry.stage.identity): entry for entry in entries}
        return [
            PlannedArm(entry, self.bench.evaluation(entry), tuple(self.bench.measured(entry)))
            for entry in once.values()
        ]

    @cached_property
    def measures(self) -> list[Measure]:
        """Every measure that the experiments need, each once."""
        entries = [entry for needs in self.asked.values() for entry in needs.measures]
        return list({(entry.name, entry.stage.identity): entry for entry in entries}.values())

    @cached_property
    def targets(self) -> list[Stage]:
        """What is to be made: the judges' agreement, every arm's evaluation, and the measures."""
        return self.wanted_by(*self.asked)

    def wanted_by(self, *experiments: str) -> list[Stage]:
        """The targets of these experiments alone. Agreement and the golden policy belong to every experiment."""
        asked = [self.asked[name] for name in experiments if name in self.asked]
        needed = {(entry.family, entry.stage.identity) for needs in asked for entry in needs.arms}
        measures = {entry.stage.identity for needs in asked for entry in needs.measures}
        wanted: list[Stage] = [self.bench.agreement(seed) for seed in self.bench.seeds]
        for arm in self.arms:
            family = arm.entry.family
            if family == "golden_policy" or (family, arm.entry.stage.identity) in needed:
                wanted += [arm.evaluation, *arm.measured]
        return [*wanted, *(entry.stage for entry in self.measures if entry.stage.identity in measures)]

    @property
    def reads(self) -> list[Stage]:
        """The stages whose artefacts results are gathered from, beside those that these stand on."""
        benches = {seed: self.bench.of(seed) for seed in self.bench.seeds}
        stages = [stage for seed, bench in benches.items() for stage in (bench.sft, bench.golden, bench.proxy(seed))]
        return [*{stage.identity: stage for stage in stages}.values(), *self.targets]

    def gates(self, beta: float = PROBE_BETAS[0]) -> list[Gate]:
        """The gates that the task's data, bases, SFT policy and golden must pass. beta: of golden's probes."""
        bench = self.bench.of(SHARED_SEED)
        if bench.has_truth:
            return gates_of(bench.pairs, bench.sft, bench.golden, bench.study.baseline.optim, beta)
        return own_gates(bench.pairs, bench.sft, bench.golden, bench.study.gates.style_words)

    def gates_on_record(self, record: Record) -> tuple[list[GateResult], list[str]]:
        """What is on record of the gates under these very settings, and which of them are not."""
        results, missing = [], []
        others = {gate.label: gate for gate in self.gates(PROBE_BETAS[-1])}
        for gate in self.gates():
            # Where the probes of the first beta do not go far enough, golden is examined with the second's.
            found = record.of(others[gate.label]) or record.of(gate)
            if found is None:
                missing.append(gate.label)
            else:
                results.append(found)
        return results, missing

    @property
    def yardstick(self) -> dict[str, str]:
        """Identities of what win rates and KL are measured with, of one seed for all. Two runs that share them share a
        scale for every seed that both have.
        """
        bench = self.bench.of(SHARED_SEED)
        parts = {name: getattr(bench, name) for name in ("pairs", "golden", "sft", "golden_policy")}
        return {name: stage.identity for name, stage in parts.items()}

    def _ask(self, name: str, what: str, ask: Callable[[Bench], T]) -> T:
        """What an experiment says of the bench. Raises UserError when it is a plugin's and fails to."""
        try:
            return ask(self.bench)
        except Exception as error:
            if isinstance(error, UserError) or EXPERIMENTS.code(name) is None:
                raise
            raise UserError(
                f"the experiment '{name}' cannot say its {what} on {self.task}: {type(error).__name__}: {error}",
                where=EXPERIMENTS.place(name, error),
                hint="Fix the plugin; `aligngap.testing.check_experiment` tries it.",
            ) from error


class Plan:
    """A study, compiled, with the plugins that are there now. seeds: of its arms; experiments: as the study asks them;
    specification: every setting as plain JSON values, as a run records them; tasks: by name.
    """

    def __init__(self, study: StudySpec) -> None:
        self.name: Final = study.name
        self.title: Final = study.title
        self.smoke: Final = study.smoke
        self.seeds: Final = study.seeds
        self.device: Final = study.device
        self.parallel: Final = study.parallel
        self.analysis: Final = study.analysis
        self.experiments: Final = study.experiments
        self.specification: Final[dict[str, Any]] = study.model_dump(mode="json")
        self.tasks: Final = {task: TaskPlan(Bench(study, task), study.experiments) for task in study.tasks}
        self._policy: Final = study.models.policy

    @classmethod
    def recorded(cls, specification: Mapping[str, Any], folder: Path | None = None) -> Plan:
        """The plan of a study as a run has recorded it (see `resolved_study`). No plugin is imported."""
        return cls(resolved_study(specification, folder))

    @cached_property
    def targets(self) -> list[Stage]:
        """What is to be made, task after task."""
        return [stage for task in self.tasks.values() for stage in task.targets]

    @cached_property
    def stages(self) -> list[Stage]:
        """The targets and all that they stand on, each once, inputs first."""
        return all_stages(self.targets)

    @cached_property
    def users(self) -> dict[str, list[str]]:
        """For each stage's identity, the experiments that need it, in the study's order."""
        result: dict[str, list[str]] = {}
        for name in self.experiments:
            for stage in all_stages(stage for task in self.tasks.values() for stage in task.wanted_by(name)):
                result.setdefault(stage.identity, []).append(name)
        return result

    def used_by(self, experiment: str, *, alone: bool = False) -> list[Stage]:
        """The stages that an experiment needs. alone: those that no other needs."""
        users = ((stage, self.users[stage.identity]) for stage in self.stages)
        return [stage for stage, names in users if experiment in names and not (alone and len(names) > 1)]

    def work(self, done: Collection[str] = ()) -> float:
        """Estimated core seconds of the stages whose identities are not in `done`."""
        return sum(stage.work for stage in self.stages if stage.identity not in done)

    def duration(self, jobs: int, done: Collection[str] = ()) -> float:
        """Estimated seconds from start to end with this many stages side by side."""
        return estimate(self.stages, done, jobs)

    def check_data(self, done: Collection[str] = ()) -> list[str]:
        """Reads the data sets whose pairs are not in `done`, as the policy's tokenizer does, and says loudly what of
        the plan does not fit them: what the limits cut, which pairs are dropped and why, and each stage that goes over
        its pairs very often. Raises UserError for data that cannot be read or split as the study says, or of which less
        than a batch is left.
        """
        warnings = []
        for task in self.tasks.values():
            pairs = task.bench.pairs
            if not isinstance(pairs.task, DatasetTask) or pairs.identity in done:
                continue
            result = preview(pairs.task.dataset, load_tokenizer(pairs.base.checkpoint))
            check_held_out(result.held_out_prompts, pairs.task.dataset.source, result.reasons)
            warnings += [f"{task.task}: {line}" for line in result.told]
            for name, optim in task.bench.optimisers.items():
                if optim.batch > result.train:
                    raise UserError(
                        f"{result.train} pairs to train on are fewer than a batch of {optim.batch}",
                        where=f"{name} on {task.task}",
                        hint=" ".join(
                            [
                                "Lower its optim.batch, hold out less, or give more data.",
                                *(f"Dropped: {reason}." for reason in result.reasons),
                            ]
                        ),
                    )
                passes = optim.steps * optim.batch / result.train
                if passes > _MANY_PASSES:
                    warnings.append(
                        f"{name} on {task.task}: {optim.steps} steps of {optim.batch} go over the {result.train} pairs "
                        f"{passes:,.0f} times"
                    )
        return warnings

    @property
    def slow_models(self) -> list[str]:
        """A line for each model that is slow by its kind, which the estimates allow for."""
        bases = {base.digest: base for stage in self.stages if isinstance(base := getattr(stage, "base", None), Base)}
        return [
            f"'{base.name}' is slow, about {slow.times:.0f} times as slow as others of its size: {slow.why}"
            for base in bases.values()
            if (slow := base.slow_path)
        ]

    def check_models(self) -> None:
        """Raises UserError for a model that cannot be had, that reads other tokens than the policy, or that cannot be
        divided where the study divides models; for pairs that one of them cannot read; and for a given judge that is
        known to be unusable.
        """
        bases = [stage.base for stage in self.stages if isinstance(stage, Sft | Preference)]
        checkpoints = list({base.digest: base.checkpoint for base in bases}.values())
        for checkpoint in checkpoints:
            check_vocabulary(checkpoint)
            if self.parallel.sharding == "full":
                check_divisible(load_config(checkpoint))
        check_alike(self._policy, checkpoints)
        for task in self.tasks.values():
            parts = all_stages(task.targets)
            readings = {Reading(stage.base.checkpoint) for stage in parts if isinstance(stage, Sft)}
            readings |= {stage.reading for stage in parts if isinstance(stage, Preference)}
            check_beforehand(task.bench.pairs, readings)
        for stage in self.stages:
            if isinstance(stage, Given):
                stage.given.spec.check(stage.search)
