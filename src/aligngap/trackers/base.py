"""What a tracker is, and which there are."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aligngap.errors import UserError, nearest

TRACKERS = ("tensorboard", "wandb")
"""By the name of the package that each needs, of the extra that brings it, and of the module here that speaks to it."""


@dataclass(frozen=True)
class Series:
    """One run in a tracker: an arm with its seed, or another stage that trains something.

    key: unique in the study and the same when the study is run again. name: for people, `task/arm/seed N`. settings: as
    plain JSON values.
    """

    key: str
    name: str
    settings: Mapping[str, object]


class Tracker(Protocol):
    """Takes values. May raise whatever it likes: it is then off."""

    def log(self, series: Series, step: int, values: Mapping[str, float]) -> None:
        """Values at an optimiser step. Steps of training go up; those of an evaluation start again from 0."""

    def finish(self, series: Series, failed: bool) -> None:
        """Nothing more comes of this series, for now."""

    def close(self) -> None:
        """The run is over: write what is still to be written."""


def chosen(names: Iterable[str]) -> list[str]:
    """The trackers asked for, each once. Raises UserError for one that is not known or not installed."""
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in TRACKERS:
            raise UserError(f"there is no tracker '{name}'", where="--track", hint=nearest(name, TRACKERS))
        if importlib.util.find_spec(name) is None:
            hint = f"Install it with: pip install 'aligngap[{name}]'"
            raise UserError(f"the package '{name}' is not installed", where=f"--track {name}", hint=hint)
    return wanted


def opened(name: str, folder: Path, study: str, token: str) -> Tracker:
    """A tracker that keeps its files in `folder`, a run's. token: tells this folder's runs from another's."""
    tracker: Tracker = importlib.import_module(f"aligngap.trackers.{name}").opened(folder, study, token)
    return tracker
