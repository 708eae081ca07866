"""H3a, figure 6: who tells the better of two responses along the online stream: the proxy, or the policies?"""

from __future__ import annotations

import polars as pl

from aligngap.experiments.base import Analysis, Experiment, Figure, TaskData, by_seed, each_seed, points
from aligngap.experiments.bench import ArmEntry, Bench, Measure
from aligngap.experiments.classification.measure import StreamAccuracy
from aligngap.experiments.contrasts import Contrasts
from aligngap.stats.budget import Floats
from aligngap.stats.intervals import Estimate
from aligngap.stats.items import apart
from aligngap.stats.verdict import joint_verdict


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """Two arms a seed, shared with other experiments."""
    return [bench.online(seed), bench.offline(seed)]


@each_seed
def measures(bench: Bench, seed: int) -> list[Measure]:
    """One a seed."""
    online, offline = (entry.stage for entry in (bench.online(seed), bench.offline(seed)))
    stage = StreamAccuracy(online=online, offline=offline, golden=bench.golden, proxy=bench.proxy(seed))
    return [Measure("stream_accuracy", seed, stage)]


PART = 3
"""Points of the stream that its beginning and its end are taken to be, of ten."""

CLASSIFIERS = {
    "proxy": "proxy",
    "online": "final online policy",
    "offline": "final offline policy",
    "true": "true utility",
}


def analyse(data: TaskData) -> Analysis:
    """Accuracy along the stream: the proxy against the policies, and the decay of each."""
    pairs, contrasts = pairs_of(data.table("stream_accuracy")), Contrasts(data, "classification")

    def mean(value: pl.Expr, *purpose: str, rows: pl.DataFrame = pairs) -> Estimate:
        return data.item_mean(by_seed(rows, value), "classification", *purpose)

    over = {}
    for policy in ("online", "offline"):
        over[policy] = mean(pl.col("proxy") - pl.col(policy), "proxy", policy)
        label = f"accuracy along the stream, proxy minus {CLASSIFIERS[policy]}"
        contrasts.put(f"proxy_minus_{policy}", label, over[policy], "accuracy")
    present = [name for name in CLASSIFIERS if name in pairs.columns]  # not every task has a true utility
    falls = {name: data.item_mean(decays(pairs, name), "classification", "decay", name) for name in present}
    for name, result in falls.items():
        label = f"{CLASSIFIERS[name]}: accuracy at the first {PART} points minus the last {PART}"
        contrasts.put(f"decay_{name}", label, result, "accuracy")
    accuracy = {name: mean(pl.col(name), name) for name in present}
    for name, result in accuracy.items():
        contrasts.put(f"accuracy_{name}", f"{CLASSIFIERS[name]}: accuracy along the stream", result, "accuracy")
    ties = mean(pl.col("proxy").is_nan(), "ties")
    contrasts.put("ties", "pairs that golden calls a tie, left out of the above", ties, "share of pairs")
    shown = points(
        (CLASSIFIERS[name], int(step), mean(pl.col(name), "figure", name, str(step), rows=rows))
        for (step,), rows in sorted(pairs.partition_by("step", as_dict=True).items())
        for name in rows.columns
        if name in CLASSIFIERS
    )
    sentence = (
        f"Along the online stream the proxy decides as golden does on {accuracy['proxy']:.1%} of the pairs, which is "
        f"{over['online']:+.1%} more than the final online policy and {over['offline']:+.1%} more than the final "
        f"offline policy; from the first points to the last its accuracy falls by {falls['proxy']:+.1%} "
        f"({over['online'].across('pairs')})."
    )
    figure = Figure(
        name="stream",
        title="Agreement with golden on the pairs that the online run saw",
        x="step of the online run",
        y="accuracy",
        points=shown,
    )
    verdict = joint_verdict((over["online"], over["offline"], falls["proxy"]), data.settings.margin)
    return Analysis(verdict, sentence, contrasts.estimates, [figure])


def pairs_of(table: pl.DataFrame) -> pl.DataFrame:
    """A row a seed, step and pair, a column a classifier; NaN where golden calls a tie. Empty without a table."""
    if table.is_empty():
        return pl.DataFrame(schema={"seed": pl.Int64, "step": pl.Int64, **dict.fromkeys(CLASSIFIERS, pl.Float64)})
    keys = ["seed", "step", "pair"]
    return table.pivot(on="classifier", index=keys, values="correct").sort(keys)


def decays(pairs: pl.DataFrame, classifier: str) -> dict[int, Floats]:
    """Values whose mean is the classifier's accuracy at the stream's first points minus that at its last, by seed."""
    steps = pairs["step"].unique().sort()
    part = min(PART, len(steps) // 2)
    first, last = (
        by_seed(pairs.filter(pl.col("step").is_in(some.to_list())), pl.col(classifier))
        for some in (steps.head(part), steps.tail(part))
    )
    return {seed: apart(first[seed], last[seed]) for seed in sorted(set(first) & set(last))}


EXPERIMENT = Experiment(
    name="classification",
    title="H3a: the proxy as classifier",
    question="Along the online stream, does the proxy preference model tell the better response more often than the "
    "final online and the final offline policy do?",
    finding="The proxy is clearly the best classifier, and its accuracy decays as the stream drifts "
    "(Tang et al. 2024, figure 6).",
    rule="Accuracy = share of the online stream's pairs, near ten evenly spaced steps of the run, on which a "
    "classifier decides as golden does; a classifier's tie counts one half, and pairs that golden calls a tie are left "
    "out. Three differences: proxy minus final online policy and proxy minus final offline policy (baseline "
    "configuration, pair by pair, averaged over all the pairs), and the proxy's decay, its accuracy at the first "
    f"{PART} points minus that at the last {PART}. Supported if the 95% intervals of all three lie wholly above 0; "
    "contradicted if any lies wholly below 0, or all lie wholly within the margin of no difference; else inconclusive.",
    arms=arms,
    analyse=analyse,
    measures=measures,
)
