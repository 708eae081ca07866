"""What an artefact's folder holds, and whether it is as its manifest says: nothing here writes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NoReturn

from aligngap.errors import UserError
from aligngap.store.identity import file_digest
from aligngap.store.reading import open_plain, parse_json, read_file, readable, unreadable

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


def verify_folder(
    home: Path, identity: str, checksums: Callable[[str], bool] = everything, part: str = ""
) -> Iterator[Problem]:
    """Everything that is wrong with the artefact in a folder, see `Store.verify`. part: only with this file, or the
    files of this folder, by its relative name. Raises UserError for what may not be read, which says nothing about what
    it holds.
    """
    with readable(home):
        if home.is_symlink():
            yield Problem(identity, "", "a link, where the store made a folder")
            return
        if not home.is_dir():
            yield Problem(identity, "", "missing")
            return
    try:
        files = _read_manifest(home / MANIFEST, identity)
    except FileNotFoundError:
        yield Problem(identity, MANIFEST, "missing")
        return
    except (ValueError, RecursionError) as error:
        yield Problem(identity, MANIFEST, f"manifest unreadable: {error}")
        return
    regular, other = contents_of(home)
    present = set(regular)
    for name in sorted(_within(part, files)):
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
    for name in sorted(_within(part, present - files.keys() - {MANIFEST})):
        yield Problem(identity, name, "unexpected file")
    for name in _within(part, other):
        yield Problem(identity, name, "not a plain file")


def _within(part: str, names: Iterable[str]) -> list[str]:
    """Of the names: the part itself, those below it, and those that it is below, one of which may be a link."""
    if not part:
        return list(names)
    return [name for name in names if f"{name}/".startswith(f"{part}/") or part.startswith(f"{name}/")]


def _damaged(problem: Problem, path: Path) -> UserError:
    return UserError(
        f"the artefact is damaged: {problem}",
        where=str(path),
        hint="`aligngap verify DIR --set-aside`, then `aligngap run`, makes it again; DIR is the run's folder.",
    )


def checked(home: Path, identity: str, part: str) -> Path:
    """The path of a file of an artefact, or of a folder of its files, once their checksums have been compared: once a
    process, unless a size or a time of change differs from then. Raises UserError for what is damaged, or missing.
    """
    if problem := next(iter(_problems(home, identity, part, _stamps(home / part))), None):
        raise _damaged(problem, home / part)
    return home / part


def check_within(path: Path) -> None:
    """Compares the checksums of what is read where a path, behind its links, is an artefact's folder or lies at its
    top, wherever that is; any other path is somebody's own. Raises UserError as `checked` does.
    """
    place = path.resolve()
    for home, part in ((place, ""), (place.parent, place.name)):
        if all((home / name).is_file() for name in (MANIFEST, RECORD)):
            checked(home, home.name, part)
            return


@lru_cache(maxsize=1 << 16)
def _problems(home: Path, identity: str, part: str, stamps: tuple[object, ...]) -> tuple[Problem, ...]:
    problems = tuple(verify_folder(home, identity, part=part))
    if not problems and not stamps:
        return (Problem(identity, part, "missing"),)
    return problems


def _stamps(path: Path) -> tuple[object, ...]:
    """What tells that a file, or the files in a folder, have not been changed since."""
    try:
        with readable(path):
            names = ["", *(f"/{name}" for names in contents_of(path) for name in names)] if path.is_dir() else [""]
            states = [(name, Path(f"{path}{name}").lstat()) for name in names]
    except FileNotFoundError:
        return ()
    return tuple((name, state.st_size, state.st_mtime_ns, state.st_ino) for name, state in states)


def _read_manifest(path: Path, identity: str) -> dict[str, tuple[str, int]]:
    """File name -> (sha256, size). Raises ValueError for anything but a manifest of this artefact."""
    value = parse_json(read_file(path))
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
        result = path.stat().st_size
        if result < size:
            return f"truncated: {result} of {size} bytes"
        if result > size or (digest is not None and file_digest(path) != digest):
            return "altered"
    except PermissionError as error:
        raise unreadable(error, path) from error
    except OSError as error:
        return f"unreadable: {error.strerror}"
    return None


def is_pickle(name: str) -> bool:
    """Whether a file's name says that it holds pickle, or usually does."""
    return PurePosixPath(name).suffix.lower() in _REFUSED


_POINTER = b"version https://git-lfs"


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS leaves in the place of one that it has not fetched. Raises OSError, and UserError
    for what is no plain file.
    """
    with open_plain(path) as stream:
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
    """Relative names, sorted, of the plain files and of everything that is neither plain file nor folder. Raises
    UserError for a folder that may not be read, of whose files nothing is known, and FileNotFoundError.
    """
    regular: list[str] = []
    other: list[str] = []

    def refuse(error: OSError) -> NoReturn:
        raise error if isinstance(error, FileNotFoundError) else unreadable(error, error.filename)

    for parent, folders, files in os.walk(folder, onerror=refuse):
        for name in [*folders, *files]:
            path = Path(parent) / name
            relative = path.relative_to(folder).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                regular.append(relative)
            elif not stat.S_ISDIR(mode):
                other.append(relative)
    return sorted(regular), sorted(other)
