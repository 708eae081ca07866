"""Stages that make one artefact from others, the graph they form, and what runs it."""

from pathlib import Path

RUNS = Path("runs")
"""Where runs go that were given no folder; they share a store, so that one study finds what another has made."""

REPORT = "report"
"""Kind of a run's last stage (`report.stage`), whose artefact is for people alone."""
