"""The shipped studies. Kept apart from `study` so that listing them loads no model library."""

from __future__ import annotations

import functools
from importlib import resources

import yaml


@functools.cache
def shipped() -> dict[str, str]:
    """Shipped studies: name and one-line description."""
    return {name: str(yaml.safe_load(text)["description"]) for name, text in _texts().items()}


def shipped_text(name: str) -> str:
    """The YAML of a shipped study. Raises KeyError when there is none."""
    return _texts()[name]


def _texts() -> dict[str, str]:
    files = [entry for entry in resources.files("aligngap.studies").iterdir() if entry.name.endswith(".yaml")]
    return {entry.name.removesuffix(".yaml"): entry.read_text("utf-8") for entry in sorted(files, key=lambda e: e.name)}
