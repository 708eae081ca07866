"""Commands that run a study, or say what a run would do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from aligngap.cli import ahead, show
from aligngap.cli.options import (
    Address,
    CheckpointSeconds,
    ExecutorName,
    Jobs,
    Out,
    RunStore,
    Seeds,
    Set,
    Smoke,
    StorePath,
    Study,
    Track,
)
from aligngap.cli.stop import stoppable

if TYPE_CHECKING:
    from aligngap.experiments.plan import Plan

_STARTED = time.monotonic()


def run(
    study: Study,
    out: Out = None,
    settings: Set = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    smoke: Smoke = False,
    store: RunStore = None,
    track: Track = None,
    checkpoint_seconds: CheckpointSeconds = None,
    executor: ExecutorName = "local",
    address: Address = None,
) -> None:
    """Run a study: make what is not made yet, then write results and report. The same command resumes it."""
    with stoppable():
        from aligngap.pipeline import RUNS

        if executor == "local":
            ahead.start_server(out or RUNS / (Path(study).stem + "-smoke" * smoke))
        from aligngap import runner
        from aligngap.experiments.plan import Plan
        from aligngap.experiments.study import load_study
        from aligngap.trackers.base import chosen

        ran = runner.run(
            Plan(load_study(study, settings or [], seeds, smoke)),
            out,
            console=show.console(),
            jobs=jobs,
            store=store,
            checkpoint_seconds=checkpoint_seconds,
            trackers=chosen(track or []),
            executor=executor,
            address=address,
            began=_STARTED,
        )
    if ran.failures:
        raise typer.Exit(1)


def slurm(
    arguments: Annotated[
        list[str], typer.Argument(metavar="STUDY [OPTION]...", help="What `aligngap run` is to be given.")
    ],
    nodes: Annotated[int, typer.Option(min=1, metavar="N", help="Nodes of the cluster.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, metavar="N", help="Cores of each: a stage takes one.")] = 8,
    gpus: Annotated[int, typer.Option(min=0, metavar="N", help="GPUs of each, for studies with device=cuda.")] = 0,
    time: Annotated[str, typer.Option(metavar="TIME", help="Limit of one job; the next goes on.")] = "4:00:00",
) -> None:
    """Print an sbatch file that runs a study on a Slurm cluster: Ray in the allocation, job after job to its end."""
    from aligngap.pipeline.executors.cluster.slurm import sbatch_file

    print(sbatch_file(arguments, nodes=nodes, cpus=cpus, gpus=gpus, time=time), end="")


def plan(
    study: Study,
    out: Out = None,
    settings: Set = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    smoke: Smoke = False,
    store: StorePath = None,
) -> None:
    """Show a study's stages, which of them are in the store already, and what the others will cost."""
    from aligngap import runner
    from aligngap.experiments.plan import Plan
    from aligngap.experiments.study import load_study
    from aligngap.pipeline.executors.local import default_jobs
    from aligngap.pipeline.executors.progress import clock
    from aligngap.pipeline.rundir import chosen_store

    asked = Plan(load_study(study, settings or [], seeds, smoke))
    stages, root = asked.stages, chosen_store(out or runner.default_folder(asked), store)
    warnings = runner.check(asked, root)
    done = runner.done_in(asked, root)
    table = show.table(asked.title, "kind", "stage", "for", "state", ">estimate")
    for stage in stages:
        names = asked.users[stage.identity]
        for_whom = ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} others"
        state = "cached" if stage.identity in done else "to do"
        table.add_row(stage.kind, Text(stage.label), for_whom, state, clock(stage.work))
    show.console().print(table)
    if len(asked.experiments) > 1:
        show.console().print(_sharing(asked))
    jobs = jobs or default_jobs(asked.device, asked.parallel)
    shared = sum(len(names) > 1 for names in asked.users.values())
    show.say(
        f"{len(stages)} stages: {len(done)} cached, {len(stages) - len(done)} to do; {shared} serve several "
        f"experiments.\nAbout {asked.work(done):.0f} core seconds; "
        f"{clock(asked.duration(jobs, done))} with --jobs {jobs}."
    )
    for warning in warnings:
        show.say(f"WARNING: {warning}")


def _sharing(plan: Plan) -> Table:
    """What each experiment needs, and what it adds to the others."""
    from aligngap.pipeline.executors.progress import clock

    table = show.table("What each experiment adds", "experiment", ">stages", ">of its own", ">estimate of its own")
    for name in plan.experiments:
        needed, own = plan.used_by(name), plan.used_by(name, alone=True)
        table.add_row(name, str(len(needed)), str(len(own)), clock(sum(stage.work for stage in own)))
    return table


def studies() -> None:
    """List the shipped studies, and the experiments, each of which is a study by its name."""
    from aligngap.experiments.registry import EXPERIMENTS
    from aligngap.experiments.shipped import shipped

    known = shipped() | {
        name: f"{experiment.title}, on the settings of paper" for name, experiment in EXPERIMENTS.items()
    }
    for name, line in known.items():
        show.say(f"{name:<{max(map(len, known))}}  {line}")
