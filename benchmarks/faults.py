"""Faults in numbers that anybody may repeat: the campaigns of `tests/faults`, by name.

    python -m benchmarks.faults files --limit 1000 --seed 1      # mutated files of a run, every command that reads it
    python -m benchmarks.faults data --seconds 300 --seed 1      # mutated studies and data sets
    python -m benchmarks.faults campaign --kills 200 --flips 100 --seed 1

What each does and counts stands in its own file; `--help` behind a name shows its options. The last figures are in
docs/reliability.md. Exit code 0 where nothing was found.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

CAMPAIGNS = {"files": "faults.fuzz_run", "data": "faults.fuzz", "campaign": "faults.campaign"}


def main(words: Sequence[str]) -> int:
    """Run the campaign that the first word names with the others as its options."""
    if not words or words[0] not in CAMPAIGNS:
        print(__doc__)
        return 0 if words[:1] == ["--help"] else 2
    # The campaigns use the tests' own fakes and fixtures, which no package installs.
    tests = str(Path(__file__).resolve().parents[1] / "tests")
    if tests not in sys.path:
        sys.path.insert(0, tests)
    sys.argv = [f"python -m benchmarks.faults {words[0]}", *words[1:]]
    return int(import_module(CAMPAIGNS[words[0]]).main() or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
