"""Online arms against proxies of other forms and sizes, all trained on the same golden labels."""

from __future__ import annotations

from aligngap.experiments.bench import ArmEntry, Bench, Measure
from aligngap.experiments.proxy.measure import ProxyAgreement
from aligngap.pipeline.stages import JudgeStage
from aligngap.sources.sampled import SampledSpec

NAMES = {
    "online": "online",
    "online_pointwise": "online, point-wise proxy",
    "online_large_proxy": "online, larger proxy",
    "online_large_pointwise": "online, larger point-wise proxy",
}
"""Families of arms, each named for its proxy; `online` has the baseline's."""


def obstacle(bench: Bench) -> str:
    """Other proxies are trained as the study's own is."""
    return "The proxy is given, so no others are trained." if bench.study.proxy.judge is not None else ""


def proxies(bench: Bench, seed: int) -> dict[str, JudgeStage]:
    """The proxy of each family. The larger ones start from golden's base."""
    large = bench.study.models.golden
    found = (
        bench.proxy(seed),
        bench.proxy(seed, model="pointwise"),
        bench.proxy(seed, model="pairwise", base=large),
        bench.proxy(seed, model="pointwise", base=large),
    )
    return dict(zip(NAMES, found, strict=True))


def arms(bench: Bench) -> list[ArmEntry]:
    """Four arms a seed."""
    return [
        ArmEntry(
            NAMES[family], family, bench.arm(seed=seed, source=SampledSpec(), judge=proxy), baseline=family == "online"
        )
        for seed in bench.study.seeds
        for family, proxy in proxies(bench, seed).items()
    ]


def measures(bench: Bench) -> list[Measure]:
    """The proxies' agreement with golden, a table a seed."""
    found = []
    for seed in bench.study.seeds:
        judges = proxies(bench, seed)
        stage = ProxyAgreement(golden_pairs=bench.golden_pairs, proxies=tuple(judges.values()), names=tuple(judges))
        found.append(Measure("proxy_agreement", seed, stage))
    return found
