"""Stages that take milliseconds. In a module of their own, because the processes that run them import it."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from aligngap.errors import UserError
from aligngap.pipeline.graph import Context, Stage
from aligngap.report.stage import Report


class Fake(Stage):
    """Sleeps and says when; `does` is what goes wrong on the way."""

    kind: ClassVar[str] = "fake"

    name: str
    after: tuple[Stage, ...] = ()
    seconds: float = 0.0
    does: str = ""
    cost: float = 1.0

    @property
    def label(self) -> str:
        return f"fake [{self.name}]"

    @property
    def work(self) -> float:
        return self.cost

    def run(self, context: Context) -> None:
        import torch

        start = time.monotonic()
        seen = [read(context.folder(stage))["name"] for stage in self.after]
        time.sleep(self.seconds)
        if self.does == "fail":
            raise RuntimeError("out of luck")
        if self.does == "mistake":
            raise UserError("no such column", where="data.csv", hint="Rename it.")
        if self.does == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.does.startswith("at first "):
            self._at_first(context.partial / "tries", self.does.removeprefix("at first "))
        if self.does.startswith("damages its input") and not (context.partial / "tries").exists():
            if self.does.endswith("at first"):
                (context.partial / "tries").touch()
            (context.folder(self.after[0]) / "times.json").write_text("{}")
            raise RuntimeError("no such key")
        if self.does == "weights":
            (context.out / "model.safetensors").write_bytes(bytes(1000))
        if self.does == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.does == "print":
            print("a warning")
        found = {"name": self.name, "seen": seen, "start": start, "end": time.monotonic(), "pid": os.getpid()}
        found["devices"] = os.environ.get("CUDA_VISIBLE_DEVICES")
        found |= {"threads": torch.get_num_threads(), "variable": os.environ.get("OMP_NUM_THREADS")}
        found |= {"collects": gc.isenabled(), "frozen": gc.get_freeze_count()}
        (context.out / "times.json").write_text(json.dumps(found))

    def _at_first(self, tries: Path, what: str) -> None:
        """Goes wrong in the first try, or in the first two."""
        before = len(tries.read_text()) if tries.exists() else 0
        tries.write_text("x" * (before + 1))
        if before < 1 + what.endswith("twice"):
            if what.startswith("memory"):
                raise MemoryError("too much")
            os.kill(os.getpid(), signal.SIGKILL if what.startswith("killed") else signal.SIGTERM)
            time.sleep(60)


class FakeReport(Fake):
    """In the place of `report.stage.Report`: a page of one line."""

    kind: ClassVar[str] = "report"

    @classmethod
    def of(cls, folder: Path, processes: int | None = None) -> FakeReport:
        return cls(name=repr(Report.of(folder).results))

    @property
    def label(self) -> str:
        return "report"

    def run(self, context: Context) -> None:
        super().run(context)
        (context.out / "report.html").write_text("<p>")


class ReadsFurther(Fake):
    """Reads what its inputs were made from, too."""

    kind: ClassVar[str] = "reads_further"

    @property
    def reads(self) -> Sequence[Stage]:
        return [further for stage in self.after for further in stage.parents]

    def run(self, context: Context) -> None:
        seen = [read(context.folder(stage))["name"] for stage in self.parents]
        (context.out / "times.json").write_text(json.dumps({"name": self.name, "seen": seen}))


class ReadsUndeclared(Fake):
    """Reads what its first input was made from, and does not say so."""

    kind: ClassVar[str] = "reads_undeclared"

    def run(self, context: Context) -> None:
        context.folder(self.after[0].parents[0])


class Steps(Stage):
    """Counts to `steps`, with a checkpoint at each."""

    kind: ClassVar[str] = "steps"

    name: str = "steps"
    steps: int = 20
    seconds: float = 0.02

    @property
    def label(self) -> str:
        return f"steps {self.name}"

    @property
    def work(self) -> float:
        return 1.0

    def run(self, context: Context) -> None:
        checkpoint = context.partial / "checkpoint.json"
        first = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
        for step in range(first, self.steps):
            time.sleep(self.seconds)
            checkpoint.with_suffix(".new").write_text(json.dumps({"step": step + 1, "pid": os.getpid()}))
            checkpoint.with_suffix(".new").rename(checkpoint)
            context.progress(step + 1, self.steps, {"loss": 1.0 / (step + 1)})
        (context.out / "times.json").write_text(json.dumps({"first": first, "pid": os.getpid()}))


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "times.json").read_text())
    return found
