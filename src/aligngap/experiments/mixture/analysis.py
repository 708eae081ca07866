"""Estimates and verdict on shares of on-policy pairs."""

from __future__ import annotations

from math import isfinite

from aligngap.experiments.base import Analysis, Figure, Labelled, Point, TaskData
from aligngap.experiments.mixture.sweep import SHARES
from aligngap.experiments.words import across, interval_words
from aligngap.pipeline.stages import SPLITS
from aligngap.stats.bootstrap import Estimate
from aligngap.stats.curves import Run
from aligngap.stats.verdict import Verdict, threshold_verdict

HALF, QUARTER = 0.5, "mixture_25"

RULE = (
    "Share of the gap closed = (mixture minus offline) / (online minus offline), each averaged over ln KL on the "
    "range all three reach, at the baseline configuration, paired by seed. Supported (a quarter of on-policy pairs "
    f"closes at least half the gap) if the 95% interval of the share at {SHARES[QUARTER]:.0%} on-policy pairs lies "
    "wholly above one half; contradicted if wholly below; else inconclusive. Undefined, hence inconclusive, when the "
    "interval of online minus offline contains 0 on that range; inconclusive also unless online is ahead, the interval "
    "of the average gap, online minus offline on the range both reach, lying wholly above 0."
)


def analyse(data: TaskData) -> Analysis:
    """Share closed by each mixture, and its gaps to both sides."""
    primary = data.settings.split
    other = next(split for split in SPLITS if split != primary)

    def runs(*families: str, split: str | None = None, judge: str | None = None) -> list[list[Run]]:
        return [data.runs(family, baseline=True, split=split, judge=judge) for family in families]

    def share(family: str, *purpose: str, split: str | None = None, judge: str | None = None) -> Estimate:
        own, offline, online = runs(family, "offline", "online", split=split, judge=judge)
        return data.share_closed(own, offline, online, "mixture", family, *purpose)

    def gap(a: str, b: str, split: str = primary) -> Estimate:
        higher, lower = runs(a, b, split=split)
        return data.gap(higher, lower, "mixture", a, b, split)["average_gap"]

    shares = {family: share(family) for family in SHARES}
    above = {
        (split, family): gap(family, "offline", split) for split in (primary, other) for family in (*SHARES, "online")
    }
    whole, closed = above[primary, "online"], "share of the online-offline gap closed"
    names = {family: f"{value:.0%} on-policy pairs" for family, value in SHARES.items()}
    estimates = {
        f"share_{family}": Labelled(f"{closed} by {names[family]}", shares[family], "share", HALF)
        for family in sorted(SHARES, key=lambda family: family != QUARTER)
    }
    estimates |= {
        f"share_{QUARTER}_{other}": Labelled(
            f"{closed} by {names[QUARTER]}, {other.replace('_', '-')} prompts",
            share(QUARTER, other, split=other),
            "share",
            HALF,
        ),
        f"share_{QUARTER}_true": Labelled(
            f"{closed} by {names[QUARTER]}, by true utility", share(QUARTER, "true", judge="true"), "share", HALF
        ),
        "online_minus_offline": Labelled("average gap at equal KL, online minus offline", whole),
    }
    for family, name in names.items():
        estimates[f"{family}_minus_offline"] = Labelled(
            f"average gap at equal KL, {name} minus offline", above[primary, family]
        )
        estimates[f"online_minus_{family}"] = Labelled(
            f"average gap at equal KL, online minus {name}", gap("online", family)
        )
    ahead = whole.low > 0 and isfinite(shares[QUARTER].low)
    verdict: Verdict = threshold_verdict(shares[QUARTER], HALF, 1) if ahead else "inconclusive"
    said = [f"{names[family]} close {interval_words(found)} of the gap" for family, found in shares.items()]
    sentence = (
        f"Online is {interval_words(whole, signed=True)} above offline at equal KL ({across(whole)}); "
        + ("; ".join(said) if ahead else "what share of that the mixtures close cannot be told")
        + "."
    )
    return Analysis(verdict, sentence, estimates, figures(shares, above))


def figures(shares: dict[str, Estimate], above: dict[tuple[str, str], Estimate]) -> list[Figure]:
    """Share closed and gap over offline by share of on-policy pairs, and the curves. above: gap by (split, family)."""
    measured = [
        Point("measured", SHARES[family], found.value, found.low, found.high)
        for family, found in shares.items()
        if isfinite(found.value)
    ]
    ends = [Point("in proportion", value, value) for value in (0.0, 1.0)] if measured else []
    places = {"offline": 0.0, **SHARES, "online": 1.0}
    gaps = [
        Point(f"{split.replace('_', '-')} prompts", places[family], found.value, found.low, found.high)
        for (split, family), found in above.items()
        if found.n_seeds
    ]
    x = "share of on-policy pairs"
    return [
        Figure("share_closed", "Share of the gap closed", x, "share of the online-offline gap", points=measured + ends),
        Figure("gap", "Gap over offline", x, "average gap at equal KL, arm minus offline, win rate", points=gaps),
        Figure("curves", "Shares of on-policy pairs between offline and online", families=tuple(places)),
    ]
