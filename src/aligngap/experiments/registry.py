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
    mixture,
    order,
    policy_gradient,
    proxy,
    quality,
    regularised,
    scaling,
    staleness,
    tandem,
    theory,
)
from aligngap.experiments.base import Experiment
from aligngap.plugins import Registry

_OURS = {
    experiment.name: experiment
    for experiment in (
        goodhart.EXPERIMENT,
        coverage.EXPERIMENT,
        tandem.EXPERIMENT,
        order.EXPERIMENT,
        quality.EXPERIMENT,
        classification.EXPERIMENT,
        discrimination.EXPERIMENT,
        loss.EXPERIMENT,
        scaling.EXPERIMENT,
        dataset.EXPERIMENT,
        theory.EXPERIMENT,
        staleness.EXPERIMENT,
        proxy.EXPERIMENT,
        policy_gradient.EXPERIMENT,
        mixture.EXPERIMENT,
        regularised.EXPERIMENT,
        golden.EXPERIMENT,
    )
}


def _fault(name: str, value: object) -> str | None:
    if not isinstance(value, Experiment):
        return "it is no Experiment"
    return None if value.name == name else f"its name is '{value.name}'"


EXPERIMENTS: Registry[Experiment] = Registry("experiment", _OURS, _fault)
"""A user's own module adds its by one line: `EXPERIMENTS["mine"] = EXPERIMENT`."""
