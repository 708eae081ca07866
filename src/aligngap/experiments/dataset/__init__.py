"""Section 6, figure 12: which property of a data set makes offline training work: proximity, contrast or quality?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import polars as pl

from aligngap.experiments.base import Analysis, Experiment, Figure, TaskData, each_seed, points
from aligngap.experiments.bench import ArmEntry, Bench, Measure
from aligngap.experiments.contrasts import Contrasts
from aligngap.experiments.dataset.measure import PairProfile
from aligngap.pipeline.stages import Generate, Relabel
from aligngap.stats.intervals import Estimate
from aligngap.stats.verdict import gap_verdict

STEP_FACTOR = 5.0
"""Longer than the baseline, as the paper's 20k steps are than its 4k: a set shall not lose for want of training."""

D_GOLDEN = "offline_long"
"""Family of the arm on `D_golden`: the offline baseline, but for its length."""

SIDES: dict[str, tuple[str | None, str | None]] = {
    "sft_vs_early": (None, "early"),
    "early_vs_final": ("early", "final"),
    "final_vs_final": ("final", "final"),
}
"""Whose responses the pairs of the other families hold; the first side is never further from the SFT policy."""

FAMILIES = (D_GOLDEN, *SIDES)

LABELS = {
    D_GOLDEN: "D_golden",
    "sft_vs_early": "SFT vs early",
    "early_vs_final": "early vs final",
    "final_vs_final": "final vs final",
}
"""What the data sets are called."""


def entry(bench: Bench, seed: int, family: str) -> ArmEntry:
    """Offline on one of the sets, at the baseline configuration but for the number of steps."""
    return bench.recorded(seed, family, pairs_of(bench, seed, family), step_factor=STEP_FACTOR)


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """Four arms a seed."""
    return [entry(bench, seed, family) for family in FAMILIES]


def measures(bench: Bench) -> list[Measure]:
    """A profile of each set."""
    return profiles(bench, FAMILIES)


def profiles(bench: Bench, families: Sequence[str]) -> list[Measure]:
    """Profiles of these families' pairs, a seed each."""
    return [
        Measure(profile_name(family), seed, _profile(bench.of(seed), seed, family))
        for family in families
        for seed in bench.seeds
    ]


def profile_name(family: str) -> str:
    """Under which `TaskData.table` finds the profile of a family's pairs."""
    return f"pairs {family}"


def pairs_of(bench: Bench, seed: int, family: str) -> Relabel | Generate:
    """The pairs that a family trains on."""
    return bench.golden_pairs if family == D_GOLDEN else bench.sampled_pairs(seed, *SIDES[family])


def _profile(bench: Bench, seed: int, family: str) -> PairProfile:
    return PairProfile(sft=bench.sft, pairs=pairs_of(bench, seed, family), reference=bench.golden_pairs)


NEAR, FAR = ("sft_vs_early", D_GOLDEN), ("final_vs_final", "early_vs_final")

QUANTITIES: Mapping[str, tuple[str, str, pl.Expr]] = {
    "quality": ("mean true utility of the responses", "utility", pl.mean_horizontal("utility_first", "utility_second")),
    "contrast": (
        "true utility between the two responses, absolute",
        "utility",
        (pl.col("utility_first") - pl.col("utility_second")).abs(),
    ),
    "golden_contrast": ("golden's margin between the two responses, absolute", "probability", pl.col("golden_margin")),
    "proximity": (
        "log-probability under SFT a token, first response (the side nearer SFT)",
        "nats a token",
        pl.col("sft_log_prob_first"),
    ),
    "proximity_second": (
        "log-probability under SFT a token, second response",
        "nats a token",
        pl.col("sft_log_prob_second"),
    ),
}
"""What a set of pairs is like: label, unit, and the value of a pair."""


def analyse(data: TaskData) -> Analysis:
    """Peaks of the sets with a side near the SFT policy over those without, and the profile of each set."""
    contrasts = Contrasts(data, "dataset")
    result = {(near, far): contrasts.gaps(near, far, None, f"{near}_minus_{far}") for near, far in product(NEAR, FAR)}
    for (near, far), gaps in result.items():
        label = f"difference of the peaks, {LABELS[near]} minus {LABELS[far]}"
        contrasts.put(f"{near}_minus_{far}", label, gaps["peak_difference"])
    for (near, far), gaps in result.items():
        key, names = f"{near}_minus_{far}", f"{LABELS[near]} minus {LABELS[far]}"
        contrasts.put(f"{key}_gap", f"average gap at equal KL, {names}", gaps["average_gap"])
        label = f"difference of the peaks, {names}"
        contrasts.gap_elsewhere(key, label, near, far, key, part="peak_difference")
    profiles = profile(data, FAMILIES)
    for (quantity, (label, unit, _)), family in product(QUANTITIES.items(), FAMILIES):
        contrasts.put(f"{quantity}_{family}", f"{LABELS[family]}: {label}", profiles[family][quantity], unit)
    over_final, over_early = (result[NEAR[0], far]["peak_difference"] for far in FAR)
    sentence = (
        f"Offline training peaks {over_final:+.1%} higher on SFT-vs-early pairs than on final-vs-final ones, and "
        f"{over_early:+.1%} higher than on early-vs-final ones ({over_final.across()})."
    )
    figures = [
        Figure("curves", "Offline training on four sets of pairs", families=FAMILIES),
        quality_bars(profiles),
        _bars("contrast", "How far apart the two responses are", profiles, {"both responses": "contrast"}),
        _bars(
            "proximity",
            "How near the SFT policy the responses are",
            profiles,
            {"first response": "proximity", "second response": "proximity_second"},
        ),
    ]
    verdict = gap_verdict(over_final, over_early, data.settings.margin)
    return Analysis(verdict, sentence, contrasts.estimates, figures)


def profile(data: TaskData, families: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """By family, what its pairs are like; keys of `QUANTITIES`."""
    values = {
        f"{family} {quantity}": (data.table(profile_name(family)), value)
        for family in families
        for quantity, (_, _, value) in QUANTITIES.items()
    }
    result = data.prompt_means(values, "dataset", "profile")
    return {family: {quantity: result[f"{family} {quantity}"] for quantity in QUANTITIES} for family in families}


def quality_bars(profiles: Mapping[str, Mapping[str, Estimate]]) -> Figure:
    """Mean true utility of the responses of each set."""
    return _bars("quality", "How good the responses are", profiles, {"both responses": "quality"})


def _bars(name: str, title: str, profiles: Mapping[str, Mapping[str, Estimate]], series: Mapping[str, str]) -> Figure:
    shown = points(
        (label, LABELS[family], result[quantity])
        for label, quantity in series.items()
        for family, result in profiles.items()
    )
    what, unit, _ = QUANTITIES[next(iter(series.values()))]
    axis = f"{what.partition(',')[0]}, {unit}"
    return Figure(name, title, x="pairs", y=axis, mark="bar", points=shown)


EXPERIMENT = Experiment(
    name="dataset",
    title="What a good offline data set is",
    question="Of four sets of pairs on the same prompts with the same judge's labels, which does offline training "
    "gain from: those near the SFT policy, those of high contrast, or those of high quality?",
    finding="A side near the SFT policy is what helps; contrast alone and quality alone do not "
    "(Tang et al. 2024, section 6, figure 12).",
    rule=f"All arms at the baseline configuration but for {STEP_FACTOR:g} times its steps, paired by seed; win rate on "
    "the study's primary split, opponent and judge. Two differences of peak win rates: SFT-vs-early minus "
    "final-vs-final (the pairs of higher quality), and SFT-vs-early minus early-vs-final (pairs as contrasting, but "
    "away from the SFT policy). Supported (proximity on one side is what helps) if the 95% intervals of both lie "
    "wholly above 0; contradicted if either lies wholly below 0, or both lie wholly within the margin of no "
    "difference; else inconclusive. Peaks, because the sets drive the policy to different KL, and the range that all "
    "reach may be too narrow to compare on; every arm has equally many checkpoints, so no peak is favoured. Each "
    "comparison is named here, not the best of several picked after the run.",
    arms=arms,
    analyse=analyse,
    measures=measures,
)
