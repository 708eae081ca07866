"""A stage in the process that makes it, which is the same wherever that process runs."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from types import FrameType
from typing import Any

from aligngap.errors import UserError, out_of_memory
from aligngap.pipeline.executors.packed import PackedStage
from aligngap.pipeline.executors.run import describe
from aligngap.pipeline.executors.together import Lost, make
from aligngap.pipeline.graph import CHECKPOINT_SECONDS, Context, Stage
from aligngap.pipeline.processes import Message, Reporter, die_with_parent, redirect
from aligngap.ranks import ALONE, Parallel
from aligngap.store.disk import DiskError
from aligngap.store.record import environment
from aligngap.store.store import Store
from aligngap.timings import account

_BETWEEN_MESSAGES = 0.2


@dataclass(frozen=True)
class StageSettings:
    """What every stage of a run is given. root: the store's folder; log: of this stage's output and traceback, None
    leaves them on the process's streams; record: what else goes into the artefact's record; parallel: how many
    processes make a stage together.
    """

    root: Path
    device: str
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    log: Path | None = None
    record: Mapping[str, str] = field(default_factory=dict)
    parallel: Parallel = ALONE


def stage_process(context: ForkServerContext | SpawnContext, stage: PackedStage, settings: StageSettings) -> Reporter:
    """A process that makes one stage, and reports what `Executor` lists. Raises OSError when it cannot start."""
    return Reporter(_work, stage, settings, name="stage", context=context)


class _Stopped(BaseException):
    """SIGTERM, in a stage's process. Not an Exception, so that no stage's own code can swallow it."""


def _work(messages: Connection, packed: PackedStage, settings: StageSettings) -> None:
    """The child's side, which sends what `Executor` lists."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _raise_stopped)
    sender = _Sender(messages)
    gc.freeze()  # what was imported before the fork is shared memory for as long as nobody looks for garbage in it
    try:
        if settings.log is not None:
            redirect(settings.log)
        faulthandler.enable(2)
        die_with_parent()
        if torch := sys.modules.get("torch"):  # imported before the fork; a later import reads the variables
            torch.set_num_threads(1)
        sender.send(*_make(packed.unpack(), settings, sender))
    except _Stopped:
        sender.send("vanished", "its process was told to stop (SIGTERM)")
    except Lost as error:
        sender.send("vanished", str(error))
    except DiskError as error:
        sender.send("disk", error)
    except UserError as error:
        sender.send("mistake", UserError(error.what, where=error.where, hint=error.hint))
    except BaseException as error:
        with suppress(OSError):  # the log's disk is full
            traceback.print_exc()
        sender.send("memory" if out_of_memory(error) else "failed", describe(error))


def _make(stage: Stage, settings: StageSettings, sender: _Sender) -> Message:
    store = Store(settings.root)
    with ExitStack() as stack:
        try:
            stack.enter_context(store.lock(stage.identity, timeout=1.0))
        except UserError:
            sender.send("progress", 0, 0, {}, "another run is making it")
            stack.enter_context(store.lock(stage.identity))
        store.set_aside(stage.identity)
        if store.has(stage.identity):
            return ("cached",)
        parents = [parent.identity for parent in stage.parents]
        if damaged := store.verify(parents):
            return ("damaged", damaged)
        start = time.perf_counter()
        record = {**stage.described, "environment": environment(), **settings.record}
        if stage.together and settings.parallel.processes > 1:
            record["parallel"] = settings.parallel.model_dump()
        folders = {identity: store.get(identity).path for identity in parents}
        try:
            with store.writing(stage.identity, record) as out:
                partial = store.partial(stage.identity)
                context = Context(
                    folders, out, partial, sender, settings.device, settings.checkpoint_seconds, store.cache
                )
                with account(stage.activity) as activities:
                    # On the CPU this process has started no threads that compute, and no device.
                    make(stage, context, settings.parallel, forked=settings.device == "cpu" and hasattr(os, "fork"))
                # The record is written when this block ends.
                record["spent"] = {activity: round(part, 3) for activity, part in activities.items()}
                record["seconds"] = seconds = round(time.perf_counter() - start, 3)
        except DiskError:
            raise
        except Exception:
            if damaged := store.verify(parents):  # no wonder that it failed
                return ("damaged", damaged)
            raise
        return ("finished", seconds)


class _Sender:
    """The stage's `progress`: called at every step, it speaks a few times a second."""

    def __init__(self, messages: Connection) -> None:
        self._messages = messages
        self._at = -1.0
        self._sent = (-1, -1)

    def __call__(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - self._at < _BETWEEN_MESSAGES and (done < total or self._sent == (done, total)):
            return
        self._at, self._sent = now, (done, total)
        self.send("progress", done, total, {name: float(value) for name, value in metrics.items()}, "")

    def send(self, *message: Any) -> None:
        with suppress(OSError):  # the parent is gone; the watch on it ends this process
            self._messages.send(message)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would break into the clearing up
    raise _Stopped
