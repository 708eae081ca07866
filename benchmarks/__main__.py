"""Speed of the work of a study, beside its peers in the same run.

    python -m benchmarks [--shape small|medium|all] [--only NAME] [--rounds N] [--threads N] [--clock wall|cpu]
                         [--json FILE]

Each round runs our work, then the peer's, then ours again in the next one. Printed are the medians over rounds, the
median of the rounds' ratios (peer's time / ours: above 1 we are faster) with their quartiles, and the share of the
machine's fp32 matrix peak that our useful operations reach.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.clock import READINGS, matrix_peak, use
from benchmarks.entries import ENTRIES, Contest
from benchmarks.setting import SHAPES


def measure(contest: Contest, rounds: int, peak: float) -> dict[str, Any]:
    """Alternate, and sum up. Without a peer there is no ratio."""
    ours, peer = [], []
    for _ in range(rounds):
        ours.append(contest.ours())
        if contest.peer:
            peer.append(contest.peer())
    ratios = [b / a for a, b in zip(ours, peer, strict=True)] if peer else []
    # Quartiles, the inclusive kind: on a shared machine the extremes say who else was at work.
    low, _, high = statistics.quantiles(ratios, method="inclusive") if len(ratios) > 1 else 3 * (ratios or [None])
    seconds = statistics.median(ours)
    peer_seconds = statistics.median(peer) if peer else None
    return {
        "ratio": statistics.median(ratios) if ratios else None,
        "low": low,
        "high": high,
        "peak_share": contest.flops / seconds / peak,
        "seconds": seconds,
        "peer": contest.peer_name,
        "peer_seconds": peer_seconds,
        "peer_peak_share": contest.flops / peer_seconds / peak if peer_seconds else None,
        "unit": contest.unit,
        "per_second": contest.units / seconds,
        "peer_per_second": contest.units / peer_seconds if peer_seconds else None,
        "ratios": ratios,
    }


def run(shapes: Sequence[str], only: str | None, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Measure and print."""
    torch.set_num_threads(threads)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(
        f"{threads} of {os.cpu_count()} cores, load before the run {load}, {rounds} rounds, torch {torch.__version__}"
    )
    rows = []
    for shape in shapes:
        setting = SHAPES[shape]()
        for name, make in ENTRIES.items():
            if only not in (None, name):
                continue
            contest = make(setting)
            # Anew for each entry: a shared machine's speed drifts.
            peak = matrix_peak()
            row = {"name": name, "shape": shape, **measure(contest, rounds, peak), "peak_gflops": peak / 1e9}
            if torch.get_num_threads() != threads:
                raise SystemExit(f"a peer changed the number of threads to {torch.get_num_threads()}")
            rows.append(row)
            print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    if row["ratio"]:
        ratio = f"{row['ratio']:5.2f}x ({row['low']:.2f}-{row['high']:.2f})"
        peer = f"{1e3 * row['peer_seconds']:7.1f} ms  {row['peer']}"
    else:
        ratio, peer = "no peer", ""
    return (
        f"{row['shape']:7}{row['name']:14}{ratio:20}{1e3 * row['seconds']:7.1f} ms {row['per_second']:9,.1f} "
        f"{row['unit'] + 's/s':10}{row['peak_share']:6.1%} of {row['peak_gflops']:.0f} GFLOP/s   {peer}"
    )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="small")
    parser.add_argument("--only", choices=list(ENTRIES), metavar="NAME", help=", ".join(ENTRIES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=list(READINGS), default="wall", help="cpu: on a busy machine, one thread")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    given = parser.parse_args()
    if given.clock == "cpu" and given.threads != 1:
        parser.error("--clock cpu says something on one thread only: add --threads 1")
    use(given.clock)
    # trl's own use of options that transformers is about to rename.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    rows = run(list(SHAPES) if given.shape == "all" else [given.shape], given.only, given.rounds, given.threads)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
