"""What processes that make stages have in common: how a stage comes to them, how they end with their parent, how they
are said to have died.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from aligngap.pipeline.graph import Stage
from aligngap.plugins import load_plugins, loaded

# A stage that is told to stop gets this long to put its files away.
GRACE = 5.0


@dataclass(frozen=True)
class PackedStage:
    """A stage for another process, and the plugins that must be there before it can be unpacked."""

    plugins: list[tuple[str, Path | None]]
    pickled: bytes

    @classmethod
    def of(cls, stage: Stage) -> PackedStage:
        """Raises whatever pickling raises."""
        return cls(loaded(), pickle.dumps(stage))

    def unpack(self) -> Stage:
        """The stage. Runs code: only for what this run has packed."""
        for name, search in self.plugins:
            load_plugins([name], search)
        stage: Stage = pickle.loads(self.pickled)
        return stage


def die_with_parent() -> None:
    """However the parent ends, this process ends: nobody would read its results, and it would keep its locks."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def death(code: int | None) -> str:
    """What an exit code says of a process that ended without a word."""
    if code is None or code >= 0:
        return f"its process ended with exit code {code} and without a word"
    with suppress(ValueError):
        name = signal.Signals(-code).name
        hint = ", as happens when memory runs out (fewer --jobs need less)" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}"
    return f"its process was killed by signal {-code}"
