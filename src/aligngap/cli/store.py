"""Commands on a run's artefacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from aligngap.cli import show
from aligngap.cli.options import RunFolder, StorePath

if TYPE_CHECKING:
    from aligngap.pipeline.rundir import RunDirectory
    from aligngap.store import Store


def verify(
    directory: RunFolder,
    store: StorePath = None,
    set_aside: Annotated[
        bool, typer.Option("--set-aside", help="Move what is damaged aside, so that the next run makes it again.")
    ] = False,
) -> None:
    """Compare a run's artefacts with their checksums."""
    run = show.opened(directory)
    kept = _store_of(run, store, reading=not set_aside)
    made = [item["identity"] for item in run.status()["stages"] if item["status"] in ("finished", "cached")]
    problems = kept.verify(made)
    for problem in problems:
        show.say(str(problem))
    if set_aside:
        for identity in dict.fromkeys(problem.identity for problem in problems):
            if away := kept.set_aside(identity):
                show.say(f"Set aside: {away}")
    if problems:
        hint = (
            show.AGAIN
            if set_aside
            else f"`aligngap verify {directory} --set-aside`, then `aligngap run`, repairs them."
        )
        show.warn(f"{len(problems)} problems. {hint}")
        raise typer.Exit(1)
    show.say(f"{len(made)} artefacts are as they were written.")


def pack(
    directory: RunFolder,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to; without gzip if it ends in .tar.  [DIR.tar.gz]")
    ] = None,
    store: StorePath = None,
) -> None:
    """Pack a run and its artefacts into one file, to be unpacked elsewhere."""
    from aligngap.pipeline import archive

    run = show.opened(directory)
    target = file or Path(f"{directory.resolve().name}.tar.gz")
    done = archive.pack(run, _store_of(run, store, reading=True), target)
    more = f", {done.partials} step checkpoints" if done.partials else ""
    packed = decimal(target.stat().st_size)
    show.say(f"{done.artefacts} artefacts{more}, {decimal(done.size)} packed into {packed}: {target}")


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
    show.say(f"{done.artefacts} artefacts{kept}{more}, {decimal(done.size)}, verified: {out}\nArtefacts are in {root}.")
    if (out / "results.json").is_file():
        show.say(f"`aligngap report {out}` writes its report.")


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
    from aligngap.pipeline.rundir import chosen_store
    from aligngap.store import Store
    from aligngap.store.reading import is_file

    root = place or chosen_store(RUNS / "any", None)
    if is_file(root / "study.json"):
        root = show.opened(root).store_path()
    kept = Store.existing(root, reading=dry_run)
    freed, users = collect_garbage(kept, dry_run)
    console = show.console()
    for folder in users.folders:
        show.say(f"in use by {folder}", console)
    for user in users.gone:
        show.say(f"gone: {user.folder}", console)
    for user in users.unseen:
        show.say(
            f"kept for {user.folder}, which cannot be seen from here; if it is gone for good, remove {user.entry}",
            console,
        )
    for folder in users.closed:
        show.say(f"not looked into, as it may not be read: {folder}", console)
    for item in freed:
        word = "kept (being made)" if item.held else "would free" if dry_run else "freed"
        show.say(f"{word}  {item.what}  {item.identity}  {decimal(item.size)}", console)
    gone = [item for item in freed if not item.held]
    total = decimal(sum(item.size for item in gone))
    show.say(f"{len(gone)} {'would be freed' if dry_run else 'freed'}, {total}: {kept.root}", console)


def _store_of(run: RunDirectory, option: Path | None, *, reading: bool) -> Store:
    from aligngap.store import Store

    return Store.existing(run.store_path(option), reading=reading)
