"""Beyond the paper: does online win by its samples or by its loss? Online RLOO with a KL penalty beside online IPO."""

from __future__ import annotations

from aligngap.experiments.base import Analysis, Experiment, Figure, Labelled, TaskData, each_seed
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.contrasts import Contrasts
from aligngap.experiments.words import across, interval_words
from aligngap.sources.sampled import SampledSpec
from aligngap.stats.verdict import Verdict, equivalence_verdict, gap_verdict, threshold_verdict


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """Online REINFORCE, leaving one out (RLOO), in three forms, beside online and offline at the baseline.

    RLOO's gradient at 2 beta is IPO's at beta divided by 2 beta (`losses.rloo`). AdamW does not see the factor but the
    clipping of the gradient's norm does, so the largest norm is scaled alike: then `online_rloo` differs from online
    IPO by rounding alone, and is a check of the losses and the optimiser.
    """
    beta, hard, soft = bench.study.baseline.loss.beta, SampledSpec(), SampledSpec(labels="probability")
    forms = {
        "online_rloo": (f"online RLOO, beta={2 * beta:g}", 2 * beta, hard),
        "online_rloo_soft": (f"online RLOO, beta={2 * beta:g}, proxy's probability", 2 * beta, soft),
        "online_rloo_weak": (f"online RLOO, beta={beta:g}", beta, hard),
    }
    entries = [bench.online(seed), bench.offline(seed)]
    for family, (name, penalty, source) in forms.items():
        loss, judge = bench.loss(name="rloo", beta=penalty), bench.proxy(seed)
        stage = bench.arm(seed=seed, source=source, judge=judge, loss=loss, clip_factor=1 / (2 * beta))
        entries.append(ArmEntry(name, family, stage))
    return entries


RULE = (
    "Estimand: same configuration, paired by seed; win rate on the study's primary split, opponent and judge. The "
    "verdict rests on RLOO with the proxy's probability as reward, at twice the baseline's beta. (RLOO on hard labels "
    "there has IPO's gradient up to a factor: a check, no evidence.) Supported if it is no worse than online IPO, the "
    "95% interval of the average gap at equal KL (RLOO minus online IPO) lying wholly above minus the margin of no "
    "difference, and above offline IPO, the intervals of the average gap at equal KL and of the difference of the "
    "peaks both lying wholly above 0. Contradicted if the interval of the first gap lies wholly below minus the margin,"
    " or if either of the two against offline lies wholly below 0 or both lie wholly within the margin; else "
    "inconclusive."
)

ONLINE = {
    "online_rloo_soft": "RLOO with the proxy's probability",
    "online_rloo": "RLOO on hard labels at twice the beta",
    "online_rloo_weak": "RLOO at the baseline's beta",
}

CHECK = {
    "supported": "which is equivalent, as it must be",
    "contradicted": "which is a difference that should not be",
    "inconclusive": "which is too uncertain to call equivalent",
}


def analyse(data: TaskData) -> Analysis:
    """Each form of RLOO against online and offline IPO."""
    main, check, _ = ONLINE
    margin, sides = data.settings.margin, ("online", "offline")

    contrasts = Contrasts(data, "policy_gradient")
    gaps = {(family, side): contrasts.gaps(family, side) for family in ONLINE for side in sides}
    parts = {"average_gap": "average gap at equal KL", "peak_difference": "difference of the peaks"}
    estimates = {
        f"{family}_{part}_{side}": Labelled(
            f"{label}: {words}, minus {side} IPO",
            gaps[family, side][part],
            # The rule's first test is against the margin: no worse than online IPO.
            null=-margin if (family, side) == (main, "online") else 0.0,
        )
        for family, label in ONLINE.items()
        for side in sides
        for part, words in parts.items()
    }
    for side in sides:
        label = f"{ONLINE[main]}: average gap, minus {side} IPO"
        estimates |= contrasts.gap_elsewhere(f"{main}_average_gap_{side}", label, main, side)
    to_online, to_offline = gaps[main, "online"]["average_gap"], gaps[main, "offline"]
    verdicts = {
        threshold_verdict(to_online, -margin, 1),
        gap_verdict(to_offline["average_gap"], to_offline["peak_difference"], margin),
    }
    verdict: Verdict = "inconclusive"
    if "contradicted" in verdicts:
        verdict = "contradicted"
    elif verdicts == {"supported"}:
        verdict = "supported"
    same = gaps[check, "online"]["average_gap"]
    sentence = (
        f"At equal KL, RLOO with the proxy's probability wins {interval_words(to_online, signed=True)} of the prompts "
        f"more than online IPO, and {interval_words(to_offline['average_gap'], signed=True)} more than offline, "
        f"with a peak {interval_words(to_offline['peak_difference'], signed=True)} higher ({across(to_online)}). RLOO "
        f"with IPO's own gradient differs from online IPO by {interval_words(same, signed=True)}, "
        f"{CHECK[equivalence_verdict(same, margin)]}."
    )
    figure = Figure(name="policy_gradient", title="RLOO beside online and offline IPO", families=(*sides, *ONLINE))
    return Analysis(verdict, sentence, estimates, [figure])


EXPERIMENT = Experiment(
    name="policy_gradient",
    title="A policy gradient on the same online samples",
    question="Is it on-policy sampling that makes online better, whatever loss is trained on the samples?",
    finding="Hypothesis of ours, not tested by Tang et al. 2024: online policy gradient (RLOO: Ahmadian et al. 2024) "
    "is no worse than online IPO and above offline IPO, because on-policy sampling matters and not the loss.",
    rule=RULE,
    arms=arms,
    analyse=analyse,
)
