"""What docs/own-ideas.md shows is what the example's files say, and they do what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aligngap.results import read
from tiny import SETTINGS, Tiny

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples"
PLAIN = [file.read_text("utf-8") for file in sorted(EXAMPLES.glob("*/*")) if file.is_file()]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, timeout=600, cwd=folder, env=where
    )


def test_the_page_shows_the_files() -> None:
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", (DOCS / "own-ideas.md").read_text("utf-8"), re.DOTALL)
    shown = [block for block in blocks if not block.startswith("import aligngap")]
    assert len(shown) == len(blocks) - 1 == 8
    for block in shown:
        assert any(block in text for text in PLAIN), block


def test_the_examples_pass_the_contract_tests(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "own-ideas", tmp_path / "study")
    done = run(tmp_path / "study", "pytest", "-q", "-p", "no:cacheprovider", "test_my_ideas.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.slow
def test_one_idea_of_each_kind_in_one_study(tmp_path: Path) -> None:
    Tiny(tmp_path)
    shutil.copytree(EXAMPLES / "own-ideas", tmp_path / "study")
    models = [f"models.{role}={tmp_path / 'base'}" for role in ("policy", "proxy", "golden")]
    kept = [setting for setting in SETTINGS if not setting.startswith("proxy.")]
    changes = [word for setting in (*models, *kept) for word in ("--set", setting)]
    done = run(tmp_path / "study", "aligngap", "run", "study.yaml", "--out", "out", *changes)
    assert done.returncode == 0, done.stdout + done.stderr
    task = json.loads((tmp_path / "study/out/results.json").read_text("utf-8"))["tasks"]["terse"]
    assert {arm["status"] for arm in task["arms"]} == {"finished"}
    assert {"contrast_first", "online", "offline"} <= {arm["family"] for arm in task["arms"]}
    assert {arm["source"]["judge"] for arm in task["arms"] if arm["family"] == "online"} == {"proxy"}
    assert set(task["experiments"]) == {"contrast_first", "goodhart"}
    results = read(tmp_path / "study/out")
    assert results.measures == ["words", "repetition"]
    assert set(results.points["run"]) == set(results.runs["run"])
