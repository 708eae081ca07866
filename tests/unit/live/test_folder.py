"""What a look at a run's folder shows, in whatever state it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from aligngap.errors import UserError
from aligngap.live.folder import Watched
from aligngap.store import Store
from unit.live.run_folder import snapshot, stage, write_run


def test_a_run_that_somebody_holds_runs_and_one_that_nobody_holds_was_interrupted(tmp_path: Path) -> None:
    watched = Watched(write_run(tmp_path))
    with FileLock(tmp_path / ".lock"):
        assert watched.look().state == "running"
    look = watched.look()
    assert look.state == "interrupted"
    assert [row["status"] for row in watched.table(look)] == ["finished", "interrupted", "failed"]
    assert [row["label"] for row in watched.summary(look)["running"]] == ["an arm"]


def test_looking_changes_nothing_and_holds_nobody_up(tmp_path: Path) -> None:
    watched = Watched(write_run(tmp_path))
    before = snapshot(tmp_path)
    watched.summary(watched.look())
    (tmp_path / ".lock").unlink()
    watched.summary(watched.look())
    assert not (tmp_path / ".lock").exists()
    (tmp_path / ".lock").touch()
    with FileLock(tmp_path / ".lock", timeout=0):  # given back at once
        watched.look()
    after = snapshot(tmp_path)
    assert {name: state[1:] for name, state in after.items()} == {name: state[1:] for name, state in before.items()}
    assert after["status.json"] == before["status.json"]


def test_the_summary_has_what_the_page_shows(tmp_path: Path) -> None:
    watched = Watched(write_run(tmp_path))
    with FileLock(tmp_path / ".lock"):
        found = watched.summary(watched.look())
    assert found["counts"] == {"finished": 1, "running": 1, "failed": 1}
    (running,) = found["running"]
    assert (running["done"], running["total"], running["rate"], running["left"]) == (3, 12, 1.5, 6.0)
    assert running["metrics"] == {"loss": 0.5}
    assert found["left"] == 30.0
    assert {row["kind"]: (row["stages"], row["seconds"]) for row in found["times"]} == {
        "evaluate": (2, 3.0),
        "arm": (1, 2.0),
    }
    assert "identity" not in running


def test_the_table_is_asked_for_again_when_a_state_changes_and_only_then(tmp_path: Path) -> None:
    watched = Watched(write_run(tmp_path, "finished", [stage("a", "running", done=1)]))
    first = watched.summary(watched.look())["stages"]
    write_run(tmp_path, "finished", [stage("a", "running", done=2)])
    assert watched.summary(watched.look())["stages"] == first
    write_run(tmp_path, "finished", [stage("a", "finished")])
    assert watched.summary(watched.look())["stages"] != first


def test_before_the_first_stage_and_after_the_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "status.json").unlink()
    watched = Watched(folder)
    look = watched.look()
    assert (look.state, watched.summary(look)["counts"], watched.table(look)) == ("starting", {}, [])
    shutil.rmtree(folder)
    look = watched.look()
    assert look.state == "unreadable"
    assert "not there any more" in str(watched.summary(look)["message"])


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"state": "running"}', '{"state": "running", "stages": [{"label": "x"}]}']
)
def test_a_damaged_state_is_said_and_survived(tmp_path: Path, text: str) -> None:
    watched = Watched(write_run(tmp_path))
    (tmp_path / "status.json").write_text(text)
    look = watched.look()
    assert look.state == "unreadable"
    assert look.message
    assert watched.summary(look)["state"] == "unreadable"


def test_results_count_only_when_they_are_of_this_run_and_it_is_over(tmp_path: Path) -> None:
    watched = Watched(write_run(tmp_path, "finished"))
    assert not watched.results_are_current(watched.look())
    (tmp_path / "results.json").write_text("{}")
    assert watched.results_are_current(watched.look())
    os.utime(tmp_path / "results.json", (1, 1))  # an earlier run's
    assert not watched.results_are_current(watched.look())
    (tmp_path / "results.json").touch()
    write_run(tmp_path, "interrupted")
    assert not watched.results_are_current(watched.look())


def test_a_run_without_stages_left_is_writing_its_results(tmp_path: Path) -> None:
    watched = Watched(write_run(tmp_path, "running", [stage("a", "finished"), stage("b", "cached")]))
    with FileLock(tmp_path / ".lock"):
        assert watched.look().closing
    assert not watched.look().closing


def test_what_is_no_runs_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run's folder"):
        Watched(tmp_path)


def test_cached_stages_count_with_what_they_took_when_they_were_made(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "finished", [stage("arm-0123456789abcdef0123", "cached", kind="arm")])
    watched = Watched(folder)
    assert watched.summary(watched.look())["times"] == [{"kind": "arm", "stages": 1, "timed": 0, "seconds": 0.0}]
    with Store(folder / "store").writing("arm-0123456789abcdef0123", {"seconds": 4.5}):
        pass
    assert watched.summary(watched.look())["times"] == [{"kind": "arm", "stages": 1, "timed": 1, "seconds": 4.5}]
