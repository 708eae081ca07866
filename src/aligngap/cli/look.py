"""Commands that show what a run has made."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.text import Text

from aligngap.cli import show
from aligngap.cli.options import AsJson, RunFolder
from aligngap.errors import UserError


def status(directory: RunFolder) -> None:
    """Show how far a run has come."""
    from aligngap.pipeline.executors.progress import Entry, clock

    run = show.opened(directory)
    now = run.status()
    table = show.table(str(run.study.get("title", directory)), "kind", "stage", "state", "steps", ">seconds", "reason")
    for item in now["stages"]:
        entry = Entry(item["label"], item["kind"], 0.0, item["status"], item["done"], item["total"], item["rate"])
        pace = entry.pace if item["status"] == "running" else f"{entry.done}/{entry.total}" if entry.total else ""
        seconds = f"{item['seconds']:.1f}" if item["seconds"] else ""
        cells = (item["kind"], item["label"], item["status"], pace, seconds, item["reason"])
        table.add_row(*map(show.plain, cells))
    show.console().print(table)
    times = show.table("Where time went", "kind", ">stages", ">core time")
    for row in run.time_by_kind(now):
        some = f" (of {row.timed})" if row.timed < row.stages else ""
        times.add_row(show.plain(row.kind), str(row.stages), clock(row.seconds) + some)
    show.console().print(times)
    parts = show.table("What it went to", "activity", ">core time", ">share")
    activities = run.activities(now)
    for activity, part in activities.items():
        parts.add_row(show.plain(activity), clock(part), f"{part / sum(activities.values()):.0%}")
    show.console().print(parts)
    states = [item["status"] for item in now["stages"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    left = f", about {clock(now['left'])} left" if now["state"] == "running" and now["left"] is not None else ""
    when = f"started {now['started']}, last seen {now['updated']}"
    show.say(f"{now['state']}, {clock(now['seconds'])}{left}: {counts} ({when})")
    if now["lost"]:
        show.say(now["lost"])


def watch(
    directory: RunFolder,
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
    show.say(f"Watching {directory} at {server.url} (Ctrl-C ends watching, and nothing else).")
    if open:
        webbrowser.open(server.url)
    with suppress(KeyboardInterrupt):
        follow(server)


def report(
    directory: RunFolder,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where to.  [default: DIR]")] = None,
) -> None:
    """Write the report again, from the stored results."""
    show.needs(directory, "results.json")
    from aligngap.report.page import publish
    from aligngap.store import DiskError, disk_errors

    folder = out or directory
    try:
        with disk_errors(folder, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            page = publish(directory, folder)
    except DiskError as error:  # the results are there: nothing has to be made again
        raise UserError(error.what, where=str(folder), hint="Give --out another folder.") from error
    show.say(f"Report: {page}")


def figures(
    directory: RunFolder,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="png, svg or pdf.")] = "png",
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where to.  [default: DIR/figures]")] = None,
    opponent: Annotated[
        str, typer.Option(metavar="NAME", help="Whose responses win rates are against: golden_policy or sft.")
    ] = "golden_policy",
) -> None:
    """Write every figure of the report as a file, TASK-EXPERIMENT-FIGURE.FORMAT. No browser is needed."""
    from aligngap.report.images import FORMATS, Format
    from aligngap.report.still import figure_files
    from aligngap.results import OPPONENTS, read
    from aligngap.store import disk_errors

    for option, value, known in (("--format", form, FORMATS), ("--opponent", opponent, OPPONENTS)):
        if value not in known:
            raise UserError(f"there is no '{value}'", where=option, hint=f"Known: {', '.join(known)}.")
    data = read(directory)
    folder = out or directory / "figures"
    with disk_errors(folder, strict=True):
        written = figure_files(data, folder, (cast(Format, form),), opponent=opponent)
    if not written:
        raise UserError("there is nothing to draw: no run has a measured point", where=str(directory))
    show.say(f"{len(written)} figures: {folder}")


def compare(
    first: Annotated[Path, typer.Argument(metavar="DIR1", help="The folder of a run.")],
    second: Annotated[Path, typer.Argument(metavar="DIR2", help="The folder of another.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of it, FILE.html, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs of the same experiments: what differs, and second minus first with intervals."""
    from aligngap.compare.differences import compare as compared
    from aligngap.compare.words import sections

    if out is not None and out.suffix != ".html":
        raise UserError(f"'{out}' is no .html file", where="--out", hint="Write --out comparison.html.")
    result = compared(first, second)
    if out is not None:
        from aligngap.compare.page import write_comparison

        write_comparison(result, out)
    if as_json:
        print(json.dumps(result.as_json(), indent=2, allow_nan=False))
        return
    console = show.console()
    for part in sections(result):
        if isinstance(part, str):
            console.print(show.plain(part), soft_wrap=True)
        else:
            table = show.table(part.title, *part.columns)
            for row in part.rows:
                table.add_row(*map(show.plain, row))
            console.print(table)
    if out is not None:
        show.say(f"Page: {out}", console)


def samples(
    directory: RunFolder,
    arm: Annotated[str | None, typer.Option(metavar="NAME", help="The arm.  [default: the first]")] = None,
    step: Annotated[int | None, typer.Option(metavar="N", help="The step.  [default: the last kept]")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The seed.  [default: the first]")] = None,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="train or held_out.")] = "held_out",
    n: Annotated[int, typer.Option("--n", min=1, metavar="N", help="Number of prompts.")] = 5,
) -> None:
    """Show prompts with the responses of the SFT policy, of an arm and of the golden policy, and their scores."""
    from aligngap.report.side_by_side import side_by_side

    show.opened(directory)
    result = side_by_side(directory, arm=arm, step=step, seed=seed, split=split, n=n)
    console = show.console()
    for row in result.rows:
        table = show.table(row.heading, "SFT", result.title, "golden policy")
        table.show_lines = True
        table.add_row(*map(show.plain, row.responses))
        table.add_row(*(Text(scores, style="dim") for scores in row.scores))
        console.print(table)
    arms, steps = ", ".join(result.arms), ", ".join(map(str, result.steps))
    show.say(f"Arms: {arms}\nSteps of this arm: {steps}", console)
