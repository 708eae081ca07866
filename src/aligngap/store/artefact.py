"""A finished artefact, as its readers are given it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aligngap.errors import UserError
from aligngap.store.contents import RECORD, checked
from aligngap.store.disk import read_json
from aligngap.store.reading import readable

_REMAKE = "Run the same command again: what is damaged is set aside and made again, all else is kept."


@dataclass(frozen=True)
class Artefact:
    """A finished result. Its files are read, never changed; who reads one gets its path from `file`, unless a stage
    does, whose inputs are compared with their checksums before it starts.
    """

    identity: str
    path: Path

    def file(self, name: str) -> Path:
        """The path of a file, or of a folder of files, whose checksums have been compared, once a process. Raises
        UserError for what is damaged, or missing.
        """
        return checked(self.path, self.identity, name)

    def folder(self) -> Path:
        """The path of the whole artefact, as `file` gives that of a file."""
        return checked(self.path, self.identity, "")

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder. Raises UserError where that may not be known."""
        with readable(self.path):
            return (self.path / name).exists()

    def record(self) -> dict[str, object]:
        """What the stage wrote about how it was made. Raises UserError when it cannot be read."""
        value = read_json(self.file(RECORD))
        if not isinstance(value, dict):
            raise UserError("the record is not a JSON object", where=str(self.path / RECORD), hint=_REMAKE)
        return value
