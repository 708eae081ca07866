"""The shared stages of one task of a study, and the arms that experiments put on them.

Whatever two experiments both need has one identity here, so it is made once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypedDict, Unpack

from pydantic import ValidationError

from aligngap.errors import UserError, brief
from aligngap.experiments.spec import PreferenceSpec, StudySpec, fifth, log_steps
from aligngap.judges.registry import GivenJudge
from aligngap.models.spec import Checkpoint
from aligngap.pipeline.graph import Stage
from aligngap.pipeline.stages import (
    Agreement,
    Arm,
    Base,
    Evaluate,
    Generate,
    Given,
    JudgeStage,
    Measured,
    Pairs,
    PairsStage,
    Preference,
    Reference,
    Relabel,
    Responses,
    Sft,
    Start,
)
from aligngap.sources.base import SourceSpec
from aligngap.sources.recorded import RecordedSpec
from aligngap.sources.sampled import SampledSpec
from aligngap.tasks.spec import DatasetTask, TaskSpec
from aligngap.train.loop import LossSpec
from aligngap.train.step import OptimSpec

SHARED_SEED = 0
"""Seed of what all seeds of a study share (`StudySpec.shared`), and of what its gates examine."""


@dataclass(frozen=True)
class ArmEntry:
    """An arm with the name and family it has in figures. `baseline` marks a family's one arm at the baseline
    configuration.
    """

    name: str
    family: str
    stage: Arm
    baseline: bool = False


@dataclass(frozen=True)
class Measure:
    """A stage beyond the arms' own evaluation, which writes `table.parquet`; experiments find the table by name and
    seed.
    """

    name: str
    seed: int
    stage: Stage


class Changes(TypedDict, total=False):
    """What of an arm differs from the baseline configuration. clip_factor: of the largest gradient norm."""

    loss: LossSpec
    lr_factor: float
    step_factor: float
    clip_factor: float


@dataclass(frozen=True)
class Bench:
    """Stages of one task of a study, for one of its seeds. A seed varies pairs, SFT, golden, proxy, data order and
    sampling, but for what the study says that its seeds share. size: base of the policies, where it is not the study's
    own; seed: by default the study's first. What takes a seed gives the stages of that one, whichever the bench is for.
    """

    study: StudySpec
    task: str
    size: Checkpoint | None = None
    seed: int | None = None

    def of(self, seed: int) -> Bench:
        """The same bench for a seed."""
        return self if self.seed == seed else replace(self, seed=seed)

    def _seed_of(self, part: str) -> int:
        """The seed of a part of what arms stand on."""
        own = self.study.seeds[0] if self.seed is None else self.seed
        return SHARED_SEED if part in self.study.shared else own

    def at_size(self, size: Checkpoint) -> Bench:
        """The same bench for policies of another size; data, golden, proxies and opponents stay."""
        return replace(self, size=None if size == self.study.models.policy else size)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The study's seeds, of its arms and proxies."""
        return self.study.seeds

    @property
    def has_truth(self) -> bool:
        """Whether the task's true utility is known, and its raters can be asked again: in built-in worlds."""
        return self.task not in self.study.datasets

    @property
    def optimisers(self) -> dict[str, OptimSpec]:
        """How long each stage that learns from this task's pairs alone trains, by its key in the study."""
        study = self.study
        given = {"golden": study.golden.optim, "proxy": study.proxy.optim, "baseline": study.baseline.optim}
        if (study.sft_tasks or study.tasks) == (self.task,):
            given["sft"] = study.sft
        return {name: optim for name, optim in given.items() if optim is not None}

    @cached_property
    def policy_base(self) -> Base:
        """What the SFT policy starts from."""
        return Base.of(self.size or self.study.models.policy)

    def _pairs(self, task: str, reader: str = "pairs") -> Pairs:
        """A task's pairs. reader: a part that learns from them; where seeds share it, from the same ones."""
        data, own = self.study.data, self.study.datasets.get(task)
        spec = (
            TaskSpec(
                world=task,
                train_pairs=data.train_pairs,
                held_out_pairs=data.held_out_pairs,
                dials=self.study.dials_of(task),
                seed=SHARED_SEED if reader in self.study.shared else self._seed_of("pairs"),
            )
            if own is None
            else DatasetTask.of(task, own)
        )
        return Pairs(task=spec, base=Base.of(self.study.models.policy.as_loaded))

    @cached_property
    def pairs(self) -> Pairs:
        """The raters' pairs of this task, of writers with the advantage that the study gives them."""
        pairs, advantage = self._pairs(self.task), self.study.advantage_of(self.task)
        if not advantage or not isinstance(pairs.task, TaskSpec):
            return pairs
        return Pairs(task=pairs.task.model_copy(update={"advantage": advantage}), base=pairs.base)

    @cached_property
    def sft(self) -> Sft:
        """The starting policy, pooled over tasks (section 4)."""
        pooled = tuple(self._pairs(task, "sft") for task in self.study.sft_tasks or self.study.tasks)
        return Sft(pairs=pooled, base=self.policy_base, optim=self.study.sft, seed=self._seed_of("sft"))

    def _judge(
        self,
        role: str,
        spec: PreferenceSpec,
        base: Checkpoint,
        pairs: PairsStage,
        seed: int,
        more: tuple[PairsStage, ...] = (),
    ) -> JudgeStage:
        if spec.judge is not None:
            return Given(
                role=role,
                seed=SHARED_SEED,  # nothing of it varies
                given=GivenJudge.of(spec.judge, self.study.folder),
                base=self.pairs.base,
                world=self.task if self.has_truth else None,
                dials=self.study.dials_of(self.task),
                search=self.study.folder,
            )
        assert spec.optim is not None  # the study's validation sees to it
        return Preference(
            pairs=pairs,
            base=Base.of(base),
            role=role,
            model=spec.model,
            train_pairs=spec.train_pairs,
            optim=spec.optim,
            seed=seed,
            more=more,
        )

    @cached_property
    def golden(self) -> JudgeStage:
        """The golden judge: a preference model on the raters' labels, unless one is given."""
        return self.golden_with()

    def golden_with(self, *more: PairsStage) -> JudgeStage:
        """Golden trained for as many steps as without, on further raters' pairs beside its own."""
        return self._judge(
            "golden", self.study.golden, self.study.models.golden, self._golden_pairs, self._seed_of("golden"), more
        )

    @cached_property
    def _golden_pairs(self) -> Pairs:
        """The raters' pairs that golden learns from: those that SFT does, or more on prompts of their own."""
        pairs, count = self._pairs(self.task, "golden"), self.study.data.golden_pairs
        if count is None or not isinstance(pairs.task, TaskSpec):
            return pairs
        own = pairs.task.model_copy(update={"part": "golden", "train_pairs": count, "seed": self._seed_of("golden")})
        return Pairs(task=own, base=pairs.base)

    @cached_property
    def golden_pairs(self) -> Relabel:
        """`D_golden`."""
        return Relabel(pairs=self.pairs, judge=self.golden)

    def proxy(self, seed: int, *, model: str | None = None, base: Checkpoint | None = None) -> JudgeStage:
        """The proxy of a seed: a preference model on golden's labels, of another form or base where asked; or given."""
        spec = self.study.proxy if model is None else self.study.proxy.model_copy(update={"model": model})
        return self._judge("proxy", spec, base or self.study.models.proxy, self.of(seed).golden_pairs, seed)

    def arm(
        self,
        *,
        seed: int,
        source: SourceSpec,
        judge: JudgeStage | None = None,
        recorded: PairsStage | None = None,
        loss: LossSpec | None = None,
        lr_factor: float = 1.0,
        step_factor: float = 1.0,
        clip_factor: float = 1.0,
    ) -> Arm:
        """An arm at the baseline configuration, but for what is given (see `Changes`)."""
        optim = self.study.baseline.optim
        changed = {
            "lr": optim.lr * lr_factor,
            "steps": round(optim.steps * step_factor),
            "max_grad_norm": optim.max_grad_norm * clip_factor,
        }
        try:
            optim = OptimSpec.model_validate(optim.model_dump() | changed)
        except ValidationError as error:
            problems = "; ".join(f"{part['loc'][0]} {brief(part['input'])}: {part['msg']}" for part in error.errors())
            raise UserError(
                f"an arm's settings come out as none that can be trained with: {problems}",
                where="baseline.optim and sweep",
                hint="Change the baseline's settings, or the factors that they are multiplied by.",
            ) from None
        here, reference = self.of(seed), None
        # Of our own source alone: another's, even one derived from it, may change the responses.
        if recorded is not None and type(source) is RecordedSpec and source.ends == "kept":
            reference = Reference(
                sft=here.sft,
                task=here.pairs,
                # Another judge's labels do not change what the reference gives.
                pairs=recorded.pairs if isinstance(recorded, Relabel) else recorded,
                batch=optim.batch,
                visits=optim.steps * optim.batch,
            )
        return Arm(
            sft=here.sft,
            task=here.pairs,
            source=source,
            judge=judge,
            recorded=recorded,
            reference=reference,
            loss=loss or self.study.baseline.loss,
            optim=optim,
            seed=seed,
            keep=log_steps(optim.steps, self.study.evaluation.checkpoints),
        )

    @cached_property
    def golden_policy(self) -> Arm:
        """The fixed opponent: online against the golden model itself, at the baseline configuration and the study's
        own size (section 4).
        """
        own = self.at_size(self.study.models.policy)
        factor, shared = self.study.golden_policy_step_factor, {"pairs", "sft", "golden"} <= {*self.study.shared}
        seed = SHARED_SEED if shared else self._seed_of("golden policy")
        return own.arm(seed=seed, source=SampledSpec(), judge=self.golden, step_factor=factor)

    def loss(self, **changes: object) -> LossSpec:
        """The baseline's loss with some fields changed."""
        return LossSpec.model_validate(self.study.baseline.loss.model_dump() | changes)

    def online(
        self,
        seed: int,
        family: str = "online",
        name: str | None = None,
        *,
        source: SourceSpec | None = None,
        judge: JudgeStage | None = None,
        recorded: PairsStage | None = None,
        **changes: Unpack[Changes],
    ) -> ArmEntry:
        """Online: sampled from the policy itself, labelled by the seed's proxy; or by another `judge`, or a `source`
        that samples otherwise.
        """
        proxy = self.proxy(seed)
        source = source or SampledSpec()
        stage = self.arm(seed=seed, source=source, judge=judge or proxy, recorded=recorded, **changes)
        baseline = (stage.optim, stage.loss, stage.judge) == (*self._configuration, proxy)
        return ArmEntry(name or family, family, stage, baseline=baseline)

    @property
    def _configuration(self) -> tuple[OptimSpec, LossSpec]:
        return self.study.baseline.optim, self.study.baseline.loss

    def offline(
        self, seed: int, lr_factor: float = 1.0, beta: float | None = None, step_factor: float = 1.0
    ) -> ArmEntry:
        """Offline: on `D_golden`, in the prompt order of the seed."""
        loss = self.study.baseline.loss if beta is None else self.loss(beta=beta)
        changes = Changes(loss=loss, lr_factor=lr_factor, step_factor=step_factor)
        stage = self.recorded(seed, "offline", self.of(seed).golden_pairs, **changes).stage
        name = f"offline lr={stage.optim.lr:g} beta={loss.beta:g}"
        name += f" steps={stage.optim.steps}" if step_factor != 1 else ""
        return ArmEntry(name, "offline", stage, baseline=(stage.optim, loss) == self._configuration)

    def recorded(
        self,
        seed: int,
        family: str,
        pairs: PairsStage,
        source: RecordedSpec | None = None,
        *,
        name: str | None = None,
        **changes: Unpack[Changes],
    ) -> ArmEntry:
        """Offline on any recorded pairs; in the prompt order of the seed unless `source` says otherwise."""
        source = source or RecordedSpec(order="schedule")
        stage = self.arm(seed=seed, source=source, recorded=pairs, **changes)
        return ArmEntry(name or family, family, stage, baseline=True)

    def offline_proxy(self, seed: int) -> ArmEntry:
        """Offline on the same pairs with the proxy's labels: what online knows, without on-policy sampling."""
        labelled = Relabel(pairs=self.of(seed).pairs, judge=self.proxy(seed))
        return self.recorded(seed, "offline_proxy", labelled, name="offline, proxy's labels")

    def on_stream(
        self,
        seed: int,
        family: str,
        source: RecordedSpec,
        *,
        of: ArmEntry | None = None,
        name: str | None = None,
        **changes: Unpack[Changes],
    ) -> ArmEntry:
        """Offline on the stream that an online arm recorded: the baseline's of this seed, unless `of` is another."""
        return self.recorded(seed, family, (of or self.online(seed)).stage, source, name=name, **changes)

    def sampled_pairs(self, seed: int, first: str | None, second: str | None) -> Generate:
        """Golden-labelled pairs on the training prompts, a response each of two policies (sections 5.2 and 6).

        Either side is `None`, the SFT policy; `early`, the online arm of this seed a fifth of the way; or `final`, at
        its end.
        """
        here, online = self.of(seed), self.online(seed).stage
        steps = online.optim.steps
        places = {None: (None, None), "early": (online, fifth(steps)), "final": (online, steps)}
        # One order for either way round: they are the same pairs.
        (arm, step), (other, other_step) = (places[side] for side in sorted((first, second), key=list(places).index))
        return Generate(
            sft=here.sft,
            task=here.pairs,
            first=arm,
            first_step=step,
            second=other,
            second_step=other_step,
            judge=here.golden,
            seed=seed,
        )

    @cached_property
    def opponents(self) -> tuple[Responses, ...]:
        """The fixed responses that every arm is compared with, whatever its size."""
        own = self.at_size(self.study.models.policy)
        count, seed = self.study.evaluation.prompts, self.study.evaluation.seed
        return tuple(
            Responses(sft=own.sft, task=self.pairs, arm=arm, prompts=count, seed=seed)
            for arm in (None, self.golden_policy)
        )

    def evaluation(self, entry: ArmEntry) -> Evaluate:
        """The measures of an arm along its checkpoints."""
        spec, arm = self.study.evaluation, entry.stage
        # A golden policy that all seeds share has no proxy of its own; the first seed's looks at it.
        here = self.of(
            arm.seed if entry.family != "golden_policy" or arm.seed in self.study.seeds else self.study.seeds[0]
        )
        own = arm.judge if arm.judge is not None and arm.judge.role == "proxy" else here.proxy(here._seed_of("proxy"))
        start = Start(
            sft=arm.sft,
            task=here.pairs,
            golden=here.golden,
            proxy=own,
            golden_pairs=here.golden_pairs,
            opponents=here.opponents,
            prompts=spec.prompts,
            pairs=spec.pairs,
            seed=arm.seed,
        )
        return Evaluate(arm=arm, start=start)

    def measured(self, entry: ArmEntry) -> list[Measured]:
        """The further measures of an arm that the study asks for."""
        return [Measured(measure=name, evaluation=self.evaluation(entry)) for name in self.study.evaluation.measures]

    def agreement(self, seed: int) -> Agreement:
        """How the judges of a seed agree."""
        return Agreement(golden_pairs=self.of(seed).golden_pairs, proxy=self.proxy(seed))
