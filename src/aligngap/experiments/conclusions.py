"""From an experiment's analysis to what results say of it: verdict, estimates with p-values, and power."""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence

from aligngap.experiments.base import Analysis, Experiment, Labelled, TaskData
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.results import FAILED, UNFINISHED, VERDICTS, Conclusion, EstimateRecord, Inputs, Power
from aligngap.stats.verdict import MAX_SEEDS, bootstrap_p, holm, prompts_needed, seeds_needed


def concluded(name: str, data: TaskData, inputs: Sequence[Inputs]) -> Conclusion:
    """What an experiment concludes from the finished arms; of an analysis that fails, that it did, and why."""
    experiment = EXPERIMENTS[name]
    try:
        return conclusion(experiment, experiment.analyse(data), inputs)
    except Exception as problem:  # of a plugin's experiment, say: it must not cost the others their report
        traceback.print_exc()
        where = EXPERIMENTS.place(name, problem)
        error = f"{type(problem).__name__}: {problem}" + (f" ({where})" if where else "")
        nothing = Analysis("inconclusive", f"The analysis failed, so nothing is concluded: {error}")
        found = conclusion(experiment, nothing, inputs)
        verdict = UNFINISHED if found.verdict == UNFINISHED else FAILED
        return found.model_copy(update={"error": error, "verdict": verdict})


def conclusion(experiment: Experiment, found: Analysis, inputs: Sequence[Inputs] = ()) -> Conclusion:
    """An analysis as results have it. Raises ValueError when it is none, or holds what results cannot."""
    if found.verdict not in VERDICTS:
        raise ValueError(f"'{found.verdict}' is no verdict: {', '.join(VERDICTS)}")
    pending = any(row.pending for row in inputs)
    first = next(iter(found.estimates.values()), None)
    return Conclusion(
        name=experiment.name,
        title=experiment.title,
        question=experiment.question,
        finding=experiment.finding,
        rule=experiment.rule,
        inputs=tuple(inputs),
        verdict=UNFINISHED if pending else found.verdict,
        sentence=found.sentence,
        estimates=tuple(
            record(name, value, decides=value is first and not pending) for name, value in found.estimates.items()
        ),
        power=None if pending else power(first),
        figures=tuple(found.figures),
    )


def record(name: str, value: Labelled, *, decides: bool) -> EstimateRecord:
    """An estimate without its draws. decides: whether the verdict rests on it; only then is its p-value that of a
    hypothesis stated before the run.
    """
    found = value.estimate
    null = value.null if decides else None
    return EstimateRecord(
        name=name,
        label=value.label,
        unit=value.unit,
        value=found.value,
        low=found.low,
        high=found.high,
        n_seeds=found.n_seeds,
        n_prompts=found.n_prompts,
        note=found.note,
        null=null,
        p=bootstrap_p(found.draws, null) if null is not None and math.isfinite(found.low) else None,
    )


def adjusted(conclusions: Sequence[Conclusion]) -> tuple[Conclusion, ...]:
    """The same with Holm's adjusted p-value of each first estimate, over all experiments of the task; with none before
    all are finished, because each depends on the others.
    """
    if any(found.verdict == UNFINISHED for found in conclusions):
        return tuple(conclusions)
    first = [found.main.p if found.main else None for found in conclusions]
    values = holm([math.nan if p is None else p for p in first]).tolist()
    return tuple(
        found.model_copy(update={"holm": None if math.isnan(value) else value})
        for found, value in zip(conclusions, values, strict=True)
    )


def power(first: Labelled | None) -> Power | None:
    """Seeds, and prompts, that would resolve an effect of the size seen in four runs of five; None where a spread is
    not known. What the prompts do to all seeds alike is taken to be all that they do: slightly too many seeds.
    """
    if first is None or first.null is None:
        return None
    found = first.estimate
    effect = found.value - first.null
    if not math.isfinite(effect) or effect == 0:
        return Power(note="No effect was seen, so none can be planned for.")
    if not math.isfinite(found.prompt_se):
        return Power(note="Cannot be told: the prompts' part of the error is not known.")
    prompts = prompts_needed(effect, found.prompt_se, found.n_prompts)
    if len(found.seed_values) < 2:
        return Power(prompts=prompts, note="Seeds cannot be told: one seed does not show how far seeds scatter.")
    seeds = seeds_needed(effect, float(found.seed_values.std(ddof=1)), found.prompt_se, shared=1.0)
    note = f"No number of seeds up to {MAX_SEEDS} is enough with these prompts: more prompts are needed."
    return Power(seeds=seeds, prompts=prompts, note="" if seeds else note)
