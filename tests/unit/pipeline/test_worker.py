"""The process that makes a stage."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import forkserver
from pathlib import Path

from aligngap.pipeline.executors.process import PackedStage
from aligngap.pipeline.executors.worker import Settings, StageProcess, process_context
from aligngap.store.store import Store
from unit.pipeline.fake_stages import Fake


def test_a_fork_server_that_is_lost_while_it_forks_costs_nothing(tmp_path: Path) -> None:
    store, stage = Store(tmp_path / "store"), Fake(name="a")
    context = process_context([Fake.__module__])
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    os.kill(server, signal.SIGSTOP)  # it takes the request, and does not answer
    threading.Timer(0.5, os.kill, (server, signal.SIGKILL)).start()
    process = StageProcess(context, stage.identity, PackedStage.of(stage), Settings(store.root, "cpu"))
    while not process.ended:
        process.read(60.0)
    assert store.has(stage.identity)
    assert forkserver._forkserver._forkserver_pid != server  # type: ignore[attr-defined]
