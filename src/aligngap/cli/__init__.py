"""The command line: parse and dispatch, nothing else.

What is slow to import (torch, polars, charts) is imported by the commands that need it: the others answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from aligngap import __version__
from aligngap.__main__ import stopped
from aligngap.cli import data, look, make, run, show, store
from aligngap.cli.options import Version
from aligngap.errors import UserError
from aligngap.terminal import take_any_text

_COMMANDS = (
    *(run.run, run.plan, run.studies),
    *(look.status, look.watch, look.report, look.figures, look.compare, look.samples),
    *(store.verify, store.pack, store.unpack, store.gc),
    *(data.check, data.diagnose),
    *(make.init, make.export, make.scratch, make.pretrain, make.gates),
)

app = typer.Typer(
    help="Compare online and offline alignment when only the source of the training pairs changes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a defect shows Python's own traceback
    rich_markup_mode=None,
)
for _command in _COMMANDS:
    app.command()(_command)
# What follows the study is for `aligngap run`.
app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})(run.slurm)


@app.callback(invoke_without_command=True)
def _root(version: Version = False) -> None:
    if version:
        print(f"aligngap {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 1 (something failed), 2 (the user's to fix) or 130 (stopped)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    take_any_text()
    try:
        app(given, prog_name="aligngap")
    except SystemExit as end:  # typer ends so, with 2 for what it could not parse
        if _is_stopped(end):
            return stopped(given)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except UserError as error:
        show.complain(error)
        return 2
    except OSError as error:  # from wherever something is read or written, the terminal's own file among it
        result = _of_the_system(error)
        if result is None:
            raise
        show.complain(result)
        return 2
    except BaseException as error:
        from aligngap.pipeline.executors.run import Interrupted

        if not isinstance(error, Interrupted | KeyboardInterrupt):
            raise
        return stopped(given)
    return 0


def _is_stopped(end: BaseException) -> bool:
    """Whether it came of Ctrl-C, which typer makes an end of its own."""
    behind: BaseException | None = end
    while behind is not None and not isinstance(behind, KeyboardInterrupt):
        behind = behind.__cause__ or behind.__context__
    return behind is not None


def _of_the_system(error: OSError) -> UserError | None:
    """What the system said of a file or disk; None for anything else, which is a defect."""
    from aligngap.store.disk import is_of_the_disk
    from aligngap.store.reading import unreadable

    if is_of_the_disk(error):
        hint = "Free some space there or repair the disk, then run the same command again; what is finished is kept."
        return UserError(f"the disk cannot be written: {error.strerror}", where=error.filename, hint=hint)
    if isinstance(error.filename, str | bytes):
        return unreadable(error, os.fsdecode(error.filename))
    return None
