"""Ranks of one stage: what they share, and how they end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import grouped
from aligngap import ranks
from aligngap.errors import UserError
from aligngap.ranks import Parallel

pytest.importorskip("accelerate")


def start(case: str, folder: Path) -> subprocess.Popen[str]:
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, grouped.__file__, case, str(folder)]
    return subprocess.Popen(command, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    process = start("share", folder)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return folder


@pytest.fixture(params=["none", "full"])
def found(request: pytest.FixtureRequest, shared: Path) -> list[dict[str, Any]]:
    return [json.loads((shared / request.param / f"{k}.json").read_text()) for k in range(3)]


def test_each_is_a_rank_of_one_thread(found: list[dict[str, Any]]) -> None:
    assert [rank["rank"] for rank in found] == [0, 1, 2]
    assert [rank["first"] for rank in found] == [True, False, False]
    assert {rank["threads"] for rank in found} == {1}


def test_a_batch_is_divided_without_rest(found: list[dict[str, Any]]) -> None:
    """A rank without rows takes the first with no weight, so that it runs the passes of the others."""
    assert [rank["own"]["7"] for rank in found] == [[[0, 1, 2], 3 / 7], [[3, 4, 5], 3 / 7], [[6], 1 / 7]]
    assert [rank["own"]["2"] for rank in found] == [[[0], 0.5], [[1], 0.5], [[0], 0.0]]
    assert [rank["own"]["1"] for rank in found] == [[[0], 1.0], [[0], 0.0], [[0], 0.0]]


def test_what_is_divided_comes_together_in_order(shared: Path, found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["rows"] == [k for k in range(7) for _ in range(2)]
        assert rank["tokens"] == [[1] * (k + 1) for k in range(5)]
        assert rank["none"] == 0
        assert rank["chunks"] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert rank["broadcast"] == 5
        assert rank["total"] == 3
    seen = [json.loads((shared / "none" / f"{k}.json").read_text())["seen"] for k in range(3)]
    assert seen == [[0, 1, 2], [3, 4, 5], [6]]


def test_sharded_models_run_the_same_passes_everywhere(shared: Path) -> None:
    found = {
        kind: [json.loads((shared / kind / f"{k}.json").read_text()) for k in range(3)] for kind in ("none", "full")
    }
    assert [rank["seen"] for rank in found["full"]] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [rank["unfinished"] for rank in found["full"]] == [True] * 3
    assert [rank["unfinished"] for rank in found["none"]] == [False, True, False]


def test_gradients_are_summed_and_what_has_none_keeps_none(shared: Path) -> None:
    for k in range(3):
        gradients = json.loads((shared / "none" / f"{k}.json").read_text())["gradients"]
        assert gradients == [[6.0] * 3, [1.0] * 3, None]


def test_a_judge_has_spent_what_all_ranks_spent(shared: Path, found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["margin"] == [-1.0, 0.0, 1.0, 2.0, 3.0]
        assert rank["judge"]["calls"] == 5
    plain = [json.loads((shared / "none" / f"{k}.json").read_text())["judge"] for k in range(3)]
    assert [judge["spent"] for judge in plain] == [{"coins": 8.0}] * 3
    assert sorted(judge["seen"] for judge in plain) == [1, 2, 2]


def test_ranks_need_not_be_copies(shared: Path) -> None:
    """On accelerators each starts anew."""
    found = [json.loads((shared / "spawned" / f"{k}.json").read_text()) for k in range(2)]
    assert [rank["own"]["7"] for rank in found] == [[[0, 1, 2, 3], 4 / 7], [[4, 5, 6], 3 / 7]]
    assert [rank["rows"] for rank in found] == [[k for k in range(7) for _ in range(2)]] * 2
    assert {rank["threads"] for rank in found} == {1}
    assert json.loads((shared / "spawned" / "progress.json").read_text()) == [[0, 2, {"x": 1.0}]]


def test_the_first_rank_tells_how_far_it_is(shared: Path) -> None:
    assert json.loads((shared / "none" / "progress.json").read_text()) == [[0, 3, {"x": 1.0}]]


def test_one_rank_s_end_is_one_clear_error(tmp_path: Path) -> None:
    process = start("troubles", tmp_path)
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    found = json.loads(out)
    assert found.keys() == grouped.TROUBLES.keys()
    assert found["error"][:2] == ["ValueError", "no such luck"]
    assert found["user"][:2] == ["UserError", "there: not like this\nDo that."]
    assert found["memory"][:2] == ["MemoryError", "enough"]
    assert found["stubborn"][:2] == ["RuntimeError", "_Stubborn: 1 and 2"]
    for name in ("error", "user", "memory", "stubborn"):
        assert found[name][2].startswith("in rank 1 of 2:\nTraceback")
    assert found["killed"][:2] == [
        "Lost",
        "rank 1 of 2: its process was killed by SIGKILL, as happens when memory runs out (fewer --jobs need less)",
    ]
    assert found["exit"][:2] == ["Lost", "rank 1 of 2: its process ended with exit code 7 and without a word"]
    assert found["both"][:2] == ["ValueError", "the same everywhere"]
    assert max(seconds for *_, seconds in found.values()) < 60  # not the group's patience


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_rank_outlives_the_stage_s_process(tmp_path: Path, number: signal.Signals) -> None:
    process = start("sleep", tmp_path)
    try:
        files = [tmp_path / f"{k}.pid" for k in range(2)]
        _until(lambda: all(file.exists() and file.read_text() for file in files))
        pids = [int(file.read_text()) for file in files]
        process.send_signal(number)
        process.wait(timeout=60)
        _until(lambda: not any(map(_alive, pids)))
    finally:
        process.kill()
        process.communicate()


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_alone_nothing_is_divided() -> None:
    assert (ranks.size(), ranks.rank(), ranks.first(), ranks.sharded()) == (1, 0, True, False)
    batch = object()
    assert ranks.share(3).of(batch) is batch  # type: ignore[type-var]
    assert ranks.share(3).part == 1.0


def test_what_cannot_be_done_is_said_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Parallel(processes=2)
    two.check("cpu")
    with pytest.raises(UserError, match="2 processes need a device each, and `device: cuda:1` is one"):
        two.check("cuda:1")
    two.check("cuda", 2)
    with pytest.raises(UserError, match="this machine has 1"):
        two.check("cuda", 1)
    monkeypatch.setattr("aligngap.ranks.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'aligngap\\[distributed\\]'"):
        two.check("cpu")
    Parallel().check("mps")
    with pytest.raises(ValidationError, match="give processes: 2 or more"):
        Parallel(sharding="full")
