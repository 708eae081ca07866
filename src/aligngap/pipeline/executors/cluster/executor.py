"""Runs stages on a Ray cluster. One keeper task a stage, which asks for the stage's CPU and GPU; everything that
decides what becomes of a stage is the run's (`executors/run.py`), as on one machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from aligngap.errors import UserError
from aligngap.pipeline.executors.cluster.driver import OWN, Terms, drive
from aligngap.pipeline.executors.cluster.node import Job, here
from aligngap.pipeline.executors.packed import PackedStage
from aligngap.pipeline.executors.run import Executor
from aligngap.pipeline.executors.worker import StageSettings
from aligngap.pipeline.graph import CHECKPOINT_SECONDS, Stage
from aligngap.pipeline.processes import GRACE, Child, Message
from aligngap.pipeline.remote_cache import RemoteCache
from aligngap.ranks import ALONE, Parallel
from aligngap.store.disk import DiskError, disk_errors
from aligngap.store.store import Store

LOG = "ray.log"
"""In the folder of logs: what Ray had to say, kept when something went wrong."""
_CONNECT = 420.0  # seconds to the first word, in which every node is asked whether it fits


class RayExecutor(Executor):
    """address: HOST:PORT of the cluster's head, or auto for the one that this machine is part of; None: RAY_ADDRESS,
    and without that a cluster of one node is started here, which ends with the run. jobs: stages side by side, None: as
    many as the cluster has room for, which may change. device: as `check` allows. log_folder: as for the local
    executor; no node needs to see it. remote_cache: address by which artefacts go from machine to machine; None: all
    nodes see the store. parallel: how many processes make a stage together, all on one node.

    Entering raises UserError when there is no such cluster, or one of its nodes cannot make the run's stages.
    """

    def __init__(
        self,
        store: Store,
        *,
        address: str | None,
        jobs: int | None,
        device: str,
        log_folder: Path,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        remote_cache: str | None = None,
        parallel: Parallel = ALONE,
    ) -> None:
        super().__init__(store)
        self._remote_cache = RemoteCache(remote_cache) if remote_cache else None
        self._address = address or os.environ.get("RAY_ADDRESS") or OWN
        self._wanted_jobs, self._gpus, self._parallel = jobs, parallel.processes * (device != "cpu"), parallel
        self._settings = StageSettings(store.root, device, checkpoint_seconds, parallel=parallel)
        self._log_folder = log_folder
        self._room = 0
        self._running: set[str] = set()
        self._logged: set[str] = set()
        self._last: list[tuple[str, Message]] = []  # last words of what has ended with the driver
        self._over = self._broke = False

    @staticmethod
    def check(device: str, parallel: Parallel = ALONE) -> None:
        """Raises UserError when Ray is not here, or has no such device to give."""
        if device not in ("cpu", "cuda"):
            hint = "Set device to cuda: Ray gives each stage a GPU of its own." if device.startswith("cuda:") else None
            raise UserError(f"Ray cannot give stages the device '{device}'", where="device", hint=hint)
        if find_spec("ray") is None:
            hint = "Install it: pip install 'aligngap[ray]'."
            raise UserError("Ray is not installed", where="--executor ray", hint=hint)
        parallel.check(device)

    @property
    def jobs(self) -> int:
        return self._room

    def __enter__(self) -> Self:
        with disk_errors(self._log_folder, strict=True):
            self._log_folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            shared = self._remote_cache or self.store
            place = self._remote_cache.url if self._remote_cache else str(self.store.root)
            token = stack.enter_context(shared.shown())
            cpus = self._parallel.processes
            terms = Terms(self._address, self._wanted_jobs, cpus, self._gpus, (here(), place, token))
            self._driver = Child(drive, terms, self._log_folder / LOG, name="ray")
            stack.callback(self._end_driver)
            self._wait_until_ready()
            self.stack = stack.pop_all()
        return self

    def _wait_until_ready(self) -> None:
        if not self._driver.pipe.poll(_CONNECT):
            raise self._broken(f"the Ray cluster did not answer within {_CONNECT:.0f} seconds")
        for _ in self._received(0.0):  # the room that there is, or why there is none
            pass

    def start(self, stage: Stage) -> None:
        inputs = tuple(parent.identity for parent in stage.parents)
        remote_cache = self._remote_cache.url if self._remote_cache else None
        job = Job(PackedStage.of(stage), self._settings, stage.identity, remote_cache, inputs)
        if self._remote_cache:  # what an earlier run has made here
            for identity in (stage.identity, *inputs):
                if (
                    self.store.has(identity)
                    and not self._remote_cache.has(identity)
                    and not self.store.verify([identity])
                ):
                    self._remote_cache.push(self.store, identity)
        with suppress(OSError):  # the driver is gone, as `listen` will find
            self._driver.pipe.send(("start", stage.identity, job.packed()))
        self._running.add(stage.identity)
        self._logged.discard(stage.identity)

    def listen(self, seconds: float) -> Iterator[tuple[str, Message]]:
        if not self._over:
            yield from self._received(seconds)
        while self._last:
            yield self._last.pop()

    def _received(self, seconds: float) -> Iterator[tuple[str, Message]]:
        while self._driver.pipe.poll(seconds):
            seconds = 0.0
            try:
                word, *rest = self._driver.pipe.recv()
            except (EOFError, OSError):
                raise self._give_up(self._broken("the connection to the Ray cluster is lost")) from None
            if word == "room":
                (self._room,) = rest
            elif word == "broken":
                raise self._give_up(rest[0])
            else:
                identity, message = rest
                if message[0] == "log":
                    self._log(identity, message[1])
                    continue
                if message[0] != "progress":
                    self._running.discard(identity)
                    message = self._brought(identity, message)
                yield identity, message

    def _brought(self, identity: str, message: Message) -> Message:
        """A last word, when what was made has come here too."""
        if self._remote_cache and message[0] in ("finished", "cached") and not self.store.has(identity):
            try:
                if not self._remote_cache.pull(self.store, identity):
                    return ("vanished", f"what it made has not come whole to {self._remote_cache.url}")
            except DiskError as error:
                return ("disk", error)
            except UserError as error:
                return ("failed", str(error))
        return message

    def _give_up(self, problem: UserError) -> UserError:
        self._broke = True
        self._end_driver()
        return problem

    def _broken(self, what: str) -> UserError:
        where = "--executor ray" if self._address == OWN else f"--address {self._address}"
        hint = f"See {self._log_folder / LOG}, and that the cluster runs. Then give the same command again: what is "
        return UserError(what, where=where, hint=f"{hint}finished is kept, and training goes on from its checkpoints.")

    def stop(self) -> None:
        with suppress(OSError):
            self._driver.pipe.send(("stop",))

    def kill(self) -> None:
        self._end_driver()

    def _end_driver(self) -> None:
        """However it ends, Ray ends with it what it has started."""
        self._driver.terminate()
        self._driver.end(GRACE)
        self._over = True
        self._last += [(identity, ("vanished", "it was stopped")) for identity in self._running]
        self._running.clear()

    def close(self) -> None:
        super().close()
        if not self._broke:
            self._drop_log()

    def _drop_log(self) -> None:
        (self._log_folder / LOG).unlink(missing_ok=True)

    def _log(self, identity: str, data: bytes) -> None:
        mode = "ab" if identity in self._logged else "wb"
        self._logged.add(identity)
        with disk_errors(self._log_folder, strict=True), open(self._log_folder / f"{identity}.log", mode) as file:
            file.write(data)
