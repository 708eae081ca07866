"""How cost grows: time and peak memory against the number of arms, prompts, response length and model size.

    python -m benchmarks.growth [--only arms|prompts|length|size] [--rounds N] [--json FILE]

Each point is a process of its own on one thread, forked when all is imported and nothing is built; the points of a
curve take turns, and a point is the median of its rounds. Seconds are the processor's, which other work on the machine
disturbs least; memory is the process's peak above what it was forked with. The exponent is the slope of a straight line
through the logarithms, with its standard error.

Prints Markdown, as docs/benchmarks.md shows it.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import linregress

from aligngap.judges.model import ModelJudge
from aligngap.measure.kl import sequence_kl
from aligngap.models.build import Architecture, random_model
from aligngap.pipeline.processes import GRACE, Child
from aligngap.pipeline.stages import sample_in_chunks
from aligngap.seeds import uniforms
from aligngap.sources.order import prompt_schedule
from aligngap.sources.recorded import Recorded
from aligngap.sources.sampled import Sampled
from aligngap.store.store import write_json
from aligngap.train.loop import LossSpec, train
from aligngap.train.step import OptimSpec
from benchmarks.markdown import heading, table
from benchmarks.setting import BATCH, LEARNING_RATE, MEDIUM_VOCABULARY, Setting, medium, small

STEPS = 4
"""Of each training here, of which the first warms up: at the smallest sizes too it is more than start-up."""


def arms(count: int) -> Callable[[], object]:
    """So many offline arms on the same pairs, one after the other: the same weights and reference, other seeds."""
    setting = small()

    def work() -> None:
        for seed in range(count):
            source = Recorded(setting.pairs, prompt_schedule(seed))
            _train(setting, source)

    return work


def prompts(count: int) -> Callable[[], object]:
    """A checkpoint's evaluation on so many prompts: a response each, its KL, and its win by a preference model."""
    setting = small(count)
    policy, reference, judge = setting.policy(), setting.reference(), ModelJudge(setting.preference_model())
    batch = setting.batch(count)
    noise, every = uniforms(batch.prompt_numbers, 1, setting.limit, "growth"), torch.arange(count)
    against = judge.against(batch.prompts, [batch.first])

    def work() -> None:
        responses = sample_in_chunks(policy, batch.prompts, noise)
        sequence_kl(policy, reference, batch.prompts, responses)
        against.margins(every, responses)

    return work


def length(limit: int) -> Callable[[], object]:
    """Online steps whose responses all have so many tokens (hidden 128, 4 layers, prompts of 40 tokens)."""
    return _online(replace(medium(2 * BATCH), limit=limit))


def size(hidden: int) -> Callable[[], object]:
    """Online steps of a policy of so many hidden units and 4 layers; its judge is as large."""
    shape = Architecture(hidden=hidden, layers=4, heads=4, intermediate=2 * hidden)
    return _online(replace(medium(2 * BATCH), make_model=lambda: random_model(shape, MEDIUM_VOCABULARY, seed=0).eval()))


def parameters(hidden: int) -> int:
    """Weights of `size`'s policy that multiply, embeddings left out."""
    return 4 * (4 * hidden**2 + 3 * hidden * 2 * hidden)


def _online(setting: Setting) -> Callable[[], object]:
    judge, asked = ModelJudge(setting.preference_model()), setting.prompts()
    return lambda: _train(setting, Sampled(asked, judge, 0), ends=False)


def _train(setting: Setting, source: Recorded | Sampled, *, ends: bool = True) -> None:
    optim = OptimSpec(lr=LEARNING_RATE, steps=STEPS, batch=BATCH, warmup_steps=0)
    policy = setting.policy(ends=ends)
    train(policy, setting.reference(), source, LossSpec(), optim, keep=(), save_policy=lambda step, policy: None)


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


class Cost(NamedTuple):
    """Processor seconds, and megabytes above what there was before."""

    seconds: float
    megabytes: float


def measured(curve: Curve, value: int) -> Cost:
    """A point of a curve, in a process of its own."""
    child = Child(_point, curve, value, name=curve.what, context=multiprocessing.get_context("fork"))
    try:
        return Cost(*child.pipe.recv())
    except EOFError:
        raise SystemExit(f"{curve.what}, {value}: its process died") from None
    finally:
        child.end(GRACE)


def _point(send: Connection, curve: Curve, value: int) -> None:
    torch.set_num_threads(1)
    before = _peak()
    work = curve.work(value)
    start = time.process_time()
    work()
    send.send((time.process_time() - start, _peak() - before))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Exponent(NamedTuple):
    """Slope of a line through logarithms, and its standard error."""

    slope: float
    error: float

    def __str__(self) -> str:
        return f"{self.slope:.2f} ± {self.error:.2f}"


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> Exponent:
    """Least squares of log cost on log size."""
    logs = ([math.log(value) for value in values] for values in (sizes, costs))
    line = linregress(*logs)
    return Exponent(float(line.slope), float(line.stderr))


def grown(curve: Curve, rounds: int) -> dict[str, Any]:
    """All points of a curve, and the exponents of time and memory."""
    found: dict[int, list[Cost]] = {value: [] for value in curve.values}
    for _ in range(rounds):
        for value in curve.values:
            found[value].append(measured(curve, value))
    sizes = [curve.sized(value) for value in curve.values]
    costs = {
        name: [statistics.median(getattr(cost, name) for cost in found[value]) for value in curve.values]
        for name in Cost._fields
    }
    return {
        "what": curve.what,
        "sizes": sizes,
        **costs,
        **{f"{name}_exponent": exponent(sizes, costs[name])._asdict() for name in Cost._fields},
    }


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A curve as a row of the table."""
    time_and_memory = (
        (", ".join(f"{value:.3g}" for value in row[name]), str(Exponent(**row[f"{name}_exponent"])))
        for name in Cost._fields
    )
    sizes = ", ".join(f"{value}" for value in row["sizes"])
    return row["what"], sizes, *(cell for pair in time_and_memory for cell in pair)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", choices=list(CURVES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    print(f"{heading()} {given.rounds} rounds, one thread, processor time.\n")
    columns = ("what grows", "sizes", "seconds", "exponent", "MB", "exponent")
    print(table(columns, []), flush=True)
    rows = []
    for name, curve in CURVES.items():
        if given.only in (None, name):
            rows.append({"name": name, **grown(curve, given.rounds)})
            print(f"| {' | '.join(cells(rows[-1]))} |", flush=True)
    if given.json:
        write_json(given.json, rows)


if __name__ == "__main__":
    main()
