"""Several processes (ranks) that make one stage together: what each does of it, and how the parts become one whole.

Every rank runs the same code on the same prompts, pairs, schedules and noise. Where work is costly its rows are divided
among the ranks, and what they give is put together on all of them, in the rows' order: whatever comes next is the same
everywhere again. Within a share a rank works by itself.

Without a group, which is the default, everything here hands on what it is given, and no bit changes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from aligngap.errors import UserError
from aligngap.types import Tokens

# Longer than any rank is kept waiting by another that is at work; one that is lost is noticed at once (`launch`).
PATIENCE = timedelta(minutes=30)


class Parallel(BaseModel):
    """How many processes make a stage together, each on a device of its own. sharding: `none` gives each a whole copy
    of the models; `full` divides weights, gradients and optimiser states among them (FSDP2), for models that do not fit
    one device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    processes: int = Field(1, ge=1)
    sharding: Literal["none", "full"] = "none"

    @model_validator(mode="after")
    def _something_to_divide(self) -> Self:
        if self.sharding == "full" and self.processes == 1:
            raise ValueError("sharding: full divides models among processes; give processes: 2 or more")
        return self

    def check(self, device: str, devices: int | None = None) -> None:
        """Raises UserError for what cannot be done. devices: how many accelerators there are, where that is known."""
        if self.processes == 1:
            return
        where = "parallel.processes"
        if find_spec("accelerate") is None:
            raise UserError(
                "several processes a stage need the package `accelerate`, which is not installed",
                where=where,
                hint="Install it: pip install 'aligngap[distributed]'.",
            )
        if device not in ("cpu", "cuda"):
            raise UserError(
                f"{self.processes} processes need a device each, and `device: {device}` is one",
                where=where,
                hint="Say `device: cuda` (process k takes cuda:k) or `device: cpu`.",
            )
        if device == "cuda" and devices is not None and devices < self.processes:
            raise UserError(
                f"{self.processes} processes need a device each, and this machine has {devices}",
                where=where,
                hint="Give as many processes as there are devices, or fewer.",
            )


ALONE = Parallel()
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Group:
    rank: int = 0
    size: int = 1
    sharded: bool = False
    device: torch.device = _CPU
    dividing: bool = False
    """Whether rows are divided now: not alone, and not within a share."""


_group = _Group()


def size() -> int:
    """How many ranks there are."""
    return _group.size


def rank() -> int:
    """Which of them this process is, from 0 on."""
    return _group.rank


def first() -> bool:
    """Whether this is the rank that writes files."""
    return _group.rank == 0


def sharded() -> bool:
    """Whether models are divided among the ranks, which must then run the same forward and backward passes."""
    return _group.sharded


def device() -> torch.device:
    """This rank's device."""
    return _group.device


@contextmanager
def joined(rank: int, parallel: Parallel, device: str, rendezvous: Path) -> Iterator[torch.device]:
    """Join the group; gives this rank's device. rendezvous: a file that does not exist yet, the same for all ranks."""
    # Read by accelerate, which picks backend and device by them.
    size = str(parallel.processes)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    if device == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # else it would take more threads, and sums another order
        # The ranks are on one machine: nothing listens on its network, and its name need not be resolved.
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
        if loopback:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    from accelerate import PartialState

    state = PartialState(
        cpu=device == "cpu",
        init_method=rendezvous.absolute().as_uri(),
        rank=rank,
        world_size=parallel.processes,
        timeout=PATIENCE,
    )
    own = _CPU if device == "cpu" else state.device
    global _group
    _group = _Group(rank, parallel.processes, parallel.sharding == "full", own, dividing=True)
    try:
        yield own
    finally:
        _group = _Group()
    # Not after an exception: it would wait for ranks that are waiting for this one.
    state.destroy_process_group()


class _HasRows(Protocol):
    def take(self, index: torch.Tensor, /) -> Self: ...


Rows = TypeVar("Rows", bound=torch.Tensor | _HasRows)
Given = TypeVar("Given")
Result = TypeVar("Result", bound=torch.Tensor | Tokens)


@dataclass(frozen=True)
class Share:
    """This rank's rows of a batch, and which part of the batch they are. A rank that has none takes the first row, with
    part 0: so every rank runs the same passes.
    """

    index: torch.Tensor | None
    part: float

    def of(self, rows: Rows) -> Rows:
        """These rows of a tensor, tokens or pairs; all of them, untouched, where nothing is divided."""
        return rows if self.index is None else _taken(rows, self.index)


def share(rows: int) -> Share:
    """This rank's share of so many rows."""
    if not _group.dividing:
        return Share(None, 1.0)
    index = _block(rows)
    return Share(index, len(index) / rows) if len(index) else Share(torch.zeros(1, dtype=torch.int64), 0.0)


def map_rows(function: Callable[..., Result], *batch: torch.Tensor | Tokens) -> Result:
    """`function(*batch)`, which gives one or more rows for each row of `batch`; every rank computes its share of them,
    and has all of them in the end.
    """
    count = _rows(batch[0])
    if not _group.dividing or not count:
        return function(*batch)

    def part(index: torch.Tensor) -> Result:
        result: Any = function(*(_taken(rows, index) for rows in batch))
        return result.to("cpu")  # type: ignore[no-any-return]

    parts: Any = map_chunks(part, count, -(-count // _group.size))
    whole: Any = Tokens.stack(parts) if isinstance(parts[0], Tokens) else torch.cat(parts)
    return whole.to(batch[0].ids.device if isinstance(batch[0], Tokens) else batch[0].device)  # type: ignore[no-any-return]


def map_chunks(function: Callable[[torch.Tensor], Given], rows: int, chunk: int) -> list[Given]:
    """`function(index)` of each chunk of so many rows, in order. Whole chunks are divided among the ranks: each is
    computed in the shape that it has with one process, and so to the same bits where the weights are the same. Where
    models are sharded every rank computes as many, the last one again where there are no more.

    What the function gives must not be on an accelerator.
    """
    chunks = torch.arange(rows).split(chunk)
    if not _group.dividing:
        return [function(index) for index in chunks]
    mine = _block(len(chunks)).tolist()
    if _group.sharded:
        mine += [len(chunks) - 1] * (-(-len(chunks) // _group.size) - len(mine))
    with _within():
        results = {number: function(chunks[number]) for number in mine}
    gathered = {number: result for part in gather(results) for number, result in part.items()}
    return [gathered[number] for number in range(len(chunks))]


def gather(value: Given) -> list[Given]:
    """What each rank gives, in the order of the ranks."""
    if _group.size == 1:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])  # type: ignore[no-any-return]


def broadcast(value: Given) -> Given:
    """What the first rank gives, on all ranks."""
    if _group.size == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values = [value]
    broadcast_object_list(values)
    return values[0]


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum over the ranks of a scalar, or of each element of a tensor."""
    if not _group.dividing:
        return value
    from accelerate.utils import reduce

    return reduce(value, "sum")  # type: ignore[no-any-return]


def unfinished(working: bool) -> bool:
    """Whether there is another pass to run: where models are sharded, as long as any rank is still at work."""
    if not _group.sharded:
        return working
    flag = torch.tensor(int(working), device=_group.device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its sum over the ranks, in place. A parameter that has none on any rank keeps none.

    Sharded models do that themselves, in their backward pass.
    """
    if not _group.dividing or _group.sharded:
        return
    trained = list(parameters)
    has = torch.tensor([float(weight.grad is not None) for weight in trained], device=_group.device)
    torch.distributed.all_reduce(has)
    for weight, ranks in zip(trained, has.tolist(), strict=True):
        if ranks:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            torch.distributed.all_reduce(weight.grad)


def _block(rows: int) -> torch.Tensor:
    each = -(-rows // _group.size)
    return torch.arange(min(_group.rank * each, rows), min((_group.rank + 1) * each, rows))


def _rows(of: torch.Tensor | Tokens) -> int:
    return len(of.lengths) if isinstance(of, Tokens) else len(of)


def _taken(rows: Any, index: torch.Tensor) -> Any:
    return rows[index] if isinstance(rows, torch.Tensor) else rows.take(index)


@contextmanager
def _within() -> Iterator[None]:
    """Within a share nothing is divided again."""
    global _group
    before, _group = _group, replace(_group, dividing=False)
    try:
        yield
    finally:
        _group = before
