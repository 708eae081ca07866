"""What ranks do together, and what becomes of them when one does not: `python tests/grouped.py CASE [FOLDER]`.

A process of its own, because ranks are copies of a process that has computed nothing yet. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from aligngap import ranks
from aligngap.errors import UserError
from aligngap.judges.base import Judge
from aligngap.pipeline.executors.together import together
from aligngap.pipeline.graph import Progress
from aligngap.ranks import Parallel
from aligngap.types import Tokens


class _Paid(Judge):
    """Prefers the longer response, asks a coin a pair, and knows how many pairs it saw itself."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def compare(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        self.seen += len(prompts.ids)
        self.spent["coins"] = self.spent.get("coins", 0.0) + len(prompts.ids)
        return (first.lengths - second.lengths).float()


def share(device: str, progress: Progress, out: Path) -> None:
    """Of the work of a group, all that can be looked at; a file a rank."""
    size = ranks.size()
    found: dict[str, Any] = {"rank": ranks.rank(), "first": ranks.first(), "threads": torch.get_num_threads()}
    own = {rows: ranks.share(rows) for rows in (1, 2, 7)}
    found["own"] = {rows: (of.of(torch.arange(rows)).tolist(), of.part) for rows, of in own.items()}
    rows = torch.arange(7)
    seen: list[int] = []

    def doubled(part: torch.Tensor) -> torch.Tensor:
        seen.extend(part.tolist())
        return ranks.map_rows(lambda inner: inner.repeat_interleave(2), part)  # within a share nothing is divided

    found["rows"], found["seen"] = ranks.map_rows(doubled, rows).tolist(), seen
    tokens = Tokens.collate([[1] * (k + 1) for k in range(5)])
    found["tokens"] = ranks.map_rows(lambda part: part, tokens).rows()
    found["none"] = len(ranks.map_rows(lambda part: part, rows[:0]))
    found["chunks"] = ranks.map_chunks(lambda index: index.tolist(), 10, 4)
    found["broadcast"], found["total"] = ranks.broadcast(ranks.rank() + 5), float(ranks.total(torch.tensor(1.0)))
    found["unfinished"] = ranks.unfinished(ranks.rank() == 1)
    weights = [torch.nn.Parameter(torch.zeros(3)) for _ in range(3)]
    weights[0].grad = torch.full((3,), float(ranks.rank() + 1))
    weights[1].grad = torch.ones(3) if ranks.rank() == size - 1 else None
    ranks.sum_gradients(weights)
    found["gradients"] = [None if weight.grad is None else weight.grad.tolist() for weight in weights]
    judge = _Paid()
    judge.spent["coins"] = 3.0
    other = Tokens.collate([[1, 1]] * 5)
    found["margin"] = judge.margin(other, tokens, other).tolist()
    found["judge"] = {"calls": judge.calls, "spent": judge.spent, "seen": judge.seen}
    progress(ranks.rank(), size, {"x": 1.0})
    (out / f"{ranks.rank()}.json").write_text(json.dumps(found))


def _then(second: Callable[[], None]) -> Callable[..., None]:
    """The second rank does something while the others wait for it."""

    def work(device: str, progress: Progress) -> None:
        ranks.broadcast(0)
        if ranks.rank() == 1:
            second()
        ranks.total(torch.ones(()))

    return work


def _raise(error: BaseException) -> Callable[[], None]:
    def second() -> None:
        raise error

    return second


class _Stubborn(Exception):
    """Does not survive pickling."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def _both(device: str, progress: Progress) -> None:
    raise ValueError("the same everywhere")


TROUBLES: Mapping[str, Callable[..., None]] = {
    "error": _then(_raise(ValueError("no such luck"))),
    "user": _then(_raise(UserError("not like this", where="there", hint="Do that."))),
    "memory": _then(_raise(MemoryError("enough"))),
    "stubborn": _then(_raise(_Stubborn(1, 2))),
    "killed": _then(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "exit": _then(lambda: os._exit(7)),
    "both": _both,
}


def troubles() -> dict[str, Any]:
    """What each trouble comes to, and how long it takes."""
    found = {}
    for name, work in TROUBLES.items():
        start = time.monotonic()
        try:
            together(work, (), Parallel(processes=2), "cpu", forked=True)
        except Exception as error:
            cause = str(error.__cause__) if error.__cause__ else ""
            found[name] = [type(error).__name__, str(error), cause, time.monotonic() - start]
    return found


def sleep(device: str, progress: Progress, out: Path) -> None:
    """Until somebody ends it."""
    (out / f"{ranks.rank()}.pid").write_text(str(os.getpid()))
    ranks.broadcast(0)
    if ranks.first():
        time.sleep(600)
    ranks.broadcast(0)


if __name__ == "__main__":
    import grouped  # a process that is started afresh does not know the main program

    case, where = sys.argv[1], Path(sys.argv[2])
    if case == "share":
        for kind, parallel, forked in (
            ("none", Parallel(processes=3), True),
            ("full", Parallel(processes=3, sharding="full"), True),
            ("spawned", Parallel(processes=2), False),
        ):
            said: list[Any] = []
            (where / kind).mkdir()
            together(
                grouped.share,
                (where / kind,),
                parallel,
                "cpu",
                forked=forked,
                progress=lambda *what, said=said: said.append(what),  # type: ignore[misc]
            )
            (where / kind / "progress.json").write_text(json.dumps(said))
    elif case == "troubles":
        print(json.dumps(troubles()))
    else:
        together(sleep, (where,), Parallel(processes=2), "cpu", forked=True)
