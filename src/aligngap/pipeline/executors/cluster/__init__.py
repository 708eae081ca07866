"""Runs stages on a Ray cluster: the run's process, the one beside it that speaks with Ray, and the nodes."""
