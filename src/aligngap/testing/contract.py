"""How a contract's checks are written and run: each looks at one thing, and says in a sentence what is broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Broken(AssertionError):
    """A contract is broken; the message says how."""


def must(holds: bool, otherwise: str) -> None:
    """Raises Broken. A plain `assert` would say nothing in a library, and nothing at all under `python -O`."""
    if not holds:
        raise Broken(otherwise)


def run(checks: Sequence[Callable[[T], None]], subject: T) -> None:
    """Every check of a contract in turn. Raises Broken, and whatever the subject's own code raises."""
    for check in checks:
        check(subject)
