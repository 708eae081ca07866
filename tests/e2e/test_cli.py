"""The command line as a user meets it: what is wrong with the input is said in one message, without a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aligngap import __version__
from aligngap.cli import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a refused command says."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err


def aligngap(*arguments: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-m", "aligngap", *arguments], capture_output=True, text=True, env=variables, check=False
    )


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"aligngap {__version__}\n"
    assert main(["--help"]) == 0
    for command in (
        "run",
        "plan",
        "studies",
        "status",
        "report",
        "samples",
        "verify",
        "pack",
        "unpack",
        "gc",
        "export",
        "scratch",
        "pretrain",
    ):
        assert main([command, "--help"]) == 0


def test_studies_are_listed_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[0] == "quick" for line in lines)
    assert all(len(line.split()) > 1 for line in lines)


def test_the_process_ends_with_the_code_and_no_traceback(tmp_path: Path) -> None:
    done = aligngap("status", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == "error: not a run's folder: it has no study.json"
    assert done.stderr.splitlines()[1] == f"where: {tmp_path / 'nowhere'}"
    assert done.stderr.splitlines()[2].startswith("hint: ")


@pytest.mark.parametrize("command", ["--help", "status"])
def test_what_needs_no_model_starts_without_torch(command: str, tmp_path: Path) -> None:
    code = "import sys; from aligngap.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments = [command, str(tmp_path)] if command == "status" else [command]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=variables, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["run"],
        ["run", "quick", "--jobs", "0"],
        ["run", "quick", "--seeds", "two"],
        ["plan", "--bogus"],
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "plan"])
def test_unknown_study(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'quick'?" in refused(capsys, command, "quik")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("baseline.optim.lrr=1", "Did you mean 'lr'?"),
        ("baseline.optim.lr=-1", "baseline.optim.lr"),
        ("no-equals-sign", "--set"),
        ("seeds=[0, 0.5]", "seeds"),
    ],
)
def test_unknown_key_or_value_out_of_range(setting: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, "run", "quick", "--set", setting)


@pytest.mark.parametrize("text", ["tasks: [", "- a\n- list\n", "\x00", None])
def test_unreadable_study_file(text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    assert str(path) in refused(capsys, "run", str(path))


def test_unwritable_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A file in the way stops everyone; permissions would not stop root, as whom containers run.
    (tmp_path / "file").touch()
    said = refused(capsys, "run", "quick", "--out", str(tmp_path / "file" / "run"))
    assert "cannot be written" in said
    assert "--out" in said


def test_unwritable_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    said = refused(capsys, "run", "quick", "--out", str(tmp_path / "run"), "--store", str(tmp_path / "file" / "store"))
    assert "cannot be written" in said


def test_changed_study_in_an_old_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from aligngap.experiments.study import load_study

    old = load_study("quick").model_dump(mode="json")
    (tmp_path / "study.json").write_text(json.dumps(old))
    said = refused(capsys, "run", "quick", "--out", str(tmp_path), "--set", "baseline.optim.steps=7")
    assert f"baseline.optim.steps: {old['baseline']['optim']['steps']} -> 7" in said
    assert "--out" in said


@pytest.mark.parametrize("command", ["status", "report", "samples", "verify"])
def test_not_a_runs_folder(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a run's folder" in refused(capsys, command, str(tmp_path))


@pytest.mark.parametrize("command", ["status", "report", "samples", "verify"])
def test_a_run_that_has_nothing_yet(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.json").write_text("{}")
    assert "aligngap run" in refused(capsys, command, str(tmp_path)) or command == "verify"


def test_pretrain_refuses_what_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'x1-second'?" in refused(capsys, "pretrain", "x1-secon", "--out", str(tmp_path))
    (tmp_path / "91k").mkdir()
    (tmp_path / "91k" / "config.json").touch()
    assert "not empty" in refused(capsys, "pretrain", "91k", "--out", str(tmp_path))


def test_pretrain_makes_a_base_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(["pretrain", "91k", "--out", str(tmp_path), "--steps", "1"]) == 0
    assert "91k  5/5  " in capsys.readouterr().out  # a step a cycle
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "91k")
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "91k"))
    assert json.loads((tmp_path / "91k.json").read_text())["spec"]["size"] == "small"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["91k", "91k.json"]
    # Once more: what is there is not made again; and another recipe does not take its place.
    assert main(["pretrain", "91k", "--out", str(tmp_path), "--steps", "1"]) == 0
    assert "there already" in capsys.readouterr().out
    assert "another recipe" in refused(capsys, "pretrain", "91k", "--out", str(tmp_path), "--steps", "2")


def test_a_pretraining_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from aligngap.train import pretrain as recipe

    evaluate = recipe.evaluate_base

    def stop(*_: object) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "evaluate_base", stop)  # after the last step
    assert main(["pretrain", "91k", "--out", str(tmp_path), "--steps", "1"]) == 130
    assert "aligngap pretrain 91k" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] != []  # what had been made is kept
    monkeypatch.setattr(recipe, "evaluate_base", evaluate)
    assert main(["pretrain", "91k", "--out", str(tmp_path), "--steps", "1"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["91k", "91k.json"]
