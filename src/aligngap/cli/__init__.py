"""The command line: parse and dispatch, nothing else.

What is slow to import (torch, polars, charts) is imported by the commands that need it: the others answer at once.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

import typer

from aligngap import __version__
from aligngap.cli import data, look, make, run, show, store
from aligngap.cli.options import Version
from aligngap.errors import UserError

_COMMANDS = (
    *(run.run, run.plan, run.studies),
    *(look.status, look.watch, look.report, look.figures, look.compare, look.samples),
    *(store.verify, store.pack, store.unpack, store.gc),
    *(data.check, data.diagnose),
    *(make.init, make.export, make.scratch, make.pretrain),
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
    """The console entry. Returns the exit code: 0, 1 (something failed), 2 (the user's to fix) or 130 (stopped)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(given, prog_name="aligngap")
    except SystemExit as end:  # typer ends so, with 2 for what it could not parse
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except UserError as error:
        show.complain(error)
        return 2
    except OSError as error:  # from wherever something is written, the terminal's own file among it
        from aligngap.store.store import is_of_the_disk

        if not is_of_the_disk(error):
            raise
        hint = "Free some space there or repair the disk, then run the same command again; what is finished is kept."
        show.complain(UserError(f"the disk cannot be written: {error.strerror}", where=error.filename, hint=hint))
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
    return 0
