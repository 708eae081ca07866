"""A folder of artefacts that are whole or not there.

An artefact is written to a temporary folder, flushed to disk, and renamed into place; nothing is ever overwritten.
A killed process leaves at most a temporary folder, which nobody reads and `Store.sweep` removes. Every file has a
checksum in the artefact's manifest; what turns out damaged is set aside, to be made again. There is no pickle anywhere:
a downloaded artefact cannot run code.

    root/<identity>/            record.json, manifest.json and the stage's files
    root/.temporary/            artefacts being written
    root/.partial/<identity>/   step checkpoints of work that is not finished
    root/.aside/                damaged artefacts, until `Store.free`
    root/.users/                which run folders refer to which artefacts
    root/.locks/                one lock file an identity
    root/.cache/                answers of judges that cost something
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from aligngap.errors import UserError
from aligngap.store.artefact import Artefact
from aligngap.store.contents import (
    MANIFEST,
    RECORD,
    SCHEMA,
    Problem,
    contents_of,
    everything,
    is_inside,
    is_pickle,
    verify_folder,
)
from aligngap.store.disk import disk_errors, read_json, refuse_folder, sync, sync_folder, write_json
from aligngap.store.identity import file_digest, is_name
from aligngap.store.locks import kept_free
from aligngap.store.reading import is_gone, is_there, readable

# Seconds after which a network disk that shows no file does not have it.
_UNSEEN = 10.0


@dataclass(frozen=True)
class User:
    """A run folder that was registered with the store. `gone`: it was here, on this machine, and is no longer."""

    folder: Path
    identities: frozenset[str]
    gone: bool
    entry: Path


@dataclass(frozen=True)
class Freed:
    """Something that nobody referred to. what: `artefact`, `step checkpoint` or `set aside`; held: it stays, because
    somebody is making it.
    """

    identity: str
    what: str
    size: int
    held: bool = False


class Store:
    """Artefacts under one folder, shared by any number of processes.

    root: created if need be. Raises UserError when it cannot be created or written, or is somebody's folder with
    things of their own in the store's places. reading: nothing will be written, so nothing is created, and the folder
    need not even be there.
    """

    def __init__(self, root: str | os.PathLike[str], *, reading: bool = False) -> None:
        # Absolute, so that a change of the working folder does not move the store.
        self.root = Path(os.path.abspath(root))
        self._temporary = self.root / ".temporary"
        self._partial = self.root / ".partial"
        self._locks = self.root / ".locks"
        self._aside = self.root / ".aside"
        self._users = self.root / ".users"
        self._reading = reading
        if reading:
            return
        folders = (self._temporary, self._partial, self._locks, self._aside, self._users)
        try:
            # A store's own are empty for as long as it has no folder of locks.
            if not self._locks.is_dir() and any(folder.is_dir() and any(folder.iterdir()) for folder in folders):
                raise UserError(
                    "the folder is no store, and has folders of the names that a store would use",
                    where=str(self.root),
                    hint="Give another folder.",
                )
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            refuse_folder(error, self.root)
        if not os.access(self.root, os.W_OK | os.X_OK):
            refuse_folder(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), self.root)

    @classmethod
    def existing(cls, root: Path, *, reading: bool = False) -> Store:
        """The store that is at `root`; nothing else is to be taken for one, or made one. Raises UserError."""
        with readable(root):
            if not (root / ".locks").is_dir():  # which a store has from the first moment on
                raise UserError("there is no store here", where=str(root), hint="Say where it is with --store.")
        return cls(root, reading=reading)

    def has(self, identity: str) -> bool:
        """Whether the artefact is finished. Raises ValueError for a text that cannot be an identity."""
        home = self._home(identity)
        with readable(home):
            return (home / MANIFEST).is_file()

    def get(self, identity: str) -> Artefact:
        """The finished artefact. Raises KeyError when it is not there."""
        if not self.has(identity):
            raise KeyError(f"no finished artefact {identity!r} in the store")
        return Artefact(identity, self._home(identity))

    def identities(self) -> list[str]:
        """All finished artefacts, sorted."""
        return [name for name in self._folders() if (self.root / name / MANIFEST).is_file()]

    @contextmanager
    def lock(self, identity: str, timeout: float | None = None) -> Iterator[None]:
        """Hold the right to make this artefact, so that two processes do not do the same work.

        The pattern is: take the lock, ask `has`, and only then work. May be taken again by the thread that holds it,
        as `writing` does. The system frees it when the process dies.

        timeout: seconds to wait; None waits for as long as it takes. Raises UserError when it runs out.
        """
        self._home(identity)
        with self._held(identity, timeout, f"another process is still making {identity}"):
            yield

    @contextmanager
    def _held(self, name: str, timeout: float | None, otherwise: str) -> Iterator[None]:
        # One object a path and process: a second one would wait for ever for the first, held by the same thread.
        held = FileLock(self._lock_file(name), is_singleton=True)
        try:
            held.acquire(timeout=-1 if timeout is None else timeout)
        except Timeout as error:
            raise UserError(
                f"{otherwise} after {timeout:g} seconds of waiting",
                where=str(self.root),
                hint="Wait for it to end, or stop it; finished artefacts are kept and reused.",
            ) from error
        except OSError as error:
            refuse_folder(error, self.root)
        try:
            yield
        finally:
            held.release()

    @contextmanager
    def writing(self, identity: str, record: Mapping[str, object]) -> Iterator[Path]:
        """An empty folder to write an artefact into; it becomes the artefact when the block ends without an exception.

        Holds the identity's lock. On an exception the folder is removed and nothing is left. If the artefact has
        appeared meanwhile, that one is kept and this one is discarded.

        record: how it was made, as JSON; free of anything that must not be published.

        Raises ValueError for a pickle format, a link or one of the names `record.json` and `manifest.json` among the
        files, and for a record that has no JSON form; DiskError when the disk is full or cannot be written.
        """
        home = self._home(identity)
        with self.lock(identity):
            folder = self._temporary / f"{identity}.{secrets.token_hex(4)}"
            try:
                with disk_errors(self.root, strict=True):
                    folder.mkdir()
                with disk_errors(self.root, strict=False):
                    yield folder
                with disk_errors(self.root, strict=True):
                    self._seal(identity, folder, record)
                    if not self.has(identity):
                        self._commit(folder, home)
                    self._drop_partial(identity)
            finally:
                # After the rename there is nothing here; otherwise this is what must not be left.
                shutil.rmtree(folder, ignore_errors=True)

    def partial(self, identity: str) -> Path:
        """A folder for the step checkpoints of this artefact's making; outlives a kill, removed once it is finished.

        Raises UserError when it cannot be created.
        """
        folder = self.unfinished(identity)
        with disk_errors(self.root, strict=True):
            folder.mkdir(exist_ok=True)
        return folder

    @property
    def cache(self) -> Path:
        """A folder for what is no artefact but costs something to get again: a judge's answers, say.

        Raises UserError when it cannot be created.
        """
        folder = self.root / ".cache"
        with disk_errors(self.root, strict=True):
            folder.mkdir(exist_ok=True)
        return folder

    def unfinished(self, identity: str) -> Path:
        """Where `partial` keeps step checkpoints, for who only looks: nothing is created, and it may not be there."""
        self._home(identity)
        return self._partial / identity

    def verify(
        self, identities: Iterable[str] | None = None, checksums: Callable[[str], bool] = everything
    ) -> list[Problem]:
        """Everything that is wrong with these artefacts (all when None); empty when they are as they were written.

        checksums: of which files to compare the checksum, beside presence and size.
        """
        names = self._folders() if identities is None else list(identities)
        return [problem for name in names for problem in verify_folder(self._home(name), name, checksums)]

    def set_aside(self, identity: str) -> Path | None:
        """Move a damaged artefact out of the way, so that it can be made again; returns where to. None when it is whole
        after all (another process has made it again) or is not there. Waits while somebody makes it. Raises DiskError.
        """
        home = self._home(identity)
        with self.lock(identity):
            if not os.path.lexists(home) or not self.verify([identity]):
                return None
            away = self._aside / f"{identity}.{secrets.token_hex(4)}"
            with disk_errors(self.root, strict=True):
                os.rename(home, away)
            return away

    def register(self, folder: Path, identities: Iterable[str]) -> None:
        """Note that the run in `folder` needs these artefacts, in place of those that it needed before. Raises
        DiskError.
        """
        where = _relative(folder, self.root)
        entry = self._users / f"{hashlib.sha256(where.encode()).hexdigest()[:20]}.json"
        value = {"schema": SCHEMA, "folder": where, "machine": _machine(), "identities": sorted(identities)}
        with self.exclusively():
            write_json(entry, value)

    def users(self) -> list[User]:
        """All run folders that were ever registered. Raises UserError when an entry cannot be read."""
        result = []
        for entry in _entries(self._users):
            if entry.suffix != ".json" or entry.name.startswith("."):
                continue
            value = read_json(entry)
            try:
                folder = Path(os.path.normpath(self.root / value["folder"]))
                identities, machine = frozenset(value["identities"]), value["machine"]
                if not isinstance(value["identities"], list) or not all(is_name(name) for name in identities):
                    raise TypeError
            except (KeyError, TypeError) as error:
                hint = "Give the `aligngap run` command of each study that uses the store again, or remove the entry."
                raise UserError("it does not say which run it is of", where=str(entry), hint=hint) from error
            # Seen from another machine, or while a disk is away, a run's folder may only seem to be gone.
            gone = is_gone(folder) and is_there(folder.parent) and machine == _machine()
            result.append(User(folder, identities, gone, entry))
        return result

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Nobody registers, and nobody else frees, until the block ends. Raises UserError when it cannot be had."""
        if self._reading:
            with kept_free(self._lock_file("store.exclusive"), wait=True):
                yield
            return
        with self._held("store.exclusive", None, "another process is tidying the store"):
            yield

    @contextmanager
    def shown(self) -> Iterator[str]:
        """Hold a lock under a name that nobody can guess, for `sees` to be asked for it on another machine."""
        name = f"shown.{secrets.token_hex(8)}"
        with self._held(name, None, "never said"):
            try:
                yield name
            finally:
                self._lock_file(name).unlink(missing_ok=True)

    def sees(self, name: str) -> str:
        """What keeps this machine from sharing the store with the one that has `shown` it under this name; empty when
        nothing does. Without locks that reach from one machine to the other, both would make the same artefact, and
        either would clear away what the other is writing.
        """
        lock, deadline = self._lock_file(name), time.monotonic() + _UNSEEN
        while not lock.is_file():
            if time.monotonic() > deadline:
                return f"it does not see the run's store at {self.root}"
            time.sleep(0.5)
        probe = FileLock(lock)
        try:
            probe.acquire(timeout=0)
        except Timeout:
            return ""
        except (OSError, NotImplementedError) as error:
            return f"it cannot lock files in the run's store at {self.root}: {error}"
        probe.release()
        return f"a lock that the run holds in its store at {self.root} does not hold there"

    def free(self, keep: Collection[str], dry_run: bool = False) -> list[Freed]:
        """Remove finished artefacts and step checkpoints of identities that are not in `keep`, and all that was set
        aside; what somebody is making stays. Call it within `exclusively`.

        dry_run: only say what would go.
        """
        artefacts = [self.root / name for name in self.identities()]
        result = [
            self._free(folder, folder.name, what, dry_run)
            for what, folders in (("artefact", artefacts), ("step checkpoint", _entries(self._partial)))
            for folder in folders
            if is_name(folder.name) and folder.name not in keep
        ]
        asides = _entries(self._aside)
        return result + [self._free(path, path.name.rpartition(".")[0], "set aside", dry_run) for path in asides]

    def _free(self, folder: Path, identity: str, what: str, dry_run: bool) -> Freed:
        with readable(folder):
            size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
        with self.if_idle(identity) as idle:
            if idle and not dry_run:
                # Out of sight at once: a kill in the midst leaves no half of an artefact.
                away = self._temporary / f"{identity}.{secrets.token_hex(4)}"
                with disk_errors(self.root, strict=True):
                    os.rename(folder, away)
                shutil.rmtree(away, ignore_errors=True)
        return Freed(identity, what, size, held=not idle)

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """An empty folder for artefacts from elsewhere, on the store's own disk, removed when the block ends. One
        process at a time.
        """
        # Named as what is being written is, so that a sweep knows by the lock whether its owner lives.
        with self.lock("incoming"):
            folder = self._temporary / f"incoming.{secrets.token_hex(4)}"
            try:
                with disk_errors(self.root, strict=True):
                    folder.mkdir()
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def adopt(self, folder: Path, identity: str, *, finished: bool = True) -> bool:
        """Take in an artefact, or step checkpoints, from `incoming`, as verified; False when there is something
        already, which stays. Raises DiskError.
        """
        home = self._home(identity) if finished else self._partial / identity
        with self.lock(identity), disk_errors(self.root, strict=True):
            if self.has(identity) or (home.exists() and not finished):
                return False
            for parent, _, names in os.walk(folder):
                for name in names:
                    sync(Path(parent) / name)
                sync_folder(Path(parent))
            self._commit(folder, home)
            return True

    def partials(self) -> dict[str, Path]:
        """The folders of all step checkpoints, by identity."""
        return {folder.name: folder for folder in _entries(self._partial) if is_name(folder.name)}

    def sweep(self) -> None:
        """Remove what killed processes left: temporary folders that nobody writes, and checkpoints of finished work."""
        for folder in _entries(self._temporary):
            self._remove_if_idle(folder, folder.name.rpartition(".")[0])
        for folder in _entries(self._partial):
            if is_name(folder.name) and self.has(folder.name):
                self._remove_if_idle(folder, folder.name)

    def _lock_file(self, name: str) -> Path:
        return self._locks / f"{name}.lock"

    def _home(self, identity: str) -> Path:
        if not is_name(identity):
            raise ValueError(f"{identity!r} is not an identity")
        return self.root / identity

    def _folders(self) -> list[str]:
        with readable(self.root):
            return [entry.name for entry in _entries(self.root) if entry.is_dir() and is_name(entry.name)]

    def _remove_if_idle(self, folder: Path, identity: str) -> None:
        # A number of a process in the folder's name would be reused, and means nothing on a disk shared by machines.
        if is_name(identity):
            with self.if_idle(identity) as idle:
                if idle:
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def if_idle(self, identity: str) -> Iterator[bool]:
        """Hold the identity's lock if it is free. Who writes holds it until it dies: a free lock means it is dead."""
        if self._reading:
            with kept_free(self._lock_file(identity)) as free:
                yield free
            return
        held = FileLock(self._lock_file(identity), is_singleton=True)
        if held.is_locked:  # by this very thread, which could take it again
            yield False
            return
        try:
            held.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            held.release()

    def _seal(self, identity: str, folder: Path, record: Mapping[str, object]) -> None:
        """Check the files, write record and manifest, and see that everything is on the disk."""
        regular, other = contents_of(folder)
        if other:
            raise ValueError(f"{identity}: {other[0]} is a link or special file; an artefact holds plain files only")
        for name in regular:
            if name in (RECORD, MANIFEST):
                raise ValueError(f"{identity}: the name {name} is the store's own")
            if is_pickle(name):
                raise ValueError(f"{identity}: {name} is a pickle format; use safetensors, Parquet or JSON")
            if not is_inside(name):
                raise ValueError(f"{identity}: {name!r} cannot be a name in a manifest")
        write_json(folder / RECORD, dict(record))
        files = {
            name: {"sha256": file_digest(folder / name), "size": (folder / name).stat().st_size}
            for name in sorted([*regular, RECORD])
        }
        for name in regular:
            sync(folder / name)
        write_json(folder / MANIFEST, {"schema": SCHEMA, "identity": identity, "files": files})
        for parent, _, _ in os.walk(folder):
            sync_folder(Path(parent))

    def _commit(self, folder: Path, home: Path) -> None:
        try:
            os.rename(folder, home)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if self.has(home.name):
                return  # finished by someone whom the lock did not reach (a network disk without locks)
            raise UserError(
                "something without a manifest is in the artefact's place; it is never overwritten",
                where=str(home),
                hint="Run the same command again: it is set aside. Or move it away.",
            ) from error
        sync_folder(self.root)

    def _drop_partial(self, identity: str) -> None:
        shutil.rmtree(self._partial / identity, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, sorted; nothing in one that is not there. Raises UserError when it may not be read."""
    try:
        with readable(folder):
            return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _relative(folder: Path, root: Path) -> str:
    try:  # relative, so that both may be moved together
        return Path(os.path.relpath(folder, root)).as_posix()
    except ValueError:  # another drive
        return Path(os.path.abspath(folder)).as_posix()


def _machine() -> str:
    """Tells machines apart without naming them."""
    return hashlib.sha256(f"aligngap {platform.node()}".encode()).hexdigest()[:12]
