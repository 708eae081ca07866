"""An sbatch file that starts Ray in a Slurm allocation and runs a study there, for as many jobs as it takes."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from aligngap.errors import UserError

_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")


def sbatch_file(words: Sequence[str], *, nodes: int, cpus: int, gpus: int, time: str) -> str:
    """The file's text. words: what `aligngap run` is given; cpus, gpus: of each node; time: Slurm's --time, of one job.

    Raises UserError for a time that Slurm would not read, and for words that the script gives itself.
    """
    if not _TIME.fullmatch(time):
        raise UserError(f"'{time}' is no time limit", where="--time", hint="Write --time 4:00:00, or 2-12 (two days).")
    for word in words:
        if word.partition("=")[0] in ("--executor", "--address"):
            raise UserError(f"the script gives {word} itself", where="ARGUMENTS", hint="Leave it out.")
    text = (files(__package__) / "slurm.sh").read_text(encoding="utf-8")
    given = {
        "NODES": str(nodes),
        "CPUS": str(cpus),
        "GPUS": str(gpus),
        "TIME": time,
        # The environment that prints this is the one that is to run there.
        "BIN": shlex.quote(str(Path(sys.executable).parent)),
        "WORDS": shlex.join(words),
    }
    if not gpus:
        text = re.sub(r"#SBATCH --gpus-per-node.*\n", "", text)
    return re.sub(r"@([A-Z]+)@", lambda match: given[match[1]], text)
