"""One stage, made by several processes of this machine: started together, ended together.

The stage's own process starts the ranks, watches them and does nothing else, so whatever one of them comes to is seen,
even while the others wait for it within a library.
"""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from aligngap import ranks
from aligngap.pipeline.executors.packed import PackedStage
from aligngap.pipeline.graph import Context, Progress, Stage
from aligngap.pipeline.processes import Message, Reporter, die_with_parent
from aligngap.ranks import Parallel

# After a first sign of trouble the other ranks get this long to end by themselves and say what they saw.
_AFTERMATH = 3.0

Work = Callable[..., None]
"""(device, progress, *arguments) -> None, on every rank."""


class Lost(Exception):
    """A rank's process ended without a word. What it was part of may be tried again."""


class FromRank(Exception):
    """Where in which rank an error came from: the cause of the error that is raised again here."""


def make(stage: Stage, context: Context, parallel: Parallel, *, forked: bool = False) -> None:
    """Run a stage, by as many processes as it may have. Raises what the stage raises, or Lost.

    forked: start the ranks as copies of this process, which is quick, but only for a process that has started neither
    threads nor devices.
    """
    if parallel.processes == 1 or not stage.together:
        stage.run(context)
        return
    # Of the first rank's files an artefact is made. Names as the store's own, which sweeps up after a kill.
    folders = [context.out, *(context.out.with_name(f"{context.out.name}-{k}") for k in range(1, parallel.processes))]
    given = (PackedStage.of(stage), replace(context, progress=_silent), folders)
    try:
        together(_stage, given, parallel, context.device, forked=forked, progress=context.progress)
    finally:
        for folder in folders[1:]:
            shutil.rmtree(folder, ignore_errors=True)


def _stage(device: str, progress: Progress, packed: PackedStage, context: Context, folders: list[Path]) -> None:
    out = folders[ranks.rank()]
    out.mkdir(exist_ok=True)
    packed.unpack().run(replace(context, device=device, progress=progress, out=out))


def _silent(done: int, total: int, metrics: Mapping[str, float]) -> None:
    """Says nothing."""


def together(
    work: Work,
    arguments: tuple[Any, ...],
    parallel: Parallel,
    device: str,
    *,
    forked: bool = False,
    progress: Progress = _silent,
) -> None:
    """Run `work(device, progress, *arguments)` on every rank, and come back when all have; the first rank's progress is
    handed on. Raises what the first rank that failed raised, or Lost; no rank outlives this call.

    work, arguments: picklable, unless forked.
    """
    context = multiprocessing.get_context("fork") if forked else multiprocessing.get_context("spawn")
    group: list[Reporter] = []
    with tempfile.TemporaryDirectory(prefix="aligngap-") as folder:
        try:
            for number in range(parallel.processes):
                given = (number, parallel, device, Path(folder) / "rendezvous", work, arguments)
                group.append(Reporter(_rank, *given, name=f"rank {number}", context=context))
            _raise_the_cause(_watch(group, progress), len(group))
        finally:
            for rank in group:
                rank.end()


def _watch(group: list[Reporter], progress: Progress) -> dict[int, Message]:
    """The ranks' last messages, of those that had one before the deadline."""
    last: dict[int, Message] = {}
    deadline: float | None = None
    while running := {rank.pipe: number for number, rank in enumerate(group) if number not in last}:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            break
        for ready in wait(list(running), timeout=left):
            assert isinstance(ready, Connection)
            number = running[ready]
            message = group[number].read()
            if message and message[0] == "progress":
                progress(*message[1:])
            elif message:
                last[number] = message
        if deadline is None and any(word != "finished" for word, *_ in last.values()):
            deadline = time.monotonic() + _AFTERMATH
    return last


def _raise_the_cause(last: Mapping[int, Message], size: int) -> None:
    """One rank's end is all ranks' end. What each saw of it: the cause is an error of its own before a lost process,
    and that before an error in talking to the others.
    """
    failed = [
        (_of_talking(message[2]), message[1], number) for number, message in last.items() if message[0] == "failed"
    ]
    talking, _, cause = min(failed, default=(True, 0.0, None))
    lost = [number for number, message in last.items() if message[0] == "vanished"]
    if lost and talking:
        raise Lost(f"rank {min(lost)} of {size}: {last[min(lost)][1]}")
    if cause is not None:
        _, _, error, trace = last[cause]
        raise error from FromRank(f"in rank {cause} of {size}:\n{trace}")


def _of_talking(error: BaseException) -> bool:
    # gloo raises plain RuntimeErrors, which name its source files.
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _rank(
    messages: Connection,
    number: int,
    parallel: Parallel,
    device: str,
    rendezvous: Path,
    work: Work,
    arguments: tuple[Any, ...],
) -> None:
    """The rank's side. It puts nothing away when it is told to stop: the files are its parent's, or checkpoints."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        die_with_parent()
        if device == "cpu":
            torch.set_num_threads(1)

        def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
            messages.send(("progress", done, total, dict(metrics)))

        with ranks.joined(number, parallel, device, rendezvous) as device_of_rank:
            work(str(device_of_rank), _silent if number else progress, *arguments)
        messages.send(("finished",))
    except BaseException as error:
        with suppress(OSError):
            messages.send(("failed", time.monotonic(), _portable(error), traceback.format_exc()))
        # The others see that this one is gone, which frees those that wait for it.
        raise SystemExit(1) from None


def _portable(error: BaseException) -> BaseException:
    """The error, or one that says the same where it does not survive the way to another process."""
    try:
        again = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its own way of being rebuilt raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error if type(again) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")
