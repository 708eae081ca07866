"""A stage makes one immutable artefact from others; its identity is a hash of all that decides the result.

Identity covers the stage's kind and version, its specification and its inputs' identities. It never covers time, path,
machine or the study that asked: two studies that need the same SFT policy share it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict

from aligngap.errors import UserError
from aligngap.plugins import IDENTITY, Pluggable
from aligngap.store.identity import identity

CHECKPOINT_SECONDS = 120.0
"""How much work a kill may cost, unless the user says otherwise."""

Progress = Callable[[int, int, Mapping[str, float]], None]
"""(steps done, steps in all, latest metrics). Cheap to call at every step."""


@dataclass
class Context:
    """What a running stage is given.

    inputs: folder of each input's artefact, by input name (one folder, or a list of folders in the order of the
    stage's inputs). out: folder to write to; partial: folder for step checkpoints that survive a kill; progress: to be
    called as work goes on; checkpoint_seconds: how much work a kill may cost; cache: folder for answers that cost
    something, shared by all stages.
    """

    inputs: Mapping[str, Path | list[Path]]
    out: Path
    partial: Path
    progress: Progress
    device: str = "cpu"
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    cache: Path | None = None

    def one(self, name: str) -> Path:
        """The folder of an input that is a single artefact."""
        value = self.inputs[name]
        assert isinstance(value, Path)
        return value

    def many(self, name: str) -> list[Path]:
        """The folders of an input that is a list of artefacts."""
        value = self.inputs[name]
        assert isinstance(value, list)
        return value


class Stage(Pluggable):
    """A step of the pipeline. Fields whose values are stages (or tuples of stages) are its inputs; all others are its
    specification.

    Subclasses set `kind`, an `activity` (what its time goes to, where it is neither sampling nor judging), a `version`
    that is raised whenever the same specification would give another result, and define `run`. A stage is pickled to
    the process that runs it.

    together: whether several processes may make it (docs/distributed.md). Each of them then runs `run` on the same
    inputs; what asks policies and judges shares the work (`ranks`), so `run` must not draw random numbers or read a
    clock for what decides its course. `context.out` is the artefact's on the first rank only, elsewhere it is thrown
    away; `context.partial` is the same for all, so the first alone may write there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    together: ClassVar[bool] = False
    activity: ClassVar[str] = "evaluation"

    @abstractmethod
    def run(self, context: Context) -> None:
        """Make the artefact: write its files into `context.out`."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What a person reads in progress lines and plans."""

    @property
    @abstractmethod
    def work(self) -> float:
        """Estimated seconds on one CPU core of the reference machine (docs/benchmarks.md), from measured rates."""

    @property
    def inputs(self) -> dict[str, Stage | tuple[Stage, ...]]:
        """Input stages by field name."""
        found: dict[str, Stage | tuple[Stage, ...]] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Stage) or (
                isinstance(value, tuple) and value and all(isinstance(part, Stage) for part in value)
            ):
                found[name] = value
        return found

    @property
    def parents(self) -> list[Stage]:
        """Input stages, flat."""
        return [stage for value in self.inputs.values() for stage in (value if isinstance(value, tuple) else (value,))]

    @cached_property
    def identity(self) -> str:
        """Name of the artefact in the store."""
        return identity(self.kind, self.version, self.specification, self._input_identities)

    @property
    def described(self) -> dict[str, object]:
        """What decides the result, and what people call it, for the artefact's record."""
        return {
            "kind": self.kind,
            "version": self.version,
            "label": self.label,
            "specification": self.specification,
            "inputs": self._input_identities,
        }

    @property
    def _input_identities(self) -> dict[str, str | list[str]]:
        return {
            name: [stage.identity for stage in value] if isinstance(value, tuple) else value.identity
            for name, value in self.inputs.items()
        }

    @property
    def specification(self) -> dict[str, object]:
        """Everything but the inputs, as plain JSON values. Identity and record both come from here."""
        return self.model_dump(mode="json", exclude=set(self.inputs), context={IDENTITY: True})


@dataclass(frozen=True)
class Event:
    """What happened to a stage: started, progress, finished, cached, failed (with its reason) or blocked by a failed
    input; damaged, when its artefact is found so and will be made anew; waiting, when that artefact was its input;
    vanished, when its process was lost and it will be tried again.
    """

    kind: str
    stage: Stage
    done: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""


@dataclass
class Outcome:
    """What became of each stage, by identity: `finished`, `cached`, `failed` or `blocked`; reasons of the failed and
    blocked; seconds of the finished; mistakes: of the failed, those that are the user's to fix. wall: seconds from the
    command's start to the last stage's end; jobs: stages side by side; both 0 where no command ran.
    """

    status: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    mistakes: dict[str, UserError] = field(default_factory=dict)
    wall: float = 0.0
    jobs: int = 0


def all_stages(targets: Iterable[Stage]) -> list[Stage]:
    """Targets and all they need, each identity once, inputs before what uses them."""
    seen: dict[str, Stage] = {}

    def visit(stage: Stage) -> Iterator[Stage]:
        if stage.identity in seen:
            return
        for parent in stage.parents:
            yield from visit(parent)
        if stage.identity not in seen:
            seen[stage.identity] = stage
            yield stage

    return [stage for target in targets for stage in visit(target)]
