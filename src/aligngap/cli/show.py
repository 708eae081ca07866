"""What commands print, and how."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from aligngap.errors import UserError

AGAIN = "Give the `aligngap run` command again."


def console() -> Console:
    """Standard output; into a file or a pipe wide enough that labels stay whole, whatever the terminal is."""
    found = Console()
    return found if found.is_terminal else Console(width=160)


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


def size(count: int) -> str:
    """Bytes in three digits and a unit."""
    value = float(count)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}" if unit != "bytes" else f"{count} bytes"
        value /= 1000
    return f"{value:.3g} GB"


def needs(path: Path) -> None:
    """Raises UserError unless a run has written this file."""
    if not path.is_file():
        raise UserError("it has not been written yet", where=str(path), hint=AGAIN)
