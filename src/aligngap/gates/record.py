"""What a gate says: scores, each with its bound; and the record of gates that were run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict

from aligngap.pipeline.graph import Context, Stage
from aligngap.store.disk import read_json, write_json

FILE = "gate.json"


class Score(BaseModel):
    """One number that a gate looks at. value: None where it could not be had, for the reason in `note`; se: its
    standard error; n: of how many; at_least, at_most: what it must reach, none of both where it is reported only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    value: float | None
    se: float | None = None
    n: int | None = None
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def gated(self) -> bool:
        """Whether the gate depends on it."""
        return self.at_least is not None or self.at_most is not None

    @property
    def passed(self) -> bool:
        """Whether the estimate is within its bounds; a score that could not be had is not."""
        if not self.gated:
            return True
        if self.value is None:
            return False
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    def __str__(self) -> str:
        value = "-" if self.value is None else f"{self.value:.4g}"
        error = "" if self.se is None else f" ± {self.se:.2g}"
        bound = f" (at least {self.at_least:g})" if self.at_least is not None else ""
        bound += f" (at most {self.at_most:g})" if self.at_most is not None else ""
        count = "" if self.n is None else f", n {self.n}"
        return f"{self.name}: {value}{error}{bound}{count}{'; ' + self.note if self.note else ''}"


class GateResult(BaseModel):
    """What a gate found. gate: its kind; subject: of what; identity: the stage's, which covers all that decided it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    gate: str
    subject: str
    identity: str
    scores: tuple[Score, ...]

    @property
    def passed(self) -> bool:
        """Whether every score that is gated is within its bounds."""
        return all(score.passed for score in self.scores)


class Gate(Stage):
    """A gate as a stage: gate.json is its result."""

    activity: ClassVar[str] = "evaluation"

    @property
    @abstractmethod
    def subject(self) -> str:
        """What is examined, for people."""

    @property
    def label(self) -> str:
        return f"gate: {self.kind.removesuffix('_gate')} of {self.subject}"

    @abstractmethod
    def examine(self, context: Context) -> Sequence[Score]:
        """The scores."""

    def run(self, context: Context) -> None:
        scores = tuple(self.examine(context))
        result = GateResult(gate=self.kind, subject=self.subject, identity=self.identity, scores=scores)
        write_json(context.out / FILE, result.model_dump(mode="json"))

    @staticmethod
    def result(folder: Path) -> GateResult:
        """The result that an artefact holds."""
        return GateResult.model_validate(read_json(folder / FILE))


class Record(BaseModel):
    """Gates that were run, by the identity of their stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    gates: tuple[GateResult, ...] = ()

    @classmethod
    def shipped(cls) -> Self:
        """The record that comes with the package."""
        path = resources.files("aligngap.gates").joinpath("record.json")
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else cls()

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file; empty where there is none."""
        return cls.model_validate(read_json(path)) if path.is_file() else cls()

    def write(self, path: Path) -> None:
        """As JSON, atomically."""
        write_json(path, self.model_dump(mode="json", exclude_none=True))

    def of(self, gate: Stage) -> GateResult | None:
        """What is known of a gate: its result under these very settings."""
        return next((result for result in self.gates if result.identity == gate.identity), None)

    def with_result(self, result: GateResult) -> Self:
        """The same with one more; of one gate and subject the last one counts."""
        others = [old for old in self.gates if (old.gate, old.subject) != (result.gate, result.subject)]
        return self.model_copy(update={"gates": (*others, result)})
