"""The process that makes a stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from multiprocessing import forkserver
from pathlib import Path

from aligngap.pipeline.executors.packed import PackedStage
from aligngap.pipeline.executors.server import process_context
from aligngap.pipeline.executors.worker import StageSettings, stage_process
from aligngap.store.store import Store
from unit.pipeline.fake_stages import Fake, read


def test_the_server_is_light_to_start() -> None:
    heavy = (
        "import sys, aligngap.cli, aligngap.pipeline.executors.server; print({'torch', 'polars'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_garbage_is_looked_for_only_in_what_a_stage_makes(tmp_path: Path) -> None:
    store, stage = Store(tmp_path / "store"), Fake(name="a")
    context = process_context()
    process = stage_process(context, PackedStage.of(stage), StageSettings(store.root, "cpu"))
    while not process.ended:
        process.read(60.0)
    found = read(store.get(stage.identity).path)
    assert found["collects"]
    assert found["frozen"] > 10_000


def test_a_fork_server_that_is_lost_while_it_forks_costs_nothing(tmp_path: Path) -> None:
    store, stage = Store(tmp_path / "store"), Fake(name="a")
    context = process_context()
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    os.kill(server, signal.SIGSTOP)  # it takes the request, and does not answer
    threading.Timer(0.5, os.kill, (server, signal.SIGKILL)).start()
    process = stage_process(context, PackedStage.of(stage), StageSettings(store.root, "cpu"))
    while not process.ended:
        process.read(60.0)
    assert store.has(stage.identity)
    assert forkserver._forkserver._forkserver_pid != server  # type: ignore[attr-defined]
