"""Whole studies on a real Ray cluster of several nodes, whose nodes and head are lost on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import aligngap
from aligngap.pipeline.executors.cluster.executor import RayExecutor
from aligngap.pipeline.executors.run import run_stages
from aligngap.store import Store
from faults.campaign import STUDY, contents, difference, results
from ray_nodes import Nodes, nodes
from tiny import Tiny
from unit.pipeline.fake_stages import Fake, read

pytestmark = pytest.mark.slow

PATIENCE = 400.0


@pytest.fixture(autouse=True, scope="module")
def _ray() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'aligngap[ray]'")


@dataclass
class Lab:
    """A study, and what an undisturbed run of it on this machine gives."""

    folder: Path

    def start(self, out: str, *more: str, variables: dict[str, str] | None = None) -> subprocess.Popen[str]:
        words = ["run", "study.yaml", "--out", out, "--checkpoint-seconds", "0", *more]
        paths = [str(Path(aligngap.__file__).parents[1]), str(Path(__file__).parents[1])]
        given = {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200", **(variables or {})}
        return subprocess.Popen(
            [sys.executable, "-m", "aligngap", *words],
            cwd=self.folder,
            env={**os.environ, **given},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, out: str, *more: str, variables: dict[str, str] | None = None) -> tuple[int, str]:
        """Exit code and what went to stderr."""
        return ended(self.start(out, *more, variables=variables))

    def status(self, out: str) -> dict[str, Any]:
        with suppress(FileNotFoundError, json.JSONDecodeError):
            found: dict[str, Any] = json.loads((self.folder / out / "status.json").read_text())
            return found
        return {"stages": []}

    def check(self, out: str) -> None:
        """The identity check: all but times is as on one machine that nobody disturbed."""
        expected, found = results(self.folder / "here"), results(self.folder / out)
        assert found == expected, difference(expected, found)
        store = self.folder / out / "store"
        assert Store(store).verify() == []
        assert contents(store) == contents(self.folder / "here" / "store")
        assert list((store / ".temporary").iterdir()) + list((store / ".partial").iterdir()) == []

    def made_on(self, out: str) -> set[str]:
        store = Store(self.folder / out / "store")
        return {str(store.get(name).record()["node"]) for name in made_by_nodes(store)}


def made_by_nodes(store: Store) -> list[str]:
    """The artefacts in a store but the report, which is made where the run is."""
    return [name for name in store.identities() if not name.startswith("report-")]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    found = Lab(tmp_path_factory.mktemp("lab"))
    Tiny(found.folder)  # its base
    (found.folder / "study.yaml").write_text(STUDY)
    code, said = found.run("here", "--jobs", "2")
    assert code == 0, said
    return found


@contextmanager
def cluster(folder: Path, variables: dict[str, str] | None = None) -> Iterator[Nodes]:
    """Two nodes with a core each."""
    with nodes(folder) as found:
        found.head()
        found.node(variables=variables)
        yield found


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert "Traceback" not in said
    return process.returncode, said


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"it ended before: {process.communicate()}")
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.1)


def test_a_node_is_lost_on_the_way_and_another_comes(lab: Lab, tmp_path: Path) -> None:
    with cluster(tmp_path) as found:
        process = lab.start("lost", "--executor", "ray", "--address", found.address, variables=found.variables)

        def two_at_work() -> bool:
            states = [stage["status"] for stage in lab.status("lost")["stages"]]
            return states.count("finished") >= 4 and states.count("running") == 2

        until(two_at_work, process)
        found.lose(found.others[0])
        found.node()
        code, said = ended(process)
        assert code == 0, said
        lab.check("lost")
        assert len(lab.made_on("lost")) >= 2
        # And the commands that read a run know no difference.
        shown = subprocess.run(
            [sys.executable, "-m", "aligngap", "status", "lost"],
            cwd=lab.folder,
            env={**os.environ, "PYTHONPATH": str(Path(aligngap.__file__).parents[1])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "Where time went" in shown
        assert not (lab.folder / "lost" / "logs" / "ray.log").exists()


def test_the_head_is_lost_and_comes_back_and_the_run_is_killed(lab: Lab, tmp_path: Path) -> None:
    more = ("--executor", "ray", "--address")
    with cluster(tmp_path) as found:
        process = lab.start("head", *more, found.address, variables=found.variables)

        def finished(count: int) -> bool:
            return [stage["status"] for stage in lab.status("head")["stages"]].count("finished") >= count

        until(lambda: finished(4), process)
        assert found.first is not None
        found.lose(found.first)
        start = time.monotonic()
        code, said = ended(process)
        assert code == 2
        assert time.monotonic() - start < 90
        assert said.startswith("error: ")
        assert "Ray cluster" in said.splitlines()[0]
        assert len(said.splitlines()) == 3
        assert lab.status("head")["state"] == "failed"
        # Still away:
        code, said = lab.run("head", *more, found.address, variables=found.variables)
        assert code == 2
        assert "nothing answers there" in said

        # Ray ends a node without a head after a minute; until then it starts no other head on the same machine.
        found.lose(*found.others)
        found.head()
        found.node()
        before = set(Store(lab.folder / "head" / "store").identities())
        process = lab.start("head", *more, found.address, variables=found.variables)
        until(lambda: set(Store(lab.folder / "head" / "store").identities()) > before, process)
        process.kill()
        process.communicate()
        code, said = lab.run("head", *more, found.address, variables=found.variables)
        assert code == 0, said
        lab.check("head")


def test_nodes_without_a_common_disk(lab: Lab, tmp_path: Path) -> None:
    """Each has a store of its own; one is lost, and with it what only it had not brought to the URL."""
    with nodes(tmp_path) as found:
        found.head(variables={"ALIGNGAP_STORE": str(tmp_path / "first")})
        found.node(variables={"ALIGNGAP_STORE": str(tmp_path / "second")})
        more = ("--executor", "ray", "--address", found.address, "--store", f"file://{tmp_path}/remote_cache")
        process = lab.start("apart", *more, variables=found.variables)
        until(lambda: [s["status"] for s in lab.status("apart")["stages"]].count("finished") >= 6, process)
        found.lose(found.others[0])
        shutil.rmtree(tmp_path / "second")
        found.node(variables={"ALIGNGAP_STORE": str(tmp_path / "third")})
        code, said = ended(process)
        assert code == 0, said
        lab.check("apart")
        assert len(lab.made_on("apart")) >= 2
        made = set(made_by_nodes(Store(lab.folder / "apart" / "store")))
        assert {path.stem for path in (tmp_path / "remote_cache" / "artefacts").iterdir()} == made
        assert set(Store(tmp_path / "third").identities()) < made


def test_a_stopped_run_goes_on(lab: Lab) -> None:
    """On a cluster of its own."""
    process = lab.start("own", "--executor", "ray", "--jobs", "2")
    until(lambda: [stage["status"] for stage in lab.status("own")["stages"]].count("finished") >= 3, process)
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    code, said = ended(process)
    assert code == 130
    assert time.monotonic() - start < 30
    assert "--executor ray" in said.splitlines()[-1]
    code, said = lab.run("own", "--executor", "ray", "--jobs", "2")
    assert code == 0, said
    lab.check("own")


def test_python_asks_for_a_cluster_too(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab.folder)
    results = aligngap.run("study.yaml", out="python", executor="ray", jobs=2, checkpoint_seconds=0)
    assert results.missing.is_empty()
    lab.check("python")


def test_a_node_with_another_version_or_other_code_is_refused(lab: Lab, tmp_path: Path) -> None:
    source = Path(aligngap.__file__).parent
    shutil.copytree(source, tmp_path / "aligngap", ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    with cluster(tmp_path, {"PYTHONPATH": str(tmp_path)}) as found:
        for name, text, told in (
            ("losses.py", "# edited here\n", "not the same: losses.py differs"),
            ("__init__.py", '__version__ = "9.9.9"\n', "it has aligngap 9.9.9"),
        ):
            with (tmp_path / "aligngap" / name).open("a") as file:
                file.write(text)
            more = ("--executor", "ray", "--address", found.address)
            code, said = lab.run("other", *more, variables=found.variables)
            assert code == 2
            assert told in said.splitlines()[0]
            assert len(said.splitlines()) == 3


def test_a_stage_is_given_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose node says that it has two; the head has none."""
    store = Store(tmp_path / "store")
    with nodes(tmp_path) as found:
        for name, value in found.variables.items():
            monkeypatch.setenv(name, value)
        found.head()
        found.node(cpus=4, gpus=2)
        stages = [Fake(name=name, seconds=2.0) for name in "abc"]
        executor = RayExecutor(store, address=found.address, jobs=None, device="cuda", log_folder=tmp_path / "logs")
        with executor:
            assert executor.jobs == 2
            outcome = run_stages(stages, executor, lambda event: None)
    assert set(outcome.status.values()) == {"finished"}
    made = [read(store.get(stage.identity).path) for stage in stages]
    assert all(stage["devices"] in ("0", "1") for stage in made)
    side_by_side = [b for b in made[1:] if b["start"] < made[0]["end"] and made[0]["start"] < b["end"]]
    assert side_by_side
    assert all(b["devices"] != made[0]["devices"] for b in side_by_side)


def test_no_gpu_where_one_is_asked_for(lab: Lab) -> None:
    code, said = lab.run("gpu", "--executor", "ray", "--set", "device=cuda")
    assert code == 2
    assert said.startswith("error: no node of the Ray cluster has 1 GPU and 1 CPU for a stage")
