"""Estimates and verdict of H4."""

from __future__ import annotations

import numpy as np

from aligngap.experiments.base import Analysis, Figure, Labelled, TaskData
from aligngap.experiments.words import across, interval_words
from aligngap.stats.bootstrap import Estimate, Seed
from aligngap.stats.curves import Run
from aligngap.stats.verdict import equivalence_verdict, gap_verdict

RULE = (
    "Estimand: same configuration (Best-of-2 in place of the baseline's loss, all else the baseline's, paired by seed);"
    " win rate on the study's primary split, opponent and judge. The verdict rests on the gap alone: online minus "
    "offline, both with Best-of-2, averaged over ln KL on the range both reach, and the difference of their peaks. "
    "Supported (the gap persists) if the 95% intervals of both lie wholly above 0; contradicted if either lies wholly "
    "below 0, or both lie wholly within the margin of no difference; else inconclusive. The second half of figure 9 is "
    "judged apart, in the sentence: the shuffled stream matches online if the 95% interval of their average gap at "
    "equal KL lies wholly within the margin of no difference, does not match if wholly beyond it, and else cannot be "
    "told."
)

FAMILIES = {
    "online": "online",
    "offline": "offline",
    "online_bo2": "online, Best-of-2",
    "offline_bo2": "offline, Best-of-2",
    "shuffled_bo2": "shuffled stream, Best-of-2",
}

MATCHES = {
    "supported": "the shuffled stream matches online",
    "contradicted": "the shuffled stream does not match online",
    "inconclusive": "whether the shuffled stream matches online cannot be told",
}


def analyse(data: TaskData) -> Analysis:
    """The gap under Best-of-2, the shuffled stream's distance from online, and how far in KL each arm goes."""

    def runs(family: str, split: str | None = None, judge: str | None = None) -> list[Run]:
        return data.runs(family, baseline=True if family == "offline" else None, split=split, judge=judge)

    def gaps(a: str, b: str, split: str | None = None, judge: str | None = None) -> dict[str, Estimate]:
        return data.gap(runs(a, split, judge), runs(b, split, judge), "loss", a, b, split or "", judge or "")

    main, to_shuffled = gaps("online_bo2", "offline_bo2"), gaps("online_bo2", "shuffled_bo2")
    other = "train" if data.settings.split == "held_out" else "held_out"
    estimates = {
        "average_gap": Labelled("Best-of-2: average gap at equal KL, online minus offline", main["average_gap"]),
        "peak_difference": Labelled(
            "Best-of-2: difference of the peaks, online minus offline", main["peak_difference"]
        ),
        "online_minus_shuffled": Labelled(
            "Best-of-2: average gap at equal KL, online minus the shuffled stream", to_shuffled["average_gap"]
        ),
        "online_minus_shuffled_peak": Labelled(
            "Best-of-2: difference of the peaks, online minus the shuffled stream", to_shuffled["peak_difference"]
        ),
        f"average_gap_{other}": Labelled(
            f"Best-of-2: average gap, {other.replace('_', '-')} prompts",
            gaps("online_bo2", "offline_bo2", split=other)["average_gap"],
        ),
        "average_gap_true": Labelled(
            "Best-of-2: average gap, by true utility", gaps("online_bo2", "offline_bo2", judge="true")["average_gap"]
        ),
        "average_gap_baseline": Labelled(
            "baseline's loss: average gap at equal KL, online minus offline", gaps("online", "offline")["average_gap"]
        ),
    }
    reach = {family: data.estimate({"": runs(family)}, largest, "loss", family).exponential() for family in FAMILIES}
    estimates |= {
        f"kl_{family}": Labelled(f"{FAMILIES[family]}: largest KL reached", found, "nats")
        for family, found in reach.items()
    }
    match = MATCHES[equivalence_verdict(to_shuffled["average_gap"], data.settings.margin)]
    sentence = (
        f"Under Best-of-2, online wins {interval_words(main['average_gap'], signed=True)} of the prompts more than "
        f"offline at equal KL, and its peak is {interval_words(main['peak_difference'], signed=True)} higher "
        f"({across(main['average_gap'])}); {match} "
        f"({interval_words(to_shuffled['average_gap'], signed=True)}). Largest KL reached: "
        f"{', '.join(f'{FAMILIES[family]} {nats(found)}' for family, found in reach.items())}."
    )
    figure = Figure(name="best_of_2", title="Best-of-2 beside the baseline's loss", families=tuple(FAMILIES))
    verdict = gap_verdict(main["average_gap"], main["peak_difference"], data.settings.margin)
    return Analysis(verdict, sentence, estimates, [figure])


def largest(seed: Seed) -> float:
    """ln of the largest KL among a seed's checkpoints."""
    return float(np.max([curve.kappa[-1] if len(curve.kappa) else np.nan for curve in seed[""]]))


def nats(estimate: Estimate) -> str:
    """`3.14 nats`, or `(no data)`."""
    return "(no data)" if np.isnan(estimate.value) else f"{estimate.value:.2f} nats"
