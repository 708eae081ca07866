"""How a study names a judge. Each judge's file defines a spec; `judges.registry` lists them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict
from transformers import PreTrainedTokenizerBase

from aligngap.errors import UserError
from aligngap.judges.base import Judge
from aligngap.plugins import Pluggable
from aligngap.store.identity import content_digest


@dataclass(frozen=True)
class JudgeIngredients:
    """What a study can hand to a judge when it is built; each judge takes what it needs.

    tokenizer: the policy's, whose tokens the pairs are. device: for judges that are models. cache: folder for answers
    that cost something, shared by all processes; None keeps none. search: folder of the study file, where modules and
    models that the study names are looked for first. world: the built-in world that the prompts come from, if they do.
    """

    tokenizer: PreTrainedTokenizerBase
    device: str = "cpu"
    cache: Path | None = None
    search: Path | None = None
    world: str | None = None


class JudgeSpec(Pluggable):
    """Names a judge and its settings in a study. Subclasses add `kind: Literal["..."]` with its name as the default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str

    @abstractmethod
    def identity(self, search: Path | None = None) -> dict[str, object]:
        """All that decides the judge's answers, as plain JSON values: digests of files in place of their paths, and
        nothing that changes speed, cost or patience only. search: as in `JudgeIngredients`.

        Raises UserError when what the spec names is not there.
        """

    def check(self, search: Path | None = None) -> None:
        """Raises UserError for what can be known to be wrong without building the judge."""

    @abstractmethod
    def build(self, given: JudgeIngredients) -> Judge:
        """The judge itself. Raises UserError when it cannot be built."""


def beside(path: str, search: Path | None) -> str:
    """The path as the study file means it: from its own folder, if there is such a thing there."""
    candidate = search / path if search is not None else None
    return str(candidate) if candidate is not None and candidate.exists() else path


def digest_of(path: Path) -> str:
    """The digest of a file's or folder's contents. Raises UserError when they cannot be read."""
    try:
        return content_digest(path)
    except (OSError, ValueError) as error:
        raise UserError(f"the files cannot be read: {error}", where=str(path), hint="Check the path.") from error
