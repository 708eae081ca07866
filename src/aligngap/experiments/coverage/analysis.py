"""Estimates and verdict of H1."""

from __future__ import annotations

from math import isnan

from aligngap.experiments.base import Analysis, Labelled, TaskData
from aligngap.experiments.words import across, interval_words
from aligngap.stats.verdict import threshold_verdict

HALF = 0.5

RULE = (
    "Share of the gap closed = (shuffled minus offline) / (online minus offline), each averaged over ln KL on the "
    "range all three reach, at the baseline configuration, paired by seed. Supported (coverage alone does not explain"
    " the gap) if the 95% interval of the share lies wholly below one half; contradicted if wholly above; else "
    "inconclusive. Undefined, hence inconclusive, when the interval of the online-offline gap contains 0."
)


def analyse(data: TaskData) -> Analysis:
    """Share of the gap that the shuffled stream closes, and its gaps to both sides."""
    online, offline, shuffled = (data.runs(family, baseline=True) for family in ("online", "offline", "shuffled"))
    share = data.share_closed(shuffled, offline, online, "coverage")
    above = data.gap(online, shuffled, "coverage", "online")["average_gap"]
    below = data.gap(shuffled, offline, "coverage", "offline")["average_gap"]
    estimates = {
        "share_closed": Labelled("share of the online-offline gap closed by the shuffled stream", share, "share", HALF),
        "online_minus_shuffled": Labelled("average gap at equal KL, online minus shuffled", above),
        "shuffled_minus_offline": Labelled("average gap at equal KL, shuffled minus offline", below),
    }
    closes = (
        "how much of the gap the shuffled stream closes cannot be told"
        if isnan(share.value) or isnan(share.low)
        else f"the shuffled stream closes {interval_words(share)} of the gap"
    )
    sentence = (
        f"{closes[0].upper()}{closes[1:]}; online is {interval_words(above, signed=True)} above it ({across(above)})."
    )
    return Analysis(threshold_verdict(share, HALF, -1), sentence, estimates)
