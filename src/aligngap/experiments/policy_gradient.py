"""Beyond the paper: does online win by its samples or by its loss? Online RLOO with a KL penalty beside online IPO."""

from __future__ import annotations

from dataclasses import replace

from aligngap.experiments.base import Analysis, Experiment, Figure, TaskData, each_seed
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.contrasts import Contrasts
from aligngap.sources.sampled import SampledSpec
from aligngap.stats.verdict import all_of, equivalence_verdict, gap_verdict, threshold_verdict


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
        loss = bench.loss(name="rloo", beta=penalty)
        entries.append(bench.online(seed, family, name, source=source, loss=loss, clip_factor=1 / (2 * beta)))
    return entries


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
    result = {
        (family, side): contrasts.compare(
            f"{label}: {{}}, minus {side} IPO",
            family,
            side,
            keys=(f"{family}_average_gap_{side}", f"{family}_peak_difference_{side}"),
        )
        for family, label in ONLINE.items()
        for side in sides
    }
    # The rule's first test is against the margin: no worse than online IPO.
    first = f"{main}_average_gap_online"
    contrasts.estimates[first] = replace(contrasts.estimates[first], null=-margin)
    for side in sides:
        label = f"{ONLINE[main]}: average gap, minus {side} IPO"
        contrasts.gap_elsewhere(f"{main}_average_gap_{side}", label, main, side)
    (to_online, _), (to_offline, peak) = (result[main, side] for side in sides)
    verdict = all_of([threshold_verdict(to_online, -margin, 1), gap_verdict(to_offline, peak, margin)])
    same, _ = result[check, "online"]
    sentence = (
        f"At equal KL, RLOO with the proxy's probability wins {to_online:+.1%} of the prompts more than online IPO, "
        f"and {to_offline:+.1%} more than offline, with a peak {peak:+.1%} higher ({to_online.across()}). RLOO with "
        f"IPO's own gradient differs from online IPO by {same:+.1%}, {CHECK[equivalence_verdict(same, margin)]}."
    )
    figure = Figure(name="policy_gradient", title="RLOO beside online and offline IPO", families=(*sides, *ONLINE))
    return Analysis(verdict, sentence, contrasts.estimates, [figure])


EXPERIMENT = Experiment(
    name="policy_gradient",
    title="A policy gradient on the same online samples",
    question="Is it on-policy sampling that makes online better, whatever loss is trained on the samples?",
    finding="Hypothesis of ours, not tested by Tang et al. 2024: online policy gradient (RLOO: Ahmadian et al. 2024) "
    "is no worse than online IPO and above offline IPO, because on-policy sampling matters and not the loss.",
    rule="Estimand: same configuration, paired by seed; win rate on the study's primary split, opponent and judge. The "
    "verdict rests on RLOO with the proxy's probability as reward, at twice the baseline's beta. (RLOO on hard labels "
    "there has IPO's gradient up to a factor: a check, no evidence.) Supported if it is no worse than online IPO, the "
    "95% interval of the average gap at equal KL (RLOO minus online IPO) lying wholly above minus the margin of no "
    "difference, and above offline IPO, the intervals of the average gap at equal KL and of the difference of the "
    "peaks both lying wholly above 0. Contradicted if the interval of the first gap lies wholly below minus the margin,"
    " or if either of the two against offline lies wholly below 0 or both lie wholly within the margin; else "
    "inconclusive.",
    arms=arms,
    analyse=analyse,
)
