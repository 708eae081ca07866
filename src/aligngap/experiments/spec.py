"""What a study says: frozen, nested, every unknown key an error. Written as YAML."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PrivateAttr, field_validator, model_validator

from aligngap.errors import nearest
from aligngap.judges.registry import AnyJudge
from aligngap.measure.registry import MEASURES
from aligngap.models.preference import PREFERENCE_MODELS
from aligngap.models.spec import Checkpoint
from aligngap.ranks import ALONE, Parallel
from aligngap.tasks.datasets import DatasetSpec
from aligngap.tasks.worlds import WORLDS
from aligngap.tasks.worlds.base import Dials
from aligngap.train.loop import LossSpec
from aligngap.train.step import OptimSpec

T = TypeVar("T")
S = TypeVar("S", bound=BaseModel)


class Section(BaseModel):
    """A part of a study. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSpec(Section):
    """How many preference pairs the raters give, per world. golden_pairs: of golden's own, on other prompts; None where
    it learns from the training pairs.
    """

    train_pairs: int = Field(8000, ge=64, le=1_000_000)
    held_out_pairs: int = Field(1000, ge=16)
    golden_pairs: int | None = Field(None, ge=64, le=1_000_000)


class ModelsSpec(Section):
    """Bases: a shipped size, a folder or a hub id. All share the policy's tokenizer. sizes: policies of the scaling
    experiment, smallest first; the study's own policy is one of them.
    """

    policy: Checkpoint = Checkpoint(path="small")
    golden: Checkpoint = Checkpoint(path="medium")
    proxy: Checkpoint = Checkpoint(path="small")
    sizes: tuple[Checkpoint, ...] = (Checkpoint(path="small"), Checkpoint(path="medium"), Checkpoint(path="large"))


class PreferenceSpec(Section):
    """A judge. Trained: a preference model's form, how many pairs it learns from (null: all), and its training. Or
    given: `judge`, and nothing else.
    """

    model: str = "pairwise"
    train_pairs: int | None = Field(None, ge=16)
    optim: OptimSpec | None = None
    judge: AnyJudge | None = None

    @field_validator("model")
    @classmethod
    def _known(cls, value: str) -> str:
        return PREFERENCE_MODELS.known(value)

    @model_validator(mode="after")
    def _trained_or_given(self) -> Self:
        if (self.optim is None) == (self.judge is None):
            raise ValueError("give either `optim`, to train a preference model, or `judge`, a judge that exists")
        return self


class BaselineSpec(Section):
    """The one configuration that every arm shares unless its experiment varies it."""

    loss: LossSpec = LossSpec()
    optim: OptimSpec


class SweepSpec(Section):
    """The offline sweep around the baseline: every combination of learning-rate factor, beta and length factor.
    online: sweep online training over the same points too, for a comparison of best with best at equal budgets.
    """

    lr_factors: tuple[PositiveFloat, ...] = (1.0,)
    betas: tuple[PositiveFloat, ...] = (0.1,)
    step_factors: tuple[PositiveFloat, ...] = (1.0,)
    online: bool = False


class EvaluationSpec(Section):
    """prompts: per split; pairs: per split, for the policy as classifier; checkpoints: log-spaced, beside step 0.
    measures: of every arm, beside those that there always are.
    """

    prompts: int = Field(256, ge=8)
    pairs: int = Field(256, ge=8)
    checkpoints: int = Field(8, ge=2)
    seed: int = 0
    measures: tuple[str, ...] = ()

    @field_validator("measures")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(MEASURES.known, value)))


class AnalysisSpec(Section):
    """replicates: bootstrap draws; margin: the largest difference in win rate that counts as none."""

    replicates: int = Field(1000, ge=100)
    margin: float = Field(0.02, gt=0, lt=0.5)
    split: str = Field("held_out", pattern="^(train|held_out)$")
    opponent: str = Field("golden_policy", pattern="^(golden_policy|sft)$")
    judge: str = Field("golden", pattern="^(golden|true)$")

    @field_validator("judge", mode="before")
    @classmethod
    def _word(cls, value: object) -> object:
        return "true" if value is True else value  # YAML reads the judge's name as a truth value


class WorldSpec(Dials):
    """The dials of a world, and of its pairs. advantage: by how much its writers are better than those that the SFT
    policy and golden have learned from, as a share of the 10%-90% distance of the responses' utility.
    """

    advantage: float = 0.0

    @property
    def dials(self) -> Dials:
        """Those of the world alone."""
        return Dials(**self.model_dump(include=set(Dials.model_fields)))


class GatesSpec(Section):
    """What gates are to try. style_words: to be put before answers of a data set of one's own, which must not change
    golden's mind.
    """

    style_words: tuple[str, ...] = ()


class StudySpec(Section):
    """Experiments x tasks x seeds, and every setting that decides their numbers.

    tasks: built-in worlds, or names of `datasets`, the user's own; worlds: dials of worlds, each at its default where
    nothing is said; sft_tasks: the tasks whose pairs the SFT policy is fine-tuned on (null: the study's own); data: how
    much of each world; sft: null where models.policy is an SFT policy already; plugins: modules of the user's own,
    beside the study's file or wherever Python looks; shared: what all seeds have in common, drawn once, so that
    intervals say nothing of how it varies (a world's pairs; a data set's are the same in any case).
    """

    name: str
    title: str
    description: str = ""
    smoke: bool = False
    tasks: tuple[str, ...] = ("summarisation",)
    datasets: dict[str, DatasetSpec] = {}
    worlds: dict[str, WorldSpec] = {}
    sft_tasks: tuple[str, ...] | None = None
    experiments: tuple[str, ...]
    plugins: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    shared: tuple[Literal["pairs", "sft", "golden"], ...] = ()
    device: str = Field("cpu", pattern=r"^(cpu|mps|cuda(:\d+)?)$")
    parallel: Parallel = ALONE
    data: DataSpec = DataSpec()
    models: ModelsSpec = ModelsSpec()
    sft: OptimSpec | None
    golden: PreferenceSpec
    proxy: PreferenceSpec
    baseline: BaselineSpec
    golden_policy_step_factor: float = Field(1.0, gt=0)
    sweep: SweepSpec = SweepSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    analysis: AnalysisSpec = AnalysisSpec()
    gates: GatesSpec = GatesSpec()
    _folder: Path | None = PrivateAttr(None)

    @property
    def folder(self) -> Path | None:
        """Where the study's file lies: modules and models that it names are looked for there first."""
        return self._folder

    def placed(self, folder: Path) -> Self:
        """The same study, read from a file in this folder."""
        copy = self.model_copy()
        copy._folder = folder
        return copy

    def dials_of(self, task: str) -> Dials:
        """What the study sets of a world; each dial's default where it says nothing."""
        return self.worlds.get(task, WorldSpec()).dials

    def advantage_of(self, task: str) -> float:
        """By how much the writers of a world's pairs are better than those that SFT has learned from."""
        return self.worlds.get(task, WorldSpec()).advantage

    @field_validator("datasets")
    @classmethod
    def _names(cls, value: dict[str, DatasetSpec]) -> dict[str, DatasetSpec]:
        for name in value:
            if name in WORLDS or not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise ValueError(f"a data set cannot be called '{name}': letters, digits, _ and -, and no world's name")
        return value

    @field_validator("tasks", "sft_tasks")
    @classmethod
    def _some(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return value if value is None else _not_empty(value, "task")

    @model_validator(mode="after")
    def _known_tasks(self) -> Self:
        known = [*WORLDS, *self.datasets]
        for name in (*self.tasks, *(self.sft_tasks or ())):
            if name not in known:
                raise ValueError(f"there is no task '{name}'. {nearest(name, known)}")
            if name in WORLDS:
                WORLDS.known(name)
        for name, dials in self.worlds.items():
            if name not in WORLDS:
                raise ValueError(f"there is no world '{name}'. {nearest(name, WORLDS)}")
            WORLDS[name]().at(dials.dials)
        if self.analysis.judge == "true" and set(self.tasks) & set(self.datasets):
            raise ValueError("analysis.judge cannot be `true`: nobody knows the true utility of a real data set")
        return self

    @model_validator(mode="after")
    def _whole_adapters(self) -> Self:
        models = (self.models.policy, self.models.golden, self.models.proxy, *self.models.sizes)
        if self.parallel.sharding == "full" and any(model.lora for model in models):
            raise ValueError(
                "adapters cannot be divided among processes: take `lora` out, or say parallel.sharding: none, where "
                "each process holds the model beneath and they share the prompts"
            )
        return self

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value) or min(value, default=0) < 0:
            raise ValueError("seeds must be different numbers from 0 on")
        return _not_empty(value, "seed")

    def shrunk(self) -> Self:
        """About a minute's worth of the same study, for a try-out: every stage runs, no number means anything."""

        def at_most(spec: S, **limits: int) -> S:
            """The same with no more of each than its limit; null, which is as much as there is, becomes the limit."""
            given = {key: getattr(spec, key) for key in limits}
            less = {key: most if given[key] is None else min(given[key], most) for key, most in limits.items()}
            return spec.model_copy(update=less)

        def shorter(optim: OptimSpec | None, steps: int) -> OptimSpec | None:
            return at_most(optim, steps=steps, warmup_steps=4) if optim else None

        def smaller(spec: PreferenceSpec) -> PreferenceSpec:
            return spec.model_copy(update={"optim": shorter(spec.optim, 40)})

        sweep = {"lr_factors": self.sweep.lr_factors[:2], "betas": self.sweep.betas[:1], "step_factors": (1.0,)}
        return self.model_copy(
            update={
                "smoke": True,
                # Less of either, and the same share held out.
                "datasets": {
                    name: at_most(spec, train_pairs=640, held_out_limit=128) for name, spec in self.datasets.items()
                },
                "seeds": self.seeds[:1],
                "data": at_most(self.data, train_pairs=640, held_out_pairs=128, golden_pairs=1280)
                if self.data.golden_pairs
                else at_most(self.data, train_pairs=640, held_out_pairs=128),
                "sft": shorter(self.sft, 20),
                "golden": smaller(self.golden),
                "proxy": smaller(self.proxy),
                "baseline": self.baseline.model_copy(update={"optim": shorter(self.baseline.optim, 12)}),
                "sweep": self.sweep.model_copy(update=sweep),
                "evaluation": self.evaluation.model_copy(update={"prompts": 24, "pairs": 24, "checkpoints": 3}),
                "analysis": self.analysis.model_copy(update={"replicates": 200}),
            }
        )


def _not_empty(value: tuple[T, ...], what: str) -> tuple[T, ...]:
    if not value:
        raise ValueError(f"a study needs at least one {what}")
    return value


def log_steps(total: int, count: int) -> tuple[int, ...]:
    """Step 0, a fifth of the way, and `count` steps spaced evenly in their logarithm up to `total`, without repeats."""
    first = max(1.0, total / 100)
    spaced = (first * (total / first) ** (k / (count - 1)) for k in range(count))
    return (0, *sorted({fifth(total), *(max(1, math.floor(step + 0.5)) for step in spaced)}))


def fifth(total: int) -> int:
    """A fifth of the steps: the early checkpoint from which the quality and dataset experiments sample (800 of 4,000
    in the paper).
    """
    return max(1, total // 5)
