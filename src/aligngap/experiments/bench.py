"""The shared stages of one task of a study, and the arms that experiments put on them.

Whatever two experiments both need has one identity here, so it is made once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from aligngap.experiments.spec import PreferenceSpec, StudySpec, log_steps
from aligngap.pipeline.graph import Stage
from aligngap.pipeline.stages import Agreement, Arm, Base, Evaluate, Pairs, Preference, Relabel, Responses, Sft
from aligngap.sources.recorded import RecordedSpec
from aligngap.sources.sampled import SampledSpec
from aligngap.tasks.spec import TaskSpec
from aligngap.train.loop import LossSpec
from aligngap.train.step import OptimSpec

SHARED_SEED = 0
"""Seed of what all seeds of a study share: SFT, golden, golden policy. A study's seeds vary the proxy, data order and
sampling.
"""


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
class Bench:
    """Stages of one task of a study."""

    study: StudySpec
    task: str

    @cached_property
    def policy_base(self) -> Base:
        """What the SFT policy starts from."""
        return Base.named(self.study.models.policy)

    def _pairs(self, task: str) -> Pairs:
        data = self.study.data
        spec = TaskSpec(world=task, train_pairs=data.train_pairs, held_out_pairs=data.held_out_pairs)
        return Pairs(task=spec, base=self.policy_base)

    @cached_property
    def pairs(self) -> Pairs:
        """The raters' pairs of this task."""
        return self._pairs(self.task)

    @cached_property
    def sft(self) -> Sft:
        """The starting policy, pooled over all tasks of the study (section 4)."""
        pooled = tuple(self._pairs(task) for task in self.study.tasks)
        return Sft(pairs=pooled, base=self.policy_base, optim=self.study.sft, seed=SHARED_SEED)

    def _preference(self, role: str, spec: PreferenceSpec, base: str, pairs: Stage, seed: int) -> Preference:
        return Preference(
            pairs=pairs,
            base=Base.named(base),
            role=role,
            model=spec.model,
            train_pairs=spec.train_pairs,
            optim=spec.optim,
            seed=seed,
        )

    @cached_property
    def golden(self) -> Preference:
        """The golden preference model, on the raters' labels."""
        return self._preference("golden", self.study.golden, self.study.models.golden, self.pairs, SHARED_SEED)

    @cached_property
    def golden_pairs(self) -> Relabel:
        """`D_golden`."""
        return Relabel(pairs=self.pairs, judge=self.golden)

    def proxy(self, seed: int) -> Preference:
        """The proxy preference model of a seed, on golden's labels."""
        return self._preference("proxy", self.study.proxy, self.study.models.proxy, self.golden_pairs, seed)

    def _arm(self, *, seed: int, source: SampledSpec | RecordedSpec, **changes: object) -> Arm:
        baseline = self.study.baseline
        given: dict[str, object] = {"loss": baseline.loss, "optim": baseline.optim, **changes}
        optim = given["optim"]
        assert isinstance(optim, OptimSpec)
        keep = log_steps(optim.steps, self.study.evaluation.checkpoints)
        return Arm.model_validate(
            {"sft": self.sft, "task": self.pairs, "source": source, "seed": seed, "keep": keep, **given}
        )

    @cached_property
    def golden_policy(self) -> Arm:
        """The fixed opponent: online against the golden model itself, at the baseline configuration (section 4)."""
        optim = self.study.baseline.optim
        longer = optim.model_copy(update={"steps": round(optim.steps * self.study.golden_policy_step_factor)})
        return self._arm(seed=SHARED_SEED, source=SampledSpec(), judge=self.golden, optim=longer)

    def online(self, seed: int) -> ArmEntry:
        """Online: sampled from the policy itself, labelled by the proxy."""
        arm = self._arm(seed=seed, source=SampledSpec(), judge=self.proxy(seed))
        return ArmEntry("online", "online", arm, baseline=True)

    def offline(
        self, seed: int, lr_factor: float = 1.0, beta: float | None = None, step_factor: float = 1.0
    ) -> ArmEntry:
        """Offline: on `D_golden`, in the prompt order of the seed."""
        loss, optim = self.study.baseline.loss, self.study.baseline.optim
        loss = LossSpec(name=loss.name, beta=beta if beta is not None else loss.beta, reduction=loss.reduction)
        changed = optim.model_copy(update={"lr": optim.lr * lr_factor, "steps": round(optim.steps * step_factor)})
        arm = self._arm(
            seed=seed, source=RecordedSpec(order="schedule"), recorded=self.golden_pairs, loss=loss, optim=changed
        )
        name = f"offline lr={changed.lr:g} beta={loss.beta:g}" + (f" steps={changed.steps}" if step_factor != 1 else "")
        return ArmEntry(name, "offline", arm, baseline=(changed, loss) == (optim, self.study.baseline.loss))

    def offline_proxy(self, seed: int) -> ArmEntry:
        """Offline on the same pairs with the proxy's labels: what online knows, without on-policy sampling."""
        labelled = Relabel(pairs=self.pairs, judge=self.proxy(seed))
        arm = self._arm(seed=seed, source=RecordedSpec(order="schedule"), recorded=labelled)
        return ArmEntry("offline, proxy's labels", "offline_proxy", arm, baseline=True)

    def on_stream(self, seed: int, family: str, source: RecordedSpec) -> ArmEntry:
        """Offline on the stream that the online arm of this seed recorded."""
        return ArmEntry(
            family, family, self._arm(seed=seed, source=source, recorded=self.online(seed).stage), baseline=True
        )

    @cached_property
    def opponents(self) -> tuple[Responses, ...]:
        """The fixed responses that every arm is compared with."""
        count, seed = self.study.evaluation.prompts, self.study.evaluation.seed
        return tuple(
            Responses(sft=self.sft, task=self.pairs, arm=arm, prompts=count, seed=seed)
            for arm in (None, self.golden_policy)
        )

    def evaluation(self, entry: ArmEntry) -> Evaluate:
        """The measures of an arm along its checkpoints."""
        spec = self.study.evaluation
        # The golden policy has no proxy of its own; the first seed's looks at it.
        seed = entry.stage.seed if entry.family != "golden_policy" else self.study.seeds[0]
        return Evaluate(
            arm=entry.stage,
            sft=self.sft,
            task=self.pairs,
            golden=self.golden,
            proxy=self.proxy(seed),
            golden_pairs=self.golden_pairs,
            opponents=self.opponents,
            prompts=spec.prompts,
            pairs=spec.pairs,
        )

    def agreement(self, seed: int) -> Agreement:
        """How the judges of a seed agree."""
        return Agreement(pairs=self.pairs, golden_pairs=self.golden_pairs, proxy=self.proxy(seed))
