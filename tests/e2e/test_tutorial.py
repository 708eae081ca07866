"""Every command of docs/tutorial.md, in its order."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", (DOCS / "tutorial.md").read_text("utf-8"), re.DOTALL)
    for line in block.splitlines()
]


def rows() -> list[dict[str, str]]:
    draw = random.Random(0)
    things = ["a dog", "the cat", "my boat", "her hat", "one bird", "old bread"]
    acts = ["ran home", "sat down", "went out", "fell over", "slept well"]
    found = []
    for number in range(900):
        thing, act, other = draw.choice(things), draw.choice(acts), draw.choice(acts)
        prompt = f"Day {number}: {thing} {act}. Say it again."
        found.append({"prompt": prompt, "chosen": f" {thing} {act}.", "rejected": f" {draw.choice(things)} {other}"})
    return found


def test_every_command_of_the_tutorial(tmp_path: Path) -> None:
    assert len(COMMANDS) >= 12
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows())), "utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("ALIGNGAP_STORE", None)
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[0] == "aligngap"
        smoke = ["--smoke"] if words[1] == "run" and "--smoke" not in words else []
        done = subprocess.run(
            [sys.executable, "-m", "aligngap", *words[1:], *smoke],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "</html>" in (tmp_path / "runs/my-study-smoke/report.html").read_text("utf-8")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert model.config.vocab_size >= len(AutoTokenizer.from_pretrained(tmp_path / "policy"))
