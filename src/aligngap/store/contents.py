"""What an artefact's folder holds, and whether it is as its manifest says: nothing here writes."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from aligngap.errors import UserError
from aligngap.store.identity import file_digest

SCHEMA = 1
MANIFEST = "manifest.json"
RECORD = "record.json"
# Formats that are pickle, or usually hold one.
_REFUSED = frozenset({".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
# What a machine would run. Checkpoints whose code the user has said to trust bring such files.
_CODE = frozenset({".dll", ".dylib", ".exe", ".py", ".pyc", ".pyd", ".sh", ".so"})


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an artefact. `file` is empty when it concerns the whole artefact."""

    identity: str
    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.identity}{'/' if self.file else ''}{self.file}: {self.what}"


def everything(file: str) -> bool:
    """For `verify`: compare the checksum of every file."""
    return True


def all_but_weights(file: str) -> bool:
    """For `verify`: of the large files, which are checked when a stage is about to read them, the size alone."""
    return not file.endswith(".safetensors")


def verify_folder(home: Path, identity: str, checksums: Callable[[str], bool] = everything) -> Iterator[Problem]:
    """Everything that is wrong with the artefact in a folder, see `Store.verify`. Raises UserError for what may not be
    read, which says nothing about what it holds.
    """
    if not home.is_dir():
        yield Problem(identity, "", "missing")
        return
    try:
        files = _read_manifest(home / MANIFEST, identity)
    except PermissionError as error:
        raise _denied(home / MANIFEST) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        yield Problem(identity, MANIFEST, f"manifest unreadable: {reason}")
        return
    regular, other = contents_of(home)
    present = set(regular)
    for name in sorted(files):
        if not is_inside(name):
            # Not opened: a manifest from elsewhere must not make us read outside the artefact.
            yield Problem(identity, name, "name leads outside the artefact")
        elif is_pickle(name):
            yield Problem(identity, name, "a pickle format, which no artefact holds")
        elif name in present:
            digest, size = files[name]
            what = _compare(home / name, digest if checksums(name) else None, size)
            if what:
                yield Problem(identity, name, what)
        elif name not in other:
            yield Problem(identity, name, "missing")
    for name in sorted(present - files.keys() - {MANIFEST}):
        yield Problem(identity, name, "unexpected file")
    for name in other:
        yield Problem(identity, name, "not a plain file")


def check_artefact(home: Path, checksums: Callable[[str], bool] = everything) -> None:
    """Raises UserError, with the file's name, unless a finished artefact in a folder is as it was written. checksums:
    as for `verify_folder`.
    """
    if problem := next(verify_folder(home, home.name, checksums), None):
        raise UserError(
            f"the artefact is damaged: {problem}",
            where=str(home),
            hint="Run the study again: what is damaged is set aside and made anew, all else is kept.",
        )


def _denied(path: Path) -> UserError:
    return UserError("it may not be read", where=str(path), hint="See to its permissions, or use another --store.")


def parse_json(data: bytes) -> object:
    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    return json.loads(data, parse_constant=refuse)


def _read_manifest(path: Path, identity: str) -> dict[str, tuple[str, int]]:
    """File name -> (sha256, size). Raises ValueError for anything but a manifest of this artefact."""
    value = parse_json(path.read_bytes())
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise ValueError(f"not a manifest of schema {SCHEMA}")
    if value.get("identity") != identity:
        raise ValueError("it belongs to another artefact")
    entries = value.get("files")
    if not isinstance(entries, dict):
        raise ValueError("it lists no files")
    files: dict[str, tuple[str, int]] = {}
    for name, entry in entries.items():
        digest = entry.get("sha256") if isinstance(entry, dict) else None
        size = entry.get("size") if isinstance(entry, dict) else None
        if not isinstance(digest, str) or not isinstance(size, int):
            raise ValueError(f"no checksum or size of {name}")
        files[name] = (digest, size)
    return files


def _compare(path: Path, digest: str | None, size: int) -> str | None:
    try:
        found = path.stat().st_size
        if found < size:
            return f"truncated: {found} of {size} bytes"
        if found > size or (digest is not None and file_digest(path) != digest):
            return "altered"
    except PermissionError as error:
        raise _denied(path) from error
    except OSError as error:
        return f"unreadable: {error.strerror}"
    return None


def is_pickle(name: str) -> bool:
    """Whether a file's name says that it holds pickle, or usually does."""
    return PurePosixPath(name).suffix.lower() in _REFUSED


_POINTER = b"version https://git-lfs"


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS leaves in the place of one that it has not fetched. Raises OSError."""
    with path.open("rb") as stream:
        return stream.read(len(_POINTER)) == _POINTER


def is_code(name: str) -> bool:
    """Whether a file's name says that it is a program, or part of one."""
    return PurePosixPath(name).suffix.lower() in _CODE


def is_inside(name: str) -> bool:
    """Whether a relative name, with slashes, stays in its folder on every system."""
    path = PurePosixPath(name)
    plain = name == str(path) and "\\" not in name and ":" not in name and "\0" not in name
    return plain and not path.is_absolute() and ".." not in path.parts and name != "."


def contents_of(folder: Path) -> tuple[list[str], list[str]]:
    """Relative names, sorted, of the plain files and of everything that is neither plain file nor folder."""
    regular: list[str] = []
    other: list[str] = []
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent) / name
            relative = path.relative_to(folder).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                regular.append(relative)
            elif not stat.S_ISDIR(mode):
                other.append(relative)
    return sorted(regular), sorted(other)
