"""The temporary files of a command and of all its processes: one folder, gone when they are, however they end.

It is removed at the end of the command, else at the end of its fork server, which outlives a command that is killed;
and where both are killed at once, by the next command of this user.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path

from filelock import FileLock

from aligngap.store.locks import kept_free

_PREFIX = "aligngap-run-"
_ONE = threading.RLock()


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """What is started in the block keeps its temporary files in this process's folder, not among everybody's."""
    # One thread at a time: of two that overlap, the second would put back what the first had set.
    with _ONE:
        folder, variable, before = str(_folder()), os.environ.get("TMPDIR"), tempfile.tempdir
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
            if variable is None:
                os.environ.pop("TMPDIR", None)
            else:
                os.environ["TMPDIR"] = variable


@cache
def _folder() -> Path:
    _sweep(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = FileLock(folder / ".lock")
    lock.acquire()  # the system frees it when this process dies

    # Which torch makes as it is imported, and nothing here fills.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torchinductor"))

    def remove() -> None:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)

    # After multiprocessing has removed its own folder, which is in here, at -100; not in a process that is forked.
    Finalize(None, remove, exitpriority=-200)
    return folder


def _sweep(place: Path) -> None:
    """Remove what killed commands of this user have left."""
    for folder in place.glob(f"{_PREFIX}*"):
        lock = folder / ".lock"
        with suppress(OSError):  # another command removes it just now
            # Without a lock it was made this very moment.
            if folder.is_symlink() or not lock.is_file() or folder.stat().st_uid != os.getuid():
                continue
            with kept_free(lock) as free:
                if free:
                    shutil.rmtree(folder, ignore_errors=True)


def remove_with_this_process() -> None:
    """For the fork server: remove the folder that its files are in, unless the command has done so by then."""
    folder = Path(tempfile.gettempdir())
    if folder.name.startswith(_PREFIX):
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
