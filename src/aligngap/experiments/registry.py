"""Every experiment, in the order of the report. A new one is a module of its name (a package where it has a measure of
its own) and one line here.
"""

from __future__ import annotations

from importlib import import_module

from aligngap.experiments.base import Experiment
from aligngap.plugins import Registry

_NAMES = (
    "goodhart",
    "coverage",
    "tandem",
    "order",
    "quality",
    "classification",
    "discrimination",
    "loss",
    "scaling",
    "dataset",
    "theory",
    "staleness",
    "proxy",
    "policy_gradient",
    "mixture",
    "regularised",
    "golden",
    "judge_calls",
)


def _fault(name: str, value: object) -> str | None:
    if not isinstance(value, Experiment):
        return "it is no Experiment"
    return None if value.name == name else f"its name is '{value.name}'"


_OURS = {name: import_module(f"aligngap.experiments.{name}").EXPERIMENT for name in _NAMES}

EXPERIMENTS: Registry[Experiment] = Registry("experiment", _OURS, _fault)
"""A user's own module adds its by one line: `EXPERIMENTS["mine"] = EXPERIMENT`."""
