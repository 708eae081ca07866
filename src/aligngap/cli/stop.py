"""Ctrl-C and SIGTERM, which are one thing to a command that can be given again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stoppable() -> Iterator[None]:
    """Turns both into Interrupted, which `main` tells at the end; typer would swallow KeyboardInterrupt."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as error:
        from aligngap.pipeline.executors.run import Interrupted

        raise Interrupted from error
    finally:
        signal.signal(signal.SIGTERM, before)
