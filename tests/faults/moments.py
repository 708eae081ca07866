"""Kills at the worst moments: before each call that changes the disk, one after the other, as SIGKILL would.

What is tried runs in a process of its own that ends without a word, so that nothing is cleared up.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

_CODE = 113
_CALLS = ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "unlink"), (os, "mkdir"), (shutil, "rmtree"))
_WRITES = ("aligngap.train.checkpoint.save_file", "aligngap.models.sharding.save_model")


def moments(work: Callable[[], object], limit: int = 400) -> Iterator[int]:
    """Runs `work` again and again, each time killed one moment later; yields after each kill, until `work` gets to its
    end. The caller may put right what `work` starts from, or leave it to the next try as the kill has left it.
    """
    for moment in range(limit):
        child = os.fork()
        if child == 0:
            _child(work, moment)
        _, status = os.waitpid(child, 0)
        if _ended(os.waitstatus_to_exitcode(status), moment):
            return
        yield moment
    raise AssertionError(f"not at its end after {limit} moments")


def moments_of_stages(work: Callable[..., object], *args: Any, limit: int = 400) -> Iterator[int]:
    """The same for what computes: libraries that have threads do not survive a fork, so a server forks that has only
    imported them. work, args: to be pickled.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "aligngap.experiments.gather", "aligngap.pipeline.stages"])
    for moment in range(limit):
        process = context.Process(target=_child, args=(partial(work, *args), moment))
        process.start()
        process.join()
        if _ended(process.exitcode, moment):
            return
        yield moment
    raise AssertionError(f"not at its end after {limit} moments")


def _ended(code: int | None, moment: int) -> bool:
    assert code in (0, _CODE), f"the work itself failed at moment {moment}: exit code {code}"
    return code == 0


def _child(work: Callable[[], object], moment: int) -> None:
    left = moment
    try:
        with ExitStack() as stack:

            def hook(real: Callable[..., Any], half: bool) -> Callable[..., Any]:
                def call(*args: Any, **kwargs: Any) -> Any:
                    nonlocal left
                    if left == 0:
                        if half:
                            Path(args[1]).write_bytes(b"half a file")
                        os._exit(_CODE)
                    left -= 1
                    return real(*args, **kwargs)

                return call

            for owner, name in _CALLS:
                stack.enter_context(mock.patch.object(owner, name, hook(getattr(owner, name), half=False)))
            for name in _WRITES:
                module, _, function = name.rpartition(".")
                real = getattr(__import__(module, fromlist=[function]), function)
                stack.enter_context(mock.patch(name, hook(real, half=True)))
            work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
