"""Appendix H: the optimum that theory promises for full-support data, next to what training reaches."""

from __future__ import annotations

from itertools import product

import polars as pl

from aligngap.experiments.base import Analysis, Experiment, Figure, TaskData, by_seed, each_seed, points
from aligngap.experiments.bench import ArmEntry, Bench, Measure
from aligngap.experiments.contrasts import Contrasts
from aligngap.experiments.theory.measure import ClosedForm
from aligngap.stats.intervals import Estimate
from aligngap.stats.verdict import Verdict, threshold_verdict


@each_seed
def arms(bench: Bench, seed: int) -> list[ArmEntry]:
    """One arm a seed, shared with other experiments."""
    return [bench.online(seed)]


@each_seed
def measures(bench: Bench, seed: int) -> list[Measure]:
    """One a seed. The baseline's optimiser settings and beta; IPO whatever the baseline's loss, for the closed form is
    IPO's.
    """
    stage = ClosedForm(
        online=bench.online(seed).stage,
        golden=bench.golden,
        loss=bench.loss(name="ipo", reduction="sum", sft=0.0),
        optim=bench.study.baseline.optim,
        seed=seed,
    )
    return [Measure("theory", seed, stage)]


HALF = 0.5

MUS = ("narrow", "wide")
METHODS = {
    "sft": "SFT, before training",
    "closed_form": "closed form",
    "tabular": "table trained on the sampled pairs",
    "trained": "trained policy",
}
MEASURES = {
    "over_mu": ("improvement over mu", "win rate", tuple(METHODS)),
    "over_sft": ("improvement over SFT", "win rate", ("closed_form", "tabular", "trained")),
    "kl": ("KL from SFT, both restricted", "nats", ("closed_form", "tabular", "trained")),
    "mass": ("probability of the enumerated responses", "share", ("sft", "trained")),
}
"""What a column of the table says, its unit, and for which methods it says something."""


def analyse(data: TaskData) -> Analysis:
    """What theory predicts and what practice reaches, with wide and narrow pairs."""
    table, contrasts = data.table("theory"), Contrasts(data, "theory")
    excess = {mu: estimated(data, table, "over_mu", mu, "trained", less=HALF) for mu in MUS}
    for mu, value in excess.items():
        label = f"{mu} mu: trained policy's improvement over mu, less half of the closed form's"
        contrasts.put(f"excess_{mu}", label, value)
    figures, over_mu = [], dict[tuple[str, str], Estimate]()
    for column, (what, unit, methods) in MEASURES.items():
        result = {(mu, method): estimated(data, table, column, mu, method) for mu, method in product(MUS, methods)}
        for (mu, method), value in result.items():
            contrasts.put(f"{column}_{mu}_{method}", f"{mu} mu, {METHODS[method]}: {what}", value, unit)
        shown = points((f"{mu} mu", METHODS[method], value) for (mu, method), value in result.items())
        title, y = f"{what[0].upper()}{what[1:]}, by policy", f"{what} ({unit})"
        figures.append(Figure(name=column, title=title, x="policy", y=y, mark="bar", points=shown))
        over_mu = over_mu or result
    predicted, reached = ({mu: over_mu[mu, method] for mu in MUS} for method in ("closed_form", "trained"))
    sentence = (
        f"With narrow mu the closed form predicts an improvement over mu of {predicted['narrow']:+.1%} and the trained "
        f"policy reaches {reached['narrow']:+.1%}; with wide mu they are {predicted['wide']:+.1%} and "
        f"{reached['wide']:+.1%} ({excess['narrow'].across()})."
    )
    verdict = conclude(predicted["narrow"], excess["narrow"], excess["wide"])
    return Analysis(verdict, sentence, contrasts.estimates, figures)


def estimated(data: TaskData, table: pl.DataFrame, column: str, mu: str, method: str, *, less: float = 0.0) -> Estimate:
    """Mean of a column over a method's prompts; `less`: minus that share of the closed form's, prompt by prompt."""
    rows, value = table, pl.col(column)
    if len(table):
        part = table.filter(pl.col("mu") == mu)
        keys = ["seed", "prompt_number"]
        theory = part.filter(pl.col("method") == "closed_form").select(*keys, theory=column)
        rows = part.filter(pl.col("method") == method).join(theory, on=keys)
    value = value - less * pl.col("theory") if less else value
    return data.item_mean(by_seed(rows, value), "theory", column, mu, method)


def conclude(predicted: Estimate, narrow: Estimate, wide: Estimate) -> Verdict:
    """The rule, from the closed form's improvement over narrow mu and the excess of either mu."""
    side = threshold_verdict(narrow, 0.0, -1)
    enough = predicted.low > 0 and (side == "contradicted" or wide.low > 0)
    return side if enough else "inconclusive"


EXPERIMENT = Experiment(
    name="theory",
    title="Theory's optimum against practice",
    question="Does offline training on narrow pairs reach the improvement over the policy behind the pairs that the "
    "closed-form optimum promises?",
    finding="With full support, theory predicts a policy better than the one behind the pairs; in practice narrow "
    "pairs do not show that improvement (Tang et al. 2024, appendix H).",
    rule="Improvement over mu = win rate, by golden, of a policy restricted to the enumerated responses against mu, "
    "minus one half; averaged over prompts, then seeds. Excess = the trained policy's improvement minus half of the "
    "closed form's, prompt by prompt. Asked of narrow mu, provided that theory predicts something there (the 95% "
    "interval of the closed form's improvement lies wholly above 0): contradicted (practice shows what theory "
    "predicts) if the interval of the excess lies wholly above 0; supported if it lies wholly below 0 and that of wide "
    "mu, the control, wholly above 0, so that it is for want of support and not of training; else inconclusive.",
    arms=arms,
    analyse=analyse,
    measures=measures,
)
