"""A whole study, from SFT to curves, beside the same one written with trl's trainers.

    python -m benchmarks.peer_study [--rounds N] [--cores N] [--peer-threads N] [--set KEY=VALUE ...] [--json FILE]

Both are whole commands, imports and all: `aligngap run` on `benchmarks/peer_study.yaml`, and `benchmarks.peer_trl`,
which knows nothing of aligngap. They alternate, each in a folder of its own, on the same cores; a round's ratio is the
peer's time over ours. Both read the same pairs of the summarisation world from files, with the same token ids. What
comes of them (KL and win rate at the end) is printed too: the work is only the same if the studies are. Linux only.

Afterwards one more arm is asked of the last finished study, and its stage is timed against its own steps.

Prints Markdown, as docs/benchmarks.md shows it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
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
from typing import Any, NamedTuple

import polars as pl
import torch

from aligngap.experiments.bench import ArmEntry
from aligngap.experiments.plan import Plan
from aligngap.experiments.spec import StudySpec, log_steps
from aligngap.experiments.study import load_study
from aligngap.models.build import base_path
from aligngap.models.tokenizer import load_tokenizer
from aligngap.pipeline.graph import Context, Stage
from aligngap.pipeline.stages import Arm, Relabel
from aligngap.store import Store
from aligngap.store.store import read_json, write_json
from aligngap.tasks.encode import make_dataset_pairs
from aligngap.tasks.spec import TaskSpec, make_pairs
from aligngap.types import PairBatch
from benchmarks.markdown import Spread, heading, quartiles, table

STUDY = Path(__file__).with_name("peer_study.yaml")
TASK = "written"
ROOT = Path(__file__).parents[1]
_LINGER = 5.0  # seconds that what a command leaves behind may take to end
ONE_MORE = 0.02
"""Beta of the arm that is asked of the finished study."""


def prepare(work: Path, overrides: Sequence[str], pairs: int) -> tuple[StudySpec, dict[str, Any]]:
    """Write the pairs of the summarisation world, for us as one file, for the peer in our split and order; the study
    beside them, and the peer's plan of the same settings.
    """
    work.mkdir(parents=True, exist_ok=True)
    shutil.copy(STUDY, work / STUDY.name)
    tokenizer = load_tokenizer(base_path("small"))
    _write(
        make_pairs(TaskSpec(world="summarisation", train_pairs=pairs, held_out_pairs=1), tokenizer).train,
        tokenizer,
        work / "pairs.jsonl",
    )
    study = load_study(str(work / STUDY.name), overrides)
    data = make_dataset_pairs(study.datasets[TASK], tokenizer).data
    files = {}
    for split in ("train", "held_out"):
        files[split] = str(_write(getattr(data, split), tokenizer, work / f"{split}.jsonl"))
    return study, plan_of(study, files)


def _write(pairs: PairBatch, tokenizer: Any, file: Path) -> Path:
    """As JSON Lines of prompt, chosen and rejected, without the begin and end tokens, which readers put there; pairs of
    equal responses left out.
    """
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}

    def text(ids: Sequence[int]) -> str:
        return " ".join(tokenizer.convert_ids_to_tokens([token for token in ids if token not in special]))

    rows = zip(pairs.prompts.rows(), pairs.first.rows(), pairs.second.rows(), pairs.preference.tolist(), strict=True)
    with file.open("w", encoding="utf-8") as out:
        for prompt, first, second, preference in rows:
            chosen, rejected = (text(first), text(second)) if preference > 0.5 else (text(second), text(first))
            if chosen != rejected:
                out.write(json.dumps({"prompt": text(prompt) + " ", "chosen": chosen, "rejected": rejected}) + "\n")
    return file


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


def ours(work: Path, out: Path, overrides: Sequence[str], cores: int, store: Path | None = None) -> Taken:
    """What `aligngap run` takes."""
    words = ["-m", "aligngap", "run", str(work / STUDY.name), "--out", str(out)]
    words += [word for setting in overrides for word in ("--set", setting)]
    return _timed([*words, *(["--store", str(store)] if store else [])], cores)


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
        found = (mine["kl"], theirs["kl"])
        wins = [(mine[f"rate_{who}_golden"], theirs[f"win_{who}"]) for who in ("golden_policy", "sft")]
        rows.append((entry.name, *(f"{a:.2f} / {b:.2f}" for a, b in (found, *wins))))
    return rows


def in_process(stage: Stage, store: Store, out: Path) -> float:
    """Seconds of an arm's steps alone, in this process on one thread: from the end of the first to the end of the last,
    and one step more.
    """
    stamps: list[float] = []
    folders = {parent.identity: store.get(parent.identity).path for parent in stage.parents}
    for folder in ("out", "partial"):
        (out / folder).mkdir(parents=True)
    torch.set_num_threads(1)
    stage.run(
        Context(folders, out / "out", out / "partial", lambda done, total, metrics: stamps.append(time.perf_counter()))
    )
    return (stamps[-1] - stamps[0]) * len(stamps) / (len(stamps) - 1)


def second_arm(work: Path, first: Path, overrides: Sequence[str], cores: int) -> dict[str, float]:
    """Ask the finished study in `first` for one offline arm more. Seconds: of the whole command, of the arm's stage, of
    its evaluation, and of its own steps (in this process, on one thread).
    """
    out, store = work / "one-more", first / "store"
    study = load_study(str(work / STUDY.name), overrides)
    settings = [*overrides, f"sweep.betas={[*study.sweep.betas, ONE_MORE]}"]
    whole = ours(work, out, settings, cores, store).wall
    made = [stage for stage in read_json(out / "status.json")["stages"] if stage["status"] == "finished"]
    if sorted(stage["kind"] for stage in made) != ["arm", "evaluate"]:
        raise SystemExit(f"one more arm has made {[stage['label'] for stage in made]}")
    seconds = {stage["kind"]: float(stage["seconds"]) for stage in made}
    arm = next(
        stage
        for stage in Plan(load_study(str(work / STUDY.name), settings)).stages
        if isinstance(stage, Arm) and stage.identity in {entry["identity"] for entry in made}
    )
    steps = in_process(arm, Store(store, reading=True), work / "in-process")
    return {"command": whole, "stage": seconds["arm"], "evaluation": seconds["evaluate"], "steps": steps}


def compare(
    work: Path, overrides: Sequence[str], rounds: int, cores: int, pairs: int, peer_threads: int | None = None
) -> dict[str, Any]:
    """Alternate, then ask for one arm more. Everything that was measured."""
    _adopt()
    study, plan = prepare(work, overrides, pairs)
    mine, theirs = [], []
    for number in range(rounds):
        mine.append(ours(work, work / f"ours-{number}", overrides, cores))
        theirs.append(peer(plan, work / f"peer-{number}", cores, peer_threads))
        took = (f"{who} {taken.wall:.1f} s" for who, taken in (("ours", mine[-1]), ("peer", theirs[-1])))
        print(f"round {number + 1}: {', '.join(took)}", file=sys.stderr, flush=True)
    last = work / f"ours-{rounds - 1}"
    return {
        "ours": mine,
        "peer": theirs,
        "ends": ends(study, last, work / f"peer-{rounds - 1}"),
        "second_arm": second_arm(work, last, overrides, cores),
    }


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """As `python -m benchmarks` writes its entries: name, ratio, low, high, peak_share."""
    rows, more = [], found["second_arm"]
    for which in Taken._fields:
        mine, theirs = ([getattr(taken, which) for taken in found[who]] for who in ("ours", "peer"))
        ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
        took = {"seconds": statistics.median(mine), "peer_seconds": statistics.median(theirs), "ratios": ratios}
        rows.append({"name": f"whole_study_{which}", **quartiles(ratios)._asdict(), **took})
    for name in ("stage", "command"):
        ratio = quartiles([more[name] / more["steps"]])
        rows.append(
            {"name": f"second_arm_{name}", **ratio._asdict(), "seconds": more[name], "peer_seconds": more["steps"]}
        )
    return [{"ratio": row.pop("middle"), **row, "peak_share": None} for row in rows]


WORDS = {
    "whole_study_wall": "whole study, by the clock: peer's over ours",
    "whole_study_core": "whole study, processor seconds of all processes: peer's over ours",
    "second_arm_stage": "one more arm: its stage over its own steps",
    "second_arm_command": "one more arm: the whole command over its own steps",
}


def markdown(found: dict[str, Any]) -> str:
    """The tables of docs/benchmarks.md."""
    speed = [
        (
            WORDS[row["name"]],
            Spread(row["ratio"], row["low"], row["high"]),
            f"{row['seconds']:.1f} s",
            f"{row['peer_seconds']:.1f} s",
        )
        for row in rows_of(found)
    ]
    return "\n\n".join(
        [
            table(("what", "ratio (quartiles)", "ours", "peer, or own steps"), speed),
            table(("arm, ours / peer", "KL", "wins against the golden policy", "wins against SFT"), found["ends"]),
        ]
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_study", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--peer-threads", type=int, metavar="N", help="torch's in the peer  [default: all cores]")
    parser.add_argument("--pairs", type=int, default=2400, help="preference pairs in the file")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="of the study")
    parser.add_argument("--work", type=Path, metavar="DIR", help="a new folder to keep both studies in")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there")
    given = parser.parse_args()
    threads = f", the peer on {given.peer_threads} threads" if given.peer_threads else ""
    print(f"{heading()} {given.rounds} rounds on {given.cores} cores{threads}.\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        found = compare(work, given.settings, given.rounds, given.cores, given.pairs, given.peer_threads)
    print(markdown(found))
    if given.json:
        write_json(given.json, rows_of(found))


if __name__ == "__main__":
    main()
