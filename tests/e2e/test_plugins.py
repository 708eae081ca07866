"""A user's own module: registered by one line, part of identities, in every process, never imported for others."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from aligngap import plugins
from aligngap.cli import main
from aligngap.errors import UserError
from aligngap.experiments.study import load_study, targets
from aligngap.losses import LOSSES
from aligngap.pipeline.graph import all_stages
from tiny import SETTINGS, Tiny

EXAMPLE = Path(__file__).parents[2] / "docs/examples/own-loss"
OWN = """
import polars as pl
import torch
from typing import ClassVar, Literal
from aligngap.experiments.base import Analysis, Experiment, Labelled
from aligngap.experiments.bench import Measure
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.judges.base import Judge
from aligngap.judges.registry import JUDGES
from aligngap.judges.spec import JudgeSpec
from aligngap.losses import LOSSES
from aligngap.pipeline.graph import Context, Stage
from aligngap.pipeline.stages import Arm
from aligngap.sources.recorded import Recorded
from aligngap.sources.order import in_sequence
from aligngap.sources.base import SourceSpec
from aligngap.sources.registry import SOURCES
from aligngap.tasks.worlds import WORLDS, world
from aligngap.tasks.worlds.summarisation import Summarisation


def flat(winner, loser, beta):
    return -(winner.policy - loser.policy)


class FirstHalf(SourceSpec):
    kind: Literal["first_half"] = "first_half"
    needs_pairs: ClassVar[bool] = True

    def build(self, given):
        pairs = given.pairs
        return Recorded(pairs.take(torch.arange(len(pairs) // 2)), in_sequence)


class Shorter(Judge):
    def compare(self, prompts, first, second):
        return (second.lengths - first.lengths).double()


class ShorterSpec(JudgeSpec):
    kind: Literal["shorter"] = "shorter"

    def identity(self, search=None):
        return {"kind": self.kind}

    def build(self, given):
        return Shorter()


class Terse(Summarisation):
    name = "terse"


class Steps(Stage):
    kind: ClassVar[str] = "own_steps"
    arm: Arm

    @property
    def label(self):
        return "steps of an arm"

    @property
    def work(self):
        return 1.0

    def run(self, context: Context) -> None:
        count = len(list((context.one("arm") / "steps").iterdir()))
        pl.DataFrame({"checkpoints": [count]}).write_parquet(context.out / "table.parquet")


def arms(bench):
    return [bench.recorded(seed, "half", bench.golden_pairs, FirstHalf()) for seed in bench.study.seeds]


def measures(bench):
    return [Measure("steps", entry.stage.seed, Steps(arm=entry.stage)) for entry in arms(bench)]


def analyse(data):
    count = data.table("steps")["checkpoints"].sum()
    peak = data.gap(data.runs("half"), data.runs("half"), "half")["peak_difference"]
    return Analysis("inconclusive", f"{count} checkpoints", {"peak": Labelled("a difference of nothing", peak)})


def broken(data):
    raise RuntimeError("an analysis with a fault")


LOSSES["flat"] = flat
SOURCES["first_half"] = FirstHalf
JUDGES["shorter"] = ShorterSpec
WORLDS["terse"] = Terse
texts = dict(title="Half", question="?", finding="None.", rule="None.", arms=arms, measures=measures)
EXPERIMENTS["half"] = Experiment(name="half", analyse=analyse, **texts)
EXPERIMENTS["broken"] = Experiment(name="broken", analyse=broken, **texts)
"""


@pytest.fixture(autouse=True)
def forgotten() -> Any:
    """Plugins live as long as the process: each test leaves the registries as they were."""
    from aligngap.experiments.registry import EXPERIMENTS
    from aligngap.judges.registry import JUDGES
    from aligngap.sources.registry import SOURCES
    from aligngap.tasks.worlds import WORLDS

    registries: list[plugins.Registry[Any]] = [LOSSES, SOURCES, JUDGES, WORLDS, EXPERIMENTS]
    before = [set(registry) for registry in registries]
    yield
    plugins._loaded.clear()
    for registry, names in zip(registries, before, strict=True):
        for name in set(registry) - names:
            del registry[name]
            registry._owners.pop(name, None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    Tiny(folder)
    return folder / "base"


def study_file(folder: Path, base: Path, **changes: Any) -> Path:
    content = {
        "extends": "paper",
        "title": "Own ideas",
        "description": "a test",
        "plugins": ["own_ideas"],
        "tasks": ["terse"],
        "sft_tasks": None,
        "experiments": ["half", "broken"],
        "models": dict.fromkeys(("policy", "proxy", "golden"), str(base)),
        "golden": {"judge": {"kind": "shorter"}},
        "baseline": {"loss": {"name": "flat"}},
    }
    folder.mkdir(exist_ok=True)
    (folder / "own_ideas.py").write_text(OWN, "utf-8")
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content | changes), "utf-8")
    return path


def options() -> list[str]:
    kept = [setting for setting in SETTINGS if not setting.startswith("golden.")]
    return [word for setting in kept for word in ("--set", setting)]


def test_all_kinds_of_own_ideas_run_in_processes_of_their_own(base: Path, tmp_path: Path) -> None:
    path = study_file(tmp_path / "study", base)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "aligngap", "run", str(path), "--out", str(out), "--jobs", "2", *options()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    # The broken analysis costs its own experiment, and the exit code; nothing else.
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed: analysis of broken on terse: RuntimeError: an analysis with a fault" in done.stderr
    task = json.loads((out / "results.json").read_text("utf-8"))["tasks"]["terse"]
    assert {arm["status"] for arm in task["arms"]} == {"finished"}
    assert task["experiments"]["half"]["sentence"] == f"{len(task['arms'][0]['points']) // 2} checkpoints"
    assert task["experiments"]["broken"]["verdict"] == "inconclusive"
    assert task["experiments"]["broken"]["estimates"] == {}
    assert "an analysis with a fault" in (out / "report.html").read_text("utf-8")

    # Somebody else's folder is looked at without running what it names.
    (tmp_path / "study/own_ideas.py").write_text("raise SystemExit('imported')", "utf-8")
    for words in (["report"], ["status"], ["verify"], ["samples"]):
        asked = [sys.executable, "-m", "aligngap", *words, str(out)]
        shown = subprocess.run(asked, capture_output=True, text=True, timeout=300, cwd=tmp_path / "study")
        assert shown.returncode == 0, (words, shown.stdout + shown.stderr)


def test_a_changed_plugin_makes_anew_what_used_it_and_nothing_else(base: Path, tmp_path: Path) -> None:
    path = study_file(tmp_path / "study", base, tasks=["summarisation"], experiments=["goodhart"])

    def identities() -> dict[str, str]:
        return {stage.label: stage.identity for stage in all_stages(targets(load_study(str(path), SETTINGS[:2])))}

    before = identities()
    with (tmp_path / "study/own_ideas.py").open("a", encoding="utf-8") as handle:
        handle.write("# edited\n")
    after = identities()
    assert before.keys() == after.keys()
    same = {label.split(":")[0].split(",")[0] for label in before if before[label] == after[label]}
    # The raters' pairs and SFT have nothing of it in them; the loss and the judge are in all else.
    assert any("SFT policy" in label for label in same)
    assert all(before[label] == after[label] for label in before if "raters' pairs" in label or "SFT policy" in label)
    assert all(before[label] != after[label] for label in before if " arm: " in label or "labels" in label)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("from aligngap.losses import LOSSES\nLOSSES['ipo'] = None", ["loss 'ipo' already", "aligngap itself"]),
        ("import nothing_of_this_name", ["cannot be imported", "nothing_of_this_name"]),
        ("def", ["cannot be imported", "SyntaxError"]),
    ],
)
def test_a_plugin_that_cannot_be_is_one_error(
    base: Path, tmp_path: Path, text: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = study_file(tmp_path / "study", base)
    (tmp_path / "study/own_ideas.py").write_text(text, "utf-8")
    assert main(["plan", str(path)]) == 2
    shown = capsys.readouterr().err
    assert all(word in shown for word in ["own_ideas", *words]), shown
    assert "Traceback" not in shown


def test_a_plugin_that_is_not_there_is_one_error(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(study_file(tmp_path / "study", base, plugins=["no_such_plugin"]))]) == 2
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("no such module", "no_such_plugin")), shown


def test_two_plugins_may_not_take_one_name(base: Path, tmp_path: Path) -> None:
    path = study_file(tmp_path / "study", base, plugins=["own_ideas", "second"])
    (tmp_path / "study/second.py").write_text("from aligngap.losses import LOSSES\nLOSSES['flat'] = None", "utf-8")
    with pytest.raises(UserError, match=r"loss 'flat' already.*own_ideas"):
        load_study(str(path))


def test_the_example_of_the_docs_runs(base: Path, tmp_path: Path) -> None:
    for file in EXAMPLE.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    lines = sum(len((tmp_path / file).read_text("utf-8").splitlines()) for file in ("my_losses.py", "study.yaml"))
    assert lines < 60
    models = [f"models.{role}={base}" for role in ("policy", "proxy", "golden")]
    changes = [word for setting in (*models, *SETTINGS, "sft_tasks=[summarisation]") for word in ("--set", setting)]
    command = [sys.executable, "-m", "aligngap", "run", "study.yaml", "--out", "out", *changes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    task = json.loads((tmp_path / "out/results.json").read_text("utf-8"))["tasks"]["summarisation"]
    assert {arm["loss"]["name"] for arm in task["arms"]} == {"calibrated"}
    assert set(task["experiments"]) == {"goodhart", "coverage"}
