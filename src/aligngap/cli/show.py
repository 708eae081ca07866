"""What commands print, and how."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from aligngap.errors import UserError

if TYPE_CHECKING:
    from aligngap.pipeline.rundir import RunDirectory

AGAIN = "Give the `aligngap run` command again."


def console() -> Console:
    """Standard output; into a file or a pipe wide enough that labels stay whole, whatever the terminal is."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=160)


def say(text: str, where: Console | None = None) -> None:
    """Print a text as it is: names and paths may hold brackets, so it is no markup."""
    (where or console()).print(Text(text), soft_wrap=True)


def complain(error: UserError) -> None:
    """Print an error of the user's."""
    print(f"error: {error.what}", file=sys.stderr)
    for word, text in (("where", error.where), ("hint", error.hint)):
        if text:
            print(f"{word}: {text}", file=sys.stderr)


def table(title: str, *columns: str) -> Table:
    """An empty table; a column whose name begins with > is of numbers."""
    made = Table(title=plain(title), title_justify="left")
    for column in columns:
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        made.add_column(Text(column.removeprefix(">")), justify=justify, overflow="fold")
    return made


def plain(text: str) -> Text:
    """A text without control characters: a policy can write anything, also what a terminal would obey."""
    return Text("".join(mark if mark.isprintable() or mark == "\n" else "�" for mark in text))


def opened(directory: Path) -> RunDirectory:
    """The folder of a run. Raises UserError when it is none."""
    from aligngap.pipeline.rundir import RunDirectory

    return RunDirectory.open(directory)


def needs(directory: Path, file: str) -> Path:
    """A file that a run has written in its folder. Raises UserError when it has not yet, or the folder is no run's."""
    path = opened(directory).folder / file
    if not path.is_file():
        raise UserError("it has not been written yet", where=str(path), hint=AGAIN)
    return path
