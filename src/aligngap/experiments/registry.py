"""Every experiment, in the order of the report. A new one is a package and one line here."""

from __future__ import annotations

from aligngap.experiments import coverage, goodhart, tandem
from aligngap.experiments.base import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        goodhart.EXPERIMENT,
        coverage.EXPERIMENT,
        tandem.EXPERIMENT,
    )
}
