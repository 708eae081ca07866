"""What goes to the disk whole or not at all, and what is said when the disk refuses."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from aligngap.errors import UserError
from aligngap.store.identity import file_digest
from aligngap.store.reading import parse_json, read_file

# What the machine, not the program, did wrong: only these become the user's to fix when a stage's own code meets them.
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DISK = _DISK_FULL | {errno.EROFS, errno.EIO}
_DENIED = frozenset({errno.EACCES, errno.EPERM})


class DiskError(UserError):
    """The disk is full or cannot be written: whatever else is tried there would fail alike."""


@contextmanager
def disk_errors(root: Path, *, strict: bool) -> Iterator[None]:
    """Turn errors of the disk into a DiskError that names the folder `root`.

    strict: every OSError is one (our own writing). Otherwise only those that plainly are: the block is a stage's
    own code, where a missing file or a broken connection is something else.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if strict or is_of_the_disk(error) or (error.errno in _DENIED and _is_below(root, error.filename)):
            refuse_folder(error, root)
        raise
    except Exception as error:
        # safetensors, Polars, Arrow and SQLite report the system's error as text only.
        words = ("disk is full", *(f"os error {number}" for number in _DISK_FULL))
        if not strict and any(word in str(error) for word in words):
            refuse_folder(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), root, cause=error)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write to that becomes `path` when the block has ended well; else nothing is left of it. Raises
    UserError when `path` is there and not empty, or cannot be written.
    """
    hint = "Give another folder."
    # A name that nobody has, for whatever has it is not ours to remove.
    half = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    missing = [parent for parent in path.parents if not parent.exists()]
    begun = written = False
    try:
        if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
            what = "the folder is not empty" if path.is_dir() else "there is something else, which is no folder"
            raise UserError(what, where=str(path), hint=hint)
        half.mkdir(parents=True)
        begun = True
        yield half
        half.replace(path)
        written = True
    except OSError as error:
        if begun and not is_of_the_disk(error) and not _is_below(half, error.filename):
            raise
        raise UserError(f"cannot be written: {error.strerror or error}", where=str(path), hint=hint) from error
    finally:
        if begun:
            shutil.rmtree(half, ignore_errors=True)
        for parent in missing if not written else ():
            with suppress(OSError):
                parent.rmdir()


def _is_below(root: Path, filename: object) -> bool:
    return isinstance(filename, str | os.PathLike) and Path(os.path.abspath(filename)).is_relative_to(root)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write a JSON file that is either the old one or the new one, never half of one. Keys keep their order.

    Raises ValueError for NaN and infinity (use None), TypeError for what has no JSON form, UserError when the disk is
    full or cannot be written.
    """
    write_bytes_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file. Raises FileNotFoundError, and UserError when it cannot be read, is not JSON or holds
    NaN.
    """
    try:
        return parse_json(read_file(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"not readable as JSON: {error}", where=str(path), hint="The file is damaged.") from error


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Put a file in place whole, through a temporary one beside it; on disk when this returns.

    Raises DiskError when the disk is full or cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        try:
            with open(temporary, "xb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(target.parent)
    except OSError as error:
        refuse_folder(error, target.parent)


def write_checked(path: Path, write: Callable[[Path], object]) -> None:
    """Put a file of unfinished work in place whole, and its checksum beside it; on disk when this returns.

    write: is given the path to write to, on the same disk. Raises what it raises, and DiskError.
    """
    half = path.with_name(f".{path.name}.half")
    write(half)
    with disk_errors(path.parent, strict=True):
        sync(half)
        digest = file_digest(half)
        os.replace(half, path)
    write_bytes_atomic(_checksum_of(path), digest.encode())


def is_checked(path: Path) -> bool:
    """Whether a file is there as `write_checked` wrote it. Raises OSError when it cannot be read."""
    beside = _checksum_of(path)
    return path.is_file() and beside.is_file() and beside.read_bytes() == file_digest(path).encode()


def _checksum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def is_of_the_disk(error: OSError) -> bool:
    """Whether the disk is full or broken, no matter who noticed it."""
    return error.errno in _DISK


def refuse_folder(error: OSError, folder: Path, cause: BaseException | None = None) -> NoReturn:
    if error.errno in _DISK_FULL:
        what = "no room left to write"
        hint = "Free some space there or choose another folder"
    elif error.errno in _DISK:
        what = f"the disk cannot be written: {error.strerror}"
        hint = "Repair the disk or choose another folder"
    else:
        what = f"cannot be written: {error.strerror or error}"
        hint = "Choose a folder that you can write to"
    raise DiskError(
        what, where=str(folder), hint=f"{hint}, then run the same command again; what is finished is kept."
    ) from (cause or error)


def sync(path: Path) -> None:
    """See that a file's contents are on the disk. Raises OSError."""
    # Windows flushes only what is open for writing; elsewhere a copied file may be read-only.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there, and a rename is on disk with the journal
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network and user-space file systems cannot flush a folder; their rename is as safe as it gets.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
