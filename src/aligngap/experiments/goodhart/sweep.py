"""The arms of figure 1: online at the baseline configuration, offline over a sweep around it."""

from __future__ import annotations

from itertools import product

from aligngap.experiments.bench import ArmEntry, Bench


def arms(bench: Bench) -> list[ArmEntry]:
    """One online arm a seed; the offline sweep's arms, the baseline always among them; offline on the proxy's labels;
    and, where the study asks for it, online at the sweep's other points (family `online_sweep`).

    Offline on the proxy's labels is a control: the proxy may have learned from fewer pairs than the offline arms train
    on.
    """
    sweep, baseline = bench.study.sweep, bench.study.baseline
    points = dict.fromkeys(
        [(1.0, baseline.loss.beta, 1.0), *product(sweep.lr_factors, sweep.betas, sweep.step_factors)]
    )
    entries = []
    for seed in bench.study.seeds:
        entries += [bench.online(seed), bench.offline_proxy(seed)]
        entries += [bench.offline(seed, lr, beta, steps) for lr, beta, steps in points]
        if sweep.online:
            entries += [swept(bench, seed, *point) for point in list(points)[1:]]
    return entries


def swept(bench: Bench, seed: int, lr_factor: float, beta: float, step_factor: float) -> ArmEntry:
    """Online at a point of the sweep, named as the offline arm there is."""
    name = bench.offline(seed, lr_factor, beta, step_factor).name.replace("offline", "online")
    loss = bench.loss(beta=beta)
    return bench.online(seed, "online_sweep", name, loss=loss, lr_factor=lr_factor, step_factor=step_factor)
