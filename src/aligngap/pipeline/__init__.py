"""Stages that make one artefact from others, the graph they form, and what runs it."""
