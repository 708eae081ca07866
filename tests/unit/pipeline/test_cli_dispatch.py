"""What the commands do with a study, seen on a study of fake stages; real processes, no models."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import polars as pl
import pytest

from aligngap.cli import main
from aligngap.experiments.plan import Plan, TaskPlan
from aligngap.pipeline.graph import Event, Outcome, Stage
from aligngap.pipeline.rundir import RunDirectory
from aligngap.ranks import ALONE
from aligngap.results import StudyResults, write
from aligngap.store import Store, write_json
from aligngap.trackers.base import Series
from unit.pipeline.fake_stages import Fake, FakeReport, Steps
from unit.pipeline.runs import finished
from unit.report.fixture_results import write_results
from unit.results.made_up_points import row

Install = Callable[..., None]


class FakeTask(TaskPlan):
    """Targets in place of a task's, by experiment."""

    def __init__(self, of: dict[str, Sequence[Stage]]) -> None:
        vars(self).update(of=of, arms=[], targets=[stage for stages in of.values() for stage in stages])

    def wanted_by(self, *experiments: str) -> list[Stage]:
        return [stage for name in experiments for stage in vars(self)["of"][name]]


class FakePlan(Plan):
    """Of a study whose targets, by experiment, are those in `of`."""

    of: ClassVar[dict[str, Sequence[Stage]]] = {}

    def __init__(self, study: Any) -> None:
        values = {"name": study.name, "title": "A [try]", "smoke": study.smoke, "seeds": (0,), "device": "cpu"}
        values |= {"parallel": ALONE, "experiments": tuple(self.of), "tasks": {"a task": FakeTask(self.of)}}
        vars(self).update(values, specification=study.model_dump(mode="json"))

    def check_data(self, done: Collection[str] = ()) -> list[str]:
        return []

    def check_models(self) -> None:
        pass


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts stages in the place of a study's, and what `collect` and the report do in theirs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGNGAP_STORE", raising=False)

    def load(name: str, overrides: Sequence[str] = (), seeds: int | None = None, smoke: bool = False) -> Any:
        settings = {"name": name, "overrides": list(overrides), "seeds": seeds}
        return SimpleNamespace(name=name, smoke=smoke, model_dump=lambda mode: {"title": "A [try]"} | settings)

    def collect(plan: Plan, store: Store, outcome: Outcome, folder: Path) -> StudyResults:
        results = StudyResults(study=outcome.status)
        write(results, pl.DataFrame(), folder)
        return results

    def publish(folder: Path, into: Path) -> Path:
        (into / "report.html").write_text("<p>")
        return into / "report.html"

    monkeypatch.setattr("aligngap.experiments.study.load_study", load)
    monkeypatch.setattr("aligngap.runner.collect", collect)
    monkeypatch.setattr("aligngap.runner.summary", lambda results: [f"VERDICT of {len(results.study)} [stages]"])
    monkeypatch.setattr("aligngap.report.page.publish", publish)
    monkeypatch.setattr("aligngap.runner.Report", FakeReport)
    monkeypatch.setattr("aligngap.experiments.plan.Plan", FakePlan)
    monkeypatch.setattr(FakePlan, "of", {})

    def install(*stages: Stage, **of: Sequence[Stage]) -> None:
        """The stages of the study, or of each of its experiments by name."""
        FakePlan.of = {"one": stages} if stages else of

    return install


def test_run_status_verify_and_run_again(study: Install, capsys: pytest.CaptureFixture[str]) -> None:
    a = Fake(name="a")
    study(Fake(name="b", after=(a,)))
    assert main(["run", "try", "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "A [try]" in printed
    assert "finished  fake [b]" in printed
    assert "VERDICT of 2 [stages]" in printed
    assert f"Report: {Path('runs/try/report.html')}" in printed

    assert main(["status", "runs/try"]) == 0
    printed = capsys.readouterr().out
    assert "3 finished" in printed
    assert "Where time went" in printed
    assert "What it went to" in printed
    assert main(["plan", "try", "--jobs", "1"]) == 0
    assert "2 cached, 0 to do" in capsys.readouterr().out
    assert main(["report", "runs/try"]) == 0
    assert main(["verify", "runs/try"]) == 0
    assert "3 artefacts are as they were written" in capsys.readouterr().out

    assert main(["run", "try", "--jobs", "1"]) == 0
    assert "started   fake" not in capsys.readouterr().out
    (Path("runs/store") / a.identity / "times.json").write_text("{}")
    assert main(["verify", "runs/try"]) == 1
    assert f"{a.identity}/times.json: truncated" in capsys.readouterr().out


def test_a_report_is_made_again_where_its_results_have_changed(
    study: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study(Fake(name="a"))
    report = Path("runs/try/report.html")

    def collected(**found: Any) -> None:
        def collect(plan: Plan, store: Store, outcome: Outcome, folder: Path) -> StudyResults:
            results = StudyResults(**found)
            write(results, pl.DataFrame(), folder)
            return results

        monkeypatch.setattr("aligngap.runner.collect", collect)

    def run() -> int:
        """How many reports it has made."""
        capsys.readouterr()
        assert main(["run", "try", "--jobs", "1"]) == 0
        assert report.read_text() == "<p>"
        return capsys.readouterr().out.count("started   report")

    collected(versions={"kl": 1})
    assert (run(), run()) == (1, 0)
    collected(versions={"kl": 2})
    assert (run(), run()) == (1, 0)
    collected(versions={"kl": 2}, points=row(0, "a"))  # the same but for the points
    assert (run(), run()) == (1, 0)
    report.unlink()  # it is in the store
    assert run() == 0
    report.write_text("half a pa")
    assert run() == 0
    collected(versions={"kl": 1})
    assert run() == 0  # as before


def failing(monkeypatch: pytest.MonkeyPatch, does: str, seconds: float = 0.0) -> None:
    """Has the report do what `Fake` knows to do."""

    class Failing(FakeReport):
        @classmethod
        def of(cls, folder: Path, processes: int | None = None) -> FakeReport:
            return FakeReport(name="report", does=does, seconds=seconds)

    monkeypatch.setattr("aligngap.runner.Report", Failing)


@pytest.mark.parametrize(("does", "words"), [("killed", "SIGKILL"), ("fail", "out of luck")])
def test_a_report_that_cannot_be_made_leaves_whole_results(
    study: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], does: str, words: str
) -> None:
    study(Fake(name="a"))
    with monkeypatch.context() as patch:
        failing(patch, does)
        assert main(["run", "try"]) == 1
    said = capsys.readouterr()
    assert "VERDICT" in said.out
    assert "Report:" not in said.out
    assert words in next(line for line in said.err.splitlines() if line.startswith("failed: report: "))
    assert f"`aligngap report {Path('runs/try')}`" in said.err
    assert Path("runs/try/results.json").exists()
    assert not Path("runs/try/report.html").exists()
    assert RunDirectory.open(Path("runs/try")).status()["state"] == "failed"
    assert main(["report", "runs/try"]) == 0
    assert main(["run", "try"]) == 0


def test_a_full_disk_while_the_report_is_made(
    study: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study(Fake(name="a"))
    with monkeypatch.context() as patch:
        failing(patch, "full")
        assert main(["run", "try"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "error: no room left to write"
    assert Path("runs/try/results.json").exists()
    assert main(["run", "try"]) == 0


def test_ctrl_c_while_the_report_is_made(
    study: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study(Fake(name="a"))
    note = RunDirectory.note

    def interrupt(self: RunDirectory, event: Event) -> None:
        note(self, event)
        if event.kind == "started" and event.stage.kind == "report":
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        failing(patch, "", seconds=60.0)
        patch.setattr(RunDirectory, "note", interrupt)
        start = time.monotonic()
        assert main(["run", "try"]) == 130
        assert time.monotonic() - start < 50.0
    assert "aligngap run try" in capsys.readouterr().err
    assert Path("runs/try/results.json").exists()
    assert RunDirectory.open(Path("runs/try")).status()["state"] == "interrupted"
    assert main(["run", "try"]) == 0
    assert Path("runs/try/report.html").exists()


def test_the_server_is_started_before_the_imports(study: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    study(Fake(name="a"))
    order: list[str] = []
    load: Any = sys.modules["aligngap.experiments.study"].load_study  # type: ignore[attr-defined]
    monkeypatch.setattr("aligngap.pipeline.executors.server.start_server", lambda: order.append("server"))
    monkeypatch.setattr("aligngap.experiments.study.load_study", lambda *given: order.append("study") or load(*given))
    assert main(["run", "try", "--jobs", "1"]) == 0
    assert order == ["server", "study"]
    assert main(["run", "try", "--jobs", "1"]) == 0  # nothing is to be made: it would import in vain
    assert order == ["server", "study", "study"]


def test_verify_sets_aside_and_the_next_run_makes_anew(study: Install, capsys: pytest.CaptureFixture[str]) -> None:
    a = Fake(name="a", does="weights")
    study(Fake(name="b", after=(a,)))
    assert main(["run", "try", "--jobs", "1"]) == 0
    weights = Path("runs/store") / a.identity / "model.safetensors"
    weights.write_bytes(b"x" + bytes(999))
    assert main(["run", "try", "--jobs", "1"]) == 0  # nobody read them
    capsys.readouterr()
    assert main(["verify", "runs/try", "--set-aside"]) == 1
    said = capsys.readouterr()
    assert f"{a.identity}/model.safetensors: altered" in said.out
    assert f"Set aside: {Path('runs/store/.aside').absolute()}" in said.out
    assert "aligngap run" in said.err
    assert main(["run", "try", "--jobs", "1"]) == 0
    assert main(["verify", "runs/try"]) == 0
    assert weights.read_bytes() == bytes(1000)


def test_a_damaged_artefact_is_told_of_and_made_anew(study: Install, capsys: pytest.CaptureFixture[str]) -> None:
    a = Fake(name="a")
    study(Fake(name="b", after=(a,)))
    assert main(["run", "try", "--jobs", "1"]) == 0
    (Path("runs/store") / a.identity / "times.json").write_text("{}")
    capsys.readouterr()
    assert main(["run", "try", "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"DAMAGED   fake [a]: {a.identity}/times.json: truncated" in printed
    assert "finished  fake [a]" in printed
    assert {item["status"] for item in RunDirectory.open(Path("runs/try")).status()["stages"]} == {"finished", "cached"}


def test_gc_by_store_by_run_and_by_default(
    study: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = Fake(name="a"), Fake(name="b")
    study(a)
    assert main(["run", "one"]) == 0
    study(b)
    assert main(["run", "two"]) == 0
    shutil.rmtree("runs/one")
    for arguments in (["gc", "--dry-run"], ["gc", "runs/two", "--dry-run"], ["gc", "runs/store", "--dry-run"]):
        capsys.readouterr()
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert f"would free  artefact  {a.identity}" in printed
        assert "2 would be freed" in printed
    assert Store("runs/store").has(a.identity)
    assert main(["gc"]) == 0
    printed = capsys.readouterr().out
    assert f"in use by {Path('runs/two').absolute()}" in printed
    assert f"gone: {Path('runs/one').absolute()}" in printed
    kinds = [identity.rpartition("-")[0] for identity in Store("runs/store").identities()]
    assert (kinds, Store("runs/store").has(b.identity)) == (["fake", "report"], True)
    monkeypatch.setenv("ALIGNGAP_STORE", str(Path("runs/store").absolute()))
    assert main(["gc"]) == 0
    for place in ("nowhere", "runs"):
        assert main(["gc", place]) == 2
    assert not Path("nowhere").exists()


def test_packed_unpacked_and_gone_on_with(
    study: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a = Fake(name="a")
    study(Fake(name="b", after=(a,)))
    assert main(["run", "try", "--jobs", "1"]) == 0
    assert main(["pack", "runs/try"]) == 0
    assert "2 artefacts" in capsys.readouterr().out
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert main(["unpack", "../try.tar.gz", "runs/try"]) == 0  # where the same command looks for it
    assert main(["verify", "runs/try"]) == 0
    assert main(["status", "runs/try"]) == 0
    capsys.readouterr()
    assert main(["run", "try", "--jobs", "1"]) == 0
    assert "2 stages, 2 of them in the store already" in capsys.readouterr().out
    assert main(["unpack", "../try.tar.gz", "runs/try"]) == 2
    data = bytearray(Path("../try.tar.gz").read_bytes())
    data[len(data) // 2] ^= 1
    Path("bad.tar.gz").write_bytes(data)
    assert main(["unpack", "bad.tar.gz", "other"]) == 2
    assert "the archive is refused" in capsys.readouterr().err
    assert not Path("other").exists()


def test_a_full_disk_is_one_error_and_no_results_of_a_run_that_is_not_over(
    study: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    study(Fake(name="full", does="full"), *(Fake(name=f"after {k}", seconds=1.0) for k in range(3)))
    assert main(["run", "try", "--jobs", "2"]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == "error: no room left to write"
    assert len(said.err.splitlines()) == 3
    assert not Path("runs/try/results.json").exists()
    assert RunDirectory.open(Path("runs/try")).status()["state"] == "failed"


def test_a_full_disk_while_results_are_written(
    study: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study(Fake(name="a"))

    def collect(*_: object) -> None:
        raise pl.exceptions.ComputeError("No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("aligngap.runner.collect", collect)
        assert main(["run", "try"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "error: no room left to write"
    assert main(["run", "try"]) == 0


def test_plan_writes_nothing(study: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = Fake(name="head", cost=60)
    study(Fake(name="b", after=(head,), cost=30), Fake(name="c", after=(head,), cost=30))
    assert main(["plan", "try", "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "fake [head]" in printed
    assert "0 cached, 3 to do; 0 serve several experiments" in " ".join(printed.split())
    assert "About 120 core seconds; 1:30 with --jobs 2" in printed
    assert list(tmp_path.iterdir()) == []


def test_plan_says_what_each_experiment_adds(study: Install, capsys: pytest.CaptureFixture[str]) -> None:
    head = Fake(name="head", cost=60)
    study(alpha=[Fake(name="b", after=(head,), cost=30)], beta=[Fake(name="c", after=(head,), cost=20)])
    assert main(["plan", "try", "--jobs", "1"]) == 0
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert "fake fake [head] alpha, beta to do 1:00" in lines
    assert "fake fake [b] alpha to do 0:30" in lines
    assert "alpha 2 1 0:30" in lines
    assert "beta 2 1 0:20" in lines
    assert "1 serve several experiments" in " ".join(lines)


def test_default_folders_share_a_store(study: Install, capsys: pytest.CaptureFixture[str]) -> None:
    """What one study has made, another finds; a folder of one's own keeps its own store."""
    study(Fake(name="a"))
    assert main(["run", "try"]) == 0
    assert main(["run", "other"]) == 0
    assert "1 of them in the store already" in capsys.readouterr().out
    assert Path("runs/store").is_dir()
    assert main(["run", "try", "--out", "mine"]) == 0
    assert "0 of them in the store already" in capsys.readouterr().out
    assert Path("mine/store").is_dir()


def test_a_failed_arm_is_named_after_results_and_report(study: Install, capsys: pytest.CaptureFixture[str]) -> None:
    study(Fake(name="needs", after=(Fake(name="bad", does="fail"),)), Fake(name="good"))
    assert main(["run", "try", "--out", "here"]) == 1
    said = capsys.readouterr()
    assert "failed: fake [bad]: RuntimeError: out of luck (log: " in said.err
    assert "blocked: 1 stages need what failed" in said.err
    assert "2 of 3 stages are missing from the results." in said.err
    assert "Traceback" not in said.err + said.out
    assert (Path("here/results.json").exists(), Path("here/report.html").exists()) == (True, True)
    assert RunDirectory.open(Path("here")).status()["state"] == "failed"


def test_a_mistake_that_leaves_nothing_is_one_error(study: Install, capsys: pytest.CaptureFixture[str]) -> None:
    mistake = Fake(name="data", does="mistake")
    wanted = [Fake(name=f"arm {number}", after=(mistake,)) for number in range(3)]
    study(*wanted)
    assert main(["run", "try", "--out", "here"]) == 2
    said = capsys.readouterr()
    assert said.err == "error: no such column\nwhere: data.csv\nhint: Rename it.\n"
    assert said.out.count("no such column") == 1
    assert not Path("here/report.html").exists()
    assert RunDirectory.open(Path("here")).status()["state"] == "failed"
    # What could be made is told of all the same; and what is no mistake of the user's stays a failure.
    for more in (Fake(name="good"), Fake(name="bad", does="fail")):
        study(*wanted, more)
        assert main(["run", "try", "--out", more.name]) == 1
        assert "failed: fake [data]: data.csv: no such column Rename it." in capsys.readouterr().err
        assert Path(more.name, "report.html").exists()


def test_ctrl_c_says_how_to_go_on(
    study: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Steps(steps=200)
    study(stage)
    note = RunDirectory.note

    def interrupt(self: RunDirectory, event: Event) -> None:
        note(self, event)
        if event.kind == "progress" and event.done > 5:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "note", interrupt)
        assert main(["run", "try", "--set", "title=a b"]) == 130
    assert "aligngap run try --set 'title=a b'" in capsys.readouterr().err
    assert main(["status", "runs/try"]) == 0
    assert "1 interrupted" in capsys.readouterr().out
    assert main(["run", "try", "--set", "title=a b"]) == 0
    assert json.loads((Path("runs/store") / stage.identity / "times.json").read_text())["first"] > 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_outside_the_stages(
    study: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    study(Fake(name="a"))

    def collect(*_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr("aligngap.runner.collect", collect)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
    before = signal.getsignal(signal.SIGTERM)
    assert main(["run", "try"]) == 130
    assert "aligngap run try" in capsys.readouterr().err
    assert RunDirectory.open(Path("runs/try")).status()["state"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) == before


EVIL = """
from pathlib import Path
Path({mark!r}).touch()
def judge(*_): return 0
"""


def test_nothing_that_a_foreign_folder_names_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading a run of somebody else's runs nobody's code: whatever its study names as judge, task or loss."""
    mark = tmp_path / "imported"
    (tmp_path / "evil.py").write_text(EVIL.format(mark=str(mark)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    # What draws knows no Python, and takes a second for each figure.
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'
    monkeypatch.setattr("aligngap.report.still.image_svg", lambda *given, **more: svg)
    stage = Fake(name="a")
    run = finished(tmp_path / "run", Store(tmp_path / "elsewhere"), stage).folder
    write_results(run, seeds=(0,), experiments=False, prompts=2)
    evil = {"kind": "python", "function": "evil:judge", "name": "evil", "plugin": "evil", "path": str(tmp_path)}
    study = json.loads((run / "results.json").read_text())["study"]
    study |= {"judge": evil, "judges": [evil], "golden": evil, "tasks": ["evil:judge"], "models": {"policy": "evil"}}
    write_json(run / "study.json", study)
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"study": study}))
    commands = [
        ["status", "run"], ["verify", "run"], ["samples", "run"], ["gc", "run"],
        ["pack", "run", "run.tar"], ["unpack", "run.tar", "new", "--store", "new-store"], ["status", "new"],
        ["verify", "new"], ["report", "new"],
    ]  # fmt: skip
    for command in commands:
        assert main(command) == 0, capsys.readouterr()
    assert not mark.exists()
    assert "evil" not in sys.modules


def test_a_changed_study_and_a_chosen_store(study: Install, capsys: pytest.CaptureFixture[str]) -> None:
    study(Fake(name="a"))
    assert main(["run", "try", "--store", "shared", "--smoke"]) == 0
    assert main(["run", "try", "--store", "shared", "--smoke", "--seeds", "3"]) == 2
    said = capsys.readouterr().err
    assert "seeds: null -> 3" in said
    assert f"where: {Path('runs/try-smoke')}" in said
    assert main(["run", "try", "--store", "shared", "--smoke", "--seeds", "3", "--out", "other"]) == 0
    assert "1 of them in the store already" in capsys.readouterr().out
    assert main(["verify", "other"]) == 0


def test_what_is_tracked_is_no_part_of_the_study(study: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    stage = Steps(steps=3)
    study(stage)
    series = Series(stage.identity, "a task/an arm", {})
    monkeypatch.setattr("aligngap.trackers.tracking.series_of", lambda plan: {stage.identity: series})
    assert main(["run", "try", "--out", "here", "--track", "tensorboard", "--track", "tensorboard"]) == 0
    assert len(list(Path("here/tensorboard/a task/an arm").iterdir())) == 1
    assert "track" not in Path("here/study.json").read_text()
    assert main(["run", "try", "--out", "here"]) == 0


def test_a_defect_keeps_its_traceback(study: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    study(Fake(name="a"))
    monkeypatch.setattr("aligngap.runner.summary", lambda results: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["run", "try"])


@pytest.fixture
def sampled(tmp_path: Path) -> Path:
    def row(who: str, response: str, arm: str | None = None, seed: int | None = None, step: int | None = None) -> Any:
        given = {"who": who, "response": response, "arm": arm, "seed": seed, "step": step}
        prompt = {"task": "cats", "split": "held_out", "prompt_number": 7, "prompt": "say [something]"}
        return prompt | given | {"utility": 0.25, "margin_golden": 0.5 if arm else None}

    rows = [row("sft", "[bold]meow[/bold]"), row("golden_policy", "purr\x1b[2J")]
    rows += [row("policy", f"{arm} at {step}", arm, 0, step) for arm in ("online", "offline") for step in (0, 100)]
    (tmp_path / "study.json").write_text("{}")
    pl.DataFrame(rows).write_parquet(tmp_path / "samples.parquet")
    return tmp_path


def test_samples_side_by_side(sampled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samples", str(sampled)]) == 0
    printed = capsys.readouterr().out
    for text in (
        "say [something]",
        "[bold]meow[/bold]",
        "purr�[2J",
        "online at 100",
        "utility 0.25",
        "margin golden 0.5",
    ):
        assert text in printed
    assert main(["samples", str(sampled), "--arm", "offline", "--step", "0", "--seed", "0", "--n", "1"]) == 0
    assert "offline at 0" in capsys.readouterr().out


def test_samples_that_a_kill_has_cut_short(sampled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sampled / "samples.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert main(["samples", str(sampled)]) == 2
    assert "aligngap run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--arm", "onlin"], "Did you mean 'online'?"),
        (["--step", "5"], "Known: 0, 100."),
        (["--seed", "9"], "Known: 0."),
        (["--split", "test"], "Known: held_out."),
    ],
)
def test_samples_that_are_not_there(
    sampled: Path, capsys: pytest.CaptureFixture[str], options: list[str], hint: str
) -> None:
    assert main(["samples", str(sampled), *options]) == 2
    said = capsys.readouterr().err
    assert f"where: {options[0]}" in said
    assert hint in said


def test_the_end_of_a_command_looks_for_no_garbage() -> None:
    code = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count())); import aligngap.cli"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 1000
