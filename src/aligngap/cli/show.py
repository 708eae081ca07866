"""What commands print, beside plain texts."""

from __future__ import annotations

from pathlib import Path

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from aligngap.errors import UserError
from aligngap.terminal import complain, console, harmless, say, warn

__all__ = ["AGAIN", "complain", "console", "needs", "plain", "say", "size", "table", "warn"]

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
    from aligngap.store.reading import check_plain

    try:
        check_plain(path)
    except FileNotFoundError:
        raise UserError("it has not been written yet", where=str(path), hint=AGAIN) from None
