"""What a user did wrong, where, and how to fix it.

Every error that a user can cause is a `UserError`; the command line prints its three parts and exits
with code 2, without a traceback. Anything else that escapes is a defect of this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST_RUN = 160
_RUN = re.compile(rf"\S{{{_LONGEST_RUN + 1},}}")


class UserError(Exception):
    """A mistake in what the user gave us.

    Parameters
    ----------
    what: one sentence, what is wrong.
    where: file, row, key or option that holds the mistake.
    hint: what to do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        parts = [f"{where}: {what}" if where else what]
        if hint:
            parts.append(hint)
        super().__init__("\n".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling between processes.
        return (_rebuild, (type(self), self.what, self.where, self.hint))


def _rebuild(kind: type[UserError], what: str, where: str | None, hint: str | None) -> UserError:
    return kind(what, where=where, hint=hint)


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out. That is nobody's mistake, and may go well at another time: who turns what
    libraries raise into something else must let it pass.
    """
    # On the CPU, torch says so in words only, and so does safetensors.
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "allocate memory" in str(error)


def brief(value: object, most: int = 160) -> str:
    """A value as text; it, and every unbroken run of characters in it, is cut with an ellipsis: whatever was given, a
    message stays one that can be read.
    """
    if not isinstance(value, str):
        try:
            value = repr(value)
        except Exception as error:  # Python writes no whole number of more than some thousand digits
            return f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"
    value = _RUN.sub(lambda run: f"{run[0][:_LONGEST_RUN]}…", value)
    return value if len(value) <= most else f"{value[:most]}…"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known word, or lists what is known."""
    words = sorted(known)
    close = get_close_matches(name, words, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'? Known: {', '.join(words)}."
    return f"Known: {', '.join(words)}."
