"""Estimates and verdict of the policy-gradient comparison."""

from __future__ import annotations

from aligngap.experiments.base import Analysis, Figure, Labelled, TaskData
from aligngap.experiments.words import across, interval_words
from aligngap.stats.bootstrap import Estimate
from aligngap.stats.verdict import Verdict, equivalence_verdict, gap_verdict, threshold_verdict

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

    def gap(family: str, side: str, split: str | None = None, judge: str | None = None) -> dict[str, Estimate]:
        a, b = data.runs(family, split=split, judge=judge), data.runs(side, baseline=True, split=split, judge=judge)
        return data.gap(a, b, "policy_gradient", family, side, split or "", judge or "")

    gaps = {(family, side): gap(family, side) for family in ONLINE for side in sides}
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
    other = "train" if data.settings.split == "held_out" else "held_out"
    for side in sides:
        for key, words, found in (
            (other, f"{other.replace('_', '-')} prompts", gap(main, side, split=other)),
            ("true", "by true utility", gap(main, side, judge="true")),
        ):
            estimates[f"{main}_average_gap_{side}_{key}"] = Labelled(
                f"{ONLINE[main]}: average gap, minus {side} IPO, {words}", found["average_gap"]
            )
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
