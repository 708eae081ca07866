"""A user's own module: registered by one line, part of identities, in every process, never imported for others."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from aligngap import plugins
from aligngap.cli import main
from aligngap.errors import UserError
from aligngap.experiments.plan import Plan
from aligngap.experiments.study import load_study
from aligngap.losses import LOSSES
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
from aligngap.measure.registry import MEASURES
from aligngap.models.preference import PREFERENCE_MODELS, PointwiseModel
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


class Pointed(PointwiseModel):
    kind = "pointed"


def words(answers):
    judged = answers.judge("golden").margin(answers.prompts, answers.responses, answers.opponents["sft"])
    told = answers.policy.log_probs(answers.prompts, [answers.responses])[0]
    assert judged.shape == told.shape
    return [len(text.split()) if text else float("nan") for text in answers.texts]


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
        count = len(list((context.folder(self.arm) / "steps").iterdir()))
        pl.DataFrame({"checkpoints": [count]}).write_parquet(context.out / "table.parquet")


def arms(bench):
    return [bench.recorded(seed, "half", bench.golden_pairs, FirstHalf()) for seed in bench.study.seeds]


def measures(bench):
    return [Measure("steps", entry.stage.seed, Steps(arm=entry.stage)) for entry in arms(bench)]


def analyse(data):
    count = data.table("steps")["checkpoints"].sum()
    assert all("words" in arm.per_prompt.columns for arm in data.arms)
    peak = data.gap(data.runs("half"), data.runs("half"), "half")["peak_difference"]
    return Analysis("inconclusive", f"{count} checkpoints", {"peak": Labelled("a difference of nothing", peak)})


def broken(data):
    raise RuntimeError("an analysis with a fault")


LOSSES["flat"] = flat
SOURCES["first_half"] = FirstHalf
JUDGES["shorter"] = ShorterSpec
WORLDS["terse"] = Terse
MEASURES["words"] = words
PREFERENCE_MODELS["pointed"] = Pointed
texts = dict(title="Half", question="?", finding="None.", rule="None.", arms=arms, measures=measures)
EXPERIMENTS["half"] = Experiment(name="half", analyse=analyse, **texts)
EXPERIMENTS["broken"] = Experiment(name="broken", analyse=broken, **texts)
"""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Plugins live as long as the process: each test leaves the registries as they were."""
    path = list(sys.path)
    yield
    plugins.use_plugins([])
    sys.path[:] = path


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
        "proxy": {"model": "pointed"},
        "baseline": {"loss": {"name": "flat"}},
        "evaluation": {"measures": ["words"]},
    }
    folder.mkdir(exist_ok=True)
    (folder / "own_ideas.py").write_text(OWN, "utf-8")
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content | changes), "utf-8")
    return path


def options() -> list[str]:
    return [word for setting in kept() for word in ("--set", setting)]


def kept() -> list[str]:
    """Golden is given, and not trained."""
    return [setting for setting in SETTINGS if not setting.startswith("golden.")]


@pytest.mark.slow
def test_all_kinds_of_own_ideas_run_in_processes_of_their_own(base: Path, tmp_path: Path) -> None:
    path = study_file(tmp_path / "study", base)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "aligngap", "run", str(path), "--out", str(out), "--jobs", "2", *options()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    # The broken analysis costs its own experiment, and the exit code; nothing else.
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed: analysis of broken on terse: RuntimeError: an analysis with a fault" in done.stderr
    task = json.loads((out / "results.json").read_text("utf-8"))["tasks"]["terse"]
    per_prompt, points = pl.read_parquet(out / "per_prompt.parquet"), pl.read_parquet(out / "points.parquet")
    assert {arm["status"] for arm in task["arms"]} == {"finished"}
    assert task["experiments"]["half"]["sentence"] == f"{points['step'].n_unique()} checkpoints"
    assert task["experiments"]["broken"]["verdict"] == "failed"
    assert "own_ideas.py, line" in task["experiments"]["broken"]["error"]
    assert task["experiments"]["broken"]["estimates"] == {}
    page = (out / "report.html").read_text("utf-8")
    assert "an analysis with a fault" in page
    assert 'class="badge failed"' in page

    # The measure: a column prompt by prompt, its mean in the points, figures over steps and KL.
    told = pl.read_parquet(out / "samples.parquet").filter(pl.col("who") == "policy", pl.col("response") != "")
    both = told.join(per_prompt, on=["arm", "seed", "step", "split", "prompt_number"])
    assert len(both) == len(told) > 0
    assert both["words"].to_list() == [len(text.split()) for text in both["response"]]
    for point in points.to_dicts():
        place = {key: point[key] for key in ("arm", "seed", "step", "split")}
        rows = per_prompt.filter(**place)["words"].fill_nan(None)
        assert point["words.mean"] == pytest.approx(rows.mean())
        assert point["words.n"] == len(rows) - rows.null_count()
    assert points["words.mean"].null_count() == 0
    assert (out / "charts/terse-measures-held_out.svg").exists()
    assert "Words over KL" in page
    listed = [measure["name"] for measure in task["measures"]]
    assert {f"words of {arm['name']}" for arm in task["arms"]} < set(listed)

    # Somebody else's folder is looked at without running what it names.
    (tmp_path / "study/own_ideas.py").write_text("raise SystemExit('imported')", "utf-8")
    for words in (["report"], ["status"], ["verify"], ["samples"], ["compare", str(out)]):
        asked = [sys.executable, "-m", "aligngap", *words, str(out)]
        shown = subprocess.run(asked, capture_output=True, text=True, timeout=300, cwd=tmp_path / "study")
        assert shown.returncode == 0, (words, shown.stdout + shown.stderr)


def test_a_changed_plugin_makes_anew_what_used_it_and_nothing_else(base: Path, tmp_path: Path) -> None:
    path = study_file(tmp_path / "study", base, tasks=["summarisation"], experiments=["goodhart"])

    def identities() -> dict[str, str]:
        return {stage.label: stage.identity for stage in Plan(load_study(str(path), SETTINGS[:2])).stages}

    before = identities()
    with (tmp_path / "study/own_ideas.py").open("a", encoding="utf-8") as handle:
        handle.write("# edited\n")
    after = identities()
    assert before.keys() == after.keys()
    # The raters' pairs and SFT have nothing of it in them; the loss and the judge are in all else.
    assert all(before[label] == after[label] for label in before if "raters' pairs" in label or "SFT policy" in label)
    assert all(before[label] != after[label] for label in before if " arm: " in label or "labels" in label)


@pytest.mark.parametrize("package", [False, True])
def test_only_what_used_the_changed_plugin_is_made_anew(base: Path, tmp_path: Path, package: bool) -> None:
    """Two plugins; and one that is a package, whose every file counts."""
    changes = {"proxy": {}, "golden": {}, "baseline": {"loss": {"name": "tried"}}, "experiments": ["goodhart"]}
    changes |= {"plugins": ["own_ideas", "losses_of_mine"], "tasks": ["summarisation"]}
    path = study_file(tmp_path / "study", base, **changes)
    text = "from aligngap.losses import LOSSES, dpo\nLOSSES['tried'] = dpo\n"
    if package:
        folder = tmp_path / "study/losses_of_mine"
        folder.mkdir()
        (folder / "__init__.py").write_text("from .deep import inner\n", "utf-8")
        (folder / "deep").mkdir()
        (folder / "deep/__init__.py").write_text("", "utf-8")
        edited = folder / "deep/inner.py"
    else:
        edited = tmp_path / "study/losses_of_mine.py"
    edited.write_text(text, "utf-8")

    def identities() -> dict[str, str]:
        return {stage.label: stage.identity for stage in Plan(load_study(str(path), SETTINGS)).stages}

    before = identities()
    (tmp_path / "study/own_ideas.py").write_text(f"{OWN}# edited", "utf-8")
    measured = identities()
    changed = {label for label in before if before[label] != measured[label]}
    assert changed == {label for label in before if label.startswith("words of")}
    edited.write_text(f"{text}# edited", "utf-8")
    after = identities()
    changed = {label for label in measured if measured[label] != after[label]}
    # What is measured is measured against golden policy, which is such an arm.
    words = (" arm: ", "responses of golden", "starting policy")
    assert changed == {label for label in before if any(word in label for word in words)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "from aligngap.losses import LOSSES\nLOSSES['ipo'] = None",
            ["loss 'ipo' already", "aligngap itself", "(own_ideas.py, line 2)"],
        ),
        ("import nothing_of_this_name", ["cannot be imported", "nothing_of_this_name", "(own_ideas.py, line 1)"]),
        ("\n\ndef", ["cannot be imported", "SyntaxError", "(own_ideas.py, line 3)"]),
        ("def f():\n    1 / 0\nf()", ["cannot be imported", "ZeroDivisionError", "(own_ideas.py, line 2)"]),
        ("from aligngap.losses import LOSSES\nLOSSES['a b'] = 1", ["'a b' cannot be registered", "letters"]),
        ("from aligngap.losses import LOSSES\nLOSSES['x'] = 1", ["loss 'x' cannot be registered", "no function"]),
        (
            "from aligngap.measure.registry import MEASURES\nMEASURES['kl_se'] = len",
            ["measure 'kl_se' cannot be registered", "a column"],
        ),
        (
            "from aligngap.tasks.worlds import WORLDS, World\nclass Mine(World):\n    name = 'mine'\n"
            "WORLDS['mine'] = Mine",
            ["world 'mine' cannot be registered", "does not define appraise", "(own_ideas.py, line 4)"],
        ),
        (
            "from aligngap.judges.registry import JUDGES\nJUDGES['x'] = dict",
            ["judge 'x' cannot be registered", "no subclass of JudgeSpec"],
        ),
        (
            "from aligngap.sources.registry import SOURCES\nfrom aligngap.sources.recorded import RecordedSpec\n"
            "class Mine(RecordedSpec):\n    pass\nSOURCES['mine'] = Mine",
            ["source 'mine' cannot be registered", "its kind is 'recorded', not 'mine'"],
        ),
        (
            "from aligngap.experiments.registry import EXPERIMENTS\nEXPERIMENTS['x'] = EXPERIMENTS['golden']",
            ["experiment 'x' cannot be registered", "its name is 'golden'"],
        ),
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


def line_of(start: str) -> int:
    """In the plugin."""
    return next(number for number, line in enumerate(OWN.splitlines(), start=1) if line.startswith(start))


BROKEN = {
    "loss": (
        OWN.replace("return -(winner.policy - loser.policy)", "return -(winner.policy - loser.policy).mean()"),
        ["the loss 'flat' breaks its contract", "one number a pair", "plugin 'own_ideas' (own_ideas.py, line"],
    ),
    "loss that fails": (
        OWN.replace("return -(winner.policy - loser.policy)", "return winner.logits"),
        ["the loss 'flat' breaks its contract", "AttributeError", "'logits'", f"line {line_of('def flat') + 1})"],
    ),
    "world": (
        OWN.replace('    name = "terse"', '    name = "terse"\n    def rate(self, *_):\n        return 2.0'),
        ["the world 'terse' breaks its contract", "a rater says 2.0"],
    ),
    "world of strange words": (
        OWN.replace(
            '    name = "terse"', '    name = "terse"\n    def words(self):\n        return [*super().words(), "qwz"]'
        ),
        ["does not know 1 of the words of the world 'terse': qwz"],
    ),
    "measure": (
        OWN.replace("return [len(text.split())", "return [1] + [len(text.split())"),
        ["the measure 'words' gives [13] numbers for 12 prompts", f"own_ideas.py, line {line_of('MEASURES[')}"],
    ),
    "experiment": (
        OWN.replace("def arms(bench):", "def arms(bench):\n    bench.nothing"),
        ["the experiment 'half' cannot say its arms on terse", "AttributeError", f"line {line_of('def arms') + 1})"],
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_contract_is_one_error_before_anything_is_made(
    base: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, says = BROKEN[what]
    assert text != OWN
    path = study_file(tmp_path / "study", base)
    (tmp_path / "study/own_ideas.py").write_text(text, "utf-8")
    out = tmp_path / "out"
    assert main(["run", str(path), "--out", str(out), *options()]) == 2
    shown = capsys.readouterr().err
    assert all(word in shown for word in says), shown
    assert "Traceback" not in shown
    assert not out.exists()


def test_a_name_that_no_plugin_registered_is_refused_with_the_way_out(base: Path, tmp_path: Path) -> None:
    """As in a notebook's cell: no identity would know its code, and no process of the run would have it."""
    LOSSES["loose"] = LOSSES["ipo"]
    try:
        with pytest.raises(UserError, match="'loose' was registered outside a plugin") as caught:
            load_study(str(study_file(tmp_path / "study", base, baseline={"loss": {"name": "loose"}})), kept())
    finally:
        del LOSSES["loose"]
    assert "test_plugins.py, line" in str(caught.value.where)
    assert "`plugins`" in str(caught.value.hint)


def test_a_plugin_may_be_imported_in_the_ordinary_way_too(base: Path, tmp_path: Path) -> None:
    """By its own tests, say, before or after the study's."""
    path = study_file(tmp_path / "study", base, plugins=["own_ideas", "mine_too"])
    text = "from aligngap.losses import LOSSES, dpo\nLOSSES['mine_too'] = dpo\n"
    (tmp_path / "study/mine_too.py").write_text(text, "utf-8")
    sys.path.insert(0, str(tmp_path / "study"))
    importlib.import_module("mine_too")
    load_study(str(path))
    digest = LOSSES.code("mine_too")
    assert digest is not None
    importlib.reload(sys.modules["mine_too"])
    assert LOSSES.code("mine_too") == digest
    plugins.use_plugins([])
    del sys.modules["mine_too"]
    assert "mine_too" not in LOSSES


def test_studies_in_one_process_have_their_own_plugins(base: Path, tmp_path: Path) -> None:
    """The same module name in two folders, and one name registered by two studies' plugins."""
    found = []
    for folder, module in (("one", "mine"), ("two", "mine"), ("three", "other")):
        path = study_file(tmp_path / folder, base, plugins=["own_ideas", module])
        text = f"from aligngap.losses import LOSSES, dpo\nLOSSES['mine'] = dpo  # {folder}\n"
        (tmp_path / folder / f"{module}.py").write_text(text, "utf-8")
        found.append((load_study(str(path)), LOSSES.code("mine")))
    assert len({code for _, code in found}) == 3
    for study, code in reversed(found):
        plugins.use_plugins(study.plugins, study.folder)
        assert LOSSES.code("mine") == code
    load_study("quick")
    assert "mine" not in LOSSES


def test_one_module_may_be_a_plugin_and_hold_a_judges_function(base: Path, tmp_path: Path) -> None:
    """Whichever is read first."""
    judge = {"kind": "function", "function": "both:prefer"}
    path = study_file(tmp_path / "study", base, plugins=["own_ideas", "both"], golden={"judge": judge})
    text = "from aligngap.losses import LOSSES, dpo\nLOSSES['both'] = dpo\ndef prefer(prompts, pairs):\n    return 1"
    (tmp_path / "study/both.py").write_text(text, "utf-8")
    plugins.load_module(plugins.find_module("both", path.parent), path.parent)
    load_study(str(path), kept())
    assert LOSSES.code("both") is not None


def test_what_an_edited_plugin_no_longer_registers_is_gone(base: Path, tmp_path: Path) -> None:
    path = study_file(tmp_path / "study", base, plugins=["own_ideas", "mine"])
    for name in ("before", "after"):
        text = f"from aligngap.losses import LOSSES, dpo\nLOSSES['{name}'] = dpo\n"
        (tmp_path / "study/mine.py").write_text(text, "utf-8")
        load_study(str(path))
    assert "after" in LOSSES
    assert "before" not in LOSSES


def test_installed_packages_offer_plugins(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site/aligngap_extra"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", "utf-8")
    (package / "losses.py").write_text("from aligngap.losses import dpo\n\nhalved = dpo\n", "utf-8")
    text = "from aligngap.losses import LOSSES\nfrom aligngap_extra.losses import halved\nLOSSES['halved'] = halved\n"
    (package / "plugin.py").write_text(text, "utf-8")
    metadata = tmp_path / "site/aligngap_extra-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: aligngap-extra\nVersion: 1.0\n", "utf-8")
    (metadata / "entry_points.txt").write_text("[aligngap.plugins]\nextra = aligngap_extra.plugin\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    changes: dict[str, Any] = {"plugins": ["own_ideas"], "baseline": {"loss": {"name": "halved"}}}
    path = study_file(tmp_path / "study", base, **changes)
    assert load_study(str(path)).baseline.loss.name == "halved"
    digest = LOSSES.code("halved")
    (package / "losses.py").write_text("from aligngap.losses import dpo, ipo\n\nhalved = ipo\n", "utf-8")
    load_study(str(path))
    assert LOSSES.code("halved") != digest


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


@pytest.mark.slow
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
