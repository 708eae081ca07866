"""aligngap: is on-policy sampling necessary for alignment?

One trainer, one loss, one starting policy; only the source of the training pairs changes.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # `Results`, `open_run`, `run`: on demand, for what they need takes seconds to load.
    if name in ("Results", "open_run", "run"):
        return getattr(import_module("aligngap.api"), name)
    raise AttributeError(f"module 'aligngap' has no attribute '{name}'")
