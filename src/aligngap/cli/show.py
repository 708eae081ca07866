"""What commands print, beside plain texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from aligngap.errors import UserError
from aligngap.terminal import complain, console, harmless, say, warn

__all__ = ["AGAIN", "complain", "console", "needs", "opened", "plain", "say", "table", "warn"]

if TYPE_CHECKING:
    from aligngap.pipeline.rundir import RunDirectory

AGAIN = "Give the `aligngap run` command again."


def table(title: str, *columns: str) -> Table:
    """An empty table; a column whose name begins with > is of numbers."""
    made = Table(title=plain(title), title_justify="left")
    for column in columns:
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        made.add_column(plain(column.removeprefix(">")), justify=justify, overflow="fold")
    return made


def plain(text: str) -> Text:
    """A text as it is, no markup, without control characters, so that columns keep their width."""
    return Text(harmless(text))


def opened(directory: Path) -> RunDirectory:
    """The folder of a run. Raises UserError when it is none."""
    from aligngap.pipeline.rundir import RunDirectory

    return RunDirectory.open(directory)


def needs(directory: Path, file: str) -> Path:
    """A file that a run has written in its folder. Raises UserError when it has not yet, or the folder is no run's."""
    from aligngap.store.reading import check_plain

    path = opened(directory).folder / file
    try:
        check_plain(path)
    except FileNotFoundError:
        raise UserError("it has not been written yet", where=str(path), hint=AGAIN) from None
    return path
