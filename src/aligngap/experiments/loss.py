"""H4, figure 9: is the gap a matter of contrastive losses? Best-of-2 online, offline and on its shuffled stream."""

from __future__ import annotations

import numpy as np

from aligngap.experiments.base import Analysis, Experiment, Figure, TaskData, each_seed
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.contrasts import Contrasts
from aligngap.sources.recorded import RecordedSpec
from aligngap.stats.intervals import Estimate, Seed
from aligngap.stats.verdict import equivalence_verdict, gap_verdict


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """Best-of-2 online, offline and on its own shuffled stream, with the baseline's loss online and offline behind it;
    all at the baseline's learning rate and steps.
    """
    imitate = bench.loss(name="best_of_2")
    online = bench.online(seed, "online_bo2", "online, Best-of-2", loss=imitate)
    order, name = RecordedSpec(order="uniform"), "shuffled stream, Best-of-2"
    return [
        bench.online(seed),
        bench.offline(seed),
        online,
        bench.recorded(seed, "offline_bo2", bench.golden_pairs, name="offline, Best-of-2", loss=imitate),
        bench.on_stream(seed, "shuffled_bo2", order, of=online, name=name, loss=imitate),
    ]


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
    contrasts = Contrasts(data, "loss")
    gap, peak = contrasts.compare("Best-of-2: {}, online minus offline", "online_bo2", "offline_bo2")
    label, keys = (
        "Best-of-2: {}, online minus the shuffled stream",
        ("online_minus_shuffled", "online_minus_shuffled_peak"),
    )
    to_shuffled, _ = contrasts.compare(label, "online_bo2", "shuffled_bo2", keys=keys)
    label = "baseline's loss: average gap at equal KL, online minus offline"
    contrasts.put("average_gap_baseline", label, contrasts.gap("online", "offline"))
    contrasts.gap_elsewhere("average_gap", "Best-of-2: average gap", "online_bo2", "offline_bo2")
    reach = []
    for family, name in FAMILIES.items():
        result = data.estimate({"": contrasts.runs(family)}, largest, "loss", family).exponential()
        contrasts.put(f"kl_{family}", f"{name}: largest KL reached", result, "nats")
        reach.append(f"{name} {nats(result)}")
    match = MATCHES[equivalence_verdict(to_shuffled, data.settings.margin)]
    sentence = (
        f"Under Best-of-2, online wins {gap:+.1%} of the prompts more than offline at equal KL, and its peak is "
        f"{peak:+.1%} higher ({gap.across()}); {match} ({to_shuffled:+.1%}). Largest KL reached: {', '.join(reach)}."
    )
    figure = Figure(name="best_of_2", title="Best-of-2 beside the baseline's loss", families=tuple(FAMILIES))
    return Analysis(gap_verdict(gap, peak, data.settings.margin), sentence, contrasts.estimates, [figure])


def largest(seed: Seed) -> float:
    """ln of the largest KL among a seed's checkpoints."""
    return float(np.max([curve.x[-1] if len(curve.x) else np.nan for curve in seed[""]]))


def nats(estimate: Estimate) -> str:
    """`3.14 nats`, or `(no data)`."""
    return "(no data)" if np.isnan(estimate.value) else f"{estimate.value:.2f} nats"


EXPERIMENT = Experiment(
    name="loss",
    title="H4: a non-contrastive loss",
    question="Does the gap remain when the loss does not contrast winner and loser, but imitates the winner?",
    finding="The gap persists under Best-of-2, except on Chat Arena; Best-of-2 on its own shuffled online stream "
    "matches Best-of-2 online (Tang et al. 2024, figure 9).",
    rule="Estimand: same configuration (Best-of-2 in place of the baseline's loss, all else the baseline's, paired by "
    "seed); win rate on the study's primary split, opponent and judge. The verdict rests on the gap alone: online "
    "minus offline, both with Best-of-2, averaged over ln KL on the range both reach, and the difference of their "
    "peaks. Supported (the gap persists) if the 95% intervals of both lie wholly above 0; contradicted if either lies "
    "wholly below 0, or both lie wholly within the margin of no difference; else inconclusive. The second half of "
    "figure 9 is judged apart, in the sentence: the shuffled stream matches online if the 95% interval of their "
    "average gap at equal KL lies wholly within the margin of no difference, does not match if wholly beyond it, and "
    "else cannot be told.",
    arms=arms,
    analyse=analyse,
)
