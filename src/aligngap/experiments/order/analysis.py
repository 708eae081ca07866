"""Estimates and verdict of figure 13."""

from __future__ import annotations

from aligngap.experiments.base import Analysis, Figure, Labelled, Point, TaskData
from aligngap.experiments.order.sweep import LABELS, SMALL, window
from aligngap.experiments.words import across, interval_words
from aligngap.pipeline.stages import SPLITS
from aligngap.stats.bootstrap import Estimate
from aligngap.stats.verdict import all_of, equivalence_verdict, joint_verdict

RULE = (
    "Estimand: same configuration (the baseline's), paired by seed; gap = difference of win rates averaged over ln KL "
    "on the range both reach, on the study's primary split, opponent and judge. Two halves. Robust to small windows: "
    f"the 95% interval of the gap, windows of {SMALL} batches minus exact order, lies wholly within the margin of no "
    "difference (refuted if wholly beyond it). Then deteriorates: the intervals of the gaps, exact order minus wholly "
    f"shuffled and windows of {SMALL} batches minus wholly shuffled, both lie wholly above 0 (refuted if either lies "
    "wholly below 0, or both lie wholly within the margin). Supported if both halves hold; contradicted if either is "
    "refuted; else inconclusive."
)


def analyse(data: TaskData) -> Analysis:
    """What small windows and the whole shuffle cost, and the gap to online by window."""
    margin, primary = data.settings.margin, data.settings.split
    other = next(split for split in SPLITS if split != primary)

    def gap(a: str, b: str, split: str | None = None, judge: str | None = None) -> Estimate:
        above, below = (data.runs(family, baseline=True, split=split, judge=judge) for family in (a, b))
        return data.gap(above, below, "order", a, b, split or "", judge or "")["average_gap"]

    whole, further, small = gap("replay", "shuffled"), gap("window_4", "shuffled"), gap("window_4", "replay")
    costs, slips = f"{LABELS['replay']} minus {LABELS['shuffled']}", f"{LABELS['window_4']} minus {LABELS['replay']}"
    estimates = {
        "replay_minus_shuffled": Labelled(f"average gap at equal KL, {costs}", whole),
        "small_minus_shuffled": Labelled(
            f"average gap at equal KL, {LABELS['window_4']} minus {LABELS['shuffled']}", further
        ),
        "small_minus_replay": Labelled(f"average gap at equal KL, {slips}", small, null=None),
    }
    for key, where, split, judge in (
        (other, f"{other.replace('_', '-')} prompts", other, None),
        ("true", "by true utility", None, "true"),
    ):
        estimates[f"replay_minus_shuffled_{key}"] = Labelled(
            f"average gap, {costs}, {where}", gap("replay", "shuffled", split, judge)
        )
        estimates[f"small_minus_replay_{key}"] = Labelled(
            f"average gap, {slips}, {where}", gap("window_4", "replay", split, judge), null=None
        )
    to_online = {
        (split, family): gap("online", family, None if split == primary else split)
        for split in (primary, other)
        for family in LABELS
    }
    estimates |= {
        f"online_minus_{family}": Labelled(
            f"average gap at equal KL, online minus its stream: {label}", to_online[primary, family]
        )
        for family, label in LABELS.items()
    }
    points = [
        Point(f"{split.replace('_', '-')} prompts", window(arms[0].entry.stage), found.value, found.low, found.high)
        for (split, family), found in to_online.items()
        for arms in (data.finished(family, baseline=True),)
        if found.n_seeds
    ]
    sentence = (
        f"At equal KL, the stream shuffled within {LABELS['window_4']} is {interval_words(small, signed=True)} above "
        f"its exact order; exact order is "
        f"{interval_words(whole, signed=True)} above the wholly shuffled stream ({across(whole)}), and small windows "
        f"are {interval_words(further, signed=True)} above it."
    )
    verdict = all_of([equivalence_verdict(small, margin), joint_verdict((whole, further), margin)])
    figures = [
        Figure(
            name="by_window",
            title="Gap to online by shuffle window, from one pair (exact order) to the whole run (wholly shuffled)",
            x="shuffle window, batches",
            y="average gap at equal KL, online minus its stream, win rate",
            points=points,
            x_log=True,
        ),
        Figure(name="curves", title="The online stream in five orders, beside online", families=("online", *LABELS)),
    ]
    return Analysis(verdict, sentence, estimates, figures)
