"""Figures as files. To paint one takes half of a second, in a library that holds Python's lock, so they are painted in
processes of their own, side by side.

Light to import: each of these processes does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

from aligngap.errors import UserError
from aligngap.pipeline.processes import die_with_parent, without_interrupts, without_main
from aligngap.store.record import cores

Format = Literal["png", "svg", "pdf"]
FORMATS: tuple[Format, ...] = get_args(Format)
_NOTHING = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><text y="9">0</text></svg>'


_WARM = 2  # processes that are started ahead; more come when there is more to paint


class Painters:
    """The processes that paint, which start when there is something to paint or when they are told that there will be.

    processes: how many side by side; None: one a core. One is the process that asks.
    """

    def __init__(self, processes: int | None = None) -> None:
        most = cores() or 1
        self.processes = min(processes or most, most)
        self._pool: ProcessPoolExecutor | None = None

    def warm(self) -> None:
        """Start some now, ready to paint."""
        for _ in range(min(self.processes, _WARM) if self.processes > 1 else 0):
            self.submit(paint, _NOTHING, "png", Path(os.devnull))

    def submit(self, task: Callable[..., None], *given: object) -> Future[None]:
        """Have one of them do something; raises what a broken pool of processes does."""
        if self._pool is None:
            # Started afresh, and not forked from the server of stages: they need little of what that imports.
            context = get_context("spawn")
            self._pool = ProcessPoolExecutor(self.processes, mp_context=context, initializer=die_with_parent)
        with without_interrupts(), without_main():
            return self._pool.submit(task, *given)

    def close(self) -> None:
        """End them; what has not begun is not painted."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class Images:
    """Writes figures into a folder; leaving the block waits until all are there, or gives up after an error, and ends
    those who paint.

    processes: how many paint side by side, as for `Painters`, which may be given instead.
    """

    def __init__(
        self,
        folder: Path,
        formats: Sequence[Format],
        processes: int | None = None,
        painters: Painters | None = None,
    ) -> None:
        self.written: list[Path] = []
        self._folder, self._formats = folder, formats
        self._painters = painters or Painters(processes)
        self._pending: list[Future[None]] = []

    def add(self, name: str, svg: str) -> None:
        """A figure, as NAME.FORMAT in every format."""
        for form in self._formats:
            path = self._folder / f"{name}.{form}"
            self.written.append(path)
            if form == "svg" or self._painters.processes == 1:
                paint(svg, form, path)
            else:
                self._pending.append(self._painters.submit(paint, svg, form, path))

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if error is None:
                for future in self._pending:
                    future.result()
        except BrokenProcessPool as broken:
            error = broken
        finally:
            self._painters.close()
        if isinstance(error, BrokenProcessPool):
            hint = "Memory may have run out. `aligngap report DIR` writes report and figures again."
            raise UserError("a process that paints figures was killed", where=str(self._folder), hint=hint) from error


def paint(svg: str, form: Format, path: Path) -> None:
    """Write an SVG text in another format, PNG at twice the size of a screen's."""
    if form == "svg":
        content = svg.encode()
    else:
        import vl_convert

        content = bytes(vl_convert.svg_to_png(svg, scale=2) if form == "png" else vl_convert.svg_to_pdf(svg))
    path.write_bytes(content)
