"""Artefacts by way of a URL: whole, verified, or not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from aligngap.errors import UserError
from aligngap.pipeline import remote_cache as module
from aligngap.pipeline.archive import pack_one
from aligngap.pipeline.executors.cluster.node import Job, here, keep, unfit
from aligngap.pipeline.executors.packed import PackedStage
from aligngap.pipeline.executors.run import Message
from aligngap.pipeline.executors.worker import StageSettings
from aligngap.pipeline.graph import Stage
from aligngap.pipeline.remote_cache import RemoteCache
from aligngap.store import Store
from tiny import make
from unit.pipeline.fake_stages import Fake, ReadsFurther, Steps, read


@pytest.fixture(params=["file", "memory"])
def remote_cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RemoteCache]:
    yield RemoteCache(f"file://{tmp_path}/remote_cache" if request.param == "file" else "memory://remote_cache")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def file_remote_cache(tmp_path: Path) -> RemoteCache:
    return RemoteCache(f"file://{tmp_path}/remote_cache")


@pytest.fixture
def one(tmp_path: Path) -> Store:
    return Store(tmp_path / "one")


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(tmp_path / "other")


def test_an_artefact_comes_as_it_was(remote_cache: RemoteCache, one: Store, other: Store) -> None:
    stage = Fake(name="a", does="weights")
    make(stage, one)
    assert not remote_cache.pull(other, stage.identity)
    remote_cache.push(one, stage.identity)
    assert remote_cache.has(stage.identity)
    assert remote_cache.pull(other, stage.identity)
    files = [{p.name: p.read_bytes() for p in store.get(stage.identity).path.iterdir()} for store in (one, other)]
    assert files[0] == files[1]
    assert other.verify() == []
    assert list((other.root / ".temporary").iterdir()) == []


@pytest.mark.parametrize("how", ["cut", "flipped", "another's", "empty"])
def test_what_is_not_whole_is_not_there(
    file_remote_cache: RemoteCache, one: Store, other: Store, tmp_path: Path, how: str
) -> None:
    stage, second = Fake(name="a", does="weights"), Fake(name="b")
    for part in (stage, second):
        make(part, one)
        file_remote_cache.push(one, part.identity)
    file = tmp_path / "remote_cache" / "artefacts" / f"{stage.identity}.tar"
    data = file.read_bytes()
    at = data.index(bytes(1000))  # of the weights
    file.write_bytes(
        {
            "cut": data[: at + 500],
            "flipped": data[:at] + b"x" + data[at + 1 :],
            "another's": file.with_name(f"{second.identity}.tar").read_bytes(),
            "empty": b"",
        }[how]
    )
    assert not file_remote_cache.pull(other, stage.identity)
    assert other.identities() == []
    assert not file_remote_cache.has(stage.identity)  # so that it is brought again


def test_step_checkpoints(remote_cache: RemoteCache, one: Store, other: Store) -> None:
    stage = Steps()
    (one.partial(stage.identity) / "checkpoint.json").write_text(json.dumps({"step": 7}))
    remote_cache.push(one, stage.identity, finished=False)
    assert not remote_cache.has(stage.identity)
    assert remote_cache.pull(other, stage.identity, finished=False)
    assert json.loads((other.unfinished(stage.identity) / "checkpoint.json").read_text()) == {"step": 7}
    remote_cache.drop(stage.identity, finished=False)
    assert not remote_cache.pull(Store(other.root.with_name("third")), stage.identity, finished=False)


def test_an_address_that_cannot_be_used() -> None:
    with pytest.raises(UserError, match="cannot be used"):
        RemoteCache("nothing://known")


def test_a_node_that_does_not_see_it(file_remote_cache: RemoteCache, tmp_path: Path) -> None:
    with file_remote_cache.shown() as token:
        assert unfit(here(), file_remote_cache.url, token) == ""
        other = f"file://{tmp_path}/elsewhere"
        assert unfit(here(), other, token) == f"what the run has put to {other} cannot be seen there"
    assert "cannot be seen there" in unfit(here(), file_remote_cache.url, token)


def carried(
    stage: Stage, remote_cache: RemoteCache, cache: Path, monkeypatch: pytest.MonkeyPatch, seconds: float = 120.0
) -> Iterator[Message]:
    """What a node with this store of its own says of a stage."""
    monkeypatch.setenv("ALIGNGAP_STORE", str(cache))
    inputs = tuple(parent.identity for parent in stage.parents)
    settings = StageSettings(Path("/nowhere"), "cpu", seconds)
    return keep(Job(PackedStage.of(stage), settings, stage.identity, remote_cache.url, inputs).packed(), "a node")


def test_nodes_with_stores_of_their_own(
    file_remote_cache: RemoteCache, one: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = Fake(name="a")
    b = Fake(name="b", after=(a,))
    assert list(carried(b, file_remote_cache, other.root, monkeypatch))[-1][0] == "damaged"  # for want of its input
    assert list(carried(a, file_remote_cache, one.root, monkeypatch))[-1][0] == "finished"
    assert list(carried(b, file_remote_cache, other.root, monkeypatch))[-1][0] == "finished"
    assert read(other.get(b.identity).path)["seen"] == ["a"]
    assert list(carried(b, file_remote_cache, one.root, monkeypatch))[-1] == ("cached",)  # not made twice
    for store in (one, other):
        assert store.verify() == []
        assert sorted(store.identities()) == sorted([a.identity, b.identity])


def test_a_node_brings_what_a_stage_reads_further_up_and_nothing_else(
    file_remote_cache: RemoteCache, one: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = Fake(name="a"), Fake(name="b")
    c = Fake(name="c", after=(a, b))
    plain, further = Fake(name="d", after=(c,)), ReadsFurther(name="e", after=(c,))
    for stage in (a, b, c):
        assert list(carried(stage, file_remote_cache, one.root, monkeypatch))[-1][0] == "finished"
    assert list(carried(plain, file_remote_cache, other.root, monkeypatch))[-1][0] == "finished"
    assert sorted(other.identities()) == sorted([c.identity, plain.identity])
    assert list(carried(further, file_remote_cache, other.root, monkeypatch))[-1][0] == "finished"
    assert read(other.get(further.identity).path)["seen"] == ["c", "a", "b"]


def test_an_input_that_is_damaged_on_a_node_is_brought_again(
    file_remote_cache: RemoteCache, one: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = Fake(name="a")
    b = Fake(name="b", after=(a,))
    assert list(carried(a, file_remote_cache, one.root, monkeypatch))[-1][0] == "finished"
    (one.get(a.identity).path / "times.json").write_text("{}")
    said = list(carried(b, file_remote_cache, one.root, monkeypatch))[-1]
    assert (said[0], said[1][0].identity) == ("damaged", a.identity)
    assert list(carried(a, file_remote_cache, one.root, monkeypatch))[-1] == ("cached",)
    assert list(carried(b, file_remote_cache, one.root, monkeypatch))[-1][0] == "finished"


def test_a_stage_goes_on_at_another_node(
    file_remote_cache: RemoteCache, one: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Steps(steps=60, seconds=0.05)
    keeper = carried(stage, file_remote_cache, one.root, monkeypatch, seconds=0.0)
    while next(keeper)[1] < 20:
        pass
    keeper.close()  # the node is lost
    assert list(carried(stage, file_remote_cache, other.root, monkeypatch))[-1][0] == "finished"
    assert read(other.get(stage.identity).path)["first"] >= 5
    assert list((other.root / ".partial").iterdir()) == []
    third = Store(other.root.with_name("third"))
    assert not file_remote_cache.pull(third, stage.identity, finished=False)


def test_step_checkpoints_that_go_while_they_are_packed_cost_the_stage_nothing(
    file_remote_cache: RemoteCache, one: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, tried = Steps(steps=10, seconds=0.05), list[str]()

    def gone(folder: Path, name: str, file: Path, *, finished: bool) -> None:
        if not finished:
            tried.append(name)
            (folder / "gone").read_bytes()
        pack_one(folder, name, file, finished=finished)

    monkeypatch.setattr(module, "pack_one", gone)
    assert list(carried(stage, file_remote_cache, one.root, monkeypatch, seconds=0.0))[-1][0] == "finished"
    assert tried
    assert file_remote_cache.has(stage.identity)
