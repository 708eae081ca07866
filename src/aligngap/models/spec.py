"""What a study says of a model: which checkpoint, and how it is computed and trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator

from aligngap.errors import UserError
from aligngap.models.build import base_path
from aligngap.models.lora import Lora
from aligngap.store.identity import content_digest

Dtype = Literal["float32", "bfloat16"]


class Checkpoint(BaseModel):
    """A pretrained model and its tokenizer: a shipped size, a folder, or a hub id. In YAML a text is the path alone.

    revision: of a hub id. trust_remote_code: whether Python code that comes with the checkpoint is run. dtype: of the
    weights and the arithmetic; what is trained keeps fp32 masters (docs/models.md). gradient_checkpointing: compute
    activations again in the backward pass instead of keeping them. lora: train adapters instead of all weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    path: str
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: Dtype = "float32"
    gradient_checkpointing: bool = False
    lora: Lora | None = None

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> Any:
        given = {name: value for name, value in handler(self).items() if name == "path" or name in self._changed}
        return given["path"] if list(given) == ["path"] else given

    @property
    def _changed(self) -> set[str]:
        fields = type(self).model_fields
        return {name for name, field in fields.items() if getattr(self, name) != field.default}

    @property
    def name(self) -> str:
        """What people call it: a shipped size, or the last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def location(self) -> str:
        """Folder or hub id. Raises UserError when there is none."""
        place = base_path(self.path)
        if self.revision is not None and Path(place).is_dir():
            raise UserError("a folder has no revisions", where=self.path, hint="Take `revision` out, or give a hub id.")
        return place

    @property
    def as_loaded(self) -> Self:
        """The same files, whatever the arithmetic: what those need who read the tokenizer alone."""
        kept = ("path", "revision", "trust_remote_code")
        return type(self)(**{name: getattr(self, name) for name in kept})

    def at(self, folder: Path) -> Self:
        """What was made of this checkpoint and lies in a folder, with the same options."""
        return self.model_copy(update={"path": str(folder), "revision": None})

    def digest(self) -> str:
        """What names the files' contents. Raises UserError when there are none."""
        place = self.location
        if Path(place).is_dir():
            return content_digest(place)
        return f"hub:{place}@{self.revision}" if self.revision else f"hub:{place}"

    def deciding(self) -> dict[str, Any]:
        """What decides results beside the files, as far as it is not the default. Code that is trusted and
        checkpointed gradients change no number.
        """
        return {
            name: self.lora.model_dump(mode="json") if self.lora and name == "lora" else getattr(self, name)
            for name in ("dtype", "lora")
            if name in self._changed
        }
