"""Beyond the paper: how many on-policy pairs does offline training need?"""

from __future__ import annotations

from math import isfinite

from aligngap.experiments.base import Analysis, Experiment, Figure, FigurePoint, TaskData, View, each_seed, points
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.contrasts import Contrasts
from aligngap.sources.mixture import MixtureSpec
from aligngap.stats.intervals import Estimate
from aligngap.stats.verdict import Verdict, threshold_verdict

SHARES = {"mixture_10": 0.1, "mixture_25": 0.25, "mixture_50": 0.5}
"""Share of on-policy pairs by family; offline has none, online all."""


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """Offline, online, and pairs of both in stated shares. Recorded pairs have golden's labels and on-policy pairs the
    proxy's, as at either end.
    """
    mixed = [
        bench.online(
            seed,
            family,
            f"{share:.0%} on-policy pairs",
            source=MixtureSpec(on_policy=share),
            recorded=bench.golden_pairs,
        )
        for family, share in SHARES.items()
    ]
    return [bench.offline(seed), bench.online(seed), *mixed]


HALF, QUARTER = 0.5, "mixture_25"


def analyse(data: TaskData) -> Analysis:
    """Share closed by each mixture, and its gaps to both sides."""
    contrasts = Contrasts(data, "mixture")
    primary, other = contrasts.primary, contrasts.other

    def share(family: str, view: View = primary) -> Estimate:
        return contrasts.share(family, view, family, *filter(None, [view.name]))

    def gap(a: str, b: str, view: View = primary) -> Estimate:
        return contrasts.gap(a, b, view, a, b, view.split or data.settings.split)

    shares = {family: share(family) for family in SHARES}
    above = {
        (view, family): gap(family, "offline", view) for view in (primary, other) for family in (*SHARES, "online")
    }
    whole, closed = above[primary, "online"], "share of the online-offline gap closed"
    names = {family: f"{value:.0%} on-policy pairs" for family, value in SHARES.items()}
    for family in sorted(SHARES, key=lambda family: family != QUARTER):
        contrasts.put(f"share_{family}", f"{closed} by {names[family]}", shares[family], "share", HALF)
    contrasts.elsewhere(f"share_{QUARTER}", f"{closed} by {names[QUARTER]}", lambda at: share(QUARTER, at), "share")
    contrasts.put("online_minus_offline", "average gap at equal KL, online minus offline", whole)
    for family, name in names.items():
        label = f"average gap at equal KL, {name} minus offline"
        contrasts.put(f"{family}_minus_offline", label, above[primary, family])
        contrasts.put(f"online_minus_{family}", f"average gap at equal KL, online minus {name}", gap("online", family))
    ahead = whole.low > 0 and isfinite(shares[QUARTER].low)
    verdict: Verdict = threshold_verdict(shares[QUARTER], HALF, 1) if ahead else "inconclusive"
    closes = [f"{names[family]} close {result:.1%} of the gap" for family, result in shares.items()]
    sentence = (
        f"Online is {whole:+.1%} above offline at equal KL ({whole.across()}); "
        + ("; ".join(closes) if ahead else "what share of that the mixtures close cannot be told")
        + "."
    )
    by_prompts = {(contrasts.prompts(view), family): result for (view, family), result in above.items()}
    return Analysis(verdict, sentence, contrasts.estimates, figures(shares, by_prompts))


def figures(shares: dict[str, Estimate], above: dict[tuple[str, str], Estimate]) -> list[Figure]:
    """Share closed, gap over offline by share of on-policy pairs, and the curves. above: gap by (prompts, family)."""
    measured = points(
        ("measured", SHARES[family], result) for family, result in shares.items() if isfinite(result.value)
    )
    ends = [FigurePoint("in proportion", value, value) for value in (0.0, 1.0)] if measured else []
    places = {"offline": 0.0, **SHARES, "online": 1.0}
    gaps = points((prompts, places[family], result) for (prompts, family), result in above.items())
    x = "share of on-policy pairs"
    return [
        Figure("share_closed", "Share of the gap closed", x, "share of the online-offline gap", points=measured + ends),
        Figure("gap", "Gap over offline", x, "average gap at equal KL, arm minus offline, win rate", points=gaps),
        Figure("curves", "Shares of on-policy pairs between offline and online", families=tuple(places)),
    ]


EXPERIMENT = Experiment(
    name="mixture",
    title="A share of on-policy pairs",
    question="What share of the gap between online and offline does a share of on-policy pairs in offline training "
    "close?",
    finding="Hypothesis of ours, not tested by Tang et al. 2024: a little on-policy sampling goes a long way; a "
    "quarter of on-policy pairs closes at least half the gap.",
    rule="Share of the gap closed = (mixture minus offline) / (online minus offline), each averaged over ln KL on the "
    "range all three reach, at the baseline configuration, paired by seed. Supported (a quarter of on-policy pairs "
    f"closes at least half the gap) if the 95% interval of the share at {SHARES[QUARTER]:.0%} on-policy pairs lies "
    "wholly above one half; contradicted if wholly below; else inconclusive. Undefined, hence inconclusive, when the "
    "interval of online minus offline contains 0 on that range; inconclusive also unless online is ahead, the interval "
    "of the average gap, online minus offline on the range both reach, lying wholly above 0.",
    arms=arms,
    analyse=analyse,
)
