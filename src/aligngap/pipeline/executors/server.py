"""The server from which the processes of stages are forked, so that each finds imported what it needs.

Light to import itself: a command starts the server first, and both import side by side what each of them needs.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, SpawnContext

from aligngap.pipeline.processes import without_interrupts
from aligngap.pipeline.temporary import own_temporary_folder

_VARIABLES = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_ANY_STUDY = ("aligngap.pipeline.stages", "aligngap.experiments.registry")


def start_server() -> None:
    """Start the server before there is a stage to make."""
    with one_thread():
        process_context()


def process_context() -> ForkServerContext | SpawnContext:
    """A fork server imports torch and what stages of any study need once, unless one runs already; without fork servers
    (Windows) each process does.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", *_ANY_STUDY, "aligngap.pipeline.executors.preload"])
    resource_tracker.ensure_running()  # by itself: it would lift the block below
    with without_interrupts(), own_temporary_folder():
        forkserver.ensure_running()
    return context


@contextmanager
def one_thread() -> Iterator[None]:
    """Set for processes to inherit: the thread pools read it when torch is imported, before any code of ours."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(_VARIABLES)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
