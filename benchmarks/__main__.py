"""Speed of the work of a study, beside its peers in the same run.

    python -m benchmarks [--shape small|medium|all] [--only NAME] [--rounds N] [--threads N] [--clock wall|cpu]
                         [--json FILE] [--markdown]

Each round runs our work, then the peer's, then ours again in the next one. Printed are the medians over rounds, the
median of the rounds' ratios (peer's time / ours: above 1 we are faster) with their quartiles, and the share of the
machine's fp32 matrix peak that our useful operations reach. The entries of memory compare peaks of processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory
from benchmarks.clock import READINGS, matrix_peak, use
from benchmarks.entries import ENTRIES, Contest
from benchmarks.markdown import Spread, heading, quartiles, table
from benchmarks.setting import SHAPES

MEMORY = {f"{arm}_memory": arm for arm in memory.ARMS}
"""Entries of peak memory, by name."""


def measure(contest: Contest, rounds: int, peak: float) -> dict[str, Any]:
    """Alternate, and sum up. Without a peer there is no ratio."""
    ours, peer = [], []
    for _ in range(rounds):
        ours.append(contest.ours())
        if contest.peer:
            peer.append(contest.peer())
    ratios = [b / a for a, b in zip(ours, peer, strict=True)] if peer else []
    spread = quartiles(ratios) if ratios else None
    seconds = statistics.median(ours)
    peer_seconds = statistics.median(peer) if peer else None
    return {
        "ratio": spread.middle if spread else None,
        "low": spread.low if spread else None,
        "high": spread.high if spread else None,
        "peak_share": contest.flops / seconds / peak if contest.flops else None,
        "seconds": seconds,
        "peer": contest.peer_name,
        "peer_seconds": peer_seconds,
        "peer_peak_share": contest.flops / peer_seconds / peak if contest.flops and peer_seconds else None,
        "unit": contest.unit,
        "per_second": contest.units / seconds,
        "peer_per_second": contest.units / peer_seconds if peer_seconds else None,
        "ratios": ratios,
    }


def run(
    shapes: Sequence[str], only: str | None, rounds: int, threads: int, show: Callable[[dict[str, Any]], str]
) -> list[dict[str, Any]]:
    """Measure, and print each row as it comes."""
    torch.set_num_threads(threads)
    rows = []
    for shape in shapes:
        setting = SHAPES[shape]()
        for name in _names(only):
            if name in MEMORY:
                row = {"name": name, "shape": shape, **memory.compare(setting, MEMORY[name], rounds)}
            else:
                contest = ENTRIES[name](setting)
                # Anew for each entry: a shared machine's speed drifts.
                peak = matrix_peak()
                row = {"name": name, "shape": shape, **measure(contest, rounds, peak), "peak_gflops": peak / 1e9}
            if torch.get_num_threads() != threads:
                raise SystemExit(f"a peer changed the number of threads to {torch.get_num_threads()}")
            rows.append(row)
            print(show(row), flush=True)
    return rows


def _names(only: str | None) -> list[str]:
    return [name for name in (*ENTRIES, *MEMORY) if only in (None, name)]


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row's cells: shape, entry, ratio, ours, a second, peak share, peer."""
    ratio = str(Spread(row["ratio"], row["low"], row["high"])) if row["ratio"] else ""
    if row["name"] in MEMORY:
        ours, peer = (
            f"{row[f'{side}peak_megabytes']:.0f} MB, imports {row[f'{side}imports_megabytes']:.0f}"
            for side in ("", "peer_")
        )
        return row["shape"], row["name"], ratio, ours, "", "", f"{peer}; {row['peer']}"
    share = f"{row['peak_share']:.1%}" if row["peak_share"] else ""
    peer = f"{1e3 * row['peer_seconds']:.1f} ms; {row['peer']}" if row["peer_seconds"] else ""
    rate = f"{row['per_second']:,.1f} {row['unit']}s"
    return row["shape"], row["name"], ratio, f"{1e3 * row['seconds']:.1f} ms", rate, share, peer


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    widths = (7, 15, 18, 24, 18, 6, 0)
    return " ".join(f"{cell:{width}}" for cell, width in zip(cells(row), widths, strict=True)).rstrip()


def markdown_line(row: dict[str, Any]) -> str:
    """A row of the table in docs/benchmarks.md."""
    shape, name, *rest = cells(row)
    return f"| {' | '.join((shape, f'`{name}`', *rest))} |"


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="small")
    parser.add_argument("--only", choices=[*ENTRIES, *MEMORY], metavar="NAME", help=", ".join((*ENTRIES, *MEMORY)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=list(READINGS), default="wall", help="cpu: on a busy machine, one thread")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/benchmarks.md")
    given = parser.parse_args()
    if given.clock == "cpu" and given.threads != 1:
        parser.error("--clock cpu says something on one thread only: add --threads 1")
    use(given.clock)
    # trl's own use of options that transformers is about to rename.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    print(f"{heading()} {given.rounds} rounds, {given.threads} threads, {given.clock} clock.\n", flush=True)
    if given.markdown:
        print(table(("shape", "entry", "ratio (quartiles)", "ours", "a second", "peak share", "peer"), []), flush=True)
    shapes = list(SHAPES) if given.shape == "all" else [given.shape]
    rows = run(shapes, given.only, given.rounds, given.threads, markdown_line if given.markdown else line)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
