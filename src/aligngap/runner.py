"""A study from its plan to its report: what the command line and the Python interface share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from aligngap import terminal
from aligngap.errors import UserError, nearest
from aligngap.experiments.gather import collect, summary
from aligngap.experiments.plan import Plan
from aligngap.losses import LOSSES
from aligngap.measure.registry import MEASURES
from aligngap.models.tokenizer import load_tokenizer
from aligngap.pipeline import RUNS
from aligngap.pipeline.executors.cluster.executor import RayExecutor
from aligngap.pipeline.executors.local import LocalExecutor
from aligngap.pipeline.executors.progress import Ledger, clock, display
from aligngap.pipeline.executors.run import Executor, run_stages
from aligngap.pipeline.graph import CHECKPOINT_SECONDS, Event, Outcome, Stage
from aligngap.pipeline.remote_cache import is_address
from aligngap.pipeline.rundir import RunDirectory, chosen_store
from aligngap.pipeline.stages import Arm, Measured, Pairs
from aligngap.plugins import Registry
from aligngap.report.stage import Report, deliver
from aligngap.results import StudyResults
from aligngap.store import Store, disk_errors
from aligngap.tasks.spec import TaskSpec
from aligngap.tasks.worlds import WORLDS, world
from aligngap.tasks.worlds.advantage import authors_at
from aligngap.testing import check_loss, check_measure, check_world
from aligngap.trackers.tracking import tracking


@dataclass(frozen=True)
class Ran:
    """What a run has left in its folder. failures: all that is missing from the results, a line each."""

    folder: Path
    report: Path
    failures: list[str]


def default_folder(plan: Plan) -> Path:
    """Where a study runs that was given no folder."""
    return RUNS / (f"{plan.name}-smoke" if plan.smoke else plan.name)


def check(plan: Plan, root: Path) -> list[str]:
    """What can be known before anything is trained; warnings about slow models and data that do not fit. root: the
    store's, which may have pairs that need not be read again.

    Raises UserError as `Plan.check_models` and `Plan.check_data` do, for a class of the main program, which no process
    of a run has, and when what a plugin gives breaks the contract that ours keep.
    """
    plan.check_models()
    stages = plan.stages
    warnings = [*plan.slow_models, *plan.check_data(done_in(plan, root))]
    parts: list[object] = [*stages, *(stage.source for stage in stages if isinstance(stage, Arm))]
    if own := next((part for part in parts if type(part).__module__ == "__main__"), None):
        raise UserError(
            f"{type(own).__name__} is a class of the main program, which the processes of a run do not have",
            where="__main__",
            hint="Put it into a module of its own, and name that under `plugins` in the study.",
        )
    for name in sorted({stage.loss.name for stage in stages if isinstance(stage, Arm)}):
        _check(LOSSES, name, check_loss)
    for name in sorted({stage.measure for stage in stages if isinstance(stage, Measured)}):
        _check(MEASURES, name, check_measure)
    pairs = [stage for stage in stages if isinstance(stage, Pairs)]
    for name, stage in {stage.task.world: stage for stage in pairs if isinstance(stage.task, TaskSpec)}.items():
        if _check(WORLDS, name, check_world):
            _knows_the_words(name, stage)
    for stage in pairs:
        if isinstance(stage.task, TaskSpec):
            authors_at(stage.task.place, stage.task.advantage)  # raises for an advantage that no writers have
    return warnings


def done_in(plan: Plan, root: Path) -> set[str]:
    """Identities of the plan's stages that a store has already. Reads only."""
    store = Store(root, reading=True)
    return {stage.identity for stage in plan.stages if store.has(stage.identity)}


def run(
    plan: Plan,
    out: Path | None = None,
    *,
    console: Console,
    jobs: int | None = None,
    store: str | Path | None = None,
    checkpoint_seconds: float | None = None,
    trackers: Sequence[str] = (),
    executor: str = "local",
    address: str | None = None,
    began: float | None = None,
) -> Ran:
    """Make what is not made yet, then write results and report. What is missing from them is listed on standard error.

    out: the run's folder; None: `default_folder`. jobs: stages side by side; None: one a core. store: where artefacts
    are kept; None: as `chosen_store` says; on a cluster also a URL. checkpoint_seconds: how much work a kill may cost.
    trackers: as `trackers.base.chosen` gave them. executor: local, or ray, with the address of a cluster.
    began: when the command did, imports and all, by `time.monotonic`; None: now.

    Raises UserError, also when mistakes of the user's have kept everything from being made, and what `run_stages`
    raises.
    """
    began = time.monotonic() if began is None else began
    folder = out or default_folder(plan)
    remote_cache = store if isinstance(store, str) and is_address(store) else None
    root = chosen_store(folder, None if remote_cache or store is None else Path(store))
    seconds = CHECKPOINT_SECONDS if checkpoint_seconds is None else checkpoint_seconds
    executor_of = _executor(plan, executor, address, jobs, seconds, remote_cache)
    warnings = check(plan, root)
    with RunDirectory.use(folder, plan.specification) as directory:
        for warning in warnings:
            terminal.say(f"WARNING: {warning}", console)
        return _run_in(directory, plan, Store(root), executor_of, console, jobs, trackers, began)


def _run_in(
    directory: RunDirectory,
    plan: Plan,
    store: Store,
    executor_of: Callable[..., Executor],
    console: Console,
    processes: int | None,
    trackers: Sequence[str],
    began: float,
) -> Ran:
    folder, stages = directory.folder, plan.stages
    store.register(folder, [stage.identity for stage in stages])
    done = {stage.identity for stage in stages if store.has(stage.identity)}
    say = partial(terminal.say, where=console)
    say(plan.title)
    if directory.lost:
        say(directory.lost)
    with ExitStack() as stack:
        executor = stack.enter_context(executor_of(store, log_folder=directory.logs))
        jobs = executor.jobs
        ledger = Ledger(stages, jobs)
        directory.begin(ledger, store.root)
        say(
            f"{len(stages)} stages, {len(done)} of them in the store already; {jobs} side by side, "
            f"about {clock(plan.duration(jobs, done))} by the estimates. Results go to {folder}."
        )
        # Open until the report is written: so long, trackers have time that nobody waits for.
        note = stack.enter_context(tracking(trackers, plan, store, folder, directory.logs, say))
        show = stack.enter_context(display(console, ledger))

        def on_event(event: Event) -> None:
            ledger.update(event)
            directory.note(event)
            show(event)
            note(event)

        outcome = run_stages(plan.targets, executor, on_event)
        executor.close()
        _raise_mistakes(plan.targets, outcome)
        with disk_errors(folder, strict=False):
            outcome.wall, outcome.jobs = time.monotonic() - began, jobs
            results = collect(plan, store, outcome, folder)
            for line in summary(results):
                say(line)
            no_report = _make_report(folder, store, stages, processes, ledger, on_event)
    failures = [*_failures(stages, outcome, results, directory.logs), *no_report]
    for line in failures:
        terminal.warn(line)
    page = folder / "report.html"
    if not no_report:
        say(f"Report: {page} ({clock(time.monotonic() - began)})")
    return Ran(folder, page, failures)


def _make_report(
    folder: Path,
    store: Store,
    stages: Sequence[Stage],
    processes: int | None,
    ledger: Ledger,
    on_event: Callable[[Event], None],
) -> list[str]:
    """The last stage: of what the results in the folder are, failures and all, so nothing is known of it before they
    are there. On this machine, which has them. Says why there is no report, where there is none.
    """
    report, logs = Report.of(folder, processes), folder / "logs"
    ledger.add(report)
    store.register(folder, [stage.identity for stage in (*stages, report)])
    with LocalExecutor(store, jobs=1, device="cpu", log_folder=logs) as executor:
        outcome = run_stages([report], executor, on_event)
    if outcome.status[report.identity] == "failed":
        again = f"The results are whole: `aligngap report {folder}` makes their report."
        return [_failed(report, outcome, logs), again]
    deliver(store.get(report.identity).path, folder)
    return []


def _executor(
    plan: Plan, name: str, address: str | None, jobs: int | None, seconds: float, remote_cache: str | None
) -> Callable[..., Executor]:
    """What makes the executor, from the store and `log_folder`. Raises UserError for what it could not do."""
    if name not in ("local", "ray"):
        raise UserError(f"there is no executor '{name}'", where="--executor", hint=nearest(name, ("local", "ray")))
    given: dict[str, Any] = {
        "jobs": jobs,
        "device": plan.device,
        "checkpoint_seconds": seconds,
        "parallel": plan.parallel,
    }
    if name == "ray":
        RayExecutor.check(plan.device, plan.parallel)
        return partial(RayExecutor, address=address, remote_cache=remote_cache, **given)
    if address:
        raise UserError("--address is for --executor ray", where=f"--address {address}", hint="Give both, or none.")
    if remote_cache:
        hint = "Give a folder, or --executor ray."
        raise UserError("artefacts at a URL are for --executor ray", where=f"--store {remote_cache}", hint=hint)
    LocalExecutor.check(plan.device, plan.parallel)
    return partial(LocalExecutor, **given)


def _raise_mistakes(targets: Sequence[Stage], outcome: Outcome) -> None:
    """Raises the first of the user's mistakes when nothing that was wanted could be made, and all for such mistakes."""
    failed = [name for name, status in outcome.status.items() if status == "failed"]
    made = any(outcome.status.get(stage.identity) in ("finished", "cached") for stage in targets)
    if failed and not made and all(name in outcome.mistakes for name in failed):
        distinct: dict[str, UserError] = {}  # several places may have the same
        for name in failed:
            distinct.setdefault(outcome.mistakes[name].what, outcome.mistakes[name])
        first, *others = distinct.values()
        for other in others:
            terminal.warn(f"failed: {' '.join(str(other).split())}")
        raise first


def _failed(stage: Stage, outcome: Outcome, logs: Path) -> str:
    log = logs / f"{stage.identity}.log"
    where = f" (log: {log})" if log.exists() else ""
    return f"failed: {stage.label}: {' '.join(outcome.reasons[stage.identity].split())}{where}"


def _failures(stages: Sequence[Stage], outcome: Outcome, results: StudyResults, logs: Path) -> list[str]:
    failed, blocked = (
        [stage for stage in stages if outcome.status.get(stage.identity) == state] for state in ("failed", "blocked")
    )
    lines = [_failed(stage, outcome, logs) for stage in failed]
    if blocked:
        lines.append(f"blocked: {len(blocked)} stages need what failed")
    if failed:
        lines.append(f"{len(failed) + len(blocked)} of {len(stages)} stages are missing from the results.")
    for task in results.tasks:
        for result in task.experiments:
            if result.error is not None:
                lines.append(f"failed: analysis of {result.name} on {task.name}: {result.error}")
    return lines


def _check(registry: Registry[Any], name: str, check: Callable[[Any], None]) -> bool:
    """Whether there was anything to check: ours are tested."""
    if registry.code(name) is None:
        return False
    try:
        check(registry[name])
    except UserError as error:
        raise UserError(error.what, where=error.where or registry.place(name), hint=error.hint) from error
    except Exception as error:
        what = str(error) if isinstance(error, AssertionError) else f"it fails: {type(error).__name__}: {error}"
        raise UserError(
            f"the {registry.what} '{name}' breaks its contract: {what}",
            where=registry.place(name, error),
            hint=f"Correct it; `aligngap.testing.{check.__name__}` tries it again.",
        ) from error
    return True


def _knows_the_words(name: str, pairs: Pairs) -> None:
    """A word that a base does not know would be the same unknown token as every other."""
    tokenizer = load_tokenizer(pairs.base.checkpoint)
    if tokenizer.unk_token_id is None:
        return
    unknown = [word for word in world(name).words() if tokenizer.unk_token_id in tokenizer(word)["input_ids"]]
    if unknown:
        some = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        raise UserError(
            f"the base '{pairs.base.name}' does not know {len(unknown)} of the words of the world '{name}': {some}",
            where=WORLDS.place(name),
            hint="Use words that it knows, or a base of your own whose tokenizer has them.",
        )
