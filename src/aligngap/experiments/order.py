"""Figure 13: how much of its order may the online stream lose? Shuffled within windows of growing size."""

from __future__ import annotations

from collections.abc import Sequence

from aligngap.experiments.base import Analysis, Experiment, Figure, TaskData, each_seed, points
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.contrasts import Contrasts
from aligngap.pipeline.stages import Arm
from aligngap.sources.recorded import RecordedSpec
from aligngap.stats.verdict import all_of, equivalence_verdict, joint_verdict

SMALL, PART = 4, 8
"""Batches of the small window that the verdict rests on, as in the paper; the large one is an eighth of the run, as
500 batches are of the paper's 4,000.
"""

LABELS = {
    "replay": "exact order",
    "window_1": "windows of 1 batch",
    "window_4": f"windows of {SMALL} batches",
    "window_eighth": "windows of an eighth of the run",
    "shuffled": "wholly shuffled",
}


def replays(bench: Bench, seed: int, families: Sequence[str] = tuple(LABELS)) -> list[ArmEntry]:
    """Offline on the online stream of a seed in each of these orders; exact and wholly shuffled are the arms of the
    tandem and coverage experiments.
    """
    eighth = max(1, bench.study.baseline.optim.steps // PART)
    windows = {"window_1": 1, "window_4": SMALL, "window_eighth": eighth}
    orders = {family: RecordedSpec(order="window", window=batches) for family, batches in windows.items()}
    orders |= {"replay": RecordedSpec(order="sequence"), "shuffled": RecordedSpec(order="uniform")}
    names = {family: f"stream, windows of {batches}" for family, batches in windows.items()}
    return [bench.on_stream(seed, family, orders[family], name=names.get(family)) for family in families]


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """Online, and its stream in five orders."""
    return [bench.online(seed), *replays(bench, seed)]


def window(arm: Arm) -> float:
    """Batches within which an arm's recorded pairs are shuffled: the whole run where the order is uniform, a single
    pair where they come in sequence.

    Raises:
        ValueError: the arm's pairs are not recorded.
    """
    if not isinstance(arm.source, RecordedSpec):
        raise ValueError(f"only recorded pairs have a shuffle window: {arm.label}")
    if arm.source.order == "window":
        return arm.source.window
    return 1 / arm.optim.batch if arm.source.order == "sequence" else arm.optim.steps


def analyse(data: TaskData) -> Analysis:
    """What small windows and the whole shuffle cost, and the gap to online by window."""
    margin, contrasts = data.settings.margin, Contrasts(data, "order")
    gap, primary, other = contrasts.gap, contrasts.primary, contrasts.other
    whole, further, small = gap("replay", "shuffled"), gap("window_4", "shuffled"), gap("window_4", "replay")
    costs, slips = f"{LABELS['replay']} minus {LABELS['shuffled']}", f"{LABELS['window_4']} minus {LABELS['replay']}"
    contrasts.put("replay_minus_shuffled", f"average gap at equal KL, {costs}", whole)
    label = f"average gap at equal KL, {LABELS['window_4']} minus {LABELS['shuffled']}"
    contrasts.put("small_minus_shuffled", label, further)
    contrasts.put("small_minus_replay", f"average gap at equal KL, {slips}", small)
    contrasts.gap_elsewhere("replay_minus_shuffled", f"average gap, {costs}", "replay", "shuffled")
    contrasts.gap_elsewhere("small_minus_replay", f"average gap, {slips}", "window_4", "replay")
    to_online = {(view, family): gap("online", family, view) for view in (primary, other) for family in LABELS}
    for family, words in LABELS.items():
        label = f"average gap at equal KL, online minus its stream: {words}"
        contrasts.put(f"online_minus_{family}", label, to_online[primary, family])
    shown = points(
        (contrasts.prompts(view), window(arms[0].entry.stage), result)
        for (view, family), result in to_online.items()
        if (arms := contrasts.arms(family))
    )
    sentence = (
        f"At equal KL, the stream shuffled within {LABELS['window_4']} is {small:+.1%} above its exact order; exact "
        f"order is {whole:+.1%} above the wholly shuffled stream ({whole.across()}), and small windows are "
        f"{further:+.1%} above it."
    )
    verdict = all_of([equivalence_verdict(small, margin), joint_verdict((whole, further), margin)])
    figures = [
        Figure(
            name="by_window",
            title="Gap to online by shuffle window, from one pair (exact order) to the whole run (wholly shuffled)",
            x="shuffle window, batches",
            y="average gap at equal KL, online minus its stream, win rate",
            points=shown,
            x_log=True,
        ),
        Figure(name="curves", title="The online stream in five orders, beside online", families=("online", *LABELS)),
    ]
    return Analysis(verdict, sentence, contrasts.estimates, figures)


EXPERIMENT = Experiment(
    name="order",
    title="Order of the online stream",
    question="How far can the online run's pairs be moved from the step they were sampled at before offline training "
    "on them falls behind?",
    finding="Offline training on the online stream is robust to shuffling within small windows, then deteriorates as "
    "the windows grow (Tang et al. 2024, figure 13).",
    rule="Estimand: same configuration (the baseline's), paired by seed; gap = difference of win rates averaged over "
    "ln KL on the range both reach, on the study's primary split, opponent and judge. Two halves. Robust to small "
    f"windows: the 95% interval of the gap, windows of {SMALL} batches minus exact order, lies wholly within the "
    "margin of no difference (refuted if wholly beyond it). Then deteriorates: the intervals of the gaps, exact order "
    f"minus wholly shuffled and windows of {SMALL} batches minus wholly shuffled, both lie wholly above 0 (refuted if "
    "either lies wholly below 0, or both lie wholly within the margin). Supported if both halves hold; contradicted if "
    "either is refuted; else inconclusive.",
    arms=arms,
    analyse=analyse,
)
