"""Offline, online, and pairs of both in stated shares."""

from __future__ import annotations

from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.sources.mixture import MixtureSpec

SHARES = {"mixture_10": 0.1, "mixture_25": 0.25, "mixture_50": 0.5}
"""Share of on-policy pairs by family; offline has none, online all."""


def arms(bench: Bench) -> list[ArmEntry]:
    """Five arms a seed. Recorded pairs have golden's labels and on-policy pairs the proxy's, as at either end."""
    entries = []
    for seed in bench.study.seeds:
        entries += [bench.offline(seed), bench.online(seed)]
        for family, share in SHARES.items():
            stage = bench.arm(
                seed=seed,
                source=MixtureSpec(on_policy=share),
                judge=bench.proxy(seed),
                recorded=bench.golden_pairs,
            )
            entries.append(ArmEntry(f"{share:.0%} on-policy pairs", family, stage, baseline=True))
    return entries
