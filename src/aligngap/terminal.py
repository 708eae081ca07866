"""What is printed, on whatever terminal or file there is: every text that this package prints goes through here.

A run's folder, a data set and a policy may hold anything, also what a terminal would obey; and not every terminal and
file can take every character.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from aligngap.errors import UserError


def harmless(text: str) -> str:
    """A text with � for each control character but line ends: none moves the cursor, colours or hides what follows."""
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() or mark == "\n" else "�" for mark in text)


class _Harmless(Console):
    """Colours and cursor movements of rich's own reach the terminal, those in texts do not."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else harmless(text), style, control)


def console(*, stderr: bool = False) -> Console:
    """A standard stream; into a file or a pipe wide enough that labels stay whole, whatever the terminal is."""
    made = _Harmless(stderr=stderr)
    return made if made.is_terminal else _Harmless(stderr=stderr, width=160)


def say(text: str, where: Console | None = None) -> None:
    """Print a text as it is: names and paths may hold brackets, so it is no markup."""
    (where or console()).print(Text(harmless(text)), soft_wrap=True)


def warn(text: str) -> None:
    """Print a line on standard error."""
    print(harmless(text), file=sys.stderr)


def complain(error: UserError) -> None:
    """Print an error of the user's."""
    warn(f"error: {error.what}")
    for word, text in (("where", error.where), ("hint", error.hint)):
        if text:
            warn(f"{word}: {text}")


def take_any_text() -> None:
    """From here on standard streams write ? for a character that their encoding does not have, as on Windows when they
    lead to a file, instead of raising UnicodeEncodeError.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
