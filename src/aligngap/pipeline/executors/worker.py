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
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from aligngap.errors import UserError, out_of_memory
from aligngap.pipeline.executors.process import GRACE, PackedStage, death, die_with_parent
from aligngap.pipeline.executors.run import Message, describe
from aligngap.pipeline.executors.server import without_main
from aligngap.pipeline.executors.together import Lost, make
from aligngap.pipeline.graph import CHECKPOINT_SECONDS, Context, Stage
from aligngap.ranks import ALONE, Parallel
from aligngap.store.disk import DiskError, disk_errors
from aligngap.store.record import environment
from aligngap.store.store import Store
from aligngap.timings import account

_BETWEEN_MESSAGES = 0.2


@dataclass(frozen=True)
class Settings:
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


class StageProcess:
    """A process that makes one stage. Raises OSError when it cannot be started."""

    def __init__(
        self, context: ForkServerContext | SpawnContext, name: str, stage: PackedStage, settings: Settings
    ) -> None:
        self.messages, send = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(target=_work, args=(stage, settings, send), name=name)
        self._last: Message | None = None
        try:
            with without_main():
                _start(self._process)
        except BaseException:
            self.messages.close()
            raise
        finally:
            # The child's end must be open in the child only, or its death would go unseen.
            send.close()

    @property
    def ended(self) -> bool:
        """Whether the last word has been read."""
        return self.messages.closed

    def read(self, seconds: float = 0.0) -> Message | None:
        """The next message, or None when there is none within this time. The last word comes when the process has
        ended.
        """
        if not self.messages.poll(seconds):
            return None
        try:
            message: Message = self.messages.recv()
        except (EOFError, OSError):
            return self._end()
        if message[0] == "progress":
            return message
        self._last = message
        return None

    def terminate(self) -> None:
        """Tell it to put its files away and end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self) -> None:
        """End it, gently as long as there is time, unless it has ended."""
        if self.ended:
            return
        self.terminate()
        deadline = time.monotonic() + GRACE
        while not self.messages.closed and (left := deadline - time.monotonic()) > 0:
            self.read(left)
        if not self.messages.closed:
            self.kill()
            self._end()

    def _end(self) -> Message:
        """It has closed its end of the pipe: it is dead or about to be."""
        self.messages.close()
        self._process.join(GRACE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        code = self._process.exitcode
        self._process.close()
        return self._last or ("vanished", death(code))


def _start(process: BaseProcess) -> None:
    """Start it; again where the server that forks it is lost in that very moment, because there is a new one then, once
    the system has noticed: a process that is killed closes its connections a little before it counts as dead.
    """
    for pause in (0.02, 0.2, 2.0):
        try:
            process.start()
        except (EOFError, ConnectionError):
            time.sleep(pause)
        else:
            return
    process.start()


class _Stopped(BaseException):
    """SIGTERM, in a stage's process. Not an Exception, so that no stage's own code can swallow it."""


def _work(packed: PackedStage, settings: Settings, messages: Connection) -> None:
    """The child's side, which says what `Message` lists."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _raise_stopped)
    send = _Sender(messages)
    gc.freeze()  # what was imported before the fork is shared memory for as long as nobody looks for garbage in it
    gc.enable()
    try:
        if settings.log is not None:
            redirect(settings.log)
        faulthandler.enable(2)
        die_with_parent()
        if torch := sys.modules.get("torch"):  # imported before the fork; a later import reads the variables
            torch.set_num_threads(1)
        send.last(_make(packed.unpack(), settings, send))
    except _Stopped:
        send.last(("vanished", "its process was told to stop (SIGTERM)"))
    except Lost as error:
        send.last(("vanished", str(error)))
    except DiskError as error:
        send.last(("disk", error))
    except UserError as error:
        send.last(("mistake", UserError(error.what, where=error.where, hint=error.hint)))
    except BaseException as error:
        with suppress(OSError):  # the log's disk is full
            traceback.print_exc()
        send.last(("memory" if out_of_memory(error) else "failed", describe(error)))


def redirect(log: Path) -> None:
    """This process's output goes to a file. The streams themselves: what native code prints cannot disturb a display,
    and a crash leaves a trace. Raises DiskError.
    """
    with disk_errors(log.parent, strict=True):
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _make(stage: Stage, settings: Settings, send: _Sender) -> Message:
    store = Store(settings.root)
    with ExitStack() as stack:
        try:
            stack.enter_context(store.lock(stage.identity, timeout=1.0))
        except UserError:
            send.progress(0, 0, {}, "another run is making it")
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
                    folders, out, partial, send, settings.device, settings.checkpoint_seconds, store.cache
                )
                with account(stage.activity) as spent:
                    # On the CPU this process has started no threads that compute, and no device.
                    make(stage, context, settings.parallel, forked=settings.device == "cpu" and hasattr(os, "fork"))
                # The record is written when this block ends.
                record["spent"] = {activity: round(part, 3) for activity, part in spent.items()}
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
        self._said = (-1, -1)

    def __call__(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - self._at < _BETWEEN_MESSAGES and (done < total or self._said == (done, total)):
            return
        self._at, self._said = now, (done, total)
        self.progress(done, total, {name: float(value) for name, value in metrics.items()}, "")

    def progress(self, done: int, total: int, metrics: dict[str, float], note: str) -> None:
        with suppress(OSError):  # the parent is gone; the watch on it ends this process
            self._messages.send(("progress", done, total, metrics, note))

    def last(self, message: Message) -> None:
        with suppress(OSError):
            self._messages.send(message)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would break into the clearing up
    raise _Stopped
