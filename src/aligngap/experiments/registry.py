"""Every experiment, in the order of the report. A new one is a package and one line here."""

from __future__ import annotations

from aligngap.experiments import (
    classification,
    coverage,
    dataset,
    discrimination,
    golden,
    goodhart,
    loss,
    policy_gradient,
    proxy,
    quality,
    regularised,
    scaling,
    tandem,
    theory,
)
from aligngap.experiments.base import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        goodhart.EXPERIMENT,
        coverage.EXPERIMENT,
        tandem.EXPERIMENT,
        quality.EXPERIMENT,
        classification.EXPERIMENT,
        discrimination.EXPERIMENT,
        loss.EXPERIMENT,
        scaling.EXPERIMENT,
        dataset.EXPERIMENT,
        theory.EXPERIMENT,
        proxy.EXPERIMENT,
        policy_gradient.EXPERIMENT,
        regularised.EXPERIMENT,
        golden.EXPERIMENT,
    )
}
