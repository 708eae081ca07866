"""Weights & Biases: a run a series, all runs of a folder in one group. Project, entity, mode and login are those of
W&B's own environment variables and settings; the project is `aligngap` unless they say otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import wandb

from aligngap.trackers.base import Series

_TIMEOUT = 15.0  # seconds to reach W&B; by default it is 90, longer than the run waits for at its end


def opened(folder: Path, study: str, token: str) -> WeightsAndBiases:
    """Runs in the group `study-token`; W&B keeps its files in DIR/wandb."""
    return WeightsAndBiases(folder, f"{study}-{token}", token)


class WeightsAndBiases:
    """Several runs are open at a time: an arm's from its first step until it has been evaluated."""

    def __init__(self, folder: Path, group: str, token: str) -> None:
        self._folder, self._group, self._token = folder, group, token
        self._runs: dict[str, wandb.Run] = {}

    def log(self, series: Series, step: int, values: Mapping[str, float]) -> None:
        """Values at a step. The step is a value of its own: W&B's must never go back, and an evaluation's does."""
        self._run(series).log({"step": step, **values})

    def finish(self, series: Series, failed: bool) -> None:
        """End the series' run."""
        if run := self._runs.pop(series.key, None):
            run.finish(exit_code=int(failed))

    def close(self) -> None:
        """End all runs."""
        for run in self._runs.values():
            run.finish()

    def _run(self, series: Series) -> wandb.Run:
        if series.key not in self._runs:
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "aligngap",
                group=self._group,
                name=series.name,
                config=dict(series.settings),
                # The same when the run goes on after a kill, or the arm is evaluated by a later one.
                id=f"{self._token}-{series.key[-16:]}",
                resume="allow",
                reinit="create_new",
                dir=self._folder,
                # Metrics only: nothing about the machine, its user or the code.
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    symlink=False,
                    disable_code=True,
                    disable_git=True,
                    init_timeout=_TIMEOUT,
                    x_disable_machine_info=True,
                    x_disable_meta=True,
                    x_disable_stats=True,
                    x_save_requirements=False,
                ),
            )
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            self._runs[series.key] = run
        return self._runs[series.key]
