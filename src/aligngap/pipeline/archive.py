"""A run and its artefacts in one file, to be moved to another machine and trusted there only after verification.

The file is a plain tar, packed with gzip unless its name ends in .tar:

    pack.json                  first: every other member's name, size and sha256, in order
    run/NAME                   the run folder's JSON, Parquet and logs; its pages and charts are made again from these
    artefacts/IDENTITY/NAME    artefacts
    partial/IDENTITY/NAME      step checkpoints of what was not finished

Reading it is strict, because it may come from anyone: plain files only, exactly those that pack.json names, each with
its size and checksum; nothing is put into place before all of it has been verified. Checksums say that the file is
whole, not that its maker is honest; so nothing that is read from a run executes code, no matter who wrote it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from aligngap import __version__
from aligngap.errors import UserError
from aligngap.pipeline import REPORT
from aligngap.pipeline.rundir import RunDirectory
from aligngap.store.contents import contents_of, is_code, is_inside, is_pickle, verify_folder
from aligngap.store.disk import disk_errors, read_json, write_json
from aligngap.store.identity import file_digest, identity, is_name
from aligngap.store.reading import is_file, read_file, readable
from aligngap.store.store import Store

_SCHEMA = 1
_INDEX = "pack.json"
_INDEX_LIMIT = 1 << 26
_CHUNK = 1 << 20
_TOPS = {True: "artefacts", False: "partial"}
_OF_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.(json|jsonl|parquet)|logs/[A-Za-z0-9][A-Za-z0-9._-]*\.log")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HINT = "Get the file again from where it was packed, and do not use this one."


class Refused(UserError):
    """Something in an archive is not as it should be."""


@dataclass(frozen=True)
class PackedRun:
    """What was packed or unpacked. kept: artefacts that the store had already; size: bytes of all files together."""

    artefacts: int
    kept: int
    partials: int
    size: int


def pack(run: RunDirectory, store: Store, file: Path) -> PackedRun:
    """Write a run, its finished artefacts and its step checkpoints to `file`, which must not exist.

    Raises UserError when an artefact is damaged or the file cannot be written.
    """
    if os.path.lexists(file):
        raise UserError("there is a file of this name already", where=str(file), hint="Give another name.")
    # Without the report, which can hold anything that a browser runs: who unpacks makes it again.
    wanted = [str(stage["identity"]) for stage in run.status()["stages"] if stage["kind"] != REPORT]
    made = [name for name in wanted if store.has(name)]
    if problems := store.verify(made):
        raise UserError(
            f"{len(problems)} files are damaged, the first: {problems[0]}",
            where=str(store.root),
            hint="Give the `aligngap run` command again: what is damaged is made again. Then pack.",
        )
    with ExitStack() as stack, disk_errors(file.parent, strict=True):
        # Step checkpoints change while somebody trains; those are left out.
        partials = {
            name: folder
            for name, folder in store.partials().items()
            if name in wanted and name not in made and stack.enter_context(store.if_idle(name))
        }
        members: dict[str, Path | bytes] = {}
        for path in sorted([*run.folder.glob("*"), *run.folder.glob("logs/*")]):
            name = path.relative_to(run.folder).as_posix()
            if _OF_RUN.fullmatch(name) and is_file(path):
                members[f"run/{name}"] = read_file(path)  # as of now: a live run replaces them
        for top, folders in (("artefacts", {name: store.get(name).path for name in made}), ("partial", partials)):
            for name, folder in folders.items():
                members |= _files(top, name, folder)
        size = _write(file, members)
    return PackedRun(len(made), 0, len(partials), size)


def _files(top: str, name: str, folder: Path) -> dict[str, Path | bytes]:
    plain, _ = contents_of(folder)
    return {f"{top}/{name}/{file}": folder / file for file in plain if not PurePosixPath(file).name.startswith(".")}


def _write(file: Path, members: Mapping[str, Path | bytes]) -> int:
    """Write an archive whole; returns the size of what is in it."""
    if code := [name for name in members if is_code(name)]:
        raise UserError(
            "it holds code, which nobody would unpack",
            where=code[0],
            hint="A checkpoint that brings its own code cannot be packed: copy the run's folder and its store.",
        )
    entries = {name: _entry(content) for name, content in members.items()}
    index = json.dumps({"schema": _SCHEMA, "aligngap": __version__, "files": entries}, indent=1).encode()
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with _packed(draft, plain=file.suffix == ".tar") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
            for name, content in {_INDEX: index, **members}.items():
                _add(tar, name, content)
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)
    return sum(entry["size"] for entry in entries.values())


def pack_one(folder: Path, name: str, file: Path, *, finished: bool) -> None:
    """Write one artefact, or the step checkpoints of one, to `file`, for `unpack_one`. Raises OSError for a file that
    has gone meanwhile, and UserError for code.
    """
    _write(file, _files(_TOPS[finished], name, folder))


def unpack_one(file: Path, store: Store, name: str, *, finished: bool) -> None:
    """Verify what `pack_one` wrote and take it into the store, where what is there already stays. Raises Refused when
    it is not whole, or another's, and UserError when there is no room.
    """
    with store.incoming() as staging:
        _extract(file, staging)
        result = {top.name: list(_folders(top)) for top in _folders(staging).values()}
        if result != {_TOPS[finished]: [name]}:
            raise _refused(file, f"it does not hold {name}")
        path = staging / _TOPS[finished] / name
        if finished:
            _check_artefact(name, path, file)
        store.adopt(path, name, finished=finished)


def _entry(content: Path | bytes) -> dict[str, Any]:
    if isinstance(content, bytes):
        return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    with readable(content):
        return {"sha256": file_digest(content), "size": content.stat().st_size}


@contextmanager
def _packed(path: Path, plain: bool) -> Iterator[IO[bytes]]:
    with open(path, "xb") as raw:
        if plain:
            yield raw
        else:
            # No name and no time: the same run gives the same file.
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as stream:
                yield stream  # type: ignore[misc]


def _add(tar: tarfile.TarFile, name: str, content: Path | bytes) -> None:
    info = tarfile.TarInfo(name)  # owner, times and rights stay at home
    # Either way one block a member: the one has room for long names, the other for files of many gigabytes.
    tar.format = tarfile.USTAR_FORMAT if len(name) > 100 else tarfile.GNU_FORMAT
    try:
        with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as stream:
            info.size = len(content) if isinstance(content, bytes) else os.fstat(stream.fileno()).st_size
            tar.addfile(info, stream)
    except ValueError as error:
        raise UserError(f"it cannot be packed: {error}", where=name) from error


def unpack(file: Path, folder: Path, store: Path | None = None) -> PackedRun:
    """Verify an archive and put the run into `folder`, its artefacts into the store.

    store: where artefacts go; None is `folder/store`. What it has already stays.

    Raises UserError when anything in the archive is not as it should be, or the folder holds something; then nothing
    has been put anywhere.
    """
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        what = "the folder is not empty" if folder.is_dir() else "there is something else, which is no folder"
        raise UserError(what, where=str(folder), hint="Give another folder.")
    folder = Path(os.path.abspath(folder))
    draft = folder.parent / f".{folder.name}.{secrets.token_hex(4)}"
    try:
        with disk_errors(folder.parent, strict=True):
            draft.mkdir(parents=True)
        kept = Store(draft / "store" if store is None else store)
        home = draft if store is None else folder
        with kept.incoming() as staging:
            index = _extract(file, staging)
            artefacts, partials = (_folders(staging / top) for top in ("artefacts", "partial"))
            _check_run(staging / "run", file)
            for name, path in artefacts.items():
                _check_artefact(name, path, file)
            with disk_errors(folder.parent, strict=True):
                shutil.copytree(staging / "run", draft, dirs_exist_ok=True, copy_function=shutil.copyfile)
            _point(draft / "status.json", kept.root, home)
            # Until the run's folder is there, its artefacts would seem to be nobody's.
            with kept.exclusively():
                kept.register(home, [*artefacts, *partials])
                new = sum(kept.adopt(path, name) for name, path in artefacts.items())
                begun = sum(kept.adopt(path, name, finished=False) for name, path in partials.items())
                if store is not None:
                    _rename(draft, folder)
        if store is None:
            _rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return PackedRun(new, len(artefacts) - new, begun, sum(size for _, size in index.values()))


def _rename(draft: Path, folder: Path) -> None:
    with disk_errors(folder.parent, strict=True):
        os.rename(draft, folder)


def _extract(file: Path, into: Path) -> dict[str, tuple[str, int]]:
    """Write the members to a folder, as they are found to be what the index says; name -> (sha256, size)."""
    try:
        with open(file, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if packed else raw as stream:
                return _members(stream, file, into)  # type: ignore[arg-type]
    except (EOFError, gzip.BadGzipFile, zlib.error, tarfile.HeaderError) as error:
        raise _refused(file, f"it is damaged or cut short: {error}") from error
    except OSError as error:
        raise UserError(f"it cannot be read: {error.strerror or error}", where=str(file)) from error


def _members(stream: IO[bytes], file: Path, into: Path) -> dict[str, tuple[str, int]]:
    name, size = _header(stream, file)
    if name != _INDEX or size > _INDEX_LIMIT:
        raise _refused(file, f"it does not begin with {_INDEX}")
    index = _index(b"".join(_contents(stream, size)), file)
    total, free = sum(size for _, size in index.values()), shutil.disk_usage(into).free
    if total > free:
        hint = "Make room, or give another folder."
        raise UserError(f"it unpacks to {total:,} bytes, and there is room for {free:,}", where=str(file), hint=hint)
    for wanted, (digest, size) in index.items():
        if _header(stream, file) != (wanted, size):
            raise _refused(file, f"its next member is not the {wanted} of {size:,} bytes that {_INDEX} lists")
        result = hashlib.sha256()
        with disk_errors(into, strict=True):
            target = into / wanted
            target.parent.mkdir(parents=True, exist_ok=True)
            output = open(target, "xb")  # noqa: SIM115 - what follows reads as well, and its errors are others
        with output:
            for chunk in _contents(stream, size):
                result.update(chunk)
                with disk_errors(into, strict=True):
                    output.write(chunk)
        if result.hexdigest() != digest:
            raise _refused(file, f"{wanted} is altered")
    if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise _refused(file, f"it holds more than {_INDEX} lists")
    return index


def _header(stream: IO[bytes], file: Path) -> tuple[str, int]:
    """Name and size of the next member. One block a member: links, devices, sparse files and extended headers (which
    could say anything, at any length) have another type.
    """
    block = stream.read(tarfile.BLOCKSIZE)
    info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.size < 0:
        raise _refused(file, f"{info.name!r} is not a plain file")
    return info.name, info.size


def _contents(stream: IO[bytes], size: int) -> Iterator[bytes]:
    left = size
    while left:
        chunk = stream.read(min(left, _CHUNK))
        if not chunk:
            raise EOFError("its end is missing")
        left -= len(chunk)
        yield chunk
    stream.read(-size % tarfile.BLOCKSIZE)


def _index(data: bytes, file: Path) -> dict[str, tuple[str, int]]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _refused(file, f"{_INDEX} is not readable: {error}") from error
    if not isinstance(value, dict) or value.get("schema") != _SCHEMA or not isinstance(value.get("files"), dict):
        raise _refused(file, f"{_INDEX} is not of schema {_SCHEMA}")
    index: dict[str, tuple[str, int]] = {}
    for name, entry in value["files"].items():
        digest, size = (entry.get(key) if isinstance(entry, dict) else None for key in ("sha256", "size"))
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest) or type(size) is not int or size < 0:
            raise _refused(file, f"{_INDEX} gives no size or checksum of {name!r}")
        if not _is_allowed(name):
            raise _refused(file, f"{name!r} has no place in a run")
        index[name] = (digest, size)
    # Two names that differ in case only, or a file where another's folder should be, are one name on some systems.
    folded = [name.casefold() for name in index]
    parents = {parent for name in folded for parent in _parents(name)}
    if len(set(folded)) != len(folded) or parents & set(folded):
        raise _refused(file, f"{_INDEX} gives a name twice")
    return index


def _parents(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _is_allowed(name: str) -> bool:
    top, _, rest = name.partition("/")
    if top == "run":
        return _OF_RUN.fullmatch(rest) is not None
    owner, _, inner = rest.partition("/")
    plain = inner.isprintable() and not is_code(inner) and not is_pickle(inner)
    return top in ("artefacts", "partial") and is_name(owner) and is_inside(inner) and plain


def _folders(top: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(top.iterdir())} if top.is_dir() else {}


def _check_run(run: Path, file: Path) -> None:
    """What the commands read of a run's folder is there, and is JSON."""
    for name in ("study.json", "status.json"):
        try:
            whole = isinstance(read_json(run / name), dict)
        except (FileNotFoundError, UserError) as error:
            raise _refused(file, f"it holds no readable {name}") from error
        if not whole:
            raise _refused(file, f"its {name} is not a JSON object")


def _check_artefact(name: str, path: Path, file: Path) -> None:
    """It is whole, and its name is that of what its record says it was made from."""
    for problem in verify_folder(path, name):
        raise _refused(file, str(problem))
    try:
        record = read_json(path / "record.json")
        named = identity(record["kind"], record["version"], record["specification"], record["inputs"])
    except (FileNotFoundError, UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _refused(file, f"the record of {name} is not one: {error}") from error
    if record["kind"] == REPORT:
        raise _refused(file, f"{name} is a report, which is made where it is read")
    if named != name:
        raise _refused(file, f"{name} was made from what should be called {named}")


def _point(status: Path, store: Path, folder: Path) -> None:
    """Say in status.json where the artefacts are now, and nothing of the report, which is not among them."""
    value = read_json(status)
    if isinstance(stages := value.get("stages"), list):
        value["stages"] = [stage for stage in stages if not isinstance(stage, dict) or stage.get("kind") != REPORT]
    value["store"] = Path(os.path.relpath(store, folder)).as_posix()
    write_json(status, value)


def _refused(file: Path, what: str) -> Refused:
    return Refused(f"the archive is refused: {what}", where=str(file), hint=_HINT)
