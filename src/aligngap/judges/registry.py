"""The judges a study can name. A new judge is one file and one entry here; a user's own module adds its by one line:
`JUDGES["mine"] = MySpec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from aligngap.errors import UserError, nearest
from aligngap.judges.base import Judge
from aligngap.judges.endpoint import EndpointJudgeSpec
from aligngap.judges.function import FunctionJudgeSpec
from aligngap.judges.model import PreferenceJudgeSpec
from aligngap.judges.reward import RewardJudgeSpec
from aligngap.judges.spec import JudgeIngredients, JudgeSpec
from aligngap.judges.true_utility import TrueUtilityJudgeSpec

JUDGES: dict[str, type[JudgeSpec]] = {
    "preference": PreferenceJudgeSpec,
    "reward": RewardJudgeSpec,
    "function": FunctionJudgeSpec,
    "endpoint": EndpointJudgeSpec,
    "true": TrueUtilityJudgeSpec,
}


def judge_spec(value: object) -> JudgeSpec:
    """The spec that a mapping with a `kind` stands for. Raises ValueError, with the nearest known name, for an unknown
    kind or key.
    """
    if isinstance(value, JudgeSpec):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("a judge is a mapping with a kind, as in {kind: function, function: my_rules:prefer}")
    kind: Any = value.get("kind")
    if kind is True:
        kind = "true"  # YAML reads the judge's name as a truth value
    if kind is None:
        raise ValueError(f"a judge needs a kind. Known: {', '.join(sorted(JUDGES))}.")
    if not isinstance(kind, str) or kind not in JUDGES:
        raise ValueError(f"there is no judge of kind '{kind}'. {nearest(str(kind), JUDGES)}")
    spec = JUDGES[kind]
    for key in value:
        if key not in spec.model_fields:
            raise ValueError(f"a judge of kind '{kind}' has no key '{key}'. {nearest(str(key), spec.model_fields)}")
    return spec.model_validate({**value, "kind": kind})


AnyJudge = Annotated[SerializeAsAny[JudgeSpec], BeforeValidator(judge_spec)]
"""A field of this type takes any judge that is registered when it is read."""


class GivenJudge(BaseModel):
    """A judge as a stage keeps it: what was asked for, and what decides its answers. Only the latter is part of the
    stage's identity, since the former may hold paths.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: AnyJudge = Field(exclude=True)
    identity: dict[str, Any]

    @classmethod
    def of(cls, spec: JudgeSpec, search: Path | None = None) -> Self:
        """Reads the files that the spec names. search: folder of the study file. Raises UserError."""
        return cls(spec=spec, identity=spec.identity(search))

    def build(self, given: JudgeIngredients) -> Judge:
        """The judge. Raises UserError when its files have changed since the study was read."""
        if self.spec.identity(given.search) != self.identity:
            raise UserError(
                "the judge's files have changed since the run began",
                where=f"judge of kind '{self.spec.kind}'",
                mend="Run the study again: results of another judge have another name.",
            )
        return self.spec.build(given)
