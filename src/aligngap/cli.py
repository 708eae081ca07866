"""The command line: parse and dispatch, nothing else.

What is slow to import (torch, polars, charts) is imported by the commands that need it: the others answer at once.
"""

from __future__ import annotations

import atexit
import gc as collector  # `gc` is a command here
import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from aligngap import __version__
from aligngap.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from aligngap.experiments.spec import StudySpec
    from aligngap.pipeline.graph import Stage
    from aligngap.pipeline.rundir import RunDirectory
    from aligngap.store import Store

app = typer.Typer(
    help="Compare online and offline alignment when only the source of the training pairs changes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a defect shows Python's own traceback
    rich_markup_mode=None,
)

Study = Annotated[str, typer.Argument(metavar="STUDY", help="A shipped study (see `aligngap studies`) or a YAML file.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder.  [default: runs/STUDY]")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the study.")]
Seeds = Annotated[int | None, typer.Option(min=1, metavar="N", help="Number of seeds.  [default: the study's]")]
Jobs = Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes side by side.  [default: one a core]")]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="Shrink the study to a try-out of minutes; its numbers mean nothing.")
]
StorePath = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="PATH",
        help="Where artefacts are kept.  [default: $ALIGNGAP_STORE, or runs/store, or DIR/store with --out]",
    ),
]
RunStore = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PATH or URL",
        help="Where artefacts are kept.  [default: $ALIGNGAP_STORE, or runs/store, or DIR/store with --out]; "
        "with --executor ray also a URL, through which nodes without a common disk exchange them",
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="TOOL", help="Send metrics to tensorboard or wandb too; may be given twice."),
]
_STARTED = time.monotonic()
# To look, at the end of the process, for garbage in all that was imported takes a second; nobody uses what it frees.
atexit.register(collector.freeze)
_AGAIN = "Give the `aligngap run` command again."
Checkpoint = Annotated[
    float | None,
    typer.Option(
        "--checkpoint-seconds", min=0, metavar="N", help="How much of its work a kill may cost a stage.  [default: 120]"
    ),
]
ExecutorName = Annotated[
    str, typer.Option("--executor", metavar="NAME", help="local: processes of this machine; ray: a Ray cluster.")
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="With --executor ray: the cluster's head, or auto.  [default: $RAY_ADDRESS, or a cluster of its own here]",
    ),
]
Run = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")]


Version = Annotated[bool, typer.Option("--version", help="Show the version and exit.")]


@app.callback(invoke_without_command=True)
def _root(version: Version = False) -> None:
    if version:
        print(f"aligngap {__version__}")
        raise typer.Exit


@app.command()
def run(
    study: Study,
    out: Out = None,
    settings: Set = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    smoke: Smoke = False,
    store: RunStore = None,
    track: Track = None,
    checkpoint_seconds: Checkpoint = None,
    executor: ExecutorName = "local",
    address: Address = None,
) -> None:
    """Run a study: make what is not made yet, then write results and report. The same command resumes it."""
    with _stoppable():
        from aligngap.pipeline import RUNS
        from aligngap.pipeline.executors.server import start_server

        likely = out or RUNS / (Path(study).stem + "-smoke" * smoke)
        if executor == "local" and not _has_finished(likely):
            start_server()  # it imports, for seconds, what its stages need, while this process does so below
        with _importing():
            from aligngap import runner
            from aligngap.experiments.study import load_study
            from aligngap.trackers.base import chosen

        trackers = chosen(track or [])
        ran = runner.run(
            load_study(study, settings or [], seeds, smoke),
            out,
            console=_console(),
            jobs=jobs,
            store=store,
            checkpoint_seconds=checkpoint_seconds,
            trackers=trackers,
            executor=executor,
            address=address,
            began=_STARTED,
        )
    if ran.failures:
        raise typer.Exit(1)


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
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


@contextmanager
def _importing() -> Iterator[None]:
    """For imports that take seconds: to look for garbage in what they make, and will keep, takes a sixth of that."""
    collected = collector.isenabled()
    collector.disable()
    try:
        yield
    finally:
        collector.freeze()  # nor is there any later; `main` takes it back
        if collected:
            collector.enable()


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM are one thing, which is told at the end; typer would swallow it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as error:
        from aligngap.pipeline.executors.run import Interrupted
        from aligngap.pipeline.graph import Outcome

        raise Interrupted(Outcome()) from error
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command()
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
    with _importing():
        from aligngap import runner
    from aligngap.experiments.study import asked_by, load_study
    from aligngap.pipeline.executors.local import default_jobs
    from aligngap.pipeline.executors.progress import clock
    from aligngap.pipeline.executors.schedule import estimate
    from aligngap.pipeline.graph import all_stages
    from aligngap.pipeline.rundir import chosen_store
    from aligngap.store import Store

    spec = load_study(study, settings or [], seeds, smoke)
    stages = all_stages(runner.wanted(spec))
    root = chosen_store(out or runner.default_folder(spec), store)
    kept = Store(root, reading=True)
    done = {stage.identity for stage in stages if kept.has(stage.identity)}
    users = asked_by(spec)
    table = _table(spec.title, "kind", "stage", "for", "state", ">estimate")
    for stage in stages:
        names = users[stage.identity]
        for_whom = ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} others"
        state = "cached" if stage.identity in done else "to do"
        table.add_row(stage.kind, Text(stage.label), for_whom, state, clock(stage.work))
    _console().print(table)
    if len(spec.experiments) > 1:
        _console().print(_sharing(spec, stages, users))
    jobs = jobs or default_jobs(spec.device, spec.parallel)
    seconds = sum(stage.work for stage in stages if stage.identity not in done)
    shared = sum(len(names) > 1 for names in users.values())
    _say(
        f"{len(stages)} stages: {len(done)} cached, {len(stages) - len(done)} to do; {shared} serve several "
        f"experiments.\nAbout {seconds:.0f} core seconds; {clock(estimate(stages, done, jobs))} with --jobs {jobs}."
    )


def _sharing(spec: StudySpec, stages: Sequence[Stage], users: Mapping[str, Sequence[str]]) -> Table:
    """What each experiment needs, and what it adds to the others."""
    from aligngap.pipeline.executors.progress import clock

    table = _table("What each experiment adds", "experiment", ">stages", ">of its own", ">estimate of its own")
    for name in spec.experiments:
        needed = [stage for stage in stages if name in users[stage.identity]]
        own = [stage for stage in needed if len(users[stage.identity]) == 1]
        table.add_row(name, str(len(needed)), str(len(own)), clock(sum(stage.work for stage in own)))
    return table


@app.command()
def studies() -> None:
    """List the shipped studies."""
    from aligngap.experiments.shipped import shipped

    known = shipped()
    for name, line in known.items():
        _say(f"{name:<{max(map(len, known))}}  {line}")


@app.command()
def status(directory: Run) -> None:
    """Show how far a run has come."""
    from aligngap.pipeline.executors.progress import Entry, clock
    from aligngap.pipeline.rundir import RunDirectory

    found = RunDirectory.open(directory)
    now = found.status()
    table = _table(str(found.study.get("title", directory)), "kind", "stage", "state", "steps", ">seconds", "reason")
    for item in now["stages"]:
        entry = Entry(item["label"], item["kind"], 0.0, item["status"], item["done"], item["total"], item["rate"])
        pace = entry.pace if item["status"] == "running" else f"{entry.done}/{entry.total}" if entry.total else ""
        seconds = f"{item['seconds']:.1f}" if item["seconds"] else ""
        table.add_row(item["kind"], Text(item["label"]), item["status"], pace, seconds, Text(item["reason"]))
    _console().print(table)
    times = _table("Where time went", "kind", ">stages", ">core time")
    for spent in found.spent(now):
        some = f" (of {spent.timed})" if spent.timed < spent.stages else ""
        times.add_row(Text(spent.kind), str(spent.stages), clock(spent.seconds) + some)
    _console().print(times)
    parts = _table("What it went to", "activity", ">core time", ">share")
    spent_on = found.activities(now)
    for activity, part in spent_on.items():
        parts.add_row(activity, clock(part), f"{part / sum(spent_on.values()):.0%}")
    _console().print(parts)
    states = [item["status"] for item in now["stages"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    left = f", about {clock(now['left'])} left" if now["state"] == "running" and now["left"] is not None else ""
    when = f"started {now['started']}, last seen {now['updated']}"
    _say(f"{now['state']}, {clock(now['seconds'])}{left}: {counts} ({when})")


@app.command()
def watch(
    directory: Run,
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port on localhost; 0: any that is free.")
    ] = 8642,
    open: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    study: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The study's file, where it has plugins or judges of its own: imports them."),
    ] = None,
) -> None:
    """Serve the report on localhost while a run goes on: curves grow, stages tick. Reads only; end it with Ctrl-C."""
    import webbrowser

    from aligngap.live.folder import Watched
    from aligngap.live.server import Server, Site
    from aligngap.live.server import watch as follow

    if study is not None and not study.is_file():
        raise UserError("there is no such file", where=f"--study {study}", hint="Give the YAML file that was run.")
    server = Server(Site(Watched(directory, study)), port)
    _say(f"Watching {directory} at {server.url} (Ctrl-C ends watching, and nothing else).")
    if open:
        webbrowser.open(server.url)
    with suppress(KeyboardInterrupt):
        follow(server)


@app.command()
def report(directory: Run) -> None:
    """Write the report again, from the stored results."""
    from aligngap.pipeline.rundir import RunDirectory

    _needs(RunDirectory.open(directory).folder / "results.json")
    from aligngap.report.page import publish

    _say(f"Report: {publish(directory)}")


@app.command()
def figures(
    directory: Run,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="png, svg or pdf.")] = "png",
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where to.  [default: DIR/figures]")] = None,
    opponent: Annotated[
        str, typer.Option(metavar="NAME", help="Whose responses win rates are against: golden_policy or sft.")
    ] = "golden_policy",
) -> None:
    """Write every figure of the report as a file, TASK-EXPERIMENT-FIGURE.FORMAT. No browser is needed."""
    from aligngap.report import charts
    from aligngap.report.images import FORMATS, Format
    from aligngap.report.load import OPPONENTS, load

    for option, value, known in (("--format", form, FORMATS), ("--opponent", opponent, OPPONENTS)):
        if value not in known:
            raise UserError(f"there is no '{value}'", where=option, hint=f"Known: {', '.join(known)}.")
    data = load(directory)
    folder = out or directory / "figures"
    try:
        written = charts.figures(data, folder, (cast(Format, form),), opponent=opponent)
    except OSError as error:
        hint = "Give --out another folder."
        raise UserError(f"cannot be written: {error.strerror}", where=str(folder), hint=hint) from error
    if not written:
        raise UserError("there is nothing to draw: no run has a measured point", where=str(directory))
    _say(f"{len(written)} figures: {folder}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="DIR1", help="The folder of a run.")],
    second: Annotated[Path, typer.Argument(metavar="DIR2", help="The folder of another.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of it, FILE.html, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two runs of the same experiments: what differs, and second minus first with intervals."""
    from aligngap.compare.differences import compare as compared
    from aligngap.compare.words import sections

    if out is not None and out.suffix != ".html":
        raise UserError(f"'{out}' is no .html file", where="--out", hint="Write --out comparison.html.")
    found = compared(first, second)
    if out is not None:
        from aligngap.compare.page import write_comparison

        try:
            write_comparison(found, out)
        except OSError as error:
            hint = "Give --out another path."
            raise UserError(f"cannot be written: {error.strerror}", where=str(out), hint=hint) from error
    if as_json:
        print(json.dumps(found.as_json(), indent=2, allow_nan=False))
        return
    console = _console()
    for part in sections(found):
        if isinstance(part, str):
            console.print(_plain(part), soft_wrap=True)
        else:
            table = _table(part.title, *part.columns)
            for row in part.rows:
                table.add_row(*map(_plain, row))
            console.print(table)
    if out is not None:
        _say(f"Page: {out}", console)


@app.command()
def samples(
    directory: Run,
    arm: Annotated[str | None, typer.Option(metavar="NAME", help="The arm.  [default: the first]")] = None,
    step: Annotated[int | None, typer.Option(metavar="N", help="The step.  [default: the last kept]")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The seed.  [default: the first]")] = None,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="train or held_out.")] = "held_out",
    n: Annotated[int, typer.Option("--n", min=1, metavar="N", help="Number of prompts.")] = 5,
) -> None:
    """Show prompts with the responses of the SFT policy, of an arm and of the golden policy, and their scores."""
    import polars as pl

    from aligngap.pipeline.rundir import RunDirectory

    path = RunDirectory.open(directory).folder / "samples.parquet"
    _needs(path)
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:  # of a run that was killed while it wrote
        raise UserError(f"it cannot be read: {error}", where=str(path), hint=_AGAIN) from error
    if frame.is_empty():
        raise UserError("there are no samples: no arm came to its end", where=str(path), hint=_AGAIN)
    frame = frame.filter(pl.col("split") == _pick(frame, "split", split, "--split"))
    chosen = frame.filter(pl.col("who") == "policy")
    # The golden policy has its own column; it is an arm as well, for those who ask for its steps.
    if arm is None and not (others := chosen.filter(pl.col("arm") != "golden policy")).is_empty():
        chosen = others
    for column, value, option in (("arm", arm, "--arm"), ("seed", seed, "--seed"), ("step", step, "--step")):
        chosen = chosen.filter(pl.col(column) == _pick(chosen, column, value, option, last=column == "step"))
    title = f"{chosen['arm'][0]}, step {chosen['step'][0]}, seed {chosen['seed'][0]}"
    opponents = frame.filter(pl.col("seed").is_null() | (pl.col("seed") == chosen["seed"][0]))
    console = _console()
    for row in chosen.sort("task", "prompt_number").head(n).iter_rows(named=True):
        same = opponents.filter((pl.col("task") == row["task"]) & (pl.col("prompt_number") == row["prompt_number"]))
        heading = f"{row['task']}, {split}, prompt {row['prompt_number']}:\n{row['prompt']}"
        table = _table(heading, "SFT", title, "golden policy")
        table.show_lines = True
        rows = [_first(same, "sft"), row, _first(same, "golden_policy")]
        table.add_row(*(_plain(found["response"] if found else "-") for found in rows))
        table.add_row(*(Text(_scores(found) if found else "-", style="dim") for found in rows))
        console.print(table)
    policies = frame.filter(pl.col("who") == "policy")
    arms = policies["arm"].unique().sort().to_list()
    steps = policies.filter(pl.col("arm") == chosen["arm"][0])["step"].unique().sort().to_list()
    _say(f"Arms: {', '.join(arms)}\nSteps of this arm: {', '.join(map(str, steps))}", console)


@app.command()
def verify(
    directory: Run,
    store: StorePath = None,
    set_aside: Annotated[
        bool, typer.Option("--set-aside", help="Move what is damaged aside, so that the next run makes it anew.")
    ] = False,
) -> None:
    """Compare a run's artefacts with their checksums."""
    from aligngap.pipeline.rundir import RunDirectory

    found = RunDirectory.open(directory)
    kept = _store_of(found, store)
    made = [item["identity"] for item in found.status()["stages"] if item["status"] in ("finished", "cached")]
    problems = kept.verify(made)
    for problem in problems:
        _say(str(problem))
    if set_aside:
        for identity in dict.fromkeys(problem.identity for problem in problems):
            if away := kept.set_aside(identity):
                _say(f"Set aside: {away}")
    if problems:
        hint = _AGAIN if set_aside else f"`aligngap verify {directory} --set-aside`, then `aligngap run`, repairs them."
        print(f"{len(problems)} problems. {hint}", file=sys.stderr)
        raise typer.Exit(1)
    _say(f"{len(made)} artefacts are as they were written.")


@app.command()
def pack(
    directory: Run,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to; without gzip if it ends in .tar.  [DIR.tar.gz]")
    ] = None,
    store: StorePath = None,
) -> None:
    """Pack a run and its artefacts into one file, to be unpacked elsewhere."""
    from aligngap.pipeline import archive
    from aligngap.pipeline.rundir import RunDirectory

    found = RunDirectory.open(directory)
    target = file or Path(f"{directory.resolve().name}.tar.gz")
    done = archive.pack(found, _store_of(found, store), target)
    more = f", {done.partials} step checkpoints" if done.partials else ""
    _say(f"{done.artefacts} artefacts{more}, {_size(done.size)} packed into {_size(target.stat().st_size)}: {target}")


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `aligngap pack` wrote.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The run's new folder.")],
    store: StorePath = None,
) -> None:
    """Verify a packed run and put it into a folder. Nothing is put anywhere unless all of it is whole."""
    from aligngap.pipeline import archive
    from aligngap.pipeline.rundir import chosen_store

    root = chosen_store(out, store)
    done = archive.unpack(file, out, None if root == out / "store" else root)
    kept = f" ({done.kept} were there already)" if done.kept else ""
    more = f", {done.partials} step checkpoints" if done.partials else ""
    _say(f"{done.artefacts} artefacts{kept}{more}, {_size(done.size)}, verified: {out}\nArtefacts are in {root}.")
    if (out / "results.json").is_file():
        _say(f"`aligngap report {out}` writes its report.")


@app.command()
def gc(
    place: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR or STORE]", help="A run's folder, or a store.  [$ALIGNGAP_STORE, or runs/store]"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Free what no run refers to any more in a store: artefacts, step checkpoints, damaged ones that were set aside."""
    from aligngap.pipeline import RUNS
    from aligngap.pipeline.garbage import collect_garbage
    from aligngap.pipeline.rundir import RunDirectory, chosen_store

    root = place or chosen_store(RUNS / "any", None)
    if (root / "study.json").is_file():
        root = RunDirectory.open(root).store_path()
    kept = _open_store(root)
    freed, users = collect_garbage(kept, dry_run)
    console = _console()
    for folder in users.folders:
        _say(f"in use by {folder}", console)
    for user in users.gone:
        _say(f"gone: {user.folder}", console)
    for user in users.unseen:
        _say(
            f"kept for {user.folder}, which cannot be seen from here; if it is gone for good, remove {user.entry}",
            console,
        )
    for item in freed:
        word = "kept (being made)" if item.held else "would free" if dry_run else "freed"
        _say(f"{word}  {item.what}  {item.identity}  {_size(item.size)}", console)
    gone = [item for item in freed if not item.held]
    total = _size(sum(item.size for item in gone))
    _say(f"{len(gone)} {'would be freed' if dry_run else 'freed'}, {total}: {kept.root}", console)


@app.command()
def check(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, a folder or a hub set (owner/name).")],
    format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="The data's format.  [default: found from the data]")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="PATH", help="Count tokens of this base, folder or hub id, not words.")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="SPLIT", help="Only this split.  [default: all]")] = None,
    config: Annotated[str | None, typer.Option(metavar="NAME", help="Configuration or folder of a hub set.")] = None,
    revision: Annotated[str | None, typer.Option(metavar="NAME", help="Revision of a hub set.")] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--column", metavar="NAME=COLUMN", help="What the data call a column.")
    ] = None,
    keep_ties: Annotated[bool, typer.Option("--keep-ties", help="Keep ties, with preference 1/2.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a preference data set holds, before any training: format, rows dropped, lengths, duplicates, leaks."""
    from aligngap.tasks.check import describe
    from aligngap.tasks.datasets import DatasetSpec

    spec = DatasetSpec(
        source=data,
        format=format,
        config=config,
        revision=revision,
        columns=_renamed(columns),
        ties="keep" if keep_ties else "drop",
    )
    found = describe(spec, _tokenizer(tokenizer) if tokenizer else None, split)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
        return
    console = _console()
    _say(f"{data}", console)
    for heading, lines in found.sections():
        _say("\n".join([f"\n{heading}", *(f"  {line}" for line in lines)]), console)


def _renamed(columns: Sequence[str] | None) -> dict[str, str]:
    renamed = dict(item.partition("=")[::2] for item in columns or [])
    if wrong := [name for name, theirs in renamed.items() if not name or not theirs]:
        raise UserError(f"'{wrong[0]}' names no column", where="--column", hint="Write --column prompt=question.")
    return renamed


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    from aligngap.models.build import SHIPPED, base_path, load_tokenizer

    return load_tokenizer(base_path(name) if name in SHIPPED else name)


@app.command()
def diagnose(
    policy: Annotated[
        str, typer.Option(metavar="MODEL", help="The SFT policy: a base, folder or hub id; or a run's folder.")
    ],
    data: Annotated[str, typer.Option(metavar="DATA", help="A built-in world, file, folder or hub set (owner/name).")],
    judge: Annotated[
        str | None, typer.Option(metavar="JUDGE", help="kind:argument, or a YAML file (docs/judges.md).")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, metavar="N", help="How many prompts to look at, at most.")] = 512,
    format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="The data's format.  [default: found from the data]")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="SPLIT", help="The split to look at.")] = None,
    config: Annotated[str | None, typer.Option(metavar="NAME", help="Configuration or folder of a hub set.")] = None,
    revision: Annotated[str | None, typer.Option(metavar="NAME", help="Revision of a hub set.")] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--column", metavar="NAME=COLUMN", help="What the data call a column.")
    ] = None,
    max_response_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Responses are cut, and sampled, to this length.")
    ] = 128,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the sampling and of the choice of prompts.")] = 0,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda or mps.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page, too.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Where a judge keeps paid answers.  [default: $ALIGNGAP_STORE, or runs/store]"
        ),
    ] = None,
) -> None:
    """Say, before any training, what preference data are to an SFT policy: on-policy, contrast, quality, coverage."""
    from rich.status import Status

    from aligngap.diagnosis.page import page_path, write_page
    from aligngap.diagnosis.report import diagnose_named
    from aligngap.diagnosis.terminal import lines
    from aligngap.pipeline import RUNS
    from aligngap.pipeline.rundir import chosen_store
    from aligngap.tasks.datasets import DatasetSpec

    page = page_path(out) if out is not None else None
    spec = DatasetSpec(
        source=data,
        format=format,
        split=split,
        config=config,
        revision=revision,
        columns=_renamed(columns),
        max_response_tokens=max_response_tokens,
        seed=seed,
    )
    # What a judge of the user's own prints is not what is asked for here, and least of all JSON.
    with Status("", console=Console(stderr=True)) as status, redirect_stdout(sys.stderr):
        found = diagnose_named(
            policy,
            spec,
            judge,
            prompts=prompts,
            seed=seed,
            device=device,
            cache=chosen_store(RUNS / "diagnose", store),
            progress=lambda what, done, total: status.update(f"{what} {done}/{total}"),
        )
    if page is not None:
        write_page(found, page)
    if as_json:
        print(json.dumps(found.as_json(), indent=2, allow_nan=False))
        return
    console = _console()
    for line in lines(found.about, found.findings, found.regime):
        _say(line, console)
    if page is not None:
        _say(f"\nPage: {page}", console)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The study to write.")],
    data: Annotated[str, typer.Option(metavar="DATA", help="A preference data set: file, folder or hub set.")],
    policy: Annotated[str, typer.Option(metavar="MODEL", help="The policy's base: a folder or hub id.")],
    golden: Annotated[str | None, typer.Option(metavar="MODEL", help="Golden's base.  [default: the policy's]")] = None,
    proxy: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The proxy's base.  [default: the policy's]")
    ] = None,
    format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="The data's format.  [default: found from the data]")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="SPLIT", help="The split to train on.")] = None,
    config: Annotated[str | None, typer.Option(metavar="NAME", help="Configuration or folder of a hub set.")] = None,
) -> None:
    """Write a study of your own data and models, with every setting in it, to be changed and run."""
    from aligngap.experiments.starter import starter
    from aligngap.tasks.datasets import DatasetSpec

    if file.suffix not in (".yaml", ".yml"):
        raise UserError("a study's file ends in .yaml", where=str(file), hint=f"Write {file.stem or 'study'}.yaml.")
    if file.exists():
        raise UserError("the file is there already", where=str(file), hint="Give another name, or remove it.")
    spec = DatasetSpec(source=data, format=format, split=split, config=config)
    text = starter(file, spec, policy, golden, proxy)
    try:
        with file.open("x", encoding="utf-8") as handle:
            handle.write(text)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(file), hint="Give another place.") from error
    _say(f"{file}\nNext: aligngap plan {file}; aligngap run {file} --smoke")


@app.command()
def export(
    directory: Run,
    arm: Annotated[str, typer.Argument(metavar="ARM", help="The arm's name in the report, or `sft`.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The folder to write; it must be new or empty.")],
    step: Annotated[int | None, typer.Option(metavar="N", help="The step.  [default: the last kept]")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The seed.  [default: the first]")] = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="The task.  [default: the first]")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapters alone, as `peft` loads them.")] = False,
    store: StorePath = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that came with the policy's checkpoint.")
    ] = False,
) -> None:
    """Write an arm's policy as a Hugging Face folder, with its tokenizer; adapters are merged."""
    from aligngap.pipeline.export import export as write
    from aligngap.pipeline.rundir import RunDirectory

    found = write(
        RunDirectory.open(directory),
        arm,
        path,
        task=task,
        seed=seed,
        step=step,
        store=store,
        trust_remote_code=trust_remote_code,
        adapter=adapter,
    )
    _say(f"{found}: {path}")


@app.command()
def scratch(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A preference data set: file, folder or hub set.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; it must be new or empty.")],
    hidden: Annotated[int, typer.Option(min=2, metavar="N", help="Width.")] = 128,
    layers: Annotated[int, typer.Option(min=1, metavar="N", help="Layers.")] = 4,
    heads: Annotated[int, typer.Option(min=1, metavar="N", help="Attention heads.")] = 4,
    vocabulary: Annotated[int, typer.Option(min=264, metavar="N", help="Tokens, at most.")] = 2048,
    context: Annotated[int, typer.Option(min=8, metavar="N", help="Context, in tokens.")] = 1024,
    steps: Annotated[int, typer.Option(min=0, metavar="N", help="Steps of language modelling on the texts.")] = 0,
    format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="The data's format.  [default: found from the data]")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="SPLIT", help="The split to train on.")] = None,
    config: Annotated[str | None, typer.Option(metavar="NAME", help="Configuration or folder of a hub set.")] = None,
) -> None:
    """Make a small base for your data where there is none: a tokenizer of its texts, and a decoder from scratch."""
    from aligngap.models.build import Architecture
    from aligngap.pipeline.scratch import ScratchSpec
    from aligngap.pipeline.scratch import scratch as make
    from aligngap.tasks.datasets import DatasetSpec
    from aligngap.train.step import OptimSpec

    console = _console()
    shape = Architecture(hidden=hidden, layers=layers, heads=heads, intermediate=2 * hidden, context=context)
    optim = OptimSpec(lr=3e-3, steps=steps, batch=16, schedule="cosine") if steps else None

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done % 100 == 0 or done == total:
            _say(f"{done}/{total}  loss {metrics['loss']:.3f}", console)

    found = make(
        DatasetSpec(source=data, format=format, split=split, config=config),
        ScratchSpec(shape=shape, vocabulary=vocabulary, optim=optim),
        out,
        progress,
    )
    _say(f"{out}: " + ", ".join(f"{name} {value:g}" for name, value in found.items()), console)


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Each base is written to DIR/BASE.")],
    sizes: Annotated[list[str] | None, typer.Argument(metavar="[BASE]...", help="Bases.  [default: all]")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Steps a cycle, for a try-out.  [default: the recipe's]")
    ] = None,
) -> None:
    """Train the shipped bases again, by their recipe. The same command resumes it."""
    from aligngap.store import identity
    from aligngap.train.pretrain import RECIPES, PretrainSpec, finished_cycles
    from aligngap.train.pretrain import pretrain as train

    console = _console()
    chosen: dict[str, tuple[PretrainSpec, Path]] = {}
    for name in sizes or list(RECIPES):
        if name not in RECIPES:
            raise UserError(f"unknown base '{name}'", where="BASE", hint=nearest(name, RECIPES))
        spec = RECIPES[name]
        if steps is not None:
            cycles = tuple(cycle.model_copy(update={"steps": steps}) for cycle in spec.cycles)
            spec = spec.model_copy(update={"cycles": cycles})
        done = len(finished_cycles(spec, out / name))
        if done == len(spec.cycles):
            _say(f"{name}: it is there already", console)
            continue
        partial = out / f".{identity('base', 2, spec.model_dump(mode='json'), {})}"
        if not done and not partial.is_dir():
            _new_folder(out / name)
        chosen[name] = (spec, partial)

    def progress(done: int, total: int, metrics: dict[str, float]) -> None:
        values = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
        _say(f"{name}  {done}/{total}  {values}", console)

    for name, (spec, partial) in chosen.items():
        with _stoppable():
            train(spec, out / name, progress, partial)
        shutil.rmtree(partial, ignore_errors=True)
        _say(f"{name}: {out / name}", console)


def main(arguments: Sequence[str] | None = None) -> int:
    """The console entry. Returns the exit code: 0, 1 (something failed), 2 (the user's to fix) or 130 (stopped)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(given, prog_name="aligngap")
    except SystemExit as end:  # typer ends so, with 2 for what it could not parse
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except UserError as error:
        _complain(error)
        return 2
    except OSError as error:  # from wherever something is written, the terminal's own file among it
        from aligngap.store.store import is_of_the_disk

        if not is_of_the_disk(error):
            raise
        hint = "Free some space there or repair the disk, then run the same command again; what is finished is kept."
        _complain(UserError(f"the disk cannot be written: {error.strerror}", where=error.filename, hint=hint))
        return 2
    except BaseException as error:
        from aligngap.pipeline.executors.run import Interrupted

        if not isinstance(error, Interrupted | KeyboardInterrupt):
            raise
        print(
            "Stopped. What is finished is kept, and training goes on from its last checkpoint. To go on:\n"
            f"  {shlex.join(['aligngap', *given])}",
            file=sys.stderr,
        )
        return 130
    finally:
        collector.unfreeze()
    return 0


def _complain(error: UserError) -> None:
    print(f"error: {error.what}", file=sys.stderr)
    for word, text in (("where", error.where), ("hint", error.hint)):
        if text:
            print(f"{word}: {text}", file=sys.stderr)


def _console() -> Console:
    console = Console()
    # Into a file or a pipe: wide enough that labels stay whole, whatever the terminal that started it.
    return console if console.is_terminal else Console(width=160)


def _say(text: str, console: Console | None = None) -> None:
    # Text, not markup: names and paths may hold brackets.
    (console or _console()).print(Text(text), soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=_plain(title), title_justify="left")
    for column in columns:
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        table.add_column(Text(column.removeprefix(">")), justify=justify, overflow="fold")
    return table


def _store_of(run: RunDirectory, option: Path | None) -> Store:
    return _open_store(run.store_path(option))


def _open_store(root: Path) -> Store:
    from aligngap.store import Store

    # A store has its folder of locks from the first moment on; nothing else is to be taken for one, or made one.
    if not (root / ".locks").is_dir():
        raise UserError("there is no store here", where=str(root), hint="Say where it is with --store.")
    return Store(root)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{count} bytes"
        size /= 1000
    return f"{size:.3g} GB"


def _needs(path: Path) -> None:
    if not path.is_file():
        raise UserError("it has not been written yet", where=str(path), hint=_AGAIN)


def _has_finished(folder: Path) -> bool:
    """Whether a run has finished in this folder, which is one study's for good: nothing will have to be made."""
    with suppress(OSError, ValueError, AttributeError):
        return bool(json.loads((folder / "status.json").read_bytes()).get("state") == "finished")
    return False


def _new_folder(path: Path) -> None:
    hint = "Give --out another folder."
    try:
        path.mkdir(parents=True, exist_ok=True)
        occupied = any(path.iterdir())
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from error
    if occupied:
        raise UserError("the folder is not empty", where=str(path), hint=hint)


def _pick(frame: Any, column: str, value: Any, option: str, last: bool = False) -> Any:
    """The value asked for, which must be among the column's; the first or last one when none is asked for."""
    known = frame[column].drop_nulls().unique(maintain_order=True).to_list()
    if value is None and known:
        return max(known) if last else known[0]
    if value not in known:
        what = f"no samples with {column.replace('_', ' ')} '{value}'" if known else "there are no samples of policies"
        hint = nearest(value, known) if isinstance(value, str) else f"Known: {', '.join(map(str, sorted(known)))}."
        raise UserError(what, where=option, hint=hint if known else None)
    return value


def _first(frame: Any, who: str) -> dict[str, Any] | None:
    found: list[dict[str, Any]] = [row for row in frame.iter_rows(named=True) if row["who"] == who]
    return found[0] if found else None


def _plain(text: str) -> Text:
    # A policy can write anything, also what a terminal would obey.
    return Text("".join(mark if mark.isprintable() or mark == "\n" else "�" for mark in text))


def _scores(row: dict[str, Any]) -> str:
    """The true utility and what each judge says, as far as there is one."""
    scores = {name.replace("_", " "): row[name] for name in row if name.startswith(("utility", "score_", "margin_"))}
    return "  ".join(f"{name} {value:.3g}" for name, value in scores.items() if value is not None) or "-"
