"""Studies run from Python, in real processes: a script without a guard, and a main program that is no file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from aligngap.cli import main
from tiny import SETTINGS, Tiny

pytestmark = pytest.mark.slow

SCRIPT = """
print("the main program runs")
import aligngap

study = aligngap.load("study.yaml", {{"baseline.loss.beta": {beta}, "tasks": ["summarisation"]}})
results = aligngap.run(study, out="{out}", store="store", jobs=2)
assert results.points["beta"].to_list() == [{beta}] * len(results.points)
assert results.per_prompt.height > 0 and results.samples.height > 0
assert results.verdicts["experiment"].to_list() == ["tandem"]
assert results.missing.is_empty()
assert "summarisation-goodhart" in results.charts()
print(results.report.exists())
"""


def test_a_script_without_a_guard_and_a_program_from_standard_input(tmp_path: Path) -> None:
    Tiny(tmp_path)
    content = {
        "extends": "paper",
        "title": "From Python",
        "plugins": ["mine"],
        "experiments": ["tandem"],
        "sft_tasks": ["summarisation"],
        "models": dict.fromkeys(("policy", "proxy", "golden"), str(tmp_path / "base")),
        "baseline": {"loss": {"name": "mine"}},
    }
    for setting in SETTINGS:
        path, value = setting.split("=")
        *parents, last = path.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {})  # type: ignore[assignment]
        place[last] = yaml.safe_load(value)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content), "utf-8")
    (tmp_path / "mine.py").write_text("from aligngap.losses import LOSSES, dpo\nLOSSES['mine'] = dpo\n", "utf-8")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(beta=0.2, out="one"), "utf-8")
    for words, text in (([str(script)], None), (["-"], SCRIPT.format(beta=0.3, out="two"))):
        done = subprocess.run(
            [sys.executable, *words], input=text, capture_output=True, text=True, timeout=600, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("the main program runs") == 1
        assert done.stdout.endswith("True\n")
        assert done.stdout.count("finished  summarisation arm") == 4
    assert "SFT policy" not in done.stdout.split("by the estimates")[1]  # the second found the first's
    # The command line takes up where Python left.
    command = ["run", str(tmp_path / "study.yaml"), "--set", "baseline.loss.beta=0.3", "--set", "tasks=[summarisation]"]
    assert main([*command, "--out", str(tmp_path / "two"), "--store", str(tmp_path / "store")]) == 0
