"""Lock files, which others hold with `FileLock`, for who only looks and may have no right to write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def kept_free(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether nobody holds the lock; if so, nobody takes it until the block ends. Nothing is created or changed.

    wait: until nobody holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        with _windows(path, wait) as free:
            yield free
        return
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        yield True
        return
    except OSError:  # nothing better is known than that somebody made it
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB))
        except OSError:  # held; or no such locks here
            yield False
        else:
            yield True
    finally:
        os.close(handle)  # gives it back


@contextmanager
def _windows(path: Path, wait: bool) -> Iterator[bool]:
    if not path.is_file():
        yield True
        return
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
