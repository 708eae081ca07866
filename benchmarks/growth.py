"""How cost grows: time and peak memory against the number of arms, prompts, response length and model size.

    python -m benchmarks.growth [--only arms|prompts|length|size] [--rounds N] [--json FILE]

Each point is a process of its own on one thread, forked when all is imported and nothing is built; the points of a
curve take turns, and a point is the median of its rounds. Seconds are the processor's, which other work on the machine
disturbs least; memory is the process's peak above what it was forked with. The exponent is the slope of a straight line
through the logarithms, with its standard error.

Prints Markdown, as docs/benchmarks.md shows it.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import typer
from scipy.stats import linregress

from aligngap.models.build import Architecture, random_model
from aligngap.pipeline.processes import GRACE, Child
from aligngap.store.store import write_json
from benchmarks import ours
from benchmarks.markdown import heading, row, table
from benchmarks.memory import megabytes
from benchmarks.setting import BATCH, MEDIUM_VOCABULARY, Setting, medium, small

STEPS = 4
"""Of each training here, of which the first warms up: at the smallest sizes too it is more than start-up."""


def arms(count: int) -> Callable[[], object]:
    """So many offline arms on the same pairs, one after the other."""
    setting = replace(small(), steps=STEPS)
    return lambda: [ours.offline(setting)() for _ in range(count)]


def prompts(count: int) -> Callable[[], object]:
    """A checkpoint's evaluation on so many prompts."""
    return ours.evaluation(small(count), count)


def length(limit: int) -> Callable[[], object]:
    """Online steps whose responses all have so many tokens (hidden 128, 4 layers, prompts of 40 tokens)."""
    return ours.online(replace(_medium(), limit=limit))


def size(hidden: int) -> Callable[[], object]:
    """Online steps of a policy of so many hidden units and 4 layers; its judge is as large."""
    shape = Architecture(hidden=hidden, layers=4, heads=4, intermediate=2 * hidden)
    return ours.online(replace(_medium(), make_model=lambda: random_model(shape, MEDIUM_VOCABULARY, seed=0).eval()))


def parameters(hidden: int) -> int:
    """Weights of `size`'s policy that multiply, embeddings left out."""
    return 4 * (4 * hidden**2 + 3 * hidden * 2 * hidden)


def _medium() -> Setting:
    return replace(medium(2 * BATCH), steps=STEPS, ends=False)


@dataclass(frozen=True)
class Curve:
    """What grows along it: the work at a value, the values, and the size that a value stands for."""

    what: str
    work: Callable[[int], Callable[[], object]]
    values: tuple[int, ...]
    sized: Callable[[int], int] = int


CURVES = {
    "arms": Curve("offline arms of the small shape, 4 steps each", arms, (2, 4, 8, 16)),
    "prompts": Curve("evaluation of a checkpoint, small shape: prompts", prompts, (64, 128, 256, 512)),
    "length": Curve("online steps: tokens of a response", length, (10, 20, 40, 80)),
    "size": Curve("online steps: weights", size, (64, 96, 128, 192), parameters),
}
COSTS = ("seconds", "megabytes")


def measured(curve: Curve, value: int) -> tuple[float, float]:
    """A point of a curve, in a process of its own: processor seconds, and megabytes above what it was forked with."""
    child = Child(_point, curve, value, name=curve.what, context=multiprocessing.get_context("fork"))
    try:
        seconds, peak = child.pipe.recv()
        return seconds, peak
    except EOFError:
        raise SystemExit(f"{curve.what}, {value}: its process died") from None
    finally:
        child.end(GRACE)


def _point(send: Connection, curve: Curve, value: int) -> None:
    torch.set_num_threads(1)
    before = megabytes()
    work = curve.work(value)
    start = time.process_time()
    work()
    send.send((time.process_time() - start, megabytes() - before))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """Slope of a least-squares line through the logarithms, and its standard error."""
    logs = ([math.log(value) for value in values] for values in (sizes, costs))
    line = linregress(*logs)
    return float(line.slope), float(line.stderr)


def grown(curve: Curve, rounds: int) -> dict[str, Any]:
    """All points of a curve, and the exponents of time and memory."""
    points = [[measured(curve, value) for value in curve.values] for _ in range(rounds)]
    sizes = [curve.sized(value) for value in curve.values]
    result: dict[str, Any] = {"what": curve.what, "sizes": sizes}
    for at, name in enumerate(COSTS):
        costs = [statistics.median(point[at] for point in of_value) for of_value in zip(*points, strict=True)]
        result |= {name: costs, f"{name}_exponent": exponent(sizes, costs)}
    return result


def cells(found: dict[str, Any]) -> tuple[str, ...]:
    """A curve as a row of the table."""
    costs: list[str] = []
    for name in COSTS:
        slope, error = found[f"{name}_exponent"]
        costs += (", ".join(f"{value:.3g}" for value in found[name]), f"{slope:.2f} ± {error:.2f}")
    return found["what"], ", ".join(map(str, found["sizes"])), *costs


def main(only: str | None = None, rounds: int = 3, json: Path | None = None) -> None:
    """How cost grows: time and peak memory against arms, prompts, response length and model size."""
    print(f"{heading()} {rounds} rounds, one thread, processor time.\n")
    print(table(("what grows", "sizes", "seconds", "exponent", "MB", "exponent"), []), flush=True)
    rows = []
    for name in [only] if only else CURVES:
        rows.append({"name": name, **grown(CURVES[name], rounds)})
        print(row(cells(rows[-1])), flush=True)
    if json:
        write_json(json, rows)


if __name__ == "__main__":
    typer.run(main)
