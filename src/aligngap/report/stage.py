"""The report as the last stage of a run, made of nothing but the run's results: for the same results it is there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from aligngap.pipeline import REPORT
from aligngap.pipeline.graph import Context, Stage
from aligngap.store.disk import disk_errors, write_bytes_atomic
from aligngap.store.identity import file_digest

_RESULTS = ("results.json", "points.parquet", "samples.parquet")
_PAGE = "report.html"


class Report(Stage):
    """Page and figures. results: digests of the files that it is made of, by name; drawn_by: of the code that makes it
    of them. folder: where these files are; processes: how many paint side by side, as for `publish`. Where and by how
    many it is made decides nothing.
    """

    kind: ClassVar[str] = REPORT
    activity: ClassVar[str] = "report"

    results: dict[str, str]
    drawn_by: str
    folder: Path = Field(exclude=True)
    processes: int | None = Field(None, exclude=True)

    @classmethod
    def of(cls, folder: Path, processes: int | None = None) -> Report:
        """Of the results that are in a run's folder now."""
        results = {name: file_digest(folder / name) for name in _RESULTS if (folder / name).is_file()}
        return cls(results=results, drawn_by=_code_digest(), folder=folder.absolute(), processes=processes)

    @property
    def label(self) -> str:
        return "report"

    @property
    def work(self) -> float:
        return 6.0

    def run(self, context: Context) -> None:
        from aligngap.report.page import publish

        publish(self.folder, context.out, self.processes)


def deliver(artefact: Path, folder: Path) -> Path:
    """Copy a report's artefact into a run's folder, each file whole and the page last; the page's path. Raises
    DiskError.
    """
    for source in [*sorted((artefact / "charts").glob("*")), artefact / _PAGE]:
        target = folder / source.relative_to(artefact)
        with disk_errors(folder, strict=True):
            target.parent.mkdir(exist_ok=True)
        write_bytes_atomic(target, source.read_bytes())
    return folder / _PAGE


def _code_digest() -> str:
    package = Path(__file__).parent
    files = (path for path in sorted(package.rglob("*")) if path.is_file() and path.suffix != ".pyc")
    lines = (f"{path.relative_to(package).as_posix()}:{file_digest(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
