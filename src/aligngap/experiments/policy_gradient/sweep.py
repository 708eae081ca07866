"""Online REINFORCE, leaving one out (RLOO), in three forms, beside online and offline at the baseline."""

from __future__ import annotations

from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.sources.sampled import SampledSpec


def arms(bench: Bench) -> list[ArmEntry]:
    """Five arms a seed.

    RLOO's gradient at 2 beta is IPO's at beta divided by 2 beta (`losses.rloo`). AdamW does not see the factor but the
    clipping of the gradient's norm does, so the largest norm is scaled alike: then `online_rloo` differs from online
    IPO by rounding alone, and is a check of the losses and the optimiser.
    """
    beta = bench.study.baseline.loss.beta
    forms = {
        "online_rloo": (f"online RLOO, beta={2 * beta:g}", 2 * beta, SampledSpec()),
        "online_rloo_soft": (
            f"online RLOO, beta={2 * beta:g}, proxy's probability",
            2 * beta,
            SampledSpec(labels="probability"),
        ),
        "online_rloo_weak": (f"online RLOO, beta={beta:g}", beta, SampledSpec()),
    }
    entries = []
    for seed in bench.study.seeds:
        entries += [bench.online(seed), bench.offline(seed)]
        for family, (name, penalty, source) in forms.items():
            stage = bench.arm(
                seed=seed,
                source=source,
                judge=bench.proxy(seed),
                loss=bench.loss(name="rloo", beta=penalty),
                clip_factor=1 / (2 * beta),
            )
            entries.append(ArmEntry(name, family, stage))
    return entries
