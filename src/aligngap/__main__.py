"""`aligngap`, and `python -m aligngap`. Imports nothing of size: a command can be stopped before it has begun."""

from __future__ import annotations

import shlex
import sys


def main() -> int:
    """The console entry, see `aligngap.cli.main`."""
    try:
        from aligngap.cli import main as command

        return command()
    except KeyboardInterrupt:  # before the command line is there to catch it
        return stopped(sys.argv[1:])


def stopped(given: list[str]) -> int:
    """Say how to go on after Ctrl-C; the exit code."""
    print(
        "Stopped. What is finished is kept, and training goes on from its last checkpoint. To go on:\n"
        f"  {shlex.join(['aligngap', *given])}",
        file=sys.stderr,
    )
    return 130


if __name__ == "__main__":
    sys.exit(main())
