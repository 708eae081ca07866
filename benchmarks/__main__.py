"""Speed of the work of a study, beside its peers in the same run.

    python -m benchmarks [--shape small|medium|all] [--only NAME] [--rounds N] [--threads N] [--json FILE]

Each round runs our work, then the peer's, then ours again in the next one. Printed, as Markdown, are the medians over
rounds, the median of the rounds' ratios (peer's time / ours: above 1 we are faster) with their quartiles, and the share
of the machine's fp32 matrix peak that our useful operations reach. The entries of memory compare peaks of processes.
"""

from __future__ import annotations

import os
import statistics
import warnings
from pathlib import Path
from typing import Annotated, Any

import datasets
import torch
import typer

from aligngap.store.disk import write_json
from benchmarks.clock import matrix_peak
from benchmarks.entries import ENTRIES, Contest
from benchmarks.markdown import heading, quartiles, row, table
from benchmarks.setting import SHAPES


def measure(contest: Contest, rounds: int, peak: float) -> dict[str, Any]:
    """Alternate, and sum up; `ours` and `peer` are seconds or megabytes."""
    ours, peer = [], []
    for _ in range(rounds):
        ours.append(contest.ours())
        peer.append(contest.peer())
    middle = statistics.median(ours)
    return {
        "ratio": quartiles([b / a for a, b in zip(ours, peer, strict=True)]),
        "ours": middle,
        "peer": statistics.median(peer),
        "peer_name": contest.peer_name,
        "unit": contest.unit,
        "per_second": None if contest.unit == "MB" else contest.units / middle,
        "peak_share": contest.flops / middle / peak if contest.flops else None,
    }


def cells(entry: dict[str, Any]) -> tuple[object, ...]:
    """A row of the table: shape, entry, ratio, ours, a second, peak share, peer."""
    ours, peer = (
        f"{value:.0f} MB" if entry["unit"] == "MB" else f"{1e3 * value:.1f} ms"
        for value in (entry["ours"], entry["peer"])
    )
    rate = f"{entry['per_second']:,.1f} {entry['unit']}s" if entry["per_second"] else ""
    share = f"{entry['peak_share']:.1%}" if entry["peak_share"] else ""
    peers = f"{peer}; {entry['peer_name']}"
    return entry["shape"], f"`{entry['name']}`", entry["ratio"], ours, rate, share, peers


def main(
    shape: str = "small",
    only: Annotated[str | None, typer.Option(help=", ".join(ENTRIES))] = None,
    rounds: int = 5,
    threads: int = os.cpu_count() or 1,
    json: Annotated[Path | None, typer.Option(help="write the rows there")] = None,
) -> None:
    """Speed of the work of a study, beside its peers in the same run."""
    if shape not in (*SHAPES, "all") or only not in (None, *ENTRIES):
        raise typer.BadParameter(f"shapes are {', '.join(SHAPES)} and all; entries are {', '.join(ENTRIES)}")
    # trl's own use of options that transformers is about to rename.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    datasets.disable_progress_bars()
    torch.set_num_threads(threads)
    print(f"{heading()} {rounds} rounds, {threads} threads.\n")
    print(table(("shape", "entry", "ratio (quartiles)", "ours", "a second", "peak share", "peer"), []), flush=True)
    rows = []
    for one in SHAPES if shape == "all" else [shape]:
        setting = SHAPES[one]()
        for name in [only] if only else ENTRIES:
            # The peak is measured for each entry: a shared machine's speed drifts.
            rows.append({"name": name, "shape": one, **measure(ENTRIES[name](setting), rounds, matrix_peak())})
            if torch.get_num_threads() != threads:
                raise SystemExit(f"a peer changed the number of threads to {torch.get_num_threads()}")
            print(row(cells(rows[-1])), flush=True)
    if json:
        write_json(json, rows)


if __name__ == "__main__":
    typer.run(main)
