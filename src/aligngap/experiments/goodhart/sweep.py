"""The arms of figure 1: online at the baseline configuration, offline over a sweep around it."""

from __future__ import annotations

from itertools import product

from aligngap.experiments.bench import ArmEntry, Bench


def arms(bench: Bench) -> list[ArmEntry]:
    """One online arm a seed; the offline sweep's arms, the baseline always among them; offline on the proxy's labels.

    The last is a control: the proxy may have learned from fewer pairs than the offline arms train on.
    """
    sweep, baseline = bench.study.sweep, bench.study.baseline
    points = dict.fromkeys(
        [(1.0, baseline.loss.beta, 1.0), *product(sweep.lr_factors, sweep.betas, sweep.step_factors)]
    )
    entries = []
    for seed in bench.study.seeds:
        entries += [bench.online(seed), bench.offline_proxy(seed)]
        entries += [bench.offline(seed, lr, beta, steps) for lr, beta, steps in points]
    return entries
