"""A gate as a stage, and the record of gates that were run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from aligngap.errors import UserError
from aligngap.pipeline.graph import Context, Stage
from aligngap.results import GateResult, Score
from aligngap.store.disk import read_json, write_json

FILE = "gate.json"


class Gate(Stage):
    """A gate as a stage: gate.json is its result."""

    activity: ClassVar[str] = "evaluation"

    @property
    @abstractmethod
    def subject(self) -> str:
        """What is examined, for people."""

    @property
    def label(self) -> str:
        return f"{self.kind.replace('_', ' ')}: {self.subject}"

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
        """From a file; empty where there is none. Raises UserError for one that holds something else."""
        if not path.exists():
            return cls()
        try:
            return cls.model_validate(read_json(path))
        except (ValidationError, ValueError) as error:
            raise UserError(
                "this is no record of gates", where=str(path), hint="Give a file that `aligngap gates` wrote, or none."
            ) from error

    def write(self, path: Path) -> None:
        """As JSON, atomically."""
        write_json(path, self.model_dump(mode="json", exclude_none=True))

    def of(self, gate: Stage) -> GateResult | None:
        """What is known of a gate: its result under these very settings."""
        return next((result for result in self.gates if result.identity == gate.identity), None)

    def with_result(self, result: GateResult) -> Self:
        """The same with one more: every recipe that was tried stays, and is counted."""
        others = [old for old in self.gates if old.identity != result.identity]
        return self.model_copy(update={"gates": (*others, result)})
