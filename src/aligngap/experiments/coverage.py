"""H1, figure 4: does the online data's coverage explain the gap? Offline on every pair the online run saw, shuffled."""

from __future__ import annotations

from math import isnan

from aligngap.experiments.base import Analysis, Experiment, TaskData, each_seed
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.contrasts import Contrasts
from aligngap.sources.recorded import RecordedSpec
from aligngap.stats.verdict import threshold_verdict


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """Online, offline, and offline on the shuffled online stream, all at the baseline configuration."""
    shuffled = bench.on_stream(seed, "shuffled", RecordedSpec(order="uniform"))
    return [bench.online(seed), bench.offline(seed), shuffled]


HALF = 0.5


def analyse(data: TaskData) -> Analysis:
    """Share of the gap that the shuffled stream closes, and its gaps to both sides."""
    contrasts = Contrasts(data, "coverage")
    share, label = contrasts.share("shuffled"), "share of the online-offline gap closed by the shuffled stream"
    contrasts.put("share_closed", label, share, "share", HALF)
    above = contrasts.gap("online", "shuffled", None, "online")
    contrasts.put("online_minus_shuffled", "average gap at equal KL, online minus shuffled", above)
    below = contrasts.gap("shuffled", "offline", None, "offline")
    contrasts.put("shuffled_minus_offline", "average gap at equal KL, shuffled minus offline", below)
    closes = (
        "how much of the gap the shuffled stream closes cannot be told"
        if isnan(share.value) or isnan(share.low)
        else f"the shuffled stream closes {share:.1%} of the gap"
    )
    sentence = f"{closes[0].upper()}{closes[1:]}; online is {above:+.1%} above it ({above.across()})."
    return Analysis(threshold_verdict(share, HALF, -1), sentence, contrasts.estimates)


EXPERIMENT = Experiment(
    name="coverage",
    title="H1: data coverage",
    question="Is it what the online data covers that makes online better, rather than when each pair is seen?",
    finding="Offline training on all the online run's pairs, uniformly shuffled, is little better than offline "
    "training: coverage alone does not explain the gap, except on Chat Arena (Tang et al. 2024, figure 4).",
    rule="Share of the gap closed = (shuffled minus offline) / (online minus offline), each averaged over ln KL on the "
    "range all three reach, at the baseline configuration, paired by seed. Supported (coverage alone does not explain"
    " the gap) if the 95% interval of the share lies wholly below one half; contradicted if wholly above; else "
    "inconclusive. Undefined, hence inconclusive, when the interval of the online-offline gap contains 0.",
    arms=arms,
    analyse=analyse,
)
