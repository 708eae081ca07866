"""The shipped studies: a YAML each, and every experiment alone. Kept apart from `study` so that the YAMLs are listed
without loading a model library.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

import yaml


@functools.cache
def shipped() -> dict[str, str]:
    """Shipped studies that have a file: name and one-line description."""
    return {name: str(yaml.safe_load(text)["description"]) for name, text in _texts().items()}


def shipped_text(name: str) -> str:
    """The YAML of a shipped study. Raises KeyError when there is none."""
    return _texts()[name]


def alone(name: str) -> dict[str, Any] | None:
    """The study that asks one registered experiment on `paper`'s settings, as a YAML would say it; None where no
    experiment is called so, with `_` or `-`.
    """
    from aligngap.experiments.registry import EXPERIMENTS

    experiment = EXPERIMENTS.get(name.replace("-", "_"))
    if experiment is None:
        return None
    words = {"title": experiment.title, "description": experiment.question}
    return {"extends": "paper", "name": experiment.name, **words, "experiments": [experiment.name]}


def _texts() -> dict[str, str]:
    files = [entry for entry in resources.files("aligngap.studies").iterdir() if entry.name.endswith(".yaml")]
    return {entry.name.removesuffix(".yaml"): entry.read_text("utf-8") for entry in sorted(files, key=lambda e: e.name)}
