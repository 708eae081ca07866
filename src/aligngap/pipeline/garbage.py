"""Which artefacts of a store some run still refers to. All others are garbage."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from aligngap.errors import UserError
from aligngap.pipeline.rundir import RunDirectory, is_in_use
from aligngap.store.disk import read_json
from aligngap.store.reading import is_there, readable
from aligngap.store.store import Freed, Store, User


@dataclass
class Users:
    """The runs of a store. folders: those that refer to it; gone: runs that were removed; unseen: registered from
    another machine, on a disk that is not here, or gone from beside a folder that may not be read, so that nobody can
    say whether they are gone. closed: folders that may not be read, beside the store or a run of it.
    """

    identities: set[str] = field(default_factory=set)
    folders: list[Path] = field(default_factory=list)
    gone: list[User] = field(default_factory=list)
    unseen: list[User] = field(default_factory=list)
    closed: list[Path] = field(default_factory=list)


def users_of(store: Store) -> Users:
    """Who refers to a store: the runs registered with it, and those that are found beside it or beside them, which may
    have been renamed. Raises UserError when it cannot be told.
    """
    users, root, registered = Users(), store.root.resolve(), store.users()
    places = dict.fromkeys([store.root.parent, *(user.folder.parent for user in registered)])
    beside = list(dict.fromkeys(folder for place in places for folder in _folders(place)))
    users.closed = [folder for folder in beside if not os.access(folder, os.R_OK | os.X_OK)]
    for user in registered:
        # What is closed may be this run, renamed.
        may_be_there = any(folder.parent == user.folder.parent for folder in users.closed)
        if user.gone and not may_be_there:
            users.gone.append(user)
        elif not is_there(user.folder):
            users.unseen.append(user)
            users.identities |= user.identities
        # A run that has just begun has registered, and may still have the status of its last run, elsewhere.
        elif is_in_use(user.folder) or _store_of(user.folder) in (None, root):
            users.folders.append(user.folder)
            users.identities |= user.identities
    for folder in dict.fromkeys([store.root.parent, *beside]):
        if folder not in users.closed and _store_of(folder) == root:
            users.identities |= _identities(folder)
            if folder not in users.folders:
                users.folders.append(folder)
    return users


def collect_garbage(store: Store, dry_run: bool = False) -> tuple[list[Freed], Users]:
    """Free what no run refers to; what is being made stays. Waits for runs that are just registering.

    Raises UserError when no run was ever known: then nothing says what is needed.
    """
    with store.exclusively():
        users = users_of(store)
        if not (users.folders or users.gone or users.unseen) and store.identities():
            raise UserError(
                "no run is known that uses this store, so nothing says what is still needed",
                where=str(store.root),
                hint="Give the `aligngap run` command of a study that uses it again; or remove the whole folder.",
            )
        freed = store.free(users.identities, dry_run)
        if not dry_run:
            store.sweep()
            for user in users.gone:
                user.entry.unlink(missing_ok=True)
    return freed, users


def _folders(place: Path) -> list[Path]:
    if not is_there(place):
        return []
    with readable(place):
        return [path for path in sorted(place.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def _store_of(folder: Path) -> Path | None:
    """The store that a run's folder names, be its status damaged otherwise; None when it is no run's folder or names
    none.
    """
    try:
        RunDirectory.open(folder)
        status = read_json(folder / "status.json")
        return Path(folder / status.get("store", "store")).resolve()
    except (UserError, AttributeError, TypeError, ValueError, OSError, RuntimeError):
        return None


def _identities(folder: Path) -> set[str]:
    return {stage["identity"] for stage in RunDirectory.open(folder).status()["stages"]}
