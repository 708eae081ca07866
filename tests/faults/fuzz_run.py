"""Mutated files of a run: whatever is in them, or in their place, a command that reads the run says so and ends.

    python -m benchmarks.faults files --limit 1000 --seed 1 [--run DIR] [--commands NAME...]

Before each command one file of the run is mutated, or something else is put in its place. A finding is a command that
raises, waits, ends with another code than 0, 1 and 2, or refuses without naming the file; the run is kept as it was.
--run: a finished run, which is copied; otherwise the campaign's smallest study is trained, which takes a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import FrameType
from unittest import mock

from aligngap import cli
from aligngap.cli import main as aligngap
from aligngap.errors import UserError
from aligngap.live.folder import Watched
from aligngap.pipeline.rundir import RunDirectory
from aligngap.store import Store
from aligngap.terminal import complain
from faults.campaign import BASE, STUDY
from faults.fuzz import mutated
from unit.pipeline.fake_stages import Fake
from unit.pipeline.runs import finished
from unit.report.fixture_results import write_results

PATIENCE = 120.0
"""Seconds after which a command counts as waiting. The first one imports its libraries, be the machine busy or not."""

PLACES = ("pipe", "folder", "link to nothing", "link to itself", "nothing", "empty file")
"""What is put into a file's place now and then."""


class Waits(BaseException):
    """A command took too long."""


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Raises Waits in the block, wherever it is."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Waits

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def watch(run: Path, out: Path) -> int:
    """What the page of `watch` asks for."""
    try:
        watched = Watched(run)
    except UserError as error:  # as the command line does
        complain(error)
        return 2
    look = watched.look()
    print(json.dumps(watched.summary(look)), json.dumps(watched.table(look)), watched.results_are_current(look))
    return 0


def report(run: Path, out: Path) -> int:
    """The page without its images, which take seconds and are drawn of what the page is made of."""
    images = mock.patch("aligngap.report.page.Images", return_value=nullcontext())
    with images, mock.patch("aligngap.report.page.draw"):
        return aligngap(["report", str(run), "--out", str(out)])


COMMANDS: Mapping[str, Callable[[Path, Path], int]] = {
    "status": lambda run, out: aligngap(["status", str(run)]),
    "samples": lambda run, out: aligngap(["samples", str(run)]),
    "verify": lambda run, out: aligngap(["verify", str(run)]),
    "pack": lambda run, out: aligngap(["pack", str(run), str(out / "packed.tar")]),
    "gc": lambda run, out: aligngap(["gc", str(run), "--dry-run"]),
    "compare": lambda run, out: aligngap(["compare", str(run), str(run)]),
    "report": report,
    "watch": watch,
    "export": lambda run, out: aligngap(["export", str(run), "sft", str(out / "exported")]),
}
READ = {
    "status": ("study.json", "status.json", "record.json", "manifest.json"),
    "samples": ("study.json", "samples.parquet"),
    "verify": ("study.json", "status.json", "record.json", "manifest.json", "."),
    "pack": ("study.json", "status.json", "record.json", "manifest.json", "results.json", "."),
    "gc": ("study.json", "status.json", "manifest.json", ".users"),
    "compare": ("results.json", "points.parquet", "per_prompt.parquet", "samples.parquet"),
    "report": ("study.json", "results.json", "points.parquet", "samples.parquet"),
    "watch": ("study.json", "status.json", "record.json", "results.json"),
    "export": ("results.json", "status.json", "record.json", "manifest.json", "."),
}
"""The names of the files that each command reads; `.` is any file of an artefact, `.users` any entry of a run."""


def made_up(folder: Path) -> Path:
    """A finished run with results, artefacts and step checkpoints, none of which was trained."""
    run = folder / "run"
    begun = Fake(name="c", after=(Fake(name="a"),))
    finished(run, Store(folder / "store"), begun, Fake(name="b"), leave=[begun])
    return write_results(run, seeds=(0,), prompts=3)


def trained(folder: Path) -> Path:
    """A finished run of the campaign's study with one experiment, so that there are arms to export and to compare."""
    script = [sys.executable, "-c", BASE, str(folder / "base")]
    subprocess.run(script, check=True, env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])})
    (folder / "faults.yaml").write_text(STUDY)
    given = ["run", str(folder / "faults.yaml"), "--out", str(folder / "run"), "--jobs", "1"]
    if aligngap([*given, "--set", "experiments=[tandem]"]):
        raise RuntimeError("the undisturbed study fails")
    return folder / "run"


def files_of(run: Path, command: str) -> list[Path]:
    """Those of a run's files that a command reads."""
    store = RunDirectory.open(run).store_path()
    artefacts = [path for path in sorted(store.glob("*-*/**/*")) if path.is_file() and path.stat().st_size < 1 << 20]
    found = []
    for name in READ[command]:
        if name == ".":
            found += artefacts
        elif name == ".users":
            found += sorted((store / ".users").glob("*.json"))
        else:
            found += [path for path in (run / name, *artefacts) if path.name == name and path.is_file()]
    return found


@contextmanager
def put_back(path: Path) -> Iterator[bytes]:
    """A file's contents, which are there again when the block has ended, whatever is in its place by then."""
    whole = path.read_bytes()
    try:
        yield whole
    finally:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.write_bytes(whole)


def put_in_place(path: Path, what: str) -> None:
    """Replace a file."""
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what.startswith("link"):
        path.symlink_to(path if what.endswith("itself") else path.parent / "nowhere")
    elif what == "empty file":
        path.touch()


def tried(command: str, run: Path, changed: Path, out: Path) -> tuple[str, str]:
    """How a command took it, and for a finding what it printed."""
    printed = StringIO()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    try:
        with no_longer_than(PATIENCE), redirect_stdout(printed), redirect_stderr(printed):
            code = COMMANDS[command](run, out)
    except Waits:
        return "finding", "it waits"
    except BaseException:  # Polars' panics are no Exception
        return "finding", traceback.format_exc()
    if code not in (0, 1, 2):
        return "finding", f"exit code {code}\n{printed.getvalue()}"
    names = {changed.name, str(changed.parent), changed.parent.name if changed.parent != run else changed.name}
    if code and not any(name in printed.getvalue() for name in names):
        return "finding", f"it does not name the file\n{printed.getvalue()}"
    return ("read", "refused", "refused")[code], ""


def fuzz(run: Path, command: str, limit: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """So many changed files: how many were read, and refused; and the findings."""
    rng, counts, findings = random.Random(f"{seed} {command}"), Counter[str](), list[str]()
    files = files_of(run, command)
    for number in range(limit):
        path, how = rng.choice(files), rng.choice(PLACES) if rng.random() < 0.15 else "mutated"
        with put_back(path) as whole:
            data = mutated(whole, rng)
            if how == "mutated":
                path.write_bytes(data)
            else:
                put_in_place(path, how)
            result, why = tried(command, run, path, folder / "out")
        counts[result] += 1
        if result == "finding":
            kept = folder / f"finding-{command}-{seed}-{number}-{path.name}"
            kept.write_bytes(data if how == "mutated" else b"")
            findings.append(f"{command}: {path}, {how}, {kept}\n{why}")
    return counts, findings


def main() -> int:
    """Parse, run, print; 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults files", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--limit", type=int, default=1000, help="files for each command")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run", type=Path, help="a finished run, which is copied")
    parser.add_argument("--commands", nargs="*", choices=COMMANDS, help="[default: all]")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-run-"))
    run = trained(folder) if given.run is None else Path(shutil.copytree(given.run, folder / "run", symlinks=True))
    broken = 0
    for command in given.commands or COMMANDS:
        counts, findings = fuzz(run, command, given.limit, given.seed, folder)
        broken += len(findings)
        print(f"{command}: {counts.total()} files, {dict(counts)}", flush=True)
        print("\n".join(findings[:20]))
    print(f"{folder} keeps the findings" if broken else "nothing found")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
