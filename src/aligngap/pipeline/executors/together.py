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
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from aligngap import ranks
from aligngap.pipeline.executors.packed import PackedStage
from aligngap.pipeline.graph import Context, Progress, Stage
from aligngap.pipeline.processes import GRACE, Child, die_with_parent
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
    group: list[_Rank] = []
    with tempfile.TemporaryDirectory(prefix="aligngap-") as folder:
        try:
            for number in range(parallel.processes):
                given = (number, parallel, device, Path(folder) / "rendezvous", work, arguments)
                group.append(_Rank(number, Child(_rank, *given, name=f"rank {number}", context=context)))
            _watch(group, progress)
        finally:
            for rank in group:
                rank.child.end()


@dataclass
class _Rank:
    number: int
    child: Child
    finished: bool = False
    error: tuple[float, BaseException, str] | None = None
    """When, what, and its traceback."""
    ended: bool = False


def _watch(group: list[_Rank], progress: Progress) -> None:
    deadline: float | None = None
    while open_ones := {rank.child.pipe: rank for rank in group if not rank.ended}:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            break
        for ready in wait(list(open_ones), timeout=left):
            assert isinstance(ready, Connection)
            rank = open_ones[ready]
            try:
                word, *rest = ready.recv()
            except (EOFError, OSError):
                rank.ended = True
                continue
            if word == "progress":
                progress(*rest)
            elif word == "finished":
                rank.finished = True
            else:
                rank.error = (rest[0], rest[1], rest[2])
        if deadline is None and any(rank.error or (rank.ended and not rank.finished) for rank in group):
            deadline = time.monotonic() + _AFTERMATH
    _raise_the_cause(group)


def _raise_the_cause(group: list[_Rank]) -> None:
    """One rank's end is all ranks' end. What each saw of it: the cause is an error of its own before a lost process,
    and that before an error in talking to the others.
    """
    of = f"of {len(group)}"
    failed = [(*rank.error, rank.number) for rank in group if rank.error]
    failed.sort(key=lambda said: (_of_talking(said[1]), said[0]))
    lost = [rank for rank in group if rank.ended and not rank.finished and not rank.error]
    if lost and not (failed and not _of_talking(failed[0][1])):
        rank = lost[0]
        raise Lost(f"rank {rank.number} {of}: {rank.child.end(GRACE)}")
    for _, error, trace, number in failed[:1]:
        raise error from FromRank(f"in rank {number} {of}:\n{trace}")


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

        with ranks.joined(number, parallel, device, rendezvous) as own:
            work(str(own), _silent if number else progress, *arguments)
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
