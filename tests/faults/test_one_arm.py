"""One arm's failure is told everywhere, stops no other arm, and enters no number."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest

from aligngap.cli import main
from aligngap.store import Store
from faults.campaign import STUDY
from tiny import Tiny

pytestmark = pytest.mark.faults


def test_an_arm_that_diverges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Tiny(tmp_path)  # its base
    monkeypatch.chdir(tmp_path)
    more = "\nsweep: {lr_factors: [1.0, 1.0e30], betas: [0.1], online: false}\n"
    Path("study.yaml").write_text(STUDY.replace("[tandem, quality, classification]", "[goodhart]") + more)
    assert main(["run", "study.yaml", "--out", "run", "--jobs", "2"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    bad = re.escape("arm: recorded golden labels order=schedule, base, ipo, lr 1e+28")
    (reason,) = re.findall(rf"^failed: summarisation {bad}.*: (Diverged: .*)$", said, re.MULTILINE)
    found = re.match(
        r"Diverged: the (?:loss|gradient's norm) is (?:nan|-?inf) at step (\d+) of 8, on the batch ([0-9a-f]{12}) "
        r"\(prompts ([0-9, ]+)\); the weights before it are kept in the store: (\S+) \(log: ",
        reason,
    )
    assert found, reason
    assert len(found[3].split(",")) == 4
    kept = Path("run/store") / found[4]
    assert kept.name == f"{int(found[1]) - 1:06d}.safetensors"
    assert kept.is_file()

    results = json.loads(Path("run/results.json").read_text())["tasks"]["summarisation"]
    arms = {arm["name"]: arm for arm in results["arms"]}
    failed = [arm for arm in arms.values() if arm["status"] == "failed"]
    assert [arm["settings"]["lr"] for arm in failed] == [pytest.approx(1e28)]
    assert found[2] in failed[0]["reason"]
    assert set(pl.read_parquet("run/points.parquet")["arm"]) == set(arms) - {failed[0]["name"]}
    assert failed[0]["name"] not in set(pl.read_parquet("run/per_prompt.parquet")["arm"])
    assert found[2] in Path("run/report.html").read_text()
    assert main(["status", "run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("failed") >= 2  # the stage's line, and the sum
    assert "Diverged" in shown

    # Again: all else is kept, and the arm fails as it did, from its last checkpoint or from the start.
    store = Store("run/store")
    before = {name: (store.get(name).path / "manifest.json").read_bytes() for name in store.identities()}
    assert main(["run", "study.yaml", "--out", "run", "--jobs", "2", "--checkpoint-seconds", "0"]) == 1
    assert found[2] in capsys.readouterr().err
    assert {name: (store.get(name).path / "manifest.json").read_bytes() for name in store.identities()} == before
    again = json.loads(Path("run/results.json").read_text())["tasks"]["summarisation"]
    assert again == results
