"""From artefacts to results: what was measured of each task, and what each experiment concludes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from aligngap.experiments.base import Finished, TaskData
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.conclusions import adjusted, concluded
from aligngap.experiments.curves import costs_of, runs_of
from aligngap.experiments.plan import Needs, Plan, PlannedArm, TaskPlan
from aligngap.experiments.samples import samples
from aligngap.experiments.timings import latest, timings
from aligngap.gates import Record
from aligngap.measure.winrate import mean_se, win_rate
from aligngap.pipeline.graph import Outcome, Stage
from aligngap.pipeline.stages import Evaluate, Measured
from aligngap.results import (
    BLOCKED,
    COMPARISONS,
    FAILED,
    FINISHED,
    PENDING,
    POINTS,
    SPLITS,
    ArmRecord,
    Cost,
    Inputs,
    MeasureRecord,
    Revision,
    StudyResults,
    Task,
    golden_kl,
    measure_columns,
    plain,
    write,
)
from aligngap.results.tables import typed_points
from aligngap.store.disk import read_json
from aligngap.store.record import environment
from aligngap.store.store import Store


@dataclass(frozen=True)
class Gathered:
    """What has been measured and concluded on a task. points: their `run` counts the task's arms. per_prompt: every
    outcome, a frame an arm; samples: likewise.
    """

    task: Task
    points: pl.DataFrame
    per_prompt: Sequence[pl.DataFrame]
    samples: Sequence[pl.DataFrame]


@dataclass(frozen=True)
class _GatheredArm:
    """What is known of an arm under a seed. finished: None where it is not; measures: what became of the further ones
    that the study asked for.
    """

    record: ArmRecord
    points: Sequence[Mapping[str, Any]] = ()
    finished: Finished | None = None
    measures: Sequence[MeasureRecord] = ()


def collect(plan: Plan, store: Store, outcome: Outcome, folder: Path) -> StudyResults:
    """Gather all tasks and write the results into `folder`.

    Failed and blocked arms are listed with their reason, and enter no average.
    """
    gathered = [gather(task, store, outcome) for task in plan.tasks.values()]
    results = assemble(plan, store, outcome, gathered)
    results = results.model_copy(update={"timings": latest(results.timings, outcome, folder)})
    frames = [frame for part in gathered for frame in part.per_prompt]
    write(results, pl.concat(frames) if frames else pl.DataFrame(), folder)
    return results


def assemble(plan: Plan, store: Store, outcome: Outcome, gathered: Sequence[Gathered]) -> StudyResults:
    """The results of tasks that have been gathered."""
    made: dict[str, Any] = environment()
    commit, dirty = made.pop("git_revision", None), made.pop("git_dirty", None)
    points, before = [], 0
    for part in gathered:
        points.append(part.points.with_columns(pl.col("run") + before))
        before += len(part.task.arms)
    result = [frame for part in gathered for frame in part.samples]
    tables = {"points": pl.concat(points, how="diagonal")} if points else {}
    tables |= {"samples": pl.concat(result)} if result else {}
    return StudyResults(
        study=plan.specification,
        smoke=plan.smoke,
        revision=Revision(commit=commit, dirty=dirty) if commit else Revision(),
        tasks=tuple(part.task for part in gathered),
        timings=timings(plan.stages, store, outcome),
        versions=made,
        **tables,
    )


def summary(results: StudyResults) -> list[str]:
    """What became of the rows of data sets, then a line per experiment and task, to print at the end of a run."""
    return [line for task in results.tasks for line in _data_summary(task)] + [
        f"{task.name} / {result.title}: {result.verdict.upper()}. {result.sentence}"
        for task in results.tasks
        for result in task.experiments
    ]


def _data_summary(task: Task) -> list[str]:
    data = task.stages.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("rows"), dict):
        return []
    dropped = sum(data["rows_dropped"].values())
    cut = f"{data['cut_prompts']} prompts and {data['cut_responses']} responses were cut to their limits"
    counts = f"{task.name}: {data['rows_read']} rows were read, {dropped} dropped; {cut}"
    notes = data["rows"].get("notes") or {}
    kept = [f"{task.name}: {found['count']} rows are kept, but: {what}" for what, found in notes.items()]
    return [*(f"{task.name}: WARNING: {line}" for line in data["warnings"]), counts, *kept]


def gather(plan: TaskPlan, store: Store, outcome: Outcome) -> Gathered:
    """Read what the store holds of a task, and let the experiments conclude from its finished arms.

    An arm that is pending is listed with the points of the checkpoints that have been evaluated, which enter no
    estimate; an experiment that waits for one has no verdict. Reads only.
    """
    bench, task = plan.bench, plan.task
    result = [_arm(task, arm, store, outcome) for arm in plan.arms]
    finished = [arm.finished for arm in result if arm.finished]
    tables, measured = _tables(plan, store, outcome)
    data = TaskData(task, bench.study.analysis, finished, tables, bench.has_truth)
    records = tuple(arm.record for arm in result)
    points = _points(result, task)
    golden = [run for run, arm in enumerate(records) if (arm.family, arm.status) == ("golden_policy", FINISHED)]
    states = {row.identity: row.status for rows in (records, measured) for row in rows}
    conclusions = [concluded(name, data, _inputs(needs, states)) for name, needs in plan.asked.items()]
    gates, ungated = plan.gates_on_record(Record.shipped())
    about = Task(
        name=task,
        gates=tuple(gates),
        ungated=tuple(ungated),
        yardstick=plan.yardstick,
        arms=records,
        measures=(*measured, *(row for arm in result for row in arm.measures)),
        stages=_stages(bench, store),
        experiments=adjusted(conclusions),
        not_asked=plan.not_asked,
        golden_kl=golden_kl(points, golden),
    )
    prompts = [arm.per_prompt for arm in finished]
    shown = samples(bench, task, store, prompts)
    return Gathered(about, points, [frame.drop("response_ids") for frame in prompts], shown)


def _arm(task: str, planned: PlannedArm, store: Store, outcome: Outcome) -> _GatheredArm:
    entry, evaluation = planned.entry, planned.evaluation
    status, reason = _became((entry.stage, evaluation), outcome, store)
    if status != FINISHED:
        begun = _begun(entry, evaluation, store) if status == PENDING else []
        return _GatheredArm(_record(entry, status, reason), begun)
    outcomes, arm = store.get(evaluation.identity), store.get(entry.stage.identity)
    prompts = _named(pl.read_parquet(outcomes.file("per_prompt.parquet")), task, entry)
    prompts, measured = _with_measures(prompts, entry, planned.measured, outcome, store)
    pairs = pl.read_parquet(outcomes.file("per_pair.parquet"))
    more = [stage.measure for stage in planned.measured]
    points = [point(prompts, pairs, step, split, more) for step in entry.stage.keep for split in SPLITS]
    size = read_json(store.get(entry.stage.sft.identity).file("metrics.json"))["parameters"]
    weights = read_json(arm.file("weights.json"))["weights_sha256"]
    cost = Cost.model_validate(read_json(arm.file("cost.json")) | read_json(arm.file("seconds.json")))
    record = _record(entry, status, reason, parameters=size, weights_sha256=weights, cost=cost)
    costs = costs_of(entry.stage, store)
    runs = runs_of(entry.name, entry.stage.seed, prompts, costs)
    finished = Finished(entry, runs, weights, pairs, prompts, size, costs)
    return _GatheredArm(record, points, finished, measured)


def _record(entry: ArmEntry, status: str, reason: str | None, **measured: Any) -> ArmRecord:
    arm = entry.stage
    return ArmRecord(
        name=entry.name,
        family=entry.family,
        baseline=entry.baseline,
        base=arm.sft.base.name,
        source={**arm.source.model_dump(mode="json"), "judge": arm.judge.role if arm.judge else None},
        loss=arm.loss.model_dump(mode="json"),
        seed=arm.seed,
        settings={**arm.optim.model_dump(mode="json"), "beta": arm.loss.beta},
        identity=arm.identity,
        status=status,
        reason=reason,
        **measured,
    )


def _inputs(needs: Needs, states: Mapping[str, str]) -> list[Inputs]:
    """An experiment's arms and measures, with the seeds of which each is finished, failed (for good) or pending."""
    arms = [("arm", entry.name, entry.stage.seed, entry.stage) for entry in needs.arms]
    measures = [("measure", entry.name, entry.seed, entry.stage) for entry in needs.measures]
    result: dict[tuple[str, str], dict[str, list[int]]] = {}
    for what, label, seed, stage in (*arms, *measures):
        row = result.setdefault((what, label), {FINISHED: [], FAILED: [], PENDING: []})
        state = states[stage.identity]
        row[state if state in row else FAILED].append(seed)
    return [Inputs.model_validate({"what": what, "name": label, **seeds}) for (what, label), seeds in result.items()]


def _tables(
    plan: TaskPlan, store: Store, outcome: Outcome
) -> tuple[dict[tuple[str, int], pl.DataFrame], list[MeasureRecord]]:
    """The experiments' own measures: their tables, and what became of each."""
    tables, listed = {}, []
    for entry in plan.measures:
        listed.append(_measure(entry.name, entry.seed, entry.stage, outcome, store))
        if listed[-1].status == FINISHED:
            tables[entry.name, entry.seed] = pl.read_parquet(store.get(entry.stage.identity).file("table.parquet"))
    return tables, listed


def _with_measures(
    prompts: pl.DataFrame, entry: ArmEntry, stages: Sequence[Measured], outcome: Outcome, store: Store
) -> tuple[pl.DataFrame, list[MeasureRecord]]:
    """An arm's outcomes with a column for each further measure, null where that failed; and what became of each."""
    listed = []
    for stage in stages:
        listed.append(_measure(f"{stage.measure} of {entry.name}", entry.stage.seed, stage, outcome, store))
        if listed[-1].status == FINISHED:
            keys = ["step", "split", "prompt_number"]
            values = pl.read_parquet(store.get(stage.identity).file("measure.parquet"))
            values = values.rename({"value": stage.measure})
            prompts = prompts.join(values, on=keys, how="left", maintain_order="left", validate="1:1")
        else:
            prompts = prompts.with_columns(pl.lit(None, pl.Float64).alias(stage.measure))
    return prompts, listed


def _measure(name: str, seed: int, stage: Stage, outcome: Outcome, store: Store) -> MeasureRecord:
    status, reason = _became((stage,), outcome, store)
    return MeasureRecord(name=name, seed=seed, identity=stage.identity, status=status, reason=reason)


def _became(stages: Iterable[Stage], outcome: Outcome, store: Store) -> tuple[str, str | None]:
    """Status of what needs these stages, and why it is not finished."""
    for stage in stages:
        if not store.has(stage.identity):
            status = outcome.status.get(stage.identity, BLOCKED)
            return status, outcome.reasons.get(stage.identity, "an input is missing")
    return FINISHED, None


def _begun(entry: ArmEntry, evaluation: Evaluate, store: Store) -> list[dict[str, Any]]:
    """Points of the checkpoints that an evaluation under way has finished."""
    folder = store.unfinished(evaluation.identity)
    points = []
    for step in entry.stage.keep:
        try:
            pairs, prompts = (pl.read_parquet(Evaluate.file(folder, kind, step)) for kind in ("pairs", "prompts"))
        except (OSError, pl.exceptions.PolarsError):
            continue  # not there yet, or swept away while it was read
        points += [point(prompts, pairs, step, split) for split in SPLITS]
    return points


def point(
    prompts: pl.DataFrame, pairs: pl.DataFrame, step: int, split: str, more: Sequence[str] = ()
) -> dict[str, Any]:
    """A row of `results.POINTS`, without what is known of the arm, from an evaluation's outcomes per prompt and per
    pair. more: further measures.
    """
    here = (pl.col("step") == step) & (pl.col("split") == split)
    prompt, pair = prompts.filter(here), pairs.filter(here)
    kl, kl_se = mean_se(prompt["kl"].to_numpy())
    row: dict[str, Any] = {"step": step, "split": split, "kl": kl, "kl_se": kl_se}
    for opponent, judges in COMPARISONS.items():
        for judge in judges:
            result = win_rate(prompt[f"win_{opponent}_{judge}"].to_numpy())._asdict()
            row |= {f"{what}_{opponent}_{judge}": value for what, value in result.items()}
    row |= {
        "utility": mean_se(prompt["utility"].to_numpy())[0],
        "tokens": mean_se(prompt["tokens"].cast(pl.Float64).to_numpy())[0],
        "accuracy": mean_se(pair["correct"].to_numpy())[0],
        "drift": mean_se(pair["drift"].to_numpy())[0],
        "pairs": len(pair),
    }
    for name in more:
        known = prompt[name].cast(pl.Float64).fill_nan(None).drop_nulls().to_numpy()
        row |= zip(measure_columns(name), (*mean_se(known), len(known)), strict=True)
    return row


def _points(result: Sequence[_GatheredArm], task: str) -> pl.DataFrame:
    """The points of all arms, a row each."""
    rows = []
    for run, arm in enumerate(result):
        about = arm.record.model_dump(include={"family", "seed", "baseline", "base", "identity"})
        settings, loss = arm.record.settings or {}, arm.record.loss or {}
        about |= {"task": task, "run": run, "arm": arm.record.name, "loss": loss["name"]}
        about |= {"lr": settings["lr"], "beta": settings["beta"]}
        rows += [plain({**about, **row}) for row in arm.points]
    return typed_points(pl.DataFrame(rows, infer_schema_length=None)) if rows else pl.DataFrame(schema=POINTS)


def _named(frame: pl.DataFrame, task: str, entry: ArmEntry) -> pl.DataFrame:
    labels = {"task": task, "arm": entry.name, "family": entry.family, "seed": entry.stage.seed}
    return frame.select(*(pl.lit(value).alias(name) for name, value in labels.items()), pl.all())


def _stages(bench: Bench, store: Store) -> dict[str, Any]:
    """Agreements, losses and sizes of what the arms stand on; what is not there is null."""

    def metrics(stage: Stage, file: str = "metrics.json") -> Any:
        if not store.has(stage.identity):
            return None
        artefact = store.get(stage.identity)
        return read_json(artefact.file(file)) if artefact.has(file) else None

    seeds = bench.seeds
    first = bench.of(seeds[0])
    result = {"sft": metrics(first.sft), "golden": metrics(first.golden), "proxy": metrics(first.proxy(seeds[0]))}
    sizes = {
        ("policy" if role == "sft" else role): value["parameters"]
        for role, value in result.items()
        if value and "parameters" in value
    }
    judges = {seed: metrics(bench.agreement(seed), "agreement.json") for seed in seeds}
    return {
        "agreement": _agreements({seed: table for seed, table in judges.items() if table}),
        "sizes": sizes,
        "data": metrics(bench.pairs, "data.json"),
        **result,
        "proxy": {str(seed): metrics(bench.proxy(seed)) for seed in seeds},
        **{
            f"{part}_by_seed": {str(seed): metrics(getattr(bench.of(seed), part)) for seed in seeds}
            for part in ("sft", "golden")
            if len(seeds) > 1 and part not in bench.study.shared
        },
        "golden_policy": first.golden_policy.specification,
    }


AGREEMENTS = {
    "golden_rater": "golden_rater",
    "golden_true": "true_golden",
    "rater_true": "true_rater",
    "proxy_golden": "proxy_golden",
    "proxy_true": "true_proxy",
    "proxy_rater": "proxy_rater",
}
"""Pairs of judges in results.json, and the name that the agreement stage gave each."""


def _agreements(tables: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Agreement of each pair of judges on held-out pairs; those with a proxy averaged over seeds, with each seed's."""
    result = {}
    for name, stored in AGREEMENTS.items():
        rows = {str(seed): table[stored] for seed, table in tables.items() if stored in table}
        values = [row["value"] for row in rows.values() if row["value"] is not None]
        if values:
            result[name] = {"value": sum(values) / len(values), "n": next(iter(rows.values()))["n"]}
            result[name] |= {"by_seed": rows} if "proxy" in name else {}
    return result
