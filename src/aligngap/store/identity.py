"""From what a result is made of to its name.

The same spec, inputs and stage version give the same identity on every machine and at every time, so a study that is
run again finds what it has already made. Time, path, host and order of keys never enter.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from aligngap.store.reading import open_plain

# Of the canonical form itself: to be raised when its rules change, which renames every artefact.
_SCHEME = 1
_KIND = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CHUNK = 1 << 20


def canonical(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, floats by their shortest exact form.

    Lists and tuples are alike; 1 and 1.0 are not. Paths, sets, dates, arrays and other objects are refused, because
    their text could depend on the machine or on chance: the caller says what it means.

    Raises TypeError for anything that is not None, bool, int, float, str, a list, a tuple or a mapping with string
    keys, and ValueError for NaN and infinity; both name the place.
    """
    return json.dumps(_plain(value, "$"), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def identity(kind: str, version: int, spec: Mapping[str, object], inputs: Mapping[str, object]) -> str:
    """The name of the artefact that stage `kind` at `version` makes from `spec` and `inputs`.

    kind: lower-case words, for a person who reads the folder; part of the digest too.
    version: of the stage's code; raise it when the stage makes something else from the same spec.
    inputs: name -> identity (or digest), or a list of them, whose order counts.

    Returns f"{kind}-{20 hexadecimal digits}". Raises TypeError or ValueError for a malformed part, see `canonical`.
    """
    if not _KIND.fullmatch(kind):
        raise ValueError(f"kind {kind!r} must be lower-case words joined by '-' or '_'")
    if type(version) is not int or version < 0:  # True is an int too
        raise ValueError(f"version {version!r} must be a whole number, 0 or more")
    named: dict[str, object] = {}
    for name, value in inputs.items():
        parts = value if isinstance(value, list | tuple) else [value]
        for part in parts:
            # A path here would tie the artefact to one machine: files enter by their digest.
            if not isinstance(part, str) or not is_name(part):
                raise ValueError(f"input {name!r}: {part!r} is not an identity or digest")
        named[name] = list(parts) if isinstance(value, list | tuple) else value
    text = canonical({"scheme": _SCHEME, "kind": kind, "version": version, "spec": spec, "inputs": named})
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def is_name(text: str) -> bool:
    """Whether a text can be an identity: safe as one folder's name, and never hidden, a path or a step upwards."""
    return len(text) <= 200 and _NAME.fullmatch(text) is not None


def file_digest(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's contents, in hexadecimal, without holding the file in memory. Raises OSError, and
    UserError for what is no plain file.
    """
    digest = hashlib.sha256()
    with open_plain(path) as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def folder_digest(path: str | os.PathLike[str]) -> str:
    """The sha256 of a folder's files, by sorted relative name and contents.

    Hidden files and folders do not count: what download tools and desktops leave there holds times and paths. Links
    to files count as the files (a hub's cache is made of them).

    Raises OSError when the folder or a file cannot be read, ValueError for a link to a folder, which could lead
    anywhere.
    """
    root = Path(path)
    digest = hashlib.sha256()
    for name, file in sorted(_visible_files(root)):
        # The digest has a fixed length and the name's length comes first, so no two folders give the same bytes.
        encoded = os.fsencode(name)
        digest.update(f"{len(encoded)}:".encode() + encoded + bytes.fromhex(file_digest(file)))
    return digest.hexdigest()


def content_digest(path: str | os.PathLike[str]) -> str:
    """The digest of a file or folder, read once a process unless a size or time of change differs. Raises as
    `file_digest` and `folder_digest` do.
    """
    place = Path(os.path.abspath(path))
    files = [place] if place.is_file() else sorted(file for _, file in _visible_files(place))
    seen = tuple((str(file), (outcome := file.stat()).st_size, outcome.st_mtime_ns, outcome.st_ino) for file in files)
    return _content_digest(place, seen)


@lru_cache(maxsize=256)
def _content_digest(place: Path, seen: tuple[object, ...]) -> str:
    return file_digest(place) if place.is_file() else folder_digest(place)


def _visible_files(root: Path) -> Iterator[tuple[str, Path]]:
    for entry in root.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.is_symlink():
                raise ValueError(f"{entry.name} is a link to a folder")
            for name, file in _visible_files(entry):
                yield f"{entry.name}/{name}", file
        else:
            yield entry.name, entry


def _plain(value: object, place: str) -> object:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place}: {value!r} has no JSON form; use None")
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        result: dict[str, object] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{place}: key {key!r} is not a string")
            result[key] = _plain(item, f"{place}.{key}")
        return result
    raise TypeError(f"{place}: {type(value).__name__} has no canonical form")
