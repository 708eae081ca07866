"""The fault campaign: the smallest real study, disturbed in every way that is to be survived, again and again.

    python -m tests.faults.campaign --kills 200 --flips 100 --workers 20 --full 20 --seed 1 --tally tally.jsonl
    python -m tests.faults.campaign --sum tally.jsonl            # the table of docs/reliability.md

Every trial runs the real command in processes of its own, is a function of its seed but for the machine's timing, and
ends with the same check: results.json equal to that of an undisturbed run but for times; the same bytes in every
artefact; `verify` finds nothing; what had been finished was not made again; no traceback reached the user. A trial that
fails keeps its folder.

Half of what such a small run costs is the import of libraries. So nine of ten commands, and their fork servers, are
forked from the campaign's own process, which has imported them and done nothing with them; the tenth is started anew.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing.util
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

import aligngap
import aligngap.experiments.study
import aligngap.pipeline.stages
import aligngap.report.page
from aligngap.cli import main as main_of_aligngap
from aligngap.pipeline import REPORT
from aligngap.store import Store, file_digest, read_json

STUDY = """
extends: paper
title: Faults
tasks: [summarisation]
sft_tasks: [summarisation]
experiments: [tandem, quality, classification]
models: {policy: base, golden: base, proxy: base}
data: {train_pairs: 64, held_out_pairs: 16}
sft: {steps: 6}
golden: {optim: {steps: 6}}
proxy: {train_pairs: 16, optim: {steps: 6}}
baseline: {optim: {steps: 8, batch: 4, warmup_steps: 1, lr: 0.01}}
evaluation: {prompts: 8, pairs: 8, checkpoints: 3}
analysis: {replicates: 100}
"""
"""Every kind of stage that training has, in seconds: pairs, SFT, golden and proxy, arms on every kind of source,
generated pairs, opponents' responses, evaluations, an experiment's own measures.
"""

BASE = """
import sys
from aligngap.models.build import Architecture, random_model
from aligngap.models.tokenizer import word_tokenizer
from aligngap.tasks.worlds import WORLDS
tokenizer = word_tokenizer([word for place in WORLDS.values() for word in place().words()])
shape = Architecture(hidden=16, layers=1, heads=2, intermediate=16)
random_model(shape, len(tokenizer), 0).save_pretrained(sys.argv[1])
tokenizer.save_pretrained(sys.argv[1])
"""
_TIMES = ("timings", "seconds", "core_seconds")
_OWN = ("record.json", "seconds.json", "manifest.json")  # of an artefact's files, those that hold times
_CLOCK = """
import random, time
_now, _rng = time.time, random.Random({seed})
time.time = lambda: _now() + _rng.uniform(-1e9, 1e9)
time.time_ns = lambda: int(time.time() * 1e9)
"""
PATIENCE = 900.0
"""Seconds after which a command counts as hanging."""


class Broken(AssertionError):
    """A trial ended otherwise than it must."""


@dataclass
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


class Command:
    """An `aligngap` command in a process group of its own; what it says goes to files.

    forked: from this process, which has imported what the command imports; started anew where that cannot be.
    """

    def __init__(
        self, lab: Lab, words: list[str], said: Path, site: str, limit: Callable[[], None] | None, *, forked: bool
    ) -> None:
        self.said = [said.with_suffix(suffix) for suffix in (".out", ".err")]
        self.code: int | None = None
        variables = lab.variables
        forked = forked and not _threads()
        self.pid = os.fork()
        if self.pid:
            return
        try:
            os.setsid()
            os.chdir(lab.folder)
            for number, path in enumerate(self.said, start=1):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                os.dup2(descriptor, number)
                os.close(descriptor)
            if limit:
                limit()
            if not forked:
                if site:
                    (folder := said.with_suffix(".site")).mkdir()
                    (folder / "sitecustomize.py").write_text(site)
                    variables["PYTHONPATH"] = f"{folder}{os.pathsep}{variables['PYTHONPATH']}"
                os.execve(sys.executable, [sys.executable, "-m", "aligngap", *words], variables)
            os.environ.clear()
            os.environ.update(variables)
            exec(site, {})
            multiprocessing.util.spawnv_passfds = _forked_server
            # A test's runner may have put streams of its own in their place.
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            code = main_of_aligngap(words)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        if self.code is None:
            number, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if number else None
        return self.code

    def wait(self, seconds: float = 60.0) -> Done | None:
        """How it ended; None when it has not, after so many seconds."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                return None
            time.sleep(0.02)
        assert self.code is not None
        return Done(self.code, *(path.read_text(errors="replace") for path in self.said))

    def kill(self, number: int = signal.SIGKILL, *, everybody: bool) -> None:
        """A signal to it, or to all of its group."""
        with suppress(ProcessLookupError):
            if everybody:
                with suppress(ProcessLookupError):  # in its first moment there is no group yet
                    return os.killpg(self.pid, number)
            os.kill(self.pid, number)


def _threads() -> list[str]:
    """Threads that would be missed after a fork: all but this one and those that Polars' import starts, as the fork
    server has them as well.
    """
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if not name.startswith(("jemalloc_bg", "polars-ooc"))][1:]


_spawn = multiprocessing.util.spawnv_passfds


def _forked_server(path: Any, words: Sequence[str], passed: Sequence[int]) -> int:
    """As the fork server is started, but for its imports: the same code in a process that has been forked instead."""
    if not any("forkserver" in str(word) for word in words):
        return int(_spawn(path, words, passed))
    if process := os.fork():
        return process
    try:
        Path("/proc/self/comm").write_text("forkserver")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # a new program has no handlers, and no files but those passed on
        for entry in list(Path("/proc/self/fd").iterdir()):
            if int(entry.name) not in (0, 1, 2, *passed):
                with suppress(OSError):
                    os.close(int(entry.name))
        exec(words[-1], {})
    finally:
        os._exit(0)


@dataclass
class Trial:
    """One disturbed run. Its folder holds the run, in `run`, and what the commands said."""

    lab: Lab
    folder: Path
    rng: random.Random
    jobs: int
    # What happened, for the tally: what was hit, and how it went on.
    hit: Counter[str] = field(default_factory=Counter)
    went_on: str = ""
    commands: int = 0

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def store(self) -> Path:
        return self.run / "store"

    def start(
        self, *more: str, run: Path | None = None, site: str = "", limit: Callable[[], None] | None = None
    ) -> Command:
        """`aligngap run` in a process group of its own. site: code to be run before it; limit: called in it."""
        checkpoint = self.rng.choice(["0", "0", "0.3", "120"])
        words = ["run", str(self.lab.study), "--out", str(run or self.run)]
        words += ["--jobs", str(self.jobs), "--checkpoint-seconds", checkpoint, *more]
        self.commands += 1
        said = self.folder / f"said-{self.commands}"
        said.parent.mkdir(exist_ok=True)
        return Command(self.lab, words, said, site, limit, forked=self.rng.random() < 0.9)

    def end(self, process: Command) -> Done:
        """Wait for it; whatever it says must not be a traceback."""
        done = process.wait(PATIENCE)
        if done is None:
            process.kill(everybody=True)
            raise Broken(f"it hangs: {process.wait()}")
        if "Traceback" in done.out + done.err:
            raise Broken(f"a traceback reached the user: {done.err[-3000:]}")
        return done

    def finish(self, *more: str) -> Done:
        """Run to the end, which must be a good one."""
        done = self.end(self.start(*more))
        if done.code:
            raise Broken(f"run again, it ends with {done.code}: {done.err[-3000:]}")
        return done

    def until_running(self, process: Command, run: Path | None = None) -> None:
        """Wait until its status says that stages are being made, or it ends."""
        status = (run or self.run) / "status.json"
        end = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < end:
            with suppress(Exception):
                if json.loads(status.read_text())["pid"] == process.pid:
                    return
            time.sleep(0.02)

    def what_runs(self) -> list[str]:
        """Kinds of the stages that status.json says are being made."""
        with suppress(Exception):
            stages = json.loads((self.run / "status.json").read_text())["stages"]
            kinds = [item["kind"] for item in stages if item["status"] == "running"]
            if kinds:
                return kinds
            if all(item["status"] in ("finished", "cached") for item in stages):
                return ["writing of results"]
        return ["start"]

    def wait_and_pick(self, process: Command) -> bool:
        """Wait for a random moment of the run; False when it has ended before."""
        if self.rng.random() < 0.9:  # the first seconds of each run are spent importing libraries
            self.until_running(process)
            time.sleep(self.rng.uniform(0, self.lab.seconds))
        else:
            time.sleep(self.rng.uniform(0, 8.0))
        return process.poll() is None

    def made(self) -> dict[str, bytes]:
        """The manifests of what is finished."""
        return {path.parent.name: path.read_bytes() for path in self.store.glob("*/manifest.json")}


@dataclass
class Lab:
    """What all trials share: the study, and what an undisturbed run of it gives."""

    folder: Path
    study: Path
    expected: Any = None
    files: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    size: int = 0

    @classmethod
    def set_up(cls, folder: Path) -> Lab:
        """Make the base and the study, and run it undisturbed, twice: it must repeat before it can be disturbed."""
        # In a process of its own: this one must have no threads when it forks.
        lab = cls(folder, folder / "faults.yaml")
        subprocess.run([sys.executable, "-c", BASE, str(folder / "base")], check=True, env=lab.variables)
        lab.study.write_text(STUDY)
        for name, jobs in (("once", 1), ("reference", 2)):
            trial = Trial(lab, folder / name, random.Random(0), jobs)
            trial.folder.mkdir()
            process = trial.start()
            trial.until_running(process)
            start = time.monotonic()
            done = trial.end(process)
            if done.code:
                raise Broken(f"the undisturbed study fails: {done.err[-3000:]}")
            lab.seconds = time.monotonic() - start
            found = results(trial.run), contents(trial.store)
            if lab.files and found != (lab.expected, lab.files):
                raise Broken("the undisturbed study does not repeat")
            lab.expected, lab.files = found
            lab.size = sum(path.stat().st_size for path in trial.run.rglob("*") if path.is_file())
        return lab

    @property
    def variables(self) -> dict[str, str]:
        paths = [str(Path(aligngap.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        given = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
        return {key: value for key, value in os.environ.items() if not key.startswith("ALIGNGAP_")} | given

    def check(self, trial: Trial) -> None:
        """The identity check."""
        found = results(trial.run)
        if found != self.expected:
            raise Broken(f"results.json differs: {difference(self.expected, found)}")
        if problems := Store(trial.store).verify():
            raise Broken(f"damaged: {problems[0]} and {len(problems) - 1} more")
        files = contents(trial.store)
        if files != self.files:
            other = sorted(set(files.items()) ^ set(self.files.items()))
            raise Broken(f"artefacts differ: {other[:4]}")
        left = [*(trial.store / ".temporary").iterdir(), *(trial.store / ".partial").iterdir()]
        if left:
            raise Broken(f"left behind: {left}")

    def consistent(self, trial: Trial) -> None:
        """What has been finished so far is whole, and what an undisturbed run makes."""
        if not trial.store.is_dir():
            return
        store = Store(trial.store)
        if problems := store.verify(store.identities()):
            raise Broken(f"damaged after the fault: {problems[0]}")
        if other := [item for item in contents(trial.store).items() if self.files.get(item[0]) != item[1]]:
            raise Broken(f"not what an undisturbed run makes: {other[0]}")


def results(run: Path) -> Any:
    """results.json without times, and the points."""
    points = pl.read_parquet(run / "points.parquet").to_dicts()
    return {**without(read_json(run / "results.json"), _TIMES), "points": points}


def without(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, dict):
        return {key: without(part, names) for key, part in value.items() if key not in names}
    return [without(part, names) for part in value] if isinstance(value, list) else value


def difference(a: Any, b: Any, place: str = "") -> str:
    """Where two JSON values first differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *b]:
            if a.get(key) != b.get(key):
                return difference(a.get(key), b.get(key), f"{place}.{key}")
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            if one != other:
                return difference(one, other, f"{place}[{index}]")
    return f"{place}: {str(a)[:200]} -> {str(b)[:200]}"


def contents(store: Path) -> dict[str, str]:
    """Checksums of all files of all artefacts, but those that hold times, as results and their report do."""
    return {
        path.relative_to(store).as_posix(): file_digest(path)
        for identity in Store(store).identities()
        if not identity.startswith(f"{REPORT}-")
        for path in sorted((store / identity).rglob("*"))
        if path.is_file() and path.name not in _OWN
    }


# Processes


def descendants(process: int) -> dict[int, str]:
    """All living children of a process, and theirs: number -> command line."""
    parents: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents[int(fields[1])].append(int(entry.name))
    found: dict[int, str] = {}
    todo = [process]
    while todo:
        for child in parents[todo.pop()]:
            with suppress(OSError):
                place = Path("/proc") / str(child)
                found[child] = (place / "comm").read_text() + (place / "cmdline").read_text().replace("\0", " ")
                todo.append(child)
    return found


def servers(process: int) -> list[int]:
    """The process that forks those that make stages."""
    return [number for number, command in descendants(process).items() if "forkserver" in command]


def workers(process: int) -> list[int]:
    """The processes that make stages: the fork server's children."""
    found = servers(process)
    # Forked from it, they have its name as well.
    return [number for server in found[:1] for number in descendants(server)]


# Trials: each disturbs a run, brings it to its end, and says how it went on.


def kill(trial: Trial) -> None:
    """SIGKILL of the run, or of all its processes, at a random moment; then the same command. Sometimes that is killed
    too.
    """
    while True:
        before = trial.made()
        process = trial.start()
        if not trial.wait_and_pick(process):
            done = trial.end(process)
            if done.code:
                raise Broken(f"run again, it ends with {done.code}: {done.err[-3000:]}")
            if trial.hit:
                break
            shutil.rmtree(trial.run)  # it was over before the moment that was picked
            continue
        hit = trial.what_runs()
        process.kill(everybody=trial.rng.random() < 0.5)
        process.wait()
        trial.hit.update(dict.fromkeys(dict.fromkeys(hit), 1) | {"kills": 1})
        not_again(before, trial.made())
        trial.lab.consistent(trial)
        if trial.rng.random() < 0.7:
            break
    before = trial.made()
    trial.finish()
    not_again(before, trial.made())
    trial.went_on = "the same command"


def not_again(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
    """What was finished has not been made again: its manifest, whose record holds a time, is the same."""
    if changed := [name for name in before if after.get(name) != before[name]]:
        raise Broken(f"made again although it was finished: {changed}")


def stop(trial: Trial) -> None:
    """Ctrl-C, as a terminal sends it to all processes, or SIGTERM to the run alone."""
    while True:
        process = trial.start()
        if trial.wait_and_pick(process):
            break
        trial.end(process)
        shutil.rmtree(trial.run, ignore_errors=True)
    trial.hit.update([*dict.fromkeys(trial.what_runs()), "stops"])
    number = trial.rng.choice([signal.SIGINT, signal.SIGTERM])
    process.kill(number, everybody=number == signal.SIGINT)
    done = trial.end(process)
    # Before Python has come to our code, and after our last line, there is only Python's own end of a process.
    told = done.code == 130 and "aligngap run" in done.err
    if not told and done.code not in (0, -number):
        raise Broken(f"stopped, it ends with {done.code}: {done.err[-2000:]}")
    trial.lab.consistent(trial)
    before = trial.made()
    trial.finish()
    not_again(before, trial.made())
    trial.went_on = "the same command"


def worker(trial: Trial) -> None:
    """A process that makes a stage is killed, or the server that forks them: the run goes on by itself."""
    while True:
        process = trial.start()
        trial.until_running(process)
        time.sleep(trial.rng.uniform(0, 0.8 * trial.lab.seconds))
        found = servers(process.pid)[:1] if trial.rng.random() < 0.2 else workers(process.pid)
        if process.poll() is None and found:
            break
        process.kill(everybody=True)
        process.wait()
        shutil.rmtree(trial.run)
    trial.hit.update([*dict.fromkeys(trial.what_runs()), "worker kills"])
    with suppress(ProcessLookupError):
        os.kill(trial.rng.choice(found), trial.rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
    done = trial.end(process)
    if done.code:
        raise Broken(f"it does not go on by itself: {done.code}: {done.err[-3000:]}")
    trial.went_on = "by itself"


def memory(trial: Trial) -> None:
    """A process that makes a stage is refused all further memory: it is tried again, alone."""
    while True:
        process = trial.start()
        trial.until_running(process)
        time.sleep(trial.rng.uniform(0, 0.8 * trial.lab.seconds))
        found = workers(process.pid)
        if process.poll() is None and found:
            break
        process.kill(everybody=True)
        process.wait()
        shutil.rmtree(trial.run)
    trial.hit.update([*dict.fromkeys(trial.what_runs()), "out of memory"])
    with suppress(ProcessLookupError, PermissionError):
        resource.prlimit(trial.rng.choice(found), resource.RLIMIT_AS, (1 << 20, 1 << 20))
    done = trial.end(process)
    trial.went_on = "by itself"
    if done.code:
        if "Traceback" in done.err or "failed: " not in done.err:
            raise Broken(f"it ends with {done.code}: {done.err[-3000:]}")
        trial.finish()
        trial.went_on = "the same command"


def flip(trial: Trial) -> None:
    """One byte of the store is changed, or a file cut short or gone; of a run that is finished, half finished or
    interrupted.
    """
    rng = trial.rng
    shutil.copytree(trial.lab.folder / "reference" / "run", trial.run)
    state = rng.choice(["finished", "half finished", "interrupted"])
    if state != "finished":
        made = Store(trial.store).identities()
        for name in rng.sample(made, rng.randrange(1, len(made) - 1)):
            shutil.rmtree(trial.store / name)
    if state == "interrupted":
        process = trial.start()
        if trial.wait_and_pick(process):
            process.kill(everybody=True)
        process.wait()
    hidden = (".locks", ".users", ".temporary")
    files = [
        path
        for path in sorted(trial.store.rglob("*"))
        if path.is_file() and path.relative_to(trial.store).parts[0] not in hidden
    ]
    step = [path for path in files if ".partial" in path.parts]
    target = rng.choice(step if step and rng.random() < 0.5 else files)
    how = rng.choice(["flipped", "flipped", "flipped", "cut", "gone"])
    data = target.read_bytes()
    if how == "gone":
        target.unlink()
    elif how == "cut":
        target.write_bytes(data[: rng.randrange(len(data))] if data else b"x")
    else:
        at = rng.randrange(len(data)) if data else 0
        target.write_bytes(data[:at] + bytes([(data[at] if data else 0) ^ (1 << rng.randrange(8))]) + data[at + 1 :])
    place = target.relative_to(trial.store)
    kind = "a step checkpoint" if ".partial" in place.parts else place.parts[0].rpartition("-")[0]
    trial.hit.update([kind, f"{how} ({state})"])
    done = trial.finish()
    trial.went_on = "by itself"
    if (found := results(trial.run)) != trial.lab.expected:
        raise Broken(f"results.json differs: {difference(trial.lab.expected, found)}")
    if Store(trial.store).verify():  # in weights that nobody read: `verify` tells, and helps
        verify = [sys.executable, "-m", "aligngap", "verify", str(trial.run)]
        told = subprocess.run(
            [*verify, "--set-aside"], capture_output=True, text=True, env=trial.lab.variables, check=False
        )
        if told.returncode != 1 or place.parts[0] not in told.stdout:
            raise Broken(f"verify does not tell of {place}: {told.stdout[-2000:]}")
        done = trial.finish()
        trial.went_on = "verify --set-aside, then the same command"
    aside = list((trial.store / ".aside").iterdir())
    if ".partial" not in place.parts and not aside:
        raise Broken(f"{place} was {how}, and nothing was set aside")
    if trial.went_on == "by itself" and ".partial" not in place.parts and "DAMAGED" not in done.out:
        raise Broken(f"{place} was {how}, and the user was not told")


def full(trial: Trial) -> None:
    """The disk is full at some moment: a small tmpfs, or a limit on files where none can be mounted."""
    need = trial.lab.size
    size = int(trial.rng.uniform(0.05, 0.9) * need)
    with disk(trial, size) as (limit, enlarge):
        done = trial.end(trial.start(limit=limit))
        trial.hit.update([f"full at {round(100 * size / need, -1):.0f}%", "full disks"])
        if done.code not in (1, 2):
            raise Broken(f"on a full disk it ends with {done.code}: {done.err[-2000:]}")
        errors = re.findall(r"^error: .*", done.err, re.MULTILINE)
        if len(errors) != 1 or not re.search(r"room|space|written|large", errors[0], re.IGNORECASE):
            raise Broken(f"the full disk is not said in one error: {done.err[-2000:]}")
        enlarge()
        trial.lab.consistent(trial)
        trial.finish()
        trial.lab.check(trial)
    trial.went_on = "the same command"


@contextmanager
def disk(trial: Trial, size: int) -> Iterator[tuple[Callable[[], None] | None, Callable[[], None]]]:
    """A disk of this size in the run's place: what is to be called in the new process, and what makes it larger."""
    trial.run.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(trial.run)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            larger = ["mount", "-o", "remount,size=512m", str(trial.run)]
            yield None, lambda: subprocess.run(larger, check=True).check_returncode()
        finally:
            subprocess.run(["umount", "-l", str(trial.run)], check=True)
    else:
        largest = max(path.stat().st_size for path in (trial.lab.folder / "reference" / "run").rglob("*"))
        limit = max(1, int(size / trial.lab.size * largest))
        yield (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))), lambda: None


def clock(trial: Trial) -> None:
    """The clock jumps to and fro by decades at every look at it, and files seem to come from the future; killed in the
    midst.
    """
    site = _CLOCK.format(seed=trial.rng.randrange(1 << 30))
    process = trial.start(site=site)
    if trial.wait_and_pick(process):
        process.kill(everybody=True)
    process.wait()
    trial.hit.update(["jumping clocks"])
    for path in trial.folder.rglob("*"):
        at = trial.rng.uniform(0, 4e9)
        with suppress(OSError):
            os.utime(path, (at, at))
    done = trial.end(trial.start(site=site))
    if done.code:
        raise Broken(f"it ends with {done.code}: {done.err[-3000:]}")
    trial.went_on = "the same command"


def two(trial: Trial) -> None:
    """Two runs: on one folder the second is refused; on one store they share the work, though one is killed."""
    other = trial.folder / "other"
    first = trial.start()
    trial.until_running(first)
    refused = trial.end(trial.start())
    if refused.code != 2 or "another process is running in this folder" not in refused.err:
        raise Broken(f"the second run on a folder ends with {refused.code}: {refused.err[-2000:]}")
    second = trial.start("--store", str(trial.store), run=other)
    trial.until_running(second, other)
    time.sleep(trial.rng.uniform(0, 0.7 * trial.lab.seconds))
    dies, lives = (first, second) if trial.rng.random() < 0.5 else (second, first)
    dies.kill(everybody=True)
    dies.wait()
    trial.hit.update(["two runs"])
    done = trial.end(lives)
    if done.code:
        raise Broken(f"the surviving run ends with {done.code}: {done.err[-3000:]}")
    before = trial.made()
    trial.finish()
    done = trial.end(trial.start("--store", str(trial.store), run=other))
    not_again(before, trial.made())
    if done.code or results(other) != trial.lab.expected:
        raise Broken("the other run's results differ")
    trial.went_on = "by itself, and the same command"


TRIALS: dict[str, Callable[[Trial], None]] = {
    "kills": kill,
    "flips": flip,
    "workers": worker,
    "full": full,
    "stops": stop,
    "memory": memory,
    "clocks": clock,
    "pairs": two,
}


def attempt(lab: Lab, name: str, seed: int) -> dict[str, Any]:
    """One trial, and what is to be kept of it."""
    rng = random.Random(f"{name} {seed}")
    trial = Trial(lab, lab.folder / f"{name}-{seed}", rng, rng.choice([1, 2, 2, 3]))
    trial.folder.mkdir()
    start = time.monotonic()
    broken = ""
    try:
        TRIALS[name](trial)
        if name != "full":  # whose disk is gone by now
            lab.check(trial)
    except Broken as error:
        broken = str(error)
    else:
        shutil.rmtree(trial.folder)
    return {
        "trial": name,
        "seed": seed,
        "date": time.strftime("%Y-%m-%d"),
        "version": aligngap.__version__,
        "hit": dict(trial.hit),
        "went_on": trial.went_on,
        "broken": broken,
        "seconds": round(time.monotonic() - start, 1),
    }


def campaign(folder: Path, counts: Mapping[str, int], seed: int, tally: Path | None = None) -> list[dict[str, Any]]:
    """All trials, in a random order of their kinds. Kills are counted, not their trials: one may hold several."""
    lab = Lab.set_up(folder)
    print(f"undisturbed: {lab.seconds:.1f} s after its start, {lab.size / 1e6:.1f} MB", flush=True)
    left, kept = Counter({name: count for name, count in counts.items() if count}), []
    number = seed * 100_000
    while left := +left:
        name = max(left, key=lambda kind: left[kind] / counts[kind])
        found = attempt(lab, name, number)
        number += 1
        kept.append(found)
        left[name] -= found["hit"].get("kills", 1) if not found["broken"] else 1
        line = f"{name} {found['seed']}: {found['broken'] or 'identical'} ({found['went_on']}; {found['hit']})"
        print(f"{line}, {found['seconds']:.0f} s; left: {dict(+left)}", flush=True)
        if tally:
            with tally.open("a") as file:
                file.write(json.dumps(found) + "\n")
    return kept


def summed(tallies: Sequence[Path]) -> str:
    """The table of docs/reliability.md, of all rounds together."""
    found = [json.loads(line) for tally in tallies for line in tally.read_text().splitlines()]
    lines = ["| fault | times | runs | identical | went on | what was hit |", "| --- | --- | --- | --- | --- | --- |"]
    for name in TRIALS:
        of_kind = [item for item in found if item["trial"] == name]
        if not of_kind:
            continue
        times = sum(item["hit"].get("kills", 1) for item in of_kind)
        good = sum(not item["broken"] for item in of_kind)
        went = Counter(item["went_on"] for item in of_kind if not item["broken"])
        hit = sum((Counter(item["hit"]) for item in of_kind), Counter[str]())
        del hit["kills"]
        cells = [", ".join(f"{key} {count}" for key, count in part.most_common()) for part in (went, hit)]
        lines.append(f"| {name} | {times} | {len(of_kind)} | {good} | {cells[0]} | {cells[1]} |")
    seeds = sorted({item["seed"] // 100_000 for item in found})
    dates = sorted({item["date"] for item in found})
    lines.append(f"\nSeeds {', '.join(map(str, seeds))}; {dates[0]} to {dates[-1]}.")
    return "\n".join(lines)


def main() -> int:
    """Parse, run, and say how it went: 0 when every trial ended identical."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__.split("\n", 1)[0])
    for name in TRIALS:
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scratch", type=Path, help="where to work; kept if a trial fails  [a temporary folder]")
    parser.add_argument("--tally", type=Path, help="a file that a line a trial is added to")
    parser.add_argument(
        "--sum", type=Path, nargs="+", metavar="TALLY", help="print the table of these, and nothing else"
    )
    given = parser.parse_args()
    if given.sum:
        print(summed(given.sum))
        return 0
    folder = given.scratch or Path(tempfile.mkdtemp(prefix="faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    found = campaign(folder, {name: getattr(given, name) for name in TRIALS}, given.seed, given.tally)
    broken = [item for item in found if item["broken"]]
    print(f"{len(found)} trials, {len(broken)} broken")
    for item in broken:
        print(f"{item['trial']} {item['seed']}: {item['broken']}")
    if not broken and not given.scratch:
        shutil.rmtree(folder)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
