"""From artefacts to `results.json` and Parquet: what was measured, and what each experiment concludes."""

from __future__ import annotations

import importlib
import json
import math
import threading
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_args

import numpy as np
import polars as pl
import torch

from aligngap.errors import UserError
from aligngap.experiments.base import Analysis, Finished, Labelled, TaskData
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.plan import Needs, Plan, TaskPlan
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.measure.winrate import mean_se, win_rate
from aligngap.models.build import end_tokens, load_tokenizer
from aligngap.pipeline.executors.progress import activities
from aligngap.pipeline.graph import Outcome, Stage
from aligngap.pipeline.stages import SPLITS, Evaluate, Measured
from aligngap.stats.bootstrap import Estimate
from aligngap.stats.curves import Run
from aligngap.stats.verdict import MAX_SEEDS, Verdict, bootstrap_p, holm, prompts_needed, seeds_needed
from aligngap.store.disk import read_json, write_json
from aligngap.store.record import environment
from aligngap.store.store import Store
from aligngap.tasks.pairs import read_pairs

SCHEMA = 1
COMPARISONS = {"golden_policy": ("golden", "true"), "sft": ("golden", "true", "proxy")}
"""By whom a policy's responses are compared with whose."""


PENDING = "pending"
"""Status, in an outcome, of a stage that a run has yet to finish. What is missing for another reason will not come."""
UNFINISHED = "unfinished"
"""In a verdict's place while an arm or measure of the experiment is pending: a verdict that is read again and again as
the data come in, until it pleases, is not the one whose rule was fixed before the run.
"""
FAILED = "failed"
"""In a verdict's place where an analysis has failed."""


@dataclass(frozen=True)
class Gathered:
    """What has been measured and concluded on a task: its part of results.json; every outcome prompt by prompt, and the
    samples, a frame an arm.
    """

    results: dict[str, Any]
    per_prompt: Sequence[pl.DataFrame]
    samples: Sequence[pl.DataFrame]


def import_ahead(plan: Plan) -> None:
    """Import in the background what `collect` needs where there are several seeds, for a quarter of a second."""
    if len(plan.seeds) > 1:
        threading.Thread(target=importlib.import_module, args=("scipy.stats",), daemon=True).start()


def collect(plan: Plan, store: Store, outcome: Outcome, folder: Path) -> dict[str, Any]:
    """Write results.json, points.parquet, per_prompt.parquet and samples.parquet into `folder`; returns the results.

    Failed and blocked arms are listed with their reason, and enter no average.
    """
    tasks = {name: gather(task, store, outcome) for name, task in plan.tasks.items()}
    plain = assemble(plan, store, outcome, tasks)
    plain["timings"] = _latest(plain["timings"], outcome, folder)
    write_json(folder / "results.json", plain)
    points = [
        _flat(task, arm, point)
        for task, found in plain["tasks"].items()
        for arm in found["arms"]
        for point in arm["points"]
    ]
    pl.DataFrame(points, infer_schema_length=None).write_parquet(folder / "points.parquet")
    for name in ("per_prompt", "samples"):
        frames = [frame for found in tasks.values() for frame in getattr(found, name)]
        (pl.concat(frames) if frames else pl.DataFrame()).write_parquet(folder / f"{name}.parquet")
    return plain


def assemble(plan: Plan, store: Store, outcome: Outcome, tasks: Mapping[str, Gathered]) -> dict[str, Any]:
    """What results.json holds, of tasks that have been gathered; plain values, without NaN."""
    made = environment()
    commit, dirty = made.pop("git_revision", None), made.pop("git_dirty", None)
    results = {
        "schema": SCHEMA,
        "study": plan.specification,
        "smoke": plan.smoke,
        "revision": {"commit": commit, "dirty": dirty} if commit else None,
        "tasks": {task: found.results for task, found in tasks.items()},
        "timings": _timings(plan, store, outcome),
        "versions": made,
    }
    plain: dict[str, Any] = _plain(results)
    return plain


def summary(results: dict[str, Any]) -> list[str]:
    """A line per experiment and task, to print at the end of a run."""
    return [
        f"{task} / {found['title']}: {found['verdict'].upper()}. {found['sentence']}"
        for task, content in results["tasks"].items()
        for found in content["experiments"].values()
    ]


def gather(plan: TaskPlan, store: Store, outcome: Outcome) -> Gathered:
    """Read what the store holds of a task, and let the experiments conclude from its finished arms.

    An arm that is pending (see `PENDING`) is listed with the points of the checkpoints that have been evaluated, which
    enter no estimate; an experiment that waits for one has no verdict. Reads only.
    """
    bench, task = plan.bench, plan.task
    finished: list[Finished] = []
    per_prompt: list[pl.DataFrame] = []
    samples: list[pl.DataFrame] = []
    listed, more = [], []
    texts: Texts | None = None
    for arm in plan.arms:
        entry, evaluation = arm.entry, arm.evaluation
        problem = _problem((entry.stage, evaluation), outcome, store)
        listed.append(_listed(entry, problem))
        if problem is None:
            prompts = _named(pl.read_parquet(store.get(evaluation.identity).path / "per_prompt.parquet"), task, entry)
            prompts, others = _with_measures(prompts, entry, arm.measured, outcome, store)
            more += others
            pairs = pl.read_parquet(store.get(evaluation.identity).path / "per_pair.parquet")
            listed[-1] |= _measured(entry, store, prompts, pairs, [stage.measure for stage in arm.measured])
            size = read_json(store.get(entry.stage.sft.identity).path / "metrics.json")["parameters"]
            listed[-1]["parameters"] = size
            runs = runs_of(entry.name, entry.stage.seed, prompts)
            finished.append(Finished(entry, runs, listed[-1]["weights_sha256"], pairs, prompts, size))
            per_prompt.append(prompts.drop("response_ids"))
            texts = texts or Texts(bench, store)
            samples.append(_samples(prompts, texts))
        elif problem[0] == PENDING:
            listed[-1]["points"] = _begun(entry, evaluation, store)
    if texts:
        samples += _opponent_samples(bench, task, store, texts)
    tables, measured = _tables(plan, store, outcome)
    data = TaskData(task, bench.study.analysis, finished, tables, bench.has_truth)
    states = {row["identity"]: row["status"] for row in (*listed, *measured)}
    concluded = {name: _concluded(name, data, _inputs(needs, states)) for name, needs in plan.asked.items()}
    results = {
        "yardstick": plan.yardstick,
        "arms": listed,
        "measures": [*measured, *more],
        "stages": _stages(bench, store),
        "experiments": concluded,
        "not_asked": plan.not_asked,
        "holm": _holm(concluded),
    }
    return Gathered(results, per_prompt, samples)


def _inputs(needs: Needs, states: Mapping[str, str]) -> list[dict[str, Any]]:
    """An experiment's arms and measures, with the seeds of which each is finished, failed (for good) or pending."""
    arms = [("arm", entry.name, entry.stage.seed, entry.stage) for entry in needs.arms]
    measures = [("measure", entry.name, entry.seed, entry.stage) for entry in needs.measures]
    found: dict[tuple[str, str], dict[str, list[int]]] = {}
    for what, label, seed, stage in (*arms, *measures):
        row = found.setdefault((what, label), {"finished": [], "failed": [], PENDING: []})
        state = states[stage.identity]
        row[state if state in row else "failed"].append(seed)
    return [{"what": what, "name": label, **seeds} for (what, label), seeds in found.items()]


def _tables(
    plan: TaskPlan, store: Store, outcome: Outcome
) -> tuple[dict[tuple[str, int], pl.DataFrame], list[dict[str, Any]]]:
    """The experiments' own measures: their tables, and for results.json what became of each."""
    tables, listed = {}, []
    for entry in plan.measures:
        problem = _problem((entry.stage,), outcome, store)
        listed.append(_became(entry.name, entry.seed, entry.stage, problem))
        if problem is None:
            tables[entry.name, entry.seed] = pl.read_parquet(store.get(entry.stage.identity).path / "table.parquet")
    return tables, listed


def _with_measures(
    prompts: pl.DataFrame, entry: ArmEntry, stages: Sequence[Measured], outcome: Outcome, store: Store
) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """An arm's outcomes with a column for each further measure, null where that failed; and what became of each."""
    listed = []
    for stage in stages:
        problem = _problem((stage,), outcome, store)
        listed.append(_became(f"{stage.measure} of {entry.name}", entry.stage.seed, stage, problem))
        if problem is None:
            keys = ["step", "split", "prompt_number"]
            values = pl.read_parquet(store.get(stage.identity).path / "measure.parquet")
            values = values.rename({"value": stage.measure})
            prompts = prompts.join(values, on=keys, how="left", maintain_order="left", validate="1:1")
        else:
            prompts = prompts.with_columns(pl.lit(None, pl.Float64).alias(stage.measure))
    return prompts, listed


def _became(name: str, seed: int, stage: Stage, problem: tuple[str, str] | None) -> dict[str, Any]:
    status, reason = problem or ("finished", None)
    return {"name": name, "seed": seed, "identity": stage.identity, "status": status, "reason": reason}


def _problem(stages: Iterable[Stage], outcome: Outcome, store: Store) -> tuple[str, str] | None:
    for stage in stages:
        if not store.has(stage.identity):
            return outcome.status.get(stage.identity, "blocked"), outcome.reasons.get(
                stage.identity, "an input is missing"
            )
    return None


def _listed(entry: ArmEntry, problem: tuple[str, str] | None) -> dict[str, Any]:
    arm = entry.stage
    status, reason = problem or ("finished", None)
    return {
        "name": entry.name,
        "family": entry.family,
        "baseline": entry.baseline,
        "base": arm.sft.base.name,
        "source": {**arm.source.model_dump(mode="json"), "judge": arm.judge.role if arm.judge else None},
        "loss": arm.loss.model_dump(mode="json"),
        "seed": arm.seed,
        "settings": {**arm.optim.model_dump(mode="json"), "beta": arm.loss.beta},
        "identity": arm.identity,
        "status": status,
        "reason": reason,
        "weights_sha256": None,
        "points": [],
        "cost": None,
    }


def _measured(
    entry: ArmEntry, store: Store, prompts: pl.DataFrame, pairs: pl.DataFrame, more: Sequence[str]
) -> dict[str, Any]:
    folder = store.get(entry.stage.identity).path
    points = [point(prompts, pairs, step, split, more) for step in entry.stage.keep for split in SPLITS]
    cost = read_json(folder / "cost.json") | read_json(folder / "seconds.json")
    return {**read_json(folder / "weights.json"), "points": points, "cost": cost}


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
    """A point of results.json, from an evaluation's outcomes per prompt and per pair. more: further measures."""
    here = (pl.col("step") == step) & (pl.col("split") == split)
    prompt, pair = prompts.filter(here), pairs.filter(here)
    kl, kl_se = mean_se(prompt["kl"].to_numpy())
    wins = {
        opponent: {judge: win_rate(prompt[f"win_{opponent}_{judge}"].to_numpy())._asdict() for judge in judges}
        for opponent, judges in COMPARISONS.items()
    }
    measured = {name: Mean.of(prompt[name])._asdict() for name in more}
    return {
        "step": step,
        "split": split,
        "kl": kl,
        "kl_se": kl_se,
        "wins": wins,
        "proxy": wins["sft"]["proxy"]["rate"],
        "utility": mean_se(prompt["utility"].to_numpy())[0],
        "tokens": mean_se(prompt["tokens"].cast(pl.Float64).to_numpy())[0],
        "accuracy": mean_se(pair["correct"].to_numpy())[0],
        "drift": mean_se(pair["drift"].to_numpy())[0],
        "pairs": len(pair),
        **({"measures": measured} if measured else {}),
    }


class Mean(NamedTuple):
    """Mean over prompts, its standard error, and how many prompts have a number."""

    mean: float
    se: float
    n: int

    @classmethod
    def of(cls, values: pl.Series) -> Mean:
        """Of a column of per-prompt values; null and NaN are no number."""
        known = values.cast(pl.Float64).fill_nan(None).drop_nulls().to_numpy()
        return cls(*mean_se(known), len(known))


def _named(frame: pl.DataFrame, task: str, entry: ArmEntry) -> pl.DataFrame:
    arm = entry.stage
    labels = [
        pl.lit(task).alias("task"),
        pl.lit(entry.name).alias("arm"),
        pl.lit(entry.family).alias("family"),
        pl.lit(arm.seed).alias("seed"),
    ]
    return frame.select(*labels, pl.all())


def runs_of(name: str, seed: int, frame: pl.DataFrame) -> dict[tuple[str, str, str], Run]:
    """An arm's curves under one seed by (split, opponent, judge), from its rows of `per_prompt.parquet`.

    Checkpoints in order of step and prompts in order of number; what has no row or no number is NaN. A judge who says
    nothing of a split, such as the true utility where nobody knows it, has no curve.
    """
    found = {}
    for (split,), part in frame.group_by("split", maintain_order=True):
        steps, row = np.unique(part["step"].to_numpy(), return_inverse=True)
        numbers, column = np.unique(part["prompt_number"].to_numpy(), return_inverse=True)
        empty = np.full((len(steps), len(numbers)), np.nan)

        def matrix(values: pl.Series, at: Any = (row, column), empty: Any = empty) -> Any:
            filled = empty.copy()
            filled[at] = values.cast(pl.Float64).fill_null(np.nan).to_numpy()
            return filled

        for opponent, judges in COMPARISONS.items():
            for judge in judges:
                wins = f"win_{opponent}_{judge}"
                if wins in part.columns and part[wins].null_count() < len(part):
                    key = (str(split), opponent, judge)
                    found[key] = Run(name, seed, steps.astype(np.int64), matrix(part["kl"]), matrix(part[wins]))
    return found


def _samples(prompts: pl.DataFrame, texts: Texts) -> pl.DataFrame:
    """What the sample reader shows of an arm: the first prompts of each split at every checkpoint."""
    part = prompts.filter(pl.col("prompt_number").is_in(list(texts.prompts)))
    return texts.shown(part.with_columns(pl.lit("policy").alias("who")))


def _opponent_samples(bench: Bench, task: str, store: Store, texts: Texts) -> list[pl.DataFrame]:
    """The same prompts' responses of SFT and the golden policy."""
    frames = []
    for stage, split in product(bench.opponents, SPLITS):
        part = pl.read_parquet(store.get(stage.identity).path / f"{split}.parquet")
        labels = {"task": task, "split": split, "who": stage.who, "arm": None, "seed": None, "step": None}
        labels |= {"margin_golden": None, "margin_proxy": None, "win_golden_policy_golden": None}
        part = part.with_columns(pl.lit(value).alias(name) for name, value in labels.items())
        frames.append(texts.shown(part.filter(pl.col("prompt_number").is_in(list(texts.prompts)))))
    return frames


class Texts:
    """Token ids as text, for the prompts that are shown."""

    COLUMNS: ClassVar[dict[str, type[pl.DataType]]] = {
        "task": pl.String,
        "split": pl.String,
        "prompt_number": pl.Int64,
        "prompt": pl.String,
        "who": pl.String,
        "arm": pl.String,
        "seed": pl.Int64,
        "step": pl.Int64,
        "response": pl.String,
        "ended": pl.Boolean,
        "utility": pl.Float64,
        "margin_golden": pl.Float64,
        "margin_proxy": pl.Float64,
        "win_golden_policy_golden": pl.Float64,
    }

    def __init__(self, bench: Bench, store: Store, shown: int = 32) -> None:
        self._tokenizer = load_tokenizer(bench.policy_base.checkpoint)
        self.prompts: dict[int, str] = {}
        for split in SPLITS:
            pairs = read_pairs(store.get(bench.pairs.identity).path / f"{split}.parquet")
            pairs = pairs.take(torch.arange(min(shown, len(pairs))))
            for number, ids in zip(pairs.prompt_numbers.tolist(), pairs.prompts.rows(), strict=True):
                self.prompts[number] = str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def shown(self, part: pl.DataFrame) -> pl.DataFrame:
        """The reader's columns, with prompt and response as text."""
        ends = end_tokens(self._tokenizer)
        ids = part["response_ids"].to_list()
        ended = [bool(row) and row[-1] in ends for row in ids]
        text = [str(self._tokenizer.decode(row[:-1] if stop else row)) for row, stop in zip(ids, ended, strict=True)]
        prompts = [self.prompts[number] for number in part["prompt_number"].to_list()]
        frame = part.with_columns(
            pl.Series("prompt", prompts, dtype=pl.String),
            pl.Series("response", text, dtype=pl.String),
            pl.Series("ended", ended, dtype=pl.Boolean),
        )
        return frame.select(pl.col(name).cast(kind) for name, kind in self.COLUMNS.items())


def _stages(bench: Bench, store: Store) -> dict[str, Any]:
    """Agreements, losses and sizes of what the arms stand on; what is not there is null."""

    def metrics(stage: Stage, file: str = "metrics.json") -> Any:
        if not store.has(stage.identity):
            return None
        path = store.get(stage.identity).path / file
        return read_json(path) if path.is_file() else None

    seeds = bench.seeds
    found = {"sft": metrics(bench.sft), "golden": metrics(bench.golden), "proxy": metrics(bench.proxy(seeds[0]))}
    sizes = {
        ("policy" if role == "sft" else role): value["parameters"]
        for role, value in found.items()
        if value and "parameters" in value
    }
    judges = {seed: metrics(bench.agreement(seed), "agreement.json") for seed in seeds}
    return {
        "agreement": _agreements({seed: table for seed, table in judges.items() if table}),
        "sizes": sizes,
        "data": metrics(bench.pairs, "data.json"),
        **found,
        "proxy": {str(seed): metrics(bench.proxy(seed)) for seed in seeds},
        "golden_policy": bench.golden_policy.specification,
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
    found = {}
    for name, stored in AGREEMENTS.items():
        rows = {str(seed): table[stored] for seed, table in tables.items() if stored in table}
        values = [row["value"] for row in rows.values() if row["value"] is not None]
        if values:
            found[name] = {"value": sum(values) / len(values), "n": next(iter(rows.values()))["n"]}
            found[name] |= {"by_seed": rows} if "proxy" in name else {}
    return found


def _concluded(name: str, data: TaskData, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    experiment = EXPERIMENTS[name]
    pending = any(row[PENDING] for row in inputs)
    error = None
    try:
        found = written(experiment.analyse(data), pending)
    except Exception as problem:  # of a plugin's experiment, say: it must not cost the others their report
        traceback.print_exc()
        where = EXPERIMENTS.place(name, problem)
        error = f"{type(problem).__name__}: {problem}" + (f" ({where})" if where else "")
        failed = Analysis("inconclusive", f"The analysis failed, so nothing is concluded: {error}")
        found = written(failed, pending) | ({} if pending else {"verdict": FAILED})
    return {
        "title": experiment.title,
        "question": experiment.question,
        "finding": experiment.finding,
        "rule": experiment.rule,
        "error": error,
        "inputs": inputs,
        **found,
    }


def written(found: Analysis, pending: bool) -> dict[str, Any]:
    """An analysis as results.json has it. Raises when it is none, or holds what JSON does not."""
    if found.verdict not in get_args(Verdict):
        raise ValueError(f"'{found.verdict}' is no verdict: {', '.join(get_args(Verdict))}")
    plain: dict[str, Any] = {
        "verdict": UNFINISHED if pending else found.verdict,
        "sentence": found.sentence,
        "estimates": {
            key: _estimate(value, decides=index == 0 and not pending)
            for index, (key, value) in enumerate(found.estimates.items())
        },
        "power": None if pending else _power(next(iter(found.estimates.values()), None)),
        "figures": [asdict(figure) for figure in found.figures],
    }
    json.dumps(_plain(plain))
    return plain


def _estimate(value: Labelled, *, decides: bool) -> dict[str, Any]:
    """decides: whether the verdict rests on it; only then is its p-value that of a hypothesis stated before the run."""
    found: Estimate = value.estimate
    null = value.null if decides else None
    return {
        "label": value.label,
        "unit": value.unit,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "n_seeds": found.n_seeds,
        "n_prompts": found.n_prompts,
        "note": found.note,
        "null": null,
        "p": bootstrap_p(found.draws, null) if null is not None and math.isfinite(found.low) else None,
    }


def _holm(concluded: Mapping[str, dict[str, Any]]) -> dict[str, float | None]:
    """Holm's adjusted p-value of each experiment's first estimate, over all experiments of the task; of none before all
    are finished, because each depends on the others.
    """
    if any(found["verdict"] == UNFINISHED for found in concluded.values()):
        return dict.fromkeys(concluded)
    estimates: dict[str, dict[str, dict[str, Any]]] = {name: found["estimates"] for name, found in concluded.items()}
    first = {name: next(iter(found.values()), {}).get("p") for name, found in estimates.items()}
    adjusted = holm([math.nan if p is None else p for p in first.values()])
    return dict(zip(first, adjusted.tolist(), strict=True))


def _power(first: Labelled | None) -> dict[str, Any] | None:
    """Seeds, and prompts, that would resolve an effect of the size seen in four runs of five; null where a spread is
    not known. What the prompts do to all seeds alike is taken to be all that they do: slightly too many seeds.
    """
    if first is None or first.null is None:
        return None
    found = first.estimate
    effect = found.value - first.null
    if not math.isfinite(effect) or effect == 0:
        return {"seeds": None, "prompts": None, "note": "No effect was seen, so none can be planned for."}
    if not math.isfinite(found.prompt_se):
        return {"seeds": None, "prompts": None, "note": "Cannot be told: the prompts' part of the error is not known."}
    prompts = prompts_needed(effect, found.prompt_se, found.n_prompts)
    if len(found.seed_values) < 2:
        note = "Seeds cannot be told: one seed does not show how far seeds scatter."
        return {"seeds": None, "prompts": prompts, "note": note}
    seeds = seeds_needed(effect, float(found.seed_values.std(ddof=1)), found.prompt_se, shared=1.0)
    note = (
        "" if seeds else f"No number of seeds up to {MAX_SEEDS} is enough with these prompts: more prompts are needed."
    )
    return {"seeds": seeds, "prompts": prompts, "note": note}


def _timings(plan: Plan, store: Store, outcome: Outcome) -> dict[str, Any]:
    stages: list[dict[str, Any]] = [
        {
            "label": stage.label,
            "kind": stage.kind,
            "identity": stage.identity,
            "status": outcome.status.get(stage.identity, "finished" if store.has(stage.identity) else "missing"),
            "seconds": store.get(stage.identity).record().get("seconds") if store.has(stage.identity) else None,
            "spent": store.get(stage.identity).record().get("spent") if store.has(stage.identity) else None,
            "judge_spent": _spent(stage, store),
        }
        for stage in plan.stages
    ]
    spent: dict[str, float] = {}
    for stage in stages:
        for name, amount in stage["judge_spent"].items():
            spent[name] = spent.get(name, 0.0) + amount
    return {
        "wall_seconds": outcome.wall or None,
        "jobs": outcome.jobs or None,
        "core_seconds": sum(stage["seconds"] or 0.0 for stage in stages),
        "activities": activities(
            ((stage["spent"], stage["seconds"]) for stage in stages),
            outcome.wall * outcome.jobs,
            sum(outcome.seconds.values()),
        ),
        "judge_spent": spent,
        "stages": stages,
    }


def _latest(timings: dict[str, Any], outcome: Outcome, folder: Path) -> dict[str, Any]:
    """Timings of the last command that made a stage: those that are on record, where this one has made none."""
    if outcome.seconds:
        return timings
    try:
        earlier: dict[str, Any] = read_json(folder / "results.json")["timings"]
        then, now = ([(row["identity"], row["seconds"]) for row in found["stages"]] for found in (earlier, timings))
    except (OSError, UserError, KeyError, TypeError):  # none, or of another version
        return timings
    return earlier if then == now else timings


def _spent(stage: Stage, store: Store) -> dict[str, float]:
    """What judges' answers cost in a stage beside time."""
    path = store.get(stage.identity).path / "cost.json" if store.has(stage.identity) else None
    found: dict[str, float] = read_json(path).get("judge_spent", {}) if path and path.is_file() else {}
    return found


def _flat(task: str, arm: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    row = {"task": task, **{key: arm[key] for key in ("name", "family", "baseline", "seed", "identity")}}
    row |= {"loss": arm["loss"]["name"], "lr": arm["settings"]["lr"], "beta": arm["settings"]["beta"]}
    row |= {key: value for key, value in point.items() if key not in ("wins", "measures")}
    for name, found in point.get("measures", {}).items():
        row |= {name: found["mean"], f"{name}_se": found["se"]}
    for opponent, judges in point["wins"].items():
        for judge, win in judges.items():
            row |= {f"{field}_{opponent}_{judge}": value for field, value in win.items()}
    return row


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is not a number becomes null."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
