"""H4, figure 9: is the gap a matter of contrastive losses? Best-of-2 online, offline and on its shuffled stream."""

from __future__ import annotations

import numpy as np

from aligngap.experiments.base import Analysis, Experiment, Figure, Labelled, TaskData, each_seed
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.contrasts import Contrasts
from aligngap.experiments.words import across, interval_words
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

    contrasts = Contrasts(data, "loss")
    main, to_shuffled = (contrasts.gaps("online_bo2", other) for other in ("offline_bo2", "shuffled_bo2"))
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
        "average_gap_baseline": Labelled(
            "baseline's loss: average gap at equal KL, online minus offline", contrasts.gap("online", "offline")
        ),
    }
    estimates |= contrasts.gap_elsewhere("average_gap", "Best-of-2: average gap", "online_bo2", "offline_bo2")
    reach = {
        family: data.estimate({"": contrasts.runs(family)}, largest, "loss", family).exponential()
        for family in FAMILIES
    }
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
    rule=RULE,
    arms=arms,
    analyse=analyse,
)
