"""A whole study, from SFT to curves, beside the same one written with trl's trainers.

    python -m benchmarks.peer_study [--rounds N] [--cores N] [--peer-threads N] [--set KEY=VALUE ...] [--json FILE]

Both are whole commands, imports and all: `aligngap run` on `benchmarks/peer_study.yaml`, and `benchmarks.peer_trl`,
which knows nothing of aligngap. They alternate, each in a folder of its own, on the same cores; a round's ratio is the
peer's time over ours. Both read the same pairs of the summarisation world from files, with the same token ids. What
comes of them (KL and win rate at the end) is printed too: the work is only the same if the studies are. Linux only.

Prints Markdown, as docs/benchmarks.md shows it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import polars as pl
import typer

from aligngap.experiments.bench import ArmEntry
from aligngap.experiments.plan import Plan
from aligngap.experiments.spec import StudySpec, log_steps
from aligngap.experiments.study import load_study
from aligngap.models.build import base_path
from aligngap.models.tokenizer import load_tokenizer
from aligngap.pipeline.stages import Relabel
from aligngap.store.disk import read_json, write_json
from aligngap.tasks.encode import make_dataset_pairs
from aligngap.tasks.spec import TaskSpec, make_pairs
from benchmarks.markdown import heading, quartiles, table
from benchmarks.setting import write_preferences

STUDY = Path(__file__).with_name("peer_study.yaml")
TASK = "written"
ROOT = Path(__file__).parents[1]
_LINGER = 5.0  # seconds that what a command leaves behind may take to end


def prepare(work: Path, overrides: Sequence[str], pairs: int) -> tuple[StudySpec, dict[str, Any]]:
    """Write the pairs of the summarisation world, for us as one file, for the peer in our split and order; the study
    beside them, and the peer's plan of the same settings.
    """
    work.mkdir(parents=True, exist_ok=True)
    shutil.copy(STUDY, work / STUDY.name)
    tokenizer = load_tokenizer(base_path("small"))
    made = make_pairs(TaskSpec(world="summarisation", train_pairs=pairs, held_out_pairs=1), tokenizer).train
    write_preferences(made, tokenizer, work / "pairs.jsonl")
    study = load_study(str(work / STUDY.name), overrides)
    data = make_dataset_pairs(study.datasets[TASK], tokenizer).data
    splits = {"train": data.train, "held_out": data.held_out}
    files = {name: str(write_preferences(of, tokenizer, work / f"{name}.jsonl")) for name, of in splits.items()}
    return study, plan_of(study, files)


def arms(study: StudySpec) -> list[ArmEntry]:
    """The arms that the study trains."""
    return [arm.entry for arm in Plan(study).tasks[TASK].arms]


def plan_of(study: StudySpec, files: dict[str, str]) -> dict[str, Any]:
    """The same settings for the peer."""
    optim, models = study.baseline.optim, study.models
    assert study.sft is not None
    assert study.golden.optim is not None
    assert study.proxy.optim is not None
    return {
        "data": files,
        "models": {role: base_path(getattr(models, role).path) for role in ("policy", "golden", "proxy")},
        "max_new_tokens": study.datasets[TASK].max_response_tokens,
        "sft": study.sft.model_dump(),
        "golden": study.golden.optim.model_dump(),
        "proxy": study.proxy.optim.model_dump(),
        "proxy_pairs": study.proxy.train_pairs,
        "arm": optim.model_dump(),
        "arms": [_described(entry) for entry in sorted(arms(study), key=lambda entry: entry.family != "golden_policy")],
        "keep": list(log_steps(optim.steps, study.evaluation.checkpoints)),
        "evaluation_prompts": study.evaluation.prompts,
    }


def _described(entry: ArmEntry) -> dict[str, Any]:
    """An arm for the peer. judge: who ranks an online arm's samples, or has labelled an offline one's pairs."""
    arm = entry.stage
    who = arm.judge or (arm.recorded.judge if isinstance(arm.recorded, Relabel) else None)
    assert who is not None
    return {"name": entry.name, "online": arm.judge is not None, "judge": who.role, "beta": arm.loss.beta}


class Taken(NamedTuple):
    """What a command took: seconds, and processor seconds of all its processes."""

    wall: float
    core: float


def ours(work: Path, out: Path, overrides: Sequence[str], cores: int) -> Taken:
    """What `aligngap run` takes."""
    words = ["-m", "aligngap", "run", str(work / STUDY.name), "--out", str(out)]
    return _timed([*words, *(word for setting in overrides for word in ("--set", setting))], cores)


def peer(plan: dict[str, Any], out: Path, cores: int, threads: int | None) -> Taken:
    """What the peer's script takes."""
    out.mkdir(parents=True)
    write_json(out / "plan.json", {**plan, "out": str(out)})
    return _timed(["-m", "benchmarks.peer_trl", str(out / "plan.json")], cores, threads)


def _timed(words: list[str], cores: int, threads: int | None = None) -> Taken:
    """A Python command on so many cores, with torch's own choice of threads unless one is given."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    before, start = _core_seconds(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout[-4000:]}")
    return Taken(wall, _core_seconds() - before)


def _adopt() -> None:
    """Become the parent of what a command's processes leave behind: nobody else would count what a fork server took."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _core_seconds() -> float:
    """Processor seconds of all children so far, those left behind by a command that has ended among them."""
    until = time.monotonic() + _LINGER
    with suppress(ChildProcessError):
        while time.monotonic() < until:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.05)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ends(study: StudySpec, ours_out: Path, peer_out: Path) -> list[tuple[str, ...]]:
    """Each arm's KL and win rates (by golden, against the golden policy and SFT) at the end, on held-out prompts: ours,
    then the peer's.
    """
    points = pl.read_parquet(ours_out / "points.parquet").filter(split="held_out", step=study.baseline.optim.steps)
    curves, rows = read_json(peer_out / "curves.json"), []
    for entry in arms(study):
        mine = points.row(by_predicate=pl.col("arm") == entry.name, named=True)
        theirs = curves[entry.name][-1]
        names = {"kl": "kl", "rate_golden_policy_golden": "win_golden_policy", "rate_sft_golden": "win_sft"}
        rows.append((entry.name, *(f"{mine[a]:.2f} / {theirs[b]:.2f}" for a, b in names.items())))
    return rows


def compare(
    work: Path, overrides: Sequence[str], rounds: int, cores: int, pairs: int, peer_threads: int | None = None
) -> tuple[list[dict[str, Any]], list[tuple[str, ...]]]:
    """Alternate. A row a measure of time, as `python -m benchmarks` writes its entries, and the ends of the arms."""
    _adopt()
    study, plan = prepare(work, overrides, pairs)
    mine, theirs = [], []
    for number in range(rounds):
        mine.append(ours(work, work / f"ours-{number}", overrides, cores))
        theirs.append(peer(plan, work / f"peer-{number}", cores, peer_threads))
        took = (f"{who} {taken.wall:.1f} s" for who, taken in (("ours", mine[-1]), ("peer", theirs[-1])))
        print(f"round {number + 1}: {', '.join(took)}", file=sys.stderr, flush=True)
    last = rounds - 1
    return rows_of(mine, theirs), ends(study, work / f"ours-{last}", work / f"peer-{last}")


def rows_of(mine: Sequence[Taken], theirs: Sequence[Taken]) -> list[dict[str, Any]]:
    """By the clock and by processor time: the rounds' ratios, and both sides' seconds."""
    return [
        {
            "name": f"whole study, {which}: peer's over ours",
            "ratio": quartiles([b[at] / a[at] for a, b in zip(mine, theirs, strict=True)]),
            "ours": statistics.median(taken[at] for taken in mine),
            "peer": statistics.median(taken[at] for taken in theirs),
        }
        for at, which in enumerate(("by the clock", "processor seconds of all processes"))
    ]


def main(
    rounds: int = 3,
    cores: int = 2,
    peer_threads: Annotated[int | None, typer.Option(help="torch's in the peer; by default all cores")] = None,
    pairs: Annotated[int, typer.Option(help="preference pairs in the file")] = 2400,
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the study")] = None,
    work: Annotated[Path | None, typer.Option(help="a new folder to keep both studies in")] = None,
    json: Annotated[Path | None, typer.Option(help="write what was measured there")] = None,
) -> None:
    """A whole study, from SFT to curves, beside the same one written with trl's trainers."""
    threads = f", the peer on {peer_threads} threads" if peer_threads else ""
    print(f"{heading()} {rounds} rounds on {cores} cores{threads}.\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        rows, both_ends = compare(work or Path(scratch), settings or [], rounds, cores, pairs, peer_threads)
    speed = [(row["name"], row["ratio"], f"{row['ours']:.1f} s", f"{row['peer']:.1f} s") for row in rows]
    print(table(("what", "ratio (quartiles)", "ours", "peer"), speed))
    print()
    print(table(("arm, ours / peer", "KL", "wins against the golden policy", "wins against SFT"), both_ends))
    if json:
        write_json(json, rows)


if __name__ == "__main__":
    typer.run(main)
