"""The online arm whose final policy supplies the narrow pairs, and the measure on enumerated responses."""

from __future__ import annotations

from aligngap.experiments.bench import ArmEntry, Bench, Measure
from aligngap.experiments.theory.measure import ClosedForm


def arms(bench: Bench) -> list[ArmEntry]:
    """One arm a seed, shared with other experiments."""
    return [bench.online(seed) for seed in bench.study.seeds]


def measures(bench: Bench) -> list[Measure]:
    """One a seed. The baseline's optimiser settings and beta; IPO whatever the baseline's loss, for the closed form is
    IPO's.
    """
    return [Measure("theory", entry.stage.seed, closed_form(bench, entry)) for entry in arms(bench)]


def closed_form(bench: Bench, online: ArmEntry) -> ClosedForm:
    """The measure that goes with an online arm."""
    return ClosedForm(
        online=online.stage,
        golden=bench.golden,
        loss=bench.loss(name="ipo", reduction="sum", sft=0.0),
        optim=bench.study.baseline.optim,
        seed=online.stage.seed,
    )
