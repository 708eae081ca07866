"""Estimates and verdict of H3a."""

from __future__ import annotations

import polars as pl

from aligngap.experiments.base import Analysis, Figure, FigurePoint, Labelled, TaskData
from aligngap.experiments.classification.sweep import TABLE
from aligngap.experiments.words import across, interval_words
from aligngap.stats.budget import Floats
from aligngap.stats.intervals import Estimate
from aligngap.stats.items import apart, item_estimate
from aligngap.stats.verdict import joint_verdict

PART = 3
"""Points of the stream that its beginning and its end are taken to be, of ten."""

RULE = (
    "Accuracy = share of the online stream's pairs, near ten evenly spaced steps of the run, on which a classifier "
    "decides as golden does; a classifier's tie counts one half, and pairs that golden calls a tie are left out. Three "
    "differences: proxy minus final online policy and proxy minus final offline policy (baseline configuration, pair by"
    f" pair, averaged over all the pairs), and the proxy's decay, its accuracy at the first {PART} points minus that at"
    f" the last {PART}. Supported if the 95% intervals of all three lie wholly above 0; contradicted if any lies wholly"
    " below 0, or all lie wholly within the margin of no difference; else inconclusive."
)

CLASSIFIERS = {
    "proxy": "proxy",
    "online": "final online policy",
    "offline": "final offline policy",
    "true": "true utility",
}


def analyse(data: TaskData) -> Analysis:
    """Accuracy along the stream: the proxy against the policies, and the decay of each."""
    table = data.table(TABLE)
    pairs = pairs_of(table)
    over = {
        policy: estimated(data, values(pairs, pl.col("proxy") - pl.col(policy)), "proxy", policy)
        for policy in ("online", "offline")
    }
    present = [name for name in CLASSIFIERS if name in pairs.columns]  # not every task has a true utility
    falls = {name: estimated(data, decays(pairs, name), "decay", name) for name in present}
    mean = {name: estimated(data, values(pairs, pl.col(name)), name) for name in present}
    estimates = {
        f"proxy_minus_{policy}": Labelled(
            f"accuracy along the stream, proxy minus {CLASSIFIERS[policy]}", found, "accuracy"
        )
        for policy, found in over.items()
    }
    estimates |= {
        f"decay_{name}": Labelled(
            f"{CLASSIFIERS[name]}: accuracy at the first {PART} points minus the last {PART}", found, "accuracy"
        )
        for name, found in falls.items()
    }
    estimates |= {
        f"accuracy_{name}": Labelled(f"{CLASSIFIERS[name]}: accuracy along the stream", found, "accuracy")
        for name, found in mean.items()
    }
    ties = estimated(data, values(pairs, pl.col("proxy").is_nan()), "ties")
    estimates["ties"] = Labelled("pairs that golden calls a tie, left out of the above", ties, "share of pairs")
    sentence = (
        f"Along the online stream the proxy decides as golden does on {interval_words(mean['proxy'])} of the pairs, "
        f"which is {interval_words(over['online'], signed=True)} more than the final online policy and "
        f"{interval_words(over['offline'], signed=True)} more than the final offline policy; from the first points to "
        f"the last its accuracy falls by {interval_words(falls['proxy'], signed=True)} "
        f"({across(over['online'], 'pairs')})."
    )
    figure = Figure(
        name="stream",
        title="Agreement with golden on the pairs that the online run saw",
        x="step of the online run",
        y="accuracy",
        points=points(data, pairs),
    )
    verdict = joint_verdict((over["online"], over["offline"], falls["proxy"]), data.settings.margin)
    return Analysis(verdict, sentence, estimates, [figure])


def pairs_of(table: pl.DataFrame) -> pl.DataFrame:
    """A row a seed, step and pair, a column a classifier; NaN where golden calls a tie. Empty without a table."""
    if table.is_empty():
        return pl.DataFrame(schema={"seed": pl.Int64, "step": pl.Int64, **dict.fromkeys(CLASSIFIERS, pl.Float64)})
    keys = ["seed", "step", "pair"]
    return table.pivot(on="classifier", index=keys, values="correct").sort(keys)


def values(pairs: pl.DataFrame, value: pl.Expr) -> dict[int, Floats]:
    """A value of every pair, by seed."""
    return {
        int(rows["seed"][0]): rows.select(value.cast(pl.Float64)).to_series().to_numpy()
        for rows in (pairs.partition_by("seed") if len(pairs) else [])
    }


def decays(pairs: pl.DataFrame, classifier: str) -> dict[int, Floats]:
    """Values whose mean is the classifier's accuracy at the stream's first points minus that at its last, by seed."""
    steps = pairs["step"].unique().sort()
    part = min(PART, len(steps) // 2)
    first, last = (
        values(pairs.filter(pl.col("step").is_in(some.to_list())), pl.col(classifier))
        for some in (steps.head(part), steps.tail(part))
    )
    return {seed: apart(first[seed], last[seed]) for seed in sorted(set(first) & set(last))}


def estimated(data: TaskData, found: dict[int, Floats], *purpose: str) -> Estimate:
    """Mean over a seed's own pairs, then over seeds."""
    return item_estimate(found, data.rng("classification", *purpose), replicates=data.settings.replicates)


def points(data: TaskData, pairs: pl.DataFrame) -> list[FigurePoint]:
    """Accuracy of each classifier near each step."""
    drawn = []
    for (step,), rows in sorted(pairs.partition_by("step", as_dict=True).items()):
        for name in rows.columns:
            if name not in CLASSIFIERS:
                continue
            found = estimated(data, values(rows, pl.col(name)), "figure", name, str(step))
            if found.n_seeds:
                drawn.append(FigurePoint(CLASSIFIERS[name], int(step), found.value, found.low, found.high))
    return drawn
