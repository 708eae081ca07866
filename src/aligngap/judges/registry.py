"""The judges a study can name. A new judge is one file and one entry here; a user's own module adds its by one line:
`JUDGES["mine"] = MySpec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from aligngap.errors import UserError
from aligngap.judges.base import Judge
from aligngap.judges.endpoint import EndpointJudgeSpec
from aligngap.judges.function import FunctionJudgeSpec
from aligngap.judges.model import PreferenceJudgeSpec
from aligngap.judges.reward import RewardJudgeSpec
from aligngap.judges.spec import JudgeIngredients, JudgeSpec
from aligngap.judges.true_utility import TrueUtilityJudgeSpec
from aligngap.plugins import Registry, kind_of, tagged

JUDGES: Registry[type[JudgeSpec]] = Registry(
    "judge",
    {
        "preference": PreferenceJudgeSpec,
        "reward": RewardJudgeSpec,
        "function": FunctionJudgeSpec,
        "endpoint": EndpointJudgeSpec,
        "true": TrueUtilityJudgeSpec,
    },
    kind_of(JudgeSpec, "kind"),
)


def judge_spec(value: object) -> JudgeSpec:
    """The spec that a mapping with a `kind` stands for. Raises ValueError, with the nearest known name, for an unknown
    kind or key.
    """
    if isinstance(value, Mapping) and value.get("kind") is True:
        value = {**value, "kind": "true"}  # YAML reads the judge's name as a truth value
    return (
        value if isinstance(value, JudgeSpec) else tagged(JUDGES, value, "{kind: function, function: my_rules:prefer}")
    )


AnyJudge = Annotated[SerializeAsAny[JudgeSpec], BeforeValidator(judge_spec)]
"""A field of this type takes any judge that is registered when it is read."""


class GivenJudge(BaseModel):
    """A judge as a stage keeps it: what was asked for, and what decides its answers. Only the latter is part of the
    stage's identity, since the former may hold paths.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    spec: AnyJudge = Field(exclude=True)
    identity: dict[str, Any]

    @classmethod
    def of(cls, spec: JudgeSpec, search: Path | None = None) -> Self:
        """Reads the files that the spec names. search: folder of the study file. Raises UserError."""
        return cls(spec=spec, identity=_identity(spec, search))

    def build(self, given: JudgeIngredients) -> Judge:
        """The judge. Raises UserError when its files have changed since the study was read."""
        if _identity(self.spec, given.search) != self.identity:
            raise UserError(
                "the judge's files have changed since the run began",
                where=f"judge of kind '{self.spec.kind}'",
                hint="Run the study again: results of another judge have another name.",
            )
        return self.spec.build(given)


def _identity(spec: JudgeSpec, search: Path | None) -> dict[str, Any]:
    code = JUDGES.code(spec.kind) or spec.code
    return spec.identity(search) | ({"code": code} if code else {})
