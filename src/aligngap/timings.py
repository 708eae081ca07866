"""Where a stage's time goes: sampling, judging, and what it is for otherwise. One stage a process, so one account.

What runs inside `spending("sampling")` counts as sampling, except for what is inside another such block within it. Time
is that of the clock on the wall: on an idle core it is the core's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_accounts: list[dict[str, float]] = []
_open: list[str] = []
_since = 0.0


@contextmanager
def account(activity: str) -> Iterator[dict[str, float]]:
    """Seconds by activity, filled in as the block runs and complete at its end; `activity` is what nothing else claims.

    An account within an account takes its time out of the outer one.
    """
    result: dict[str, float] = {}
    _book()
    _accounts.append(result)
    _open.append(activity)
    try:
        yield result
    finally:
        _book()
        _open.pop()
        _accounts.pop()


@contextmanager
def spending(activity: str) -> Iterator[None]:
    """The block's time goes to this activity; also a decorator. Outside any account, nothing is kept."""
    _book()
    _open.append(activity)
    try:
        yield
    finally:
        _book()
        _open.pop()


def _book() -> None:
    """What has passed since the last call goes to the innermost activity."""
    global _since
    now = time.perf_counter()
    if _accounts and _open:
        result = _accounts[-1]
        result[_open[-1]] = result.get(_open[-1], 0.0) + now - _since
    _since = now
