"""What a run and a node of a cluster say before any stage is started, without a cluster: what needs one is in
tests/contract and tests/e2e.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aligngap.cli import main
from aligngap.errors import UserError
from aligngap.pipeline.executors.cluster import executor as executor_module
from aligngap.pipeline.executors.cluster.driver import _knock
from aligngap.pipeline.executors.cluster.node import Job, here, keep, unfit
from aligngap.pipeline.executors.packed import PackedStage
from aligngap.pipeline.executors.worker import StageSettings
from aligngap.store import Store
from aligngap.store import store as store_module
from unit.pipeline.fake_stages import Fake, Steps

REFUSED = """
import sys
from aligngap.store import Store
print(Store(sys.argv[1], reading=True).sees(sys.argv[2]))
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def token(store: Store) -> Iterator[str]:
    with store.shown() as found:
        yield found


def test_a_node_that_shares_all_is_fit(store: Store, token: str) -> None:
    assert unfit(here(), str(store.root), token) == ""


def test_another_process_sees_the_lock(store: Store, token: str) -> None:
    words = [sys.executable, "-c", REFUSED, str(store.root), token]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run(words, env=variables, capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"python": "3.9"}, "and the run's machine has 3.9"),
        ({"aligngap": "7.0"}, "and the run's machine has 7.0"),
        ({"code": {**here()["code"], "losses.py": "0"}}, "not the same: losses.py differs"),
        ({"code": {**here()["code"], "a_new_one.py": "0"}}, "not the same: a_new_one.py differs"),
        ({"packages": {**here()["packages"], "torch": "1.0"}}, "it has torch "),
    ],
)
def test_what_differs_is_named(store: Store, token: str, change: dict[str, object], told: str) -> None:
    assert told in unfit({**here(), **change}, str(store.root), token)


def test_a_folder_that_is_not_the_runs(
    store: Store, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_UNSEEN", 0.0)
    Store(tmp_path / "other")
    for other in ("other", "nowhere"):
        found = unfit(here(), str(tmp_path / other), token)
        assert found == f"it does not see the run's store at {tmp_path / other}"


def test_locks_that_do_not_reach(store: Store) -> None:
    with store.shown() as token:
        pass
    (store.root / ".locks" / f"{token}.lock").touch()  # there, and held by nobody
    assert "does not hold there" in store.sees(token)


def test_nothing_is_left_of_having_shown_it(store: Store) -> None:
    with store.shown() as token:
        assert list((store.root / ".locks").iterdir()) == [store.root / ".locks" / f"{token}.lock"]
    assert list((store.root / ".locks").iterdir()) == []


def test_a_keeper_passes_on_what_a_stage_says_and_prints(store: Store) -> None:
    stage = Fake(name="a", does="print")
    job = Job(PackedStage.of(stage), StageSettings(store.root, "cpu"), stage.identity)
    said = list(keep(job.packed(), "the node"))
    assert said[0] == ("log", b"a warning\n")
    assert said[-1][0] == "finished"
    assert store.get(stage.identity).record()["node"] == "the node"


def test_a_keeper_that_is_told_to_stop_ends_its_stage(store: Store) -> None:
    stage = Steps(steps=10_000)
    job = Job(PackedStage.of(stage), StageSettings(store.root, "cpu"), stage.identity)
    keeper = keep(job.packed(), "the node")
    assert next(keeper)[0] == "progress"
    keeper.close()
    assert list((store.root / ".temporary").iterdir()) == []
    with store.if_idle(stage.identity) as idle:
        assert idle


def test_nobody_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match="nothing answers there") as caught:
            _knock(address)
    assert caught.value.where == f"--address {address}"


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "head:", ":6379", "http://head:port"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UserError, match="no address of a Ray cluster"):
        _knock(address)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--executor", "rey"], "there is no executor 'rey'"),
        (["--executor", "ray"], "Ray is not installed"),
        (["--set", "device=cuda"], "this machine has no CUDA device"),
        (["--executor", "ray", "--set", "device=mps"], "Ray cannot give stages the device 'mps'"),
        (["--executor", "ray", "--set", "device=cuda:1"], "Ray cannot give stages the device 'cuda:1'"),
        (["--store", "s3://bucket/runs"], "artefacts at a URL are for --executor ray"),
        (["--address", "here:1"], "--address is for --executor ray"),
    ],
)
def test_one_error_each(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(executor_module, "find_spec", lambda name: "device" in str(words) or None)
    assert main(["run", "quick", "--smoke", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {told}")
    assert "Traceback" not in said
    assert list(tmp_path.rglob("*")) == []
