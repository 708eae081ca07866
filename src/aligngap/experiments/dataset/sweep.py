"""Offline on four sets of pairs, and what each set is like (section 6 and figure 12; figure 5 uses two of them)."""

from __future__ import annotations

from collections.abc import Sequence

from aligngap.experiments.bench import SHARED_SEED, ArmEntry, Bench, Measure
from aligngap.experiments.dataset.measure import PairProfile
from aligngap.pipeline.stages import Generate, Relabel

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


def arms(bench: Bench) -> list[ArmEntry]:
    """Four arms a seed."""
    return [entry(bench, seed, family) for seed in bench.study.seeds for family in FAMILIES]


def measures(bench: Bench) -> list[Measure]:
    """A profile of each set."""
    return profiles(bench, FAMILIES)


def profiles(bench: Bench, families: Sequence[str]) -> list[Measure]:
    """Profiles of these families' pairs, a seed each; `D_golden` belongs to all seeds and has one."""
    return [
        Measure(profile_name(family), seed, _profile(bench, seed, family))
        for family in families
        for seed in ((SHARED_SEED,) if family == D_GOLDEN else bench.study.seeds)
    ]


def profile_name(family: str) -> str:
    """Under which `TaskData.table` finds the profile of a family's pairs."""
    return f"pairs {family}"


def pairs_of(bench: Bench, seed: int, family: str) -> Relabel | Generate:
    """The pairs that a family trains on."""
    return bench.golden_pairs if family == D_GOLDEN else bench.sampled_pairs(seed, *SIDES[family])


def _profile(bench: Bench, seed: int, family: str) -> PairProfile:
    return PairProfile(sft=bench.sft, pairs=pairs_of(bench, seed, family), reference=bench.golden_pairs)
