"""aligngap: is on-policy sampling necessary for alignment?

One trainer, one loss, one starting policy; only the source of the training pairs changes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligngap.api import Results, diagnose, load, open_run, run

__version__ = "0.1.0"
__all__ = ["Results", "diagnose", "load", "open_run", "run"]


def __getattr__(name: str) -> Any:
    # On demand, for what they need takes seconds to load.
    if name in __all__:
        return getattr(import_module("aligngap.api"), name)
    raise AttributeError(f"module 'aligngap' has no attribute '{name}'")
