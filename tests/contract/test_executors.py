"""What becomes of stages, with real processes: on this machine, and on nodes of a Ray cluster (slow)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest

from aligngap.pipeline.executors.cluster.executor import RayExecutor
from aligngap.pipeline.executors.local import LocalExecutor
from aligngap.pipeline.executors.run import Executor, Interrupted, run_stages
from aligngap.pipeline.graph import Event, Outcome, Stage
from aligngap.store import DiskError, Store
from ray_nodes import Nodes, nodes
from unit.pipeline.fake_stages import Fake, ReadsFurther, ReadsUndeclared, Steps, read

NO_RAY = "Ray is not installed: pip install 'aligngap[ray]'"


class Go(Protocol):
    """Runs stages and returns what came of them, and all events."""

    def __call__(
        self,
        store: Store,
        *stages: Stage,
        jobs: int = 2,
        on_event: Callable[[Event], None] | None = None,
        log: Path | None = None,
    ) -> tuple[Outcome, list[Event]]: ...


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def running_in(executor: Callable[[Store, int, Path | None], Executor]) -> Go:
    def go(
        store: Store,
        *stages: Stage,
        jobs: int = 2,
        on_event: Callable[[Event], None] | None = None,
        log: Path | None = None,
    ) -> tuple[Outcome, list[Event]]:
        events: list[Event] = []

        def note(event: Event) -> None:
            events.append(event)
            if on_event:
                on_event(event)

        with executor(store, jobs, log) as found:
            return run_stages(stages, found, note), events

    return go


@pytest.fixture
def here() -> Go:
    return running_in(lambda store, jobs, log: LocalExecutor(store, jobs=jobs, device="cpu", log_folder=log))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two nodes with a core each, whatever this machine has."""
    pytest.importorskip("ray", reason=NO_RAY)
    with nodes(tmp_path_factory.mktemp("nodes")) as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.variables.items():
            patch.setenv(name, value)
        found.head()
        found.node()
        yield found


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def go(request: pytest.FixtureRequest, here: Go, tmp_path: Path) -> Go:
    """Here, or on two nodes."""
    if request.param == "local":
        return here
    address = request.getfixturevalue("cluster").address

    def executor(store: Store, jobs: int, log: Path | None) -> Executor:
        return RayExecutor(store, address=address, jobs=jobs, device="cpu", log_folder=log or tmp_path / "logs")

    return running_in(executor)


def kinds(events: Sequence[Event], stage: Stage) -> list[str]:
    return [event.kind for event in events if event.stage.identity == stage.identity]


def test_inputs_first_and_handed_on_in_order(go: Go, store: Store) -> None:
    a, b = Fake(name="a", seconds=0.2), Fake(name="b")
    c = Fake(name="c", after=(b, a))
    outcome, events = go(store, c)
    times = {stage.name: read(store.get(stage.identity).path) for stage in (a, b, c)}
    assert times["c"]["seen"] == ["b", "a"]
    assert times["c"]["start"] >= max(times["a"]["end"], times["b"]["end"])
    assert set(outcome.status.values()) == {"finished"}
    assert outcome.seconds[a.identity] >= 0.2
    assert kinds(events, c) == ["started", "finished"]


def test_a_stage_reads_further_up_where_it_says_so(go: Go, store: Store) -> None:
    a = Fake(name="a")
    b = Fake(name="b", after=(a,))
    further, undeclared = ReadsFurther(name="c", after=(b,)), ReadsUndeclared(name="d", after=(b,))
    outcome, _ = go(store, further, undeclared)
    assert read(store.get(further.identity).path)["seen"] == ["b", "a"]
    assert outcome.status[undeclared.identity] == "failed"
    assert outcome.mistakes[undeclared.identity].what == "a stage reads what it has not declared: 'fake [a]'"


def test_record_says_how_it_was_made(go: Go, store: Store) -> None:
    a = Fake(name="a")
    b = Fake(name="b", after=(a,))
    outcome, _ = go(store, b)
    record = store.get(b.identity).record()
    assert record["kind"] == "fake"
    assert record["label"] == "fake [b]"
    assert record["inputs"] == {"after": [a.identity]}
    assert record["specification"] == b.specification
    assert record["seconds"] == outcome.seconds[b.identity]
    assert set(record["spent"]) == {b.activity}
    assert sum(record["spent"].values()) <= record["seconds"]
    assert "environment" in record
    assert store.verify() == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_as_many_side_by_side_as_jobs(here: Go, store: Store, jobs: int) -> None:
    a, b = Fake(name="a", seconds=2.0), Fake(name="b", seconds=2.0)
    here(store, a, b, jobs=jobs)
    one, two = (read(store.get(stage.identity).path) for stage in (a, b))
    overlap = min(one["end"], two["end"]) - max(one["start"], two["start"])
    assert (overlap > 0) == (jobs == 2)


def test_one_thread_a_stage(go: Go, store: Store) -> None:
    stage = Fake(name="a")
    go(store, stage)
    found = read(store.get(stage.identity).path)
    assert (found["threads"], found["variable"]) == (1, "1")
    assert found["pid"] != os.getpid()


def test_what_is_in_the_store_needs_no_process(go: Go, store: Store) -> None:
    a = Fake(name="a")
    b = Fake(name="b", after=(a,))
    go(store, a)
    outcome, events = go(store, b)
    assert kinds(events, a) == ["cached"]
    assert outcome.status == {a.identity: "cached", b.identity: "finished"}
    assert a.identity not in outcome.seconds


def test_a_failure_stops_only_what_needs_it(go: Go, store: Store, tmp_path: Path) -> None:
    bad = Fake(name="bad", does="fail")
    needs = Fake(name="needs", after=(bad,))
    far = Fake(name="far", after=(needs,))
    good = Fake(name="good", seconds=0.3)
    after = Fake(name="after", after=(good,))
    outcome, _ = go(store, far, after, log=tmp_path / "logs")
    assert {stage.name: outcome.status[stage.identity] for stage in (bad, needs, far, good, after)} == {
        "bad": "failed",
        "needs": "blocked",
        "far": "blocked",
        "good": "finished",
        "after": "finished",
    }
    assert outcome.reasons[bad.identity] == "RuntimeError: out of luck"
    assert "fake [bad]" in outcome.reasons[far.identity]
    assert "Traceback" in (tmp_path / "logs" / f"{bad.identity}.log").read_text()
    assert len(list((tmp_path / "logs").iterdir())) == 1  # silent stages leave none
    assert list((store.root / ".temporary").iterdir()) == []


def test_a_users_mistake_keeps_its_words(go: Go, store: Store, tmp_path: Path) -> None:
    stage = Fake(name="a", does="mistake")
    outcome, _ = go(store, stage, log=tmp_path)
    assert outcome.reasons[stage.identity] == "data.csv: no such column\nRename it."
    assert outcome.mistakes[stage.identity].where == "data.csv"
    assert not (tmp_path / f"{stage.identity}.log").exists()


def test_a_process_that_is_lost_again_and_again_is_a_failure_with_the_signals_name(go: Go, store: Store) -> None:
    bad, good = Fake(name="bad", does="killed"), Fake(name="good", seconds=0.3)
    outcome, events = go(store, bad, good)
    assert outcome.status == {bad.identity: "failed", good.identity: "finished"}
    assert "SIGKILL" in outcome.reasons[bad.identity]
    assert list((store.root / ".temporary").iterdir()) == []
    assert kinds(events, bad) == ["started", "vanished", "started", "vanished", "started", "failed"]


@pytest.mark.parametrize("what", ["killed", "killed twice", "terminated", "memory"])
def test_a_stage_whose_process_is_lost_is_tried_again_and_at_last_alone(go: Go, store: Store, what: str) -> None:
    bad = Fake(name="bad", does=f"at first {what}")
    good = Fake(name="good", seconds=1.0, after=(Fake(name="early"),))
    after = Fake(name="after", after=(bad, good))
    outcome, events = go(store, after)
    assert set(outcome.status.values()) == {"finished"}
    assert outcome.reasons == {}
    tries = what.count("twice") + 1
    assert kinds(events, bad) == [*(["started", "vanished"] * tries), "started", "finished"]
    if what in ("killed twice", "memory"):
        one, two = (read(store.get(stage.identity).path) for stage in (bad, good))
        assert one["start"] > two["end"]  # when nothing else ran


def test_out_of_memory_with_nothing_beside_it_fails_at_once(here: Go, store: Store) -> None:
    bad = Fake(name="bad", does="at first memory")
    outcome, events = here(store, bad, jobs=1)
    assert outcome.reasons == {bad.identity: "MemoryError: too much"}
    assert kinds(events, bad) == ["started", "failed"]


def test_a_full_disk_stops_the_run_with_one_error(go: Go, store: Store) -> None:
    full, other = Fake(name="full", does="full", seconds=2.0), Steps(steps=10_000)
    with pytest.raises(DiskError, match="no room left") as caught:
        go(store, full, other, Fake(name="after", after=(full,)))
    assert caught.value.where == str(store.root)
    assert list((store.root / ".temporary").iterdir()) == []
    process = json.loads((store.partial(other.identity) / "checkpoint.json").read_text())["pid"]
    assert gone(process)


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


@pytest.mark.parametrize("how", ["cut", "flipped", "file gone", "manifest cut", "manifest gone"])
def test_a_damaged_artefact_is_set_aside_and_made_anew(here: Go, store: Store, how: str) -> None:
    a = Fake(name="a")
    b = Fake(name="b", after=(a,))
    c = Fake(name="c", after=(a,))
    here(store, b)
    home = store.get(a.identity).path
    file = home / ("manifest.json" if "manifest" in how else "times.json")
    if "gone" in how:
        file.unlink()
    elif how == "flipped":
        flip(file)
    else:
        file.write_bytes(file.read_bytes()[:-5])
    damaged = sorted(path.name for path in home.iterdir())
    outcome, events = here(store, b, c)
    assert outcome.status == {a.identity: "finished", b.identity: "cached", c.identity: "finished"}
    assert kinds(events, a) == ["damaged", "started", "finished"]
    assert store.verify() == []
    (aside,) = (store.root / ".aside").iterdir()
    assert sorted(path.name for path in aside.iterdir()) == damaged
    _, events = here(store, b, c)
    assert {event.kind for event in events} == {"cached"}


@pytest.fixture
def weights(here: Go, store: Store) -> Fake:
    """A finished stage with a large file, which a run does not look into before somebody reads it."""
    stage = Fake(name="weights", does="weights")
    here(store, stage)
    flip(store.get(stage.identity).path / "model.safetensors")
    return stage


def test_damage_that_only_a_reader_finds(go: Go, store: Store, weights: Fake) -> None:
    b, c = (Fake(name=name, after=(weights,)) for name in "bc")
    d = Fake(name="d", after=(b,))
    outcome, events = go(store, d, c)
    assert set(outcome.status.values()) == {"finished"}
    assert kinds(events, weights) == ["cached", "damaged", "started", "finished"]
    assert "waiting" in kinds(events, b) + kinds(events, c)  # or both, when both had started
    assert store.verify() == []


def test_an_input_that_is_missing_is_made(here: Go, store: Store) -> None:
    """As when somebody cleared it away while the run went on."""
    a, slow = Fake(name="a"), Fake(name="slow", seconds=1.0)
    b = Fake(name="b", after=(a, slow))

    cleared: list[str] = []

    def clear(event: Event) -> None:
        if event.kind == "finished" and event.stage is a and not cleared:
            shutil.rmtree(store.get(a.identity).path)
            cleared.append(a.identity)

    outcome, events = here(store, b, on_event=clear)
    assert set(outcome.status.values()) == {"finished"}
    assert kinds(events, b) == ["started", "waiting", "started", "finished"]


def test_a_stage_that_fails_because_its_input_was_damaged_meanwhile(here: Go, store: Store) -> None:
    a = Fake(name="a")
    b = Fake(name="b", after=(a,), does="damages its input at first")
    outcome, events = here(store, b)
    assert set(outcome.status.values()) == {"finished"}
    assert kinds(events, a) == ["started", "finished", "damaged", "started", "finished"]
    assert kinds(events, b) == ["started", "waiting", "started", "finished"]


def test_an_input_that_is_damaged_every_time_fails_its_user(here: Go, store: Store) -> None:
    a = Fake(name="a")
    b = Fake(name="b", after=(a,), does="damages its input")
    outcome, _ = here(store, b, Fake(name="good"))
    assert outcome.status[b.identity] == "failed"
    assert "as happens when a disk fails" in outcome.reasons[b.identity]
    assert sorted(outcome.status.values()) == ["failed", "finished", "finished"]


def test_a_stage_that_cannot_be_sent_to_a_process_fails_alone(go: Go, store: Store) -> None:
    class Local(Fake):
        """Not to be found by a child, as it is defined in a function."""

    bad, good = Local(name="bad"), Fake(name="good")
    outcome, _ = go(store, bad, good)
    assert outcome.status == {bad.identity: "failed", good.identity: "finished"}


def test_output_goes_to_the_log(go: Go, store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stage = Fake(name="a", does="print")
    go(store, stage, log=tmp_path)
    assert (tmp_path / f"{stage.identity}.log").read_text() == "a warning\n"
    assert capfd.readouterr().out == ""


def test_progress_is_throttled_but_ends_at_the_end(here: Go, store: Store) -> None:
    stage = Steps(steps=400, seconds=0.001)
    _, events = here(store, stage)
    progress = [event for event in events if event.kind == "progress"]
    assert len(progress) < 100
    assert (progress[-1].done, progress[-1].total) == (400, 400)
    assert progress[-1].metrics == {"loss": 1 / 400}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_then_resume(go: Go, store: Store, number: int) -> None:
    stage = Steps(steps=60, seconds=0.05)
    waiting = Fake(name="other")

    def interrupt(event: Event) -> None:
        if event.kind == "progress" and event.done >= 5:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with pytest.raises(Interrupted):
        go(store, waiting, stage, jobs=2, on_event=interrupt)
    assert signal.getsignal(number) is handler
    assert not store.has(stage.identity)
    assert list((store.root / ".temporary").iterdir()) == []
    outcome, _ = go(store, waiting, stage)
    assert outcome.status[stage.identity] == "finished"
    assert read(store.get(stage.identity).path)["first"] >= 5
    assert list((store.root / ".partial").iterdir()) == []


def test_an_error_in_the_display_ends_the_processes(go: Go, store: Store) -> None:
    stage = Steps(steps=10_000)
    with pytest.raises(ZeroDivisionError):
        go(store, stage, on_event=lambda event: print(1 / (event.kind != "progress")))
    process = json.loads((store.partial(stage.identity) / "checkpoint.json").read_text())["pid"]
    assert gone(process)


def test_two_runs_on_one_store_share_the_work(go: Go, store: Store) -> None:
    stage = Fake(name="a", seconds=2.0)
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(go(store, stage)[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome.status[stage.identity] for outcome in outcomes) == ["cached", "finished"]


SCRIPT = """
import sys
from pathlib import Path
from unit.pipeline.fake_stages import Steps
from aligngap.pipeline.executors.cluster.executor import RayExecutor
from aligngap.pipeline.executors.local import LocalExecutor
from aligngap.pipeline.executors.run import Interrupted, run_stages
from aligngap.store import Store

if __name__ == "__main__":
    store, where = Store(sys.argv[1]), sys.argv[2]
    stages = [Steps(name=name, steps=10_000) for name in "ab"]
    if where == "local":
        executor = LocalExecutor(store, jobs=2, device="cpu")
    else:
        address, logs = None if where == "own" else where, Path(sys.argv[1]).parent / "logs"
        executor = RayExecutor(store, address=address, jobs=2, device="cpu", log_folder=logs)
    try:
        with executor:
            run_stages(stages, executor, lambda event: None)
    except Interrupted:
        sys.exit(130)
"""


@pytest.mark.parametrize("how", ["killed", "ctrl-c"])
@pytest.mark.parametrize(
    "where", ["local", pytest.param("ray", marks=pytest.mark.slow), pytest.param("own", marks=pytest.mark.slow)]
)
def test_no_process_outlives_the_run(
    request: pytest.FixtureRequest, store: Store, tmp_path: Path, where: str, how: str
) -> None:
    """Of the run and of its stages, wherever they are; nor of the cluster that it has started."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    if where == "own":
        pytest.importorskip("ray", reason=NO_RAY)
    place = request.getfixturevalue("cluster").address if where == "ray" else where
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    stages = [Steps(name=name, steps=10_000) for name in "ab"]
    run = subprocess.Popen(
        [sys.executable, str(script), str(store.root), place],
        env=variables,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        checkpoints = [store.partial(stage.identity) / "checkpoint.json" for stage in stages]
        until(lambda: run.poll() is not None or all(path.exists() for path in checkpoints))
        processes = [json.loads(path.read_text())["pid"] for path in checkpoints]
        assert not any(gone(process) for process in processes)
        if how == "killed":
            run.kill()
        else:
            os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, printed = run.communicate(timeout=60)
        assert run.returncode == (-signal.SIGKILL if how == "killed" else 130)
        assert printed == ""
        until(lambda: all(gone(process) for process in processes), seconds=60)
        until(lambda: session_of(run.pid) == [], seconds=60)
    finally:  # a test that fails must not leave ten thousand steps running
        for process in session_of(run.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def session_of(leader: int) -> list[int]:
    """Processes of a session, but for the dead."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(entry.name))
    return found


def gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"  # dead; some machines have nobody who collects it


def until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.1)


@pytest.mark.parametrize("file", [True, False])
def test_the_main_program_is_not_run_again_in_every_process(tmp_path: Path, file: bool) -> None:
    """A script needs no guard around what it starts; nor has a notebook a file to be run again."""
    code = (
        "print('main')\n"
        "from pathlib import Path\n"
        "from aligngap.pipeline.executors.local import LocalExecutor\n"
        "from aligngap.pipeline.executors.run import run_stages\n"
        "from aligngap.store import Store\n"
        "from unit.pipeline.fake_stages import Fake\n"
        "stages = [Fake(name='a'), Fake(name='b')]\n"
        "with LocalExecutor(Store(Path('store')), jobs=2, device='cpu') as executor:\n"
        "    outcome = run_stages(stages, executor, lambda event: None)\n"
        "print(sorted(outcome.status.values()), __name__)\n"
    )
    (tmp_path / "script.py").write_text(code, "utf-8")
    words = ["script.py"] if file else ["-"]
    done = subprocess.run(
        [sys.executable, *words],
        input=None if file else code,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "main\n['finished', 'finished'] __main__\n"
