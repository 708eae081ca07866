"""Artefacts at an fsspec URL, for machines that share no disk. Each machine has a store of its own; what one has made
it brings here, and others get it from here.

    URL/artefacts/IDENTITY.tar    a finished artefact
    URL/partial/IDENTITY.tar      its step checkpoints, while it is being made
    URL/shown/NAME                of a run, for its nodes to find

An object store has no locks and no renames. So nothing rests on them: one object is one artefact, in the strict format
of `archive`; it is trusted only when all of it has been verified, and one that is half there counts as missing. What
two machines have both made is whole, whichever of the two stays.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from aligngap.errors import UserError
from aligngap.pipeline.archive import Refused, pack_one, unpack_one
from aligngap.store.store import Store

_KINDS = {True: "artefacts", False: "partial"}


def is_address(text: str) -> bool:
    """Whether it is a URL, and no folder."""
    return "://" in text


class RemoteCache:
    """A folder at a URL that fsspec knows; `s3://...` needs s3fs, `gs://...` gcsfs. Raises UserError for others.

    The libraries behind fsspec raise errors of any kind: all are passed on as UserError.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        with self._errors("cannot be used"):
            resolved: Any = fsspec.core.url_to_fs(url, use_listings_cache=False)
            self._files, self._root = resolved[0], str(resolved[1]).rstrip("/")

    def has(self, identity: str) -> bool:
        """Whether there is an artefact, whole or not."""
        with self._errors("cannot be read"):
            return bool(self._files.exists(self._place(identity, True)))

    def push(self, store: Store, identity: str, *, finished: bool = True) -> None:
        """Bring a finished artefact of the store, or its step checkpoints, here, in place of what there is. Raises
        UserError, and OSError for step checkpoints that change meanwhile, as they do while the stage is being made.
        """
        folder = store.get(identity).folder() if finished else store.unfinished(identity)
        target = self._place(identity, finished)
        with store.incoming() as outgoing:
            file = outgoing / "one.tar"
            with self._errors("cannot be written") if finished else nullcontext():
                pack_one(folder, identity, file, finished=finished)
            with self._errors("cannot be written"):
                self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(file), target)

    def pull(self, store: Store, identity: str, *, finished: bool = True) -> bool:
        """Get an artefact, or its step checkpoints, into the store, verified; False when it is not here. One that is
        damaged is removed, and is not here. Raises UserError.
        """
        source = self._place(identity, finished)
        with store.incoming() as incoming:
            file = incoming / "one.tar"
            with self._errors("cannot be read"):
                if not self._files.exists(source):
                    return False
                self._files.get_file(source, str(file))
            try:
                unpack_one(file, store, identity, finished=finished)
            except Refused as error:
                print(f"{self.url}: {identity}: {error}", flush=True)
                self.drop(identity, finished=finished)
                return False
        return True

    def drop(self, identity: str, *, finished: bool) -> None:
        """Remove what there is of it, if anything."""
        with suppress(Exception):  # it may be gone, or not ours to remove
            self._files.rm_file(self._place(identity, finished))

    @contextmanager
    def shown(self) -> Iterator[str]:
        """Leave something here under a name that nobody can guess, for `sees` to be asked for it on another machine."""
        name = secrets.token_hex(8)
        place = f"{self._root}/shown/{name}"
        with self._errors("cannot be written"):
            self._files.makedirs(f"{self._root}/shown", exist_ok=True)
            self._files.pipe_file(place, b"")
        try:
            yield name
        finally:
            with suppress(Exception):
                self._files.rm_file(place)

    def sees(self, name: str) -> str:
        """What keeps this machine from sharing the cache with the one that has `shown` it; empty when nothing does."""
        with self._errors("cannot be read"):
            there = self._files.exists(f"{self._root}/shown/{name}")
        return "" if there else f"what the run has put to {self.url} cannot be seen there"

    def _place(self, identity: str, finished: bool) -> str:
        return f"{self._root}/{_KINDS[finished]}/{identity}.tar"

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            words = f"{type(error).__name__}: {error}".splitlines()[0]
            hint = "See to the address, its library (s3fs for s3://) and your rights there, on every node."
            raise UserError(f"it {what}: {words}", where=self.url, hint=hint) from error
