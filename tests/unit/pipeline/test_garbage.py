"""What no run refers to goes, and only that."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aligngap.errors import UserError
from aligngap.pipeline.garbage import collect_garbage, users_of
from aligngap.pipeline.rundir import RunDirectory
from aligngap.store import Store
from unit.pipeline.fake_stages import Fake
from unit.pipeline.runs import finished, make

SHARED = Fake(name="shared")
ONE, TWO, BEGUN = (Fake(name=name, after=(SHARED,)) for name in ("one", "two", "begun"))
LOOSE = Fake(name="loose")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "runs" / "store")
    finished(tmp_path / "runs" / "one", store, ONE)
    finished(tmp_path / "far" / "two", store, TWO, BEGUN, leave=[BEGUN])
    make(store, LOOSE)
    (store.partial(Fake(name="never").identity) / "state").write_bytes(b"x")
    return store


def freed(store: Store, dry_run: bool = False) -> list[str]:
    found, _ = collect_garbage(store, dry_run)
    return sorted(item.identity for item in found if not item.held)


def names(*stages: Fake) -> list[str]:
    return sorted(stage.identity for stage in stages)


def test_what_nobody_refers_to(store: Store) -> None:
    expected = names(LOOSE, Fake(name="never"))
    assert freed(store, dry_run=True) == expected
    assert freed(store) == expected
    assert freed(store) == []
    assert store.identities() == names(SHARED, ONE, TWO)
    assert list(store.partials()) == names(BEGUN)
    assert store.verify() == []


def test_what_a_removed_run_alone_referred_to(store: Store, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "far" / "two")
    _, users = collect_garbage(store, dry_run=True)
    assert [user.folder for user in users.gone] == [tmp_path / "far" / "two"]
    assert freed(store) == names(LOOSE, Fake(name="never"), TWO, BEGUN)
    assert store.identities() == names(SHARED, ONE)
    assert len(store.users()) == 1


def test_when_all_runs_are_removed_all_goes(store: Store, tmp_path: Path) -> None:
    for folder in ("runs/one", "far/two"):
        shutil.rmtree(tmp_path / folder)
    collect_garbage(store)
    assert (store.identities(), store.users()) == ([], [])


def test_a_run_that_cannot_be_seen_keeps_its_own(store: Store, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "far")  # a disk that is not mounted looks like this
    assert freed(store) == names(LOOSE, Fake(name="never"))
    assert [user.folder for user in users_of(store).unseen] == [tmp_path / "far" / "two"]


@pytest.mark.parametrize("to", ["runs/renamed", "far/renamed", "runs/two"])
def test_a_renamed_run_is_found_beside_the_store_or_where_a_run_was(store: Store, tmp_path: Path, to: str) -> None:
    old = tmp_path / ("runs/one" if to == "runs/renamed" else "far/two")
    old.rename(tmp_path / to)
    assert freed(store) == names(LOOSE, Fake(name="never"))


def test_a_run_that_holds_its_store(tmp_path: Path) -> None:
    with RunDirectory.use(tmp_path / "mine", {"name": "try", "title": "try"}):
        store = Store(tmp_path / "mine" / "store")
    finished(tmp_path / "mine", store, ONE)
    make(store, LOOSE)
    (tmp_path / "mine").rename(tmp_path / "moved")
    moved = Store(tmp_path / "moved" / "store")
    assert freed(moved) == names(LOOSE)
    shutil.rmtree(moved.root / ".users")  # made by a version that kept no register
    make(Store(moved.root), LOOSE)
    assert freed(Store(moved.root)) == names(LOOSE)


def test_a_run_that_went_to_another_store_no_longer_refers_to_this_one(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    finished(tmp_path / "runs" / "one", other, ONE)
    assert freed(store) == names(LOOSE, Fake(name="never"), ONE)
    assert freed(other) == []


def test_a_live_run_keeps_what_it_needs_whatever_its_status_says(store: Store, tmp_path: Path) -> None:
    study = {"name": "try", "title": "try"}
    with RunDirectory.use(tmp_path / "runs" / "one", study):  # has just begun: its status is still the last run's
        store.register(tmp_path / "runs" / "one", names(LOOSE))
        assert LOOSE.identity not in freed(store, dry_run=True)
    (tmp_path / "runs" / "one" / "status.json").write_text("{")  # or none at all
    assert LOOSE.identity not in freed(store, dry_run=True)


def test_what_is_being_made_stays(store: Store) -> None:
    with store.lock(LOOSE.identity):
        assert freed(store) == names(Fake(name="never"))
        held = [item.identity for item in collect_garbage(store)[0] if item.held]
    assert held == names(LOOSE)
    assert store.has(LOOSE.identity)


def test_a_store_of_which_no_run_is_known_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make(store, LOOSE)
    with pytest.raises(UserError, match="no run is known"):
        collect_garbage(store)
    assert store.has(LOOSE.identity)


def test_somebody_elses_folders_beside_it(store: Store, tmp_path: Path) -> None:
    broken = (("x", "{"), ("y", "[]"), ("z", '{"stages": 3}'))
    for name, text in broken:
        (tmp_path / "runs" / name).mkdir()
        for file in ("study.json", "status.json"):
            (tmp_path / "runs" / name / file).write_text(text)
    assert freed(store) == names(LOOSE, Fake(name="never"))


def test_a_damaged_status_of_a_run_that_uses_it_stops_the_tidying(store: Store, tmp_path: Path) -> None:
    (tmp_path / "runs" / "old").mkdir()
    (tmp_path / "runs" / "old" / "study.json").write_text("{}")
    (tmp_path / "runs" / "old" / "status.json").write_text('{"store": "../store", "stages": [3]}')
    with pytest.raises(UserError) as caught:
        collect_garbage(store)
    assert str(tmp_path / "runs" / "old") in (caught.value.where or "")
    assert store.has(LOOSE.identity)
