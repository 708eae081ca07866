"""The folder of a command's temporary files."""

from __future__ import annotations

import os
import tempfile
import threading

from aligngap.pipeline.temporary import own_temporary_folder


def test_threads_that_overlap_leave_things_as_they_were() -> None:
    """A page of `watch` and a run may start a fork server at one time: the second of two must not keep the folder that
    the first had set."""
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    inside, entered, leave, leave_later = (threading.Event() for _ in range(4))

    def stay(here: threading.Event, until: threading.Event) -> None:
        with own_temporary_folder():
            here.set()
            until.wait(10)

    first = threading.Thread(target=stay, args=(inside, leave))
    second = threading.Thread(target=stay, args=(entered, leave_later))
    first.start()
    assert inside.wait(10)
    second.start()
    entered.wait(0.3)  # it is in the block by now if nothing keeps it out
    leave.set()
    first.join(10)
    leave_later.set()
    second.join(10)
    assert (tempfile.tempdir, os.environ.get("TMPDIR")) == before


def test_a_block_in_a_block() -> None:
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    with own_temporary_folder():
        folder = tempfile.gettempdir()
        with own_temporary_folder():
            assert tempfile.gettempdir() == folder
        assert tempfile.gettempdir() == folder
    assert (tempfile.tempdir, os.environ.get("TMPDIR")) == before
