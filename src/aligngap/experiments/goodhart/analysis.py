"""Estimates and verdict of figure 1."""

from __future__ import annotations

from itertools import product

from aligngap.experiments.base import Analysis, Labelled, TaskData
from aligngap.experiments.words import across, interval_words
from aligngap.stats.bootstrap import Estimate
from aligngap.stats.verdict import Verdict, sign_verdict

RULE = (
    "Estimand: same configuration (both at the baseline, paired by seed); win rate on the study's primary split, "
    "opponent and judge. Gap = online minus offline, averaged over ln KL on the range both reach; peak difference = "
    "online's peak minus offline's. Supported if the 95% intervals of both lie wholly above 0; contradicted if either "
    "lies wholly below 0, or both lie wholly within the margin of no difference; else inconclusive."
)

LABELS = {
    "average_gap": ("average gap at equal KL, online minus offline", "win rate"),
    "peak_difference": ("difference of the peaks, online minus offline", "win rate"),
    "online_peak": ("peak of online", "win rate"),
    "offline_peak": ("peak of offline", "win rate"),
    "online_kl_at_peak": ("KL at online's peak", "nats"),
    "offline_kl_at_peak": ("KL at offline's peak", "nats"),
    "online_fall": ("online: fall from peak to end", "win rate"),
    "offline_fall": ("offline: fall from peak to end", "win rate"),
}

Gaps = dict[str, Estimate]


def analyse(data: TaskData) -> Analysis:
    """Gap, peaks and falls at the baseline configuration; the gap by true utility, on the other split, and with the
    sweep pooled.
    """
    settings = data.settings

    def gaps(
        purpose: str,
        family: str = "offline",
        baseline: bool | None = True,
        split: str | None = None,
        judge: str | None = None,
    ) -> Gaps:
        online = data.runs("online", split=split, judge=judge)
        return data.gap(online, data.runs(family, baseline=baseline, split=split, judge=judge), "goodhart", purpose)

    main = gaps("main")
    estimates = {key: Labelled(label, main[key], unit) for key, (label, unit) in LABELS.items()}
    other = "train" if settings.split == "held_out" else "held_out"
    further = {
        f"average_gap_{other}": (f"average gap, {other.replace('_', '-')} prompts", gaps(other, split=other)),
        "average_gap_true": ("average gap, by true utility", gaps("true", judge="true")),
        "average_gap_pooled": (
            "average gap, online minus the pooled offline sweep (as in the paper)",
            gaps("pooled", baseline=None),
        ),
        "average_gap_proxy_labels": (
            "average gap, online minus offline on the same pairs with the proxy's labels (equal label information)",
            gaps("proxy labels", family="offline_proxy"),
        ),
    }
    estimates |= {key: Labelled(label, found["average_gap"]) for key, (label, found) in further.items()}
    for family, judge in product(("online", "offline"), ("golden", "true")):
        runs = data.runs(family, baseline=True, opponent="sft", judge=judge)
        fit = data.over_optimisation(runs, "goodhart", "gao", judge)
        name = (
            f"{family}, by {'true utility' if judge == 'true' else judge}: gain over SFT = d (a - b ln d), d = sqrt(KL)"
        )
        estimates[f"{family}_gao_a_{judge}"] = Labelled(f"{name}; a", fit.a, "win rate / sqrt(nats)")
        estimates[f"{family}_gao_b_{judge}"] = Labelled(f"{name}; b", fit.b, "win rate / sqrt(nats)")
    verdicts = {sign_verdict(main[key], 1, settings.margin) for key in ("average_gap", "peak_difference")}
    below = min(main["average_gap"].high, main["peak_difference"].high) < 0
    contradicted = verdicts == {"contradicted"} or below
    verdict: Verdict = "contradicted" if contradicted else verdicts.pop() if len(verdicts) == 1 else "inconclusive"
    falls = [
        f"{name} {'falls' if main[f'{name}_fall'].low > 0 else 'shows no clear fall'} after its peak"
        for name in ("online", "offline")
    ]
    sentence = (
        f"At equal KL online wins {interval_words(main['average_gap'], signed=True)} of the prompts more than offline "
        f"does, and its peak is {interval_words(main['peak_difference'], signed=True)} higher "
        f"({across(main['average_gap'])}); {falls[0]}, {falls[1]}."
    )
    return Analysis(verdict, sentence, estimates)
