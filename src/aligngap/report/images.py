"""Figures as files. To paint one takes half of a second, in a library that holds Python's lock, so they are painted in
processes of their own, side by side.

Light to import: each of these processes does.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Images:
    """Writes figures into a folder; leaving the block waits until all are there, or gives up after an error, and ends
    the processes that paint, which start when there is something to paint.

    processes: how many paint side by side; None: one a core. One is this process.
    """

    def __init__(self, folder: Path, formats: Sequence[Format], processes: int | None = None) -> None:
        self.written: list[Path] = []
        self._folder, self._formats = folder, formats
        most = cores() or 1
        self._processes = min(processes or most, most)
        self._pool: ProcessPoolExecutor | None = None
        self._pending: list[Future[None]] = []

    def add(self, name: str, svg: str) -> None:
        """A figure, as NAME.FORMAT in every format. Raises what a broken pool of processes does."""
        for form in self._formats:
            path = self._folder / f"{name}.{form}"
            self.written.append(path)
            if form == "svg" or self._processes == 1:
                paint(svg, form, path)
            else:
                self._pending.append(self._submit(svg, form, path))

    def _submit(self, svg: str, form: Format, path: Path) -> Future[None]:
        if self._pool is None:
            # Started afresh, and not forked from the server of stages: they need little of what that imports.
            context = get_context("spawn")
            self._pool = ProcessPoolExecutor(self._processes, mp_context=context, initializer=die_with_parent)
        with without_interrupts(), without_main():
            return self._pool.submit(paint, svg, form, path)

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
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)
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
