from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aligngap.errors import UserError
from aligngap.pipeline.executors.progress import KindTime, Ledger
from aligngap.pipeline.graph import Event
from aligngap.pipeline.rundir import RunDirectory, chosen_store, differences
from aligngap.store import Store
from unit.pipeline.fake_stages import Fake
from unprivileged import shared_folder, unprivileged

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
from aligngap.pipeline.executors.progress import Ledger, KindTime
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


def everything(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that is below a folder, with mode, time of change and contents."""
    return {
        path.relative_to(folder).as_posix(): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else b"",
        )
        for path in [folder, *folder.rglob("*")]
    }


@pytest.mark.parametrize("more", ["thesis.tex", "folder/", ".lock=mine", ".lock/", ".lock->nowhere"])
def test_somebodys_folder_is_left_as_it_was(tmp_path: Path, more: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".secret.deadbeef").write_text("mine")
    (home / ".status.json.deadbeef").write_text("mine too")
    (home / ".folder.deadbeef").mkdir()
    if more.endswith("/"):
        (home / more).mkdir()
    elif "->" in more:
        (home / ".lock").symlink_to("nowhere")
    else:
        (home / more.partition("=")[0]).write_text("mine")
    before = everything(home)
    with pytest.raises(UserError, match="other things and no study") as caught, RunDirectory.use(home, STUDY):
        pass
    assert caught.value.where == str(home)
    assert everything(home) == before


def test_another_studys_folder_is_left_as_it_was(tmp_path: Path) -> None:
    start(tmp_path)
    (tmp_path / ".lock").unlink()
    (tmp_path / ".status.json.deadbeef").write_text("{")
    before = everything(tmp_path)
    with pytest.raises(UserError, match="another study"), RunDirectory.use(tmp_path, {"name": "other"}):
        pass
    assert everything(tmp_path) == before


def test_of_hidden_files_only_halves_of_a_runs_own_go(tmp_path: Path) -> None:
    halves = [".status.json.deadbeef", ".study.json.00000000", ".results.json.0123abcd", ".points.parquet.0123abcd"]
    theirs = [".secret.deadbeef", ".status.json.DEADBEEF", ".status.json.backup", ".notes.json.deadbeef", ".DS_Store"]
    for name in (*halves, *theirs):
        (tmp_path / name).write_text("x")
    (tmp_path / ".samples.parquet.deadbeef").mkdir()
    (tmp_path / ".study.json.deadbeef").symlink_to(tmp_path / ".secret.deadbeef")
    start(tmp_path)
    kept = {".samples.parquet.deadbeef", ".study.json.deadbeef", *theirs}
    assert {path.name for path in tmp_path.iterdir()} == kept | {".lock", "study.json", "status.json"}


def test_of_a_report_halves_go_too(tmp_path: Path) -> None:
    start(tmp_path)
    (tmp_path / "charts").mkdir()
    halves = [".report.html.0123abcd", "charts/.arena-goodhart-train.png.0123abcd"]
    theirs = [".arena.png.0123abcd", "charts/.secret.0123abcd", "charts/arena.png"]
    for name in (*halves, *theirs):
        (tmp_path / name).write_text("x")
    start(tmp_path)
    assert [name for name in (*halves, *theirs) if (tmp_path / name).exists()] == theirs


@pytest.mark.parametrize("kind", ["file", "link to nothing", "link to a file", "link to itself", "pipe"])
def test_what_is_no_folder_is_no_place_for_a_run(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "out"
    (tmp_path / "file").write_text("mine")
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "file":
        place.write_text("mine")
    else:
        targets = {"link to nothing": "absent", "link to a file": "file", "link to itself": "out"}
        place.symlink_to(tmp_path / targets[kind])
    before = everything(tmp_path)
    with pytest.raises(UserError) as caught, RunDirectory.use(place, STUDY):
        pass
    assert (caught.value.where, "--out" in str(caught.value.hint)) == (str(place), True)
    assert everything(tmp_path) == before


def test_a_link_to_a_folder_is_the_folder(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    start(tmp_path / "out")
    assert RunDirectory.open(tmp_path / "disk").status()["state"] == "finished"


def test_what_may_not_be_read_is_no_damage(tmp_path: Path) -> None:
    with shared_folder() as shared:
        start(shared / "run")
        for closed in (shared / "run" / "status.json", shared / "run" / "study.json", shared / "run"):
            mode = closed.stat().st_mode
            closed.chmod(0)
            with unprivileged(), pytest.raises(UserError, match="may not be read") as caught:
                RunDirectory.open(shared / "run").status()
            assert "permissions" in str(caught.value.hint)
            closed.chmod(mode)
        with unprivileged():
            assert RunDirectory.open(shared / "run").status()["state"] == "finished"


VALUES = [None, True, -1, 3, 2**70, 1e300, "", "text", "a\0b", "../up", [], [3], {}, {"a": [1]}]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_no_odd_value_in_a_status_gets_through(tmp_path: Path, value: object) -> None:
    """Each key in turn: what is read is of the kinds that are written, or refused with file and key."""
    start(tmp_path)
    path = tmp_path / "status.json"
    whole = json.loads(path.read_text())
    refused: dict[str, UserError] = {}
    keys = [*whole, *(f"stages[1].{key}" for key in whole["stages"][0])]
    for key in keys:
        changed = json.loads(json.dumps(whole))
        part = changed["stages"][1] if "." in key else changed
        part[key.rpartition(".")[2]] = value
        path.write_text(json.dumps(changed))
        try:
            found = RunDirectory.open(tmp_path)
            status = found.status()
        except UserError as error:
            refused[key] = error
            continue
        assert isinstance(status["seconds"], float)
        assert isinstance(found.time_by_kind(status), list)
        assert isinstance(found.activities(status), dict)
        assert isinstance(found.store_path().exists(), bool)
    assert {error.where for error in refused.values()} == {str(path)}
    assert all(error.what.startswith(key) for key, error in refused.items())
    assert len(refused) > len(keys) / 3


def test_a_run_that_is_lost_says_so_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path)
    path = tmp_path / "status.json"
    status = json.loads(path.read_text())
    status |= {"state": "running", "memory_kills": 3, "jobs": 2, "updated": "2026-11-29T12:00:00+00:00"}
    status["stages"][1]["status"] = "running"
    for kills, word in ((4, "run out of memory"), (3, "as a kill"), (None, "as a kill")):
        monkeypatch.setattr("aligngap.pipeline.rundir.memory_kills", lambda kills=kills: kills)
        path.write_text(json.dumps(status))
        lost = RunDirectory.open(tmp_path).status()["lost"]
        assert word in lost
        assert "running then: fake [b]" in lost
        assert "--jobs below 2" in lost
        with RunDirectory.use(tmp_path, STUDY) as run:
            assert run.lost == lost
            run.begin(Ledger([], 1), tmp_path / "store")
        assert RunDirectory.open(tmp_path).status()["lost"] == ""


def test_a_name_that_is_no_unicode_can_be_said_and_read_again(tmp_path: Path) -> None:
    stage = Fake(name="a")
    ledger = Ledger([stage], 1)
    with RunDirectory.use(tmp_path, STUDY) as run:
        run.begin(ledger, tmp_path / "store")
        ledger.update(Event("failed", stage, reason=os.fsdecode(b"/data/\xff.jsonl: no such file")))
    (item,) = RunDirectory.open(tmp_path).status()["stages"]
    assert item["reason"] == "/data/\\udcff.jsonl: no such file"


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
    assert found.time_by_kind(found.status()) == [KindTime("fake", stages=4, timed=3, seconds=10.0)]
    status = found.status() | {"jobs": 2, "seconds": 10.0}
    assert found.activities(status) == {"waiting": 17.5, "sampling": 5.5, "unknown": 2.5, "training": 2.0}
