from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aligngap.errors import UserError
from aligngap.pipeline.executors.progress import Ledger, Spent
from aligngap.pipeline.graph import Event
from aligngap.pipeline.rundir import RunDirectory, chosen_store, differences
from aligngap.store import Store
from unit.pipeline.fake_stages import Fake

STUDY: dict[str, Any] = {"name": "try", "seeds": (1, 2), "arms": {"online": {"lr": 0.1}}}


def start(folder: Path, *, end: BaseException | None = None) -> None:
    stages = [Fake(name="a"), Fake(name="b")]
    ledger = Ledger(stages, 2)
    with RunDirectory.use(folder, STUDY) as run:
        run.begin(ledger, folder / "store")
        ledger.update(Event("started", stages[0]))
        if end:
            raise end
        for stage in stages:
            ledger.update(Event("finished", stage, seconds=1.5))


def test_the_folder_says_what_was_run_and_how_it_went(tmp_path: Path) -> None:
    start(tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    assert run.study == {"name": "try", "seeds": [1, 2], "arms": {"online": {"lr": 0.1}}}
    status = run.status()
    assert (status["state"], status["pid"], status["store"]) == ("finished", os.getpid(), "store")
    assert [(item["label"], item["status"], item["seconds"]) for item in status["stages"]] == [
        ("fake [a]", "finished", 1.5),
        ("fake [b]", "finished", 1.5),
    ]
    start(tmp_path / "run")  # the same study again is welcome


@pytest.mark.parametrize(("error", "state"), [(KeyboardInterrupt(), "interrupted"), (ValueError(), "failed")])
def test_the_end_is_written_down_however_it_comes(tmp_path: Path, error: BaseException, state: str) -> None:
    with pytest.raises(type(error)):
        start(tmp_path, end=error)
    status = RunDirectory.open(tmp_path).status()
    assert status["state"] == state
    assert [item["status"] for item in status["stages"]] == ["interrupted", "waiting"]


def test_a_run_with_a_failed_stage_has_failed(tmp_path: Path) -> None:
    stage = Fake(name="a")
    ledger = Ledger([stage], 1)
    with RunDirectory.use(tmp_path, STUDY) as run:
        run.begin(ledger, tmp_path / "store")
        ledger.update(Event("failed", stage, reason="RuntimeError: out of luck"))
        run.note(Event("failed", stage))
    status = RunDirectory.open(tmp_path).status()
    assert status["state"] == "failed"
    assert status["stages"][0]["reason"] == "RuntimeError: out of luck"


def test_a_run_that_died_without_a_word_is_not_called_running(tmp_path: Path) -> None:
    start(tmp_path)
    path = tmp_path / "status.json"
    status = json.loads(path.read_text())
    status["state"] = status["stages"][0]["status"] = "running"
    path.write_text(json.dumps(status))
    found = RunDirectory.open(tmp_path).status()
    assert (found["state"], found["stages"][0]["status"]) == ("interrupted", "interrupted")


def test_another_study_is_refused_and_the_keys_named(tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(UserError) as caught, RunDirectory.use(tmp_path, STUDY | {"arms": {"online": {"lr": 0.2}}}):
        pass
    assert "arms.online.lr: 0.1 -> 0.2" in caught.value.what
    assert "--out" in (caught.value.hint or "")
    assert RunDirectory.open(tmp_path).study["arms"] == STUDY["arms"]


def test_differences() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": 3}, "gone": None}
    new = {"a": 1, "b": {"c": [1, 5], "d": [3]}, "new": "x"}
    assert differences(old, new) == ["b.c.1: 2 -> 5", "b.d: 3 -> [3]", "gone: null -> (absent)", 'new: (absent) -> "x"']
    assert differences(old, old) == []


HOLD = """
import sys
from pathlib import Path
from aligngap.pipeline.executors.progress import Ledger, Spent
from aligngap.pipeline.rundir import RunDirectory

with RunDirectory.use(Path(sys.argv[1]), {"name": "try"}) as run:
    run.begin(Ledger([], 1), Path(sys.argv[1]) / "store")
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_a_folder(tmp_path: Path) -> None:
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=variables,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert RunDirectory.open(tmp_path).status()["state"] == "running"
        with pytest.raises(UserError, match=f"process {holder.pid}"), RunDirectory.use(tmp_path, {"name": "try"}):
            pass
        holder.communicate("")
    assert RunDirectory.open(tmp_path).status()["state"] == "finished"


def test_what_is_no_runs_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run's folder"):
        RunDirectory.open(tmp_path / "nowhere")
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other things"), RunDirectory.use(tmp_path, STUDY):
        pass
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["thesis.tex"]
    with pytest.raises(UserError, match="cannot be written"), RunDirectory.use(tmp_path / "thesis.tex" / "run", STUDY):
        pass


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(UserError) as caught:
        RunDirectory.open(tmp_path)
    assert caught.value.where == str(tmp_path / "study.json")


def test_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNGAP_STORE", raising=False)
    assert chosen_store(tmp_path, None) == tmp_path / "store"
    assert chosen_store(Path("runs/quick"), None) == chosen_store(Path("runs/full"), None) == Path("runs/store")
    assert chosen_store(Path("runs/quick"), Path("mine")) == Path("mine")
    monkeypatch.setenv("ALIGNGAP_STORE", "shared")
    assert chosen_store(tmp_path, None) == chosen_store(Path("runs/quick"), None) == Path("shared")
    assert chosen_store(tmp_path, Path("mine")) == Path("mine")
    with RunDirectory.use(tmp_path / "run", STUDY) as run:
        run.begin(Ledger([], 1), tmp_path / "elsewhere")
    run = RunDirectory.open(tmp_path / "run")
    assert run.store_path().resolve() == (tmp_path / "elsewhere").resolve()
    assert "elsewhere" in run.status()["store"]
    assert str(tmp_path) not in (tmp_path / "run" / "status.json").read_text()


def test_metrics_are_kept_and_one_that_is_no_number_is_null(tmp_path: Path) -> None:
    stage = Fake(name="a")
    ledger = Ledger([stage], 1)
    with RunDirectory.use(tmp_path, STUDY) as run:
        run.begin(ledger, tmp_path / "store")
        ledger.update(Event("progress", stage, 5, 10, {"loss": float("nan"), "grad_norm": 0.5}))
    (item,) = RunDirectory.open(tmp_path).status()["stages"]
    assert item["metrics"] == {"loss": None, "grad_norm": 0.5}


def test_looking_at_a_dead_run_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, end=KeyboardInterrupt())
    status = json.loads((tmp_path / "status.json").read_text())
    (tmp_path / "status.json").write_text(json.dumps(status | {"state": "running"}))
    for lock in (tmp_path / ".lock", None):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert RunDirectory.open(tmp_path).status()["state"] == "interrupted"
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        if lock:
            lock.unlink()


def test_time_is_summed_by_kind_as_far_as_it_is_recorded(tmp_path: Path) -> None:
    a, b, c, d = (Fake(name=name) for name in "abcd")
    ledger = Ledger([a, b, c, d], 1)
    store = Store(tmp_path / "store")
    with store.writing(a.identity, {"seconds": 7.5, "spent": {"sampling": 5.5, "training": 2.0}}):
        pass
    with RunDirectory.use(tmp_path / "run", STUDY) as run:
        run.begin(ledger, store.root)
        for event in (
            Event("cached", a),
            Event("cached", b),
            Event("finished", c, seconds=2.0),
            Event("started", d),
            Event("progress", d, 1, 2, {}, 0.5),
        ):
            ledger.update(event)
    found = RunDirectory.open(tmp_path / "run")
    assert found.spent(found.status()) == [Spent("fake", stages=4, timed=3, seconds=10.0)]
    status = found.status() | {"jobs": 2, "seconds": 10.0}
    assert found.activities(status) == {"waiting": 17.5, "sampling": 5.5, "unknown": 2.5, "training": 2.0}
