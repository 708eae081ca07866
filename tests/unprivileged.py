"""What a user without rights meets: tests run as root in places, whom no permission stops."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """As the user nobody, where this process is root's; as itself elsewhere. What is imported has to be by then."""
    if os.geteuid() != 0:
        yield
        return
    group = os.getegid()
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


@contextmanager
def shared_folder() -> Iterator[Path]:
    """An empty folder to which everybody may go, unlike those that pytest makes; read-only for others than its user."""
    with tempfile.TemporaryDirectory(prefix="aligngap-shared-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
