"""Reading files that may be anyone's: a plain file that may be read, or a message that names it."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

from aligngap.errors import UserError

# Nothing of ours comes near it, and what walks through a value by recursion goes further.
_DEEP = 100


def open_plain(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a plain file, or a link to one, for reading. Never waits: what a FIFO or a device holds may never come.

    Raises OSError, and UserError for what is no plain file.
    """
    # Windows would translate line ends without O_BINARY, and has no FIFOs among its files.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UserError("it is no plain file", where=str(path), hint="Move away what is in the file's place.")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The contents of a plain file. Raises FileNotFoundError, and UserError for a file that cannot be read."""
    with readable(path), open_plain(path) as handle:
        return handle.read()


def check_plain(path: str | os.PathLike[str]) -> None:
    """For files that a library opens by their name. Raises as `read_file` does."""
    with readable(path), open_plain(path):
        pass


@contextmanager
def readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the system says of a file or folder that is read, but not that it is absent, into a UserError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(error, path) from error


def unreadable(error: OSError, path: str | os.PathLike[str]) -> UserError:
    """That a file or folder cannot be read, which says nothing about what it holds: making it again is no remedy."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return UserError("it may not be read", where=str(path), hint="See to its permissions.")
    hint = "See to its place in the file system: something else may be there, or the disk may be failing."
    return UserError(f"it cannot be read: {error.strerror or error}", where=str(path), hint=hint)


def parse_json(data: bytes, *, finite: bool = True) -> object:
    """The value of a JSON text. finite: NaN and infinity are no JSON. Raises RecursionError, and ValueError for what is
    no JSON, and for nesting that has no end in sight.
    """

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    def number(text: str) -> float:
        return value if math.isfinite(value := float(text)) else refuse(text)

    value: object = json.loads(data, parse_constant=refuse, parse_float=number) if finite else json.loads(data)
    if data.count(b"[") + data.count(b"{") > _DEEP:
        _refuse_depth(value)
    return value


def _refuse_depth(value: object) -> None:
    level = [value]
    for _ in range(_DEEP):
        level = [
            part
            for inner in level
            if isinstance(inner, dict | list)
            for part in (inner.values() if isinstance(inner, dict) else inner)
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {_DEEP} deep")


def is_file(path: Path) -> bool:
    """Whether a file of any kind but a folder is there: who then reads it is told what is wrong with it. Raises
    UserError where that may not be known.
    """
    with readable(path):
        try:
            return not stat.S_ISDIR(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False


def is_there(path: Path) -> bool:
    """Whether something is there, as far as this process may know."""
    try:
        path.stat()
    except OSError:
        return False
    return True


def is_gone(path: Path) -> bool:
    """Whether nothing is there, for certain."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
