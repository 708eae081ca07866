"""What commands do ahead of need, to start and to end sooner. Nothing else in the package does any such thing; what
each of these is worth is measured (docs/lab-log.md, 2026-11-30).
"""

from __future__ import annotations

import atexit
import gc
import json
from contextlib import suppress
from pathlib import Path

# To look, at the end of the process, for garbage in all that was imported takes a second; nobody uses what it frees.
atexit.register(gc.freeze)


def start_server(folder: Path) -> None:
    """Have the fork server import what stages need while this process imports what it needs itself, unless a run has
    finished in `folder`, which is one study's for good: nothing will have to be made.
    """
    with suppress(OSError, ValueError, AttributeError):
        if json.loads((folder / "status.json").read_bytes()).get("state") == "finished":
            return
    from aligngap.pipeline.executors import server

    server.start_server()
