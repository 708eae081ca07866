"""Which artefacts of a store some run still refers to. All others are garbage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aligngap.errors import UserError
from aligngap.pipeline.rundir import RunDirectory, is_in_use
from aligngap.store.store import Freed, Store, User


@dataclass
class Users:
    """The runs of a store. folders: those that refer to it; gone: runs that were removed; unseen: registered from
    another machine, or on a disk that is not here, so that nobody can say whether they are gone.
    """

    identities: set[str] = field(default_factory=set)
    folders: list[Path] = field(default_factory=list)
    gone: list[User] = field(default_factory=list)
    unseen: list[User] = field(default_factory=list)


def users_of(store: Store) -> Users:
    """Who refers to a store: the runs registered with it, and those that are found beside it or beside them, which may
    have been renamed. Raises UserError when it cannot be told.
    """
    found, root = Users(), store.root.resolve()
    registered = store.users()
    for user in registered:
        if user.gone:
            found.gone.append(user)
        elif not user.folder.exists():
            found.unseen.append(user)
            found.identities |= user.identities
        # A run that has just begun has registered, and may still have the status of its last run, elsewhere.
        elif is_in_use(user.folder) or _store_of(user.folder) in (None, root):
            found.folders.append(user.folder)
            found.identities |= user.identities
    places = dict.fromkeys([store.root.parent, *(user.folder.parent for user in registered)])
    for folder in dict.fromkeys([store.root.parent, *(folder for place in places for folder in _folders(place))]):
        if _store_of(folder) == root:
            found.identities |= _identities(folder)
            if folder not in found.folders:
                found.folders.append(folder)
    return found


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


def _folders(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from (path for path in sorted(place.iterdir()) if path.is_dir() and not path.name.startswith("."))


def _store_of(folder: Path) -> Path | None:
    """The store that a run's folder names; None when it is no run's folder or names none."""
    try:
        run = RunDirectory.open(folder)
        run.status()
    except UserError:
        return None
    return run.store_path().resolve()


def _identities(folder: Path) -> set[str]:
    stages = RunDirectory.open(folder).status().get("stages")
    try:
        return {str(stage["identity"]) for stage in stages or ()}
    except (TypeError, KeyError) as error:
        raise UserError(
            "it does not say which artefacts it needs",
            where=str(folder / "status.json"),
            hint="Give its `aligngap run` command again, or remove the run's folder.",
        ) from error
