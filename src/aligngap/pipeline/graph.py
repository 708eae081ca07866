"""A stage makes one immutable artefact from others; its identity is a hash of all that decides the result.

Identity covers the stage's kind and version, its specification and its inputs' identities. It never covers time, path,
machine or the study that asked: two studies that need the same SFT policy share it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

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

    folders: where the artefacts of the stage's `parents` lie, by identity. out: folder to write to; partial: folder for
    step checkpoints that survive a kill; progress: to be called as work goes on; checkpoint_seconds: how much work a
    kill may cost; cache: folder for answers that cost something, shared by all stages.
    """

    folders: Mapping[str, Path]
    out: Path
    partial: Path
    progress: Progress
    device: str = "cpu"
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    cache: Path | None = None

    def folder(self, stage: Stage) -> Path:
        """The folder of a stage's artefact: of an input, or of what `Stage.reads` names. Raises UserError for others:
        they need not be on this machine.
        """
        if stage.identity not in self.folders:
            raise UserError(
                f"a stage reads what it has not declared: '{stage.label}'",
                where=f"{stage.kind} {stage.identity}",
                hint="Make it a field of the stage that reads it; if it is an input of an input, name it in `reads`.",
            )
        return self.folders[stage.identity]


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

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Another stage with some fields changed, checked as any; pydantic's own copy would keep the old identity."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | dict(update or {}))

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
        return {
            name: value
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), Stage)
            or (isinstance(value, tuple) and value and all(isinstance(part, Stage) for part in value))
        }

    @property
    def reads(self) -> Sequence[Stage]:
        """Whose artefacts `run` reads beside those of the inputs: inputs of inputs, at any depth, which identity covers
        already (the SFT policy of an input arm, say). Only what it does read: each is brought to the node that runs it.
        """
        return ()

    @cached_property
    def parents(self) -> list[Stage]:
        """All stages whose artefacts `run` may read, once each: the inputs, then `reads`. They are made before it.

        Raises UserError for one in `reads` on which no input rests: the identity would not say what the result is of.
        """
        inputs = [part for value in self.inputs.values() for part in (value if isinstance(value, tuple) else (value,))]
        reads = {stage.identity: stage for stage in self.reads}
        for other in reads.keys() - {stage.identity for stage in all_stages(inputs if reads else ())}:
            raise UserError(
                f"a stage reads what none of its inputs rests on: '{reads[other].label}'",
                where=f"{type(self).__name__}.reads",
                hint="Make it a field of the stage, so that the stage's identity covers it.",
            )
        return list(({stage.identity: stage for stage in inputs} | reads).values())

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
    input; damaged, when its artefact turns out to be so and will be made again; waiting, when that was its input's;
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
    """Targets and all they rest on, each identity once, inputs before what uses them."""
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
