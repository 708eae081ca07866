"""What happens on a node of the cluster. A Ray task is a keeper: it starts the stage in a process of its own, exactly
as on one machine, passes on what it reports, and ends it when the run stops. So a worker that Ray uses again has
nothing of a stage in it, and what kills a stage does not kill its keeper.
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aligngap import __version__
from aligngap.errors import UserError
from aligngap.pipeline.executors.packed import PackedStage
from aligngap.pipeline.executors.server import one_thread, process_context
from aligngap.pipeline.executors.worker import StageSettings, stage_process
from aligngap.pipeline.processes import GRACE, Message
from aligngap.pipeline.remote_cache import RemoteCache, is_address
from aligngap.pipeline.rundir import STORE_VARIABLE
from aligngap.store.contents import Problem
from aligngap.store.disk import DiskError, disk_errors
from aligngap.store.identity import file_digest
from aligngap.store.record import versions
from aligngap.store.store import Store

_BETWEEN_LOOKS = 0.2
_LOG_PART = 1 << 18


@dataclass(frozen=True)
class Job:
    """What a node is sent. remote_cache: address of the artefacts, None where the run's store is the node's as well;
    inputs: identities of all artefacts that the stage may read (`Stage.parents`), which are brought here before it
    starts.
    """

    stage: PackedStage
    settings: StageSettings
    identity: str
    remote_cache: str | None = None
    inputs: tuple[str, ...] = ()

    def packed(self) -> bytes:
        """For `keep`."""
        return pickle.dumps(self)


# Once a process: the code that runs is the code that was imported.
@functools.cache
def here() -> dict[str, Any]:
    """What all nodes must have in common, for results to be those of one machine. Plain values, so that a node without
    this package can be told of them.
    """
    package = Path(__file__).parents[3]
    code = {path.relative_to(package).as_posix(): file_digest(path) for path in sorted(package.rglob("*.py"))}
    return {
        "python": ".".join(map(str, sys.version_info[:2])),
        "aligngap": __version__,
        "code": code,
        "packages": versions(),
    }


def unfit(wanted: Mapping[str, Any], place: str, token: str) -> str:
    """Why this machine cannot make stages of a run; empty when it can.

    wanted: what `here` gave to the run's process. place, token: its store or remote cache, and what `shown` gave.
    """
    ours = here()
    for name in ("python", "aligngap"):
        if ours[name] != wanted[name]:
            return f"it has {name} {ours[name]}, and the run's machine has {wanted[name]}"
    if ours["code"] != wanted["code"]:
        names = {*ours["code"], *wanted["code"]}
        other = min(name for name in names if ours["code"].get(name) != wanted["code"].get(name))
        return f"its aligngap is of the same version and not the same: {other} differs"
    for name, version in wanted["packages"].items():
        if ours["packages"].get(name) != version:
            return f"it has {name} {ours['packages'].get(name)}, and the run's machine has {version}"
    if not is_address(place):
        return Store(place, reading=True).sees(token)
    try:
        return RemoteCache(place).sees(token)
    except UserError as error:
        return str(error)


def keep(job: bytes, node: str) -> Iterator[Message]:
    """Make a stage: its messages, and ("log", bytes) for what it prints.

    job: a packed `Job`. node: goes into the artefact's record. Closing the generator, or an exception in it, ends the
    stage.
    """
    given: Job = pickle.loads(job)
    settings = replace(given.settings, record={"node": node})
    if given.remote_cache is None:
        yield from _keep(given, settings)
    else:
        yield from _carry(given, settings, RemoteCache(given.remote_cache))


def _keep(given: Job, settings: StageSettings) -> Iterator[Message]:
    with tempfile.TemporaryDirectory(prefix="aligngap-") as folder, one_thread():
        log = Path(folder) / "log"
        process = stage_process(process_context(), given.stage, replace(settings, log=log))
        try:
            read = 0
            while True:
                message = process.read(_BETWEEN_LOOKS)
                while part := _from(log, read):
                    read += len(part)
                    yield ("log", part)
                if message:
                    yield message
                if process.ended:
                    return
        finally:
            process.terminate()
            process.end(GRACE)


def _carry(given: Job, settings: StageSettings, remote_cache: RemoteCache) -> Iterator[Message]:
    """The same in a store of the node's own: inputs are brought from the remote cache, the artefact is brought
    there, and its step checkpoints on the way.
    """
    store = Store(own_store())
    store.sweep()
    name = given.identity
    try:
        if store.has(name) or remote_cache.pull(store, name):
            store.set_aside(name)
        elif not store.unfinished(name).exists():
            remote_cache.pull(store, name, finished=False)
        missing = [part for part in given.inputs if not store.has(part) and not remote_cache.pull(store, part)]
        if missing and not store.has(name):
            yield ("damaged", [Problem(part, "", "missing") for part in missing])
            return
        brought = _newest(store.unfinished(name))
        at = time.monotonic()
        for message in _keep(given, replace(settings, root=store.root)):
            if message[0] in ("finished", "cached"):
                if message[0] == "finished" or not remote_cache.has(name):
                    remote_cache.push(store, name)
                remote_cache.drop(name, finished=False)
            elif message[0] == "damaged":  # here, while the remote_cache may well have it whole
                for problem in message[1]:
                    store.set_aside(problem.identity)
            elif time.monotonic() - at >= settings.checkpoint_seconds:
                at = time.monotonic()
                if (newest := _newest(store.unfinished(name))) != brought:
                    brought = newest
                    with suppress(OSError):  # replaced meanwhile: the next is as good
                        remote_cache.push(store, name, finished=False)
            yield message
    except DiskError as error:
        yield ("disk", error)
    except UserError as error:
        yield ("failed", str(error))


def own_store() -> Path:
    """Where this machine keeps artefacts that it has brought from a remote cache. Raises UserError when that is not the
    user's own.
    """
    if chosen := os.environ.get(STORE_VARIABLE):
        return Path(chosen)
    folder = Path(tempfile.gettempdir()) / f"aligngap-{os.getuid()}"
    with disk_errors(folder.parent, strict=True):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
            hint = f"Set {STORE_VARIABLE} to a folder of yours on the nodes."
            raise UserError("the folder belongs to somebody else", where=str(folder), hint=hint)
    return folder / "store"


def _newest(folder: Path) -> float:
    """When something in it has last changed."""
    latest = 0.0
    with suppress(FileNotFoundError):
        latest = max((path.stat().st_mtime for path in folder.rglob("*")), default=0.0)
    return latest


def _from(path: Path, start: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(_LOG_PART)
    except FileNotFoundError:  # it has not been opened yet
        return b""
