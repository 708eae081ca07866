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
        result = conclusion(experiment, nothing, inputs)
        verdict = UNFINISHED if result.verdict == UNFINISHED else FAILED
        return result.model_copy(update={"error": error, "verdict": verdict})


def conclusion(experiment: Experiment, result: Analysis, inputs: Sequence[Inputs] = ()) -> Conclusion:
    """An analysis as results have it. Raises ValueError when it is none, or holds what results cannot."""
    if result.verdict not in VERDICTS:
        raise ValueError(f"'{result.verdict}' is no verdict: {', '.join(VERDICTS)}")
    pending = any(row.pending for row in inputs)
    first = next(iter(result.estimates.values()), None)
    return Conclusion(
        name=experiment.name,
        title=experiment.title,
        question=experiment.question,
        finding=experiment.finding,
        rule=experiment.rule,
        inputs=tuple(inputs),
        verdict=UNFINISHED if pending else result.verdict,
        sentence=result.sentence,
        estimates=tuple(
            record(name, value, decides=value is first and not pending) for name, value in result.estimates.items()
        ),
        power=None if pending else power(first),
        figures=tuple(result.figures),
    )


def record(name: str, value: Labelled, *, decides: bool) -> EstimateRecord:
    """An estimate without its draws. decides: whether the verdict rests on it; only then is its p-value that of a
    hypothesis stated before the run.
    """
    result = value.estimate
    null = value.null if decides else None
    return EstimateRecord(
        name=name,
        label=value.label,
        unit=value.unit,
        value=result.value,
        low=result.low,
        high=result.high,
        n_seeds=result.n_seeds,
        n_prompts=result.n_prompts,
        note=result.note,
        null=null,
        p=bootstrap_p(result.draws, null) if null is not None and math.isfinite(result.low) else None,
    )


def adjusted(conclusions: Sequence[Conclusion]) -> tuple[Conclusion, ...]:
    """The same with Holm's adjusted p-value of each first estimate, over all experiments of the task; with none before
    all are finished, because each depends on the others.
    """
    if any(result.verdict == UNFINISHED for result in conclusions):
        return tuple(conclusions)
    first = [result.main.p if result.main else None for result in conclusions]
    values = holm([math.nan if p is None else p for p in first]).tolist()
    return tuple(
        result.model_copy(update={"holm": None if math.isnan(value) else value})
        for result, value in zip(conclusions, values, strict=True)
    )


def power(first: Labelled | None) -> Power | None:
    """Seeds, and prompts, that would resolve an effect of the size seen in four runs of five; None where a spread is
    not known. What the prompts do to all seeds alike is taken to be all that they do: slightly too many seeds.
    """
    if first is None or first.null is None:
        return None
    result = first.estimate
    effect = result.value - first.null
    if not math.isfinite(effect) or effect == 0:
        return Power(note="No effect was seen, so none can be planned for.")
    if not math.isfinite(result.prompt_se):
        return Power(note="Cannot be told: the prompts' part of the error is not known.")
    prompts = prompts_needed(effect, result.prompt_se, result.n_prompts)
    if len(result.seed_values) < 2:
        return Power(prompts=prompts, note="Seeds cannot be told: one seed does not show how far seeds scatter.")
    seeds = seeds_needed(effect, float(result.seed_values.std(ddof=1)), result.prompt_se, shared=1.0)
    note = f"No number of seeds up to {MAX_SEEDS} is enough with these prompts: more prompts are needed."
    return Power(seeds=seeds, prompts=prompts, note="" if seeds else note)
