"""Peak memory of a process that trains an arm, ours or the peer's: the program of the entries of memory.

    python -m benchmarks.memory ours offline|online|imports small|medium
    python -m benchmarks.memory peer offline|online|imports PLAN.json

Both train for the steps of a round on the setting's pairs: our loop, and trl's trainer as in `peer_trl`, whose process
imports nothing of aligngap. Printed is the process's largest resident set, in megabytes; of `imports`, what it holds
when all is imported and nothing built.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def megabytes() -> float:
    """The largest resident set of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # `ru_maxrss` begins with what the parent held, whose image a child is before it becomes this
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def ours(arm: str, shape: str) -> None:
    """Trains our arm."""
    from benchmarks.ours import ARMS
    from benchmarks.setting import SHAPES

    if arm != "imports":
        ARMS[arm](SHAPES[shape]())()


def peer(arm: str, plan: str) -> None:
    """Trains the peer's."""
    from benchmarks.peer_trl import TrainerCallback, arm_alone

    if arm != "imports":
        arm_alone(json.loads(Path(plan).read_text("utf-8")), arm, TrainerCallback()).train()


def measured(*words: str) -> float:
    """Peak megabytes of a process with these arguments. Raises SystemExit when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"benchmarks.memory {' '.join(words)} failed:\n{done.stderr[-4000:]}")
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    side, which, what = sys.argv[1:]
    (ours if side == "ours" else peer)(which, what)
    print(megabytes())
