"""What a study says of a model: which checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator

from aligngap.models.build import base_path
from aligngap.store.identity import content_digest


class Checkpoint(BaseModel):
    """A pretrained model and its tokenizer: a shipped size, a folder, or a hub id. In YAML a text is the path alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> Any:
        fields = handler(self)
        return fields["path"] if list(fields) == ["path"] else fields

    @property
    def name(self) -> str:
        """What people call it: a shipped size, or the last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def location(self) -> str:
        """Folder or hub id. Raises UserError when there is none."""
        return base_path(self.path)

    def digest(self) -> str:
        """What names the files' contents. Raises UserError when there are none."""
        place = self.location
        return content_digest(place) if Path(place).is_dir() else f"hub:{place}"
