"""Runs stages in processes of this machine, as many side by side as there are cores.

One process a stage, so that a stage that dies takes nothing with it, and one thread a process, so that sums are added
in the same order whatever the number of jobs is: results are bit-identical for every `--jobs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Self

from aligngap.errors import UserError
from aligngap.pipeline.executors.packed import PackedStage
from aligngap.pipeline.executors.run import Executor
from aligngap.pipeline.executors.server import one_thread, process_context
from aligngap.pipeline.executors.worker import StageSettings, stage_process
from aligngap.pipeline.graph import CHECKPOINT_SECONDS, Stage
from aligngap.pipeline.processes import Message, Reporter
from aligngap.ranks import ALONE, Parallel
from aligngap.store.disk import disk_errors
from aligngap.store.record import cores
from aligngap.store.store import Store


def default_jobs(device: str, parallel: Parallel = ALONE) -> int:
    """Stages side by side when the user does not say: a core for each process; on accelerators one, for their memory's
    sake.
    """
    if device != "cpu":
        return 1
    return max(1, (cores() or 1) // parallel.processes)


class LocalExecutor(Executor):
    """jobs: stages side by side; None: `default_jobs`. log_folder: where each stage's output and traceback go (a
    file an identity, none for a silent stage); None leaves them on this process's streams. checkpoint_seconds: how much
    work a kill may cost. parallel: how many processes make a stage together.
    """

    def __init__(
        self,
        store: Store,
        *,
        jobs: int | None,
        device: str,
        log_folder: Path | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        parallel: Parallel = ALONE,
    ) -> None:
        super().__init__(store)
        self._jobs, self._log_folder = jobs or default_jobs(device, parallel), log_folder
        self._settings = StageSettings(store.root, device, checkpoint_seconds, parallel=parallel)
        self._running: dict[Connection, tuple[str, Reporter]] = {}

    def __enter__(self) -> Self:
        if self._log_folder is not None:
            with disk_errors(self._log_folder, strict=True):
                self._log_folder.mkdir(parents=True, exist_ok=True)
        self.stack.enter_context(one_thread())
        return self

    @staticmethod
    def check(device: str, parallel: Parallel = ALONE) -> None:
        """Raises UserError when this machine has no such device, or fewer than processes."""
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError("this machine has no CUDA device", where="device", hint="Use --set device=cpu.")
        parallel.check(device, torch.cuda.device_count())

    @property
    def jobs(self) -> int:
        return self._jobs

    def start(self, stage: Stage) -> None:
        settings = replace(self._settings, log=self._log(stage.identity))
        process = stage_process(process_context(), PackedStage.of(stage), settings)
        self._running[process.pipe] = (stage.identity, process)

    def listen(self, seconds: float) -> Iterator[tuple[str, Message]]:
        for ready in wait(list(self._running), timeout=seconds):
            assert isinstance(ready, Connection)
            identity, process = self._running[ready]
            if message := process.read():
                if process.ended:
                    del self._running[ready]
                    self._drop_empty_log(identity)
                yield identity, message

    def stop(self) -> None:
        for _, process in self._running.values():
            process.terminate()

    def kill(self) -> None:
        for _, process in self._running.values():
            process.kill()

    def _log(self, identity: str) -> Path | None:
        return self._log_folder / f"{identity}.log" if self._log_folder else None

    def _drop_empty_log(self, identity: str) -> None:
        if log := self._log(identity):
            with suppress(OSError):
                if log.stat().st_size == 0:
                    log.unlink()
