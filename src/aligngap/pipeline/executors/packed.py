"""How a stage comes to the process that makes it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

from aligngap.pipeline.graph import Stage
from aligngap.plugins import load_plugins, loaded


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
