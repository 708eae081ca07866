"""Kills at the worst moments: before each call that changes the disk, one after the other, as SIGKILL would.

What is tried runs in a forked process that ends without a word, so that nothing is cleared up.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

_CODE = 113
_CALLS = ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "unlink"), (os, "mkdir"), (shutil, "rmtree"))
_WRITES = ("aligngap.train.checkpoint.save_file", "aligngap.train.checkpoint.save_model")


def moments(work: Callable[[], None], limit: int = 400) -> Iterator[int]:
    """Runs `work` again and again, each time killed one moment later; yields after each kill, until `work` gets to its
    end. The caller puts right before each run what `work` starts from.
    """
    for moment in range(limit):
        child = os.fork()
        if child == 0:
            _child(work, moment)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return
        assert code == _CODE, f"the work itself failed at moment {moment}: exit code {code}"
        yield moment
    raise AssertionError(f"not at its end after {limit} moments")


def _child(work: Callable[[], None], moment: int) -> None:
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
