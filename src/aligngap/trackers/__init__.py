"""Metrics of a run in other people's tools, beside the report: TensorBoard and Weights & Biases.

Off by default, and no part of a study: what is tracked changes no result and no identity. A tracker lives in a process
of its own that is fed without ever being waited for, so that one that fails, hangs or is slow costs the run nothing but
one warning.
"""
