"""The campaign in short; the long one is `python -m tests.faults.campaign --kills 200 --flips 100`."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import polars as pl
import pytest

from aligngap.store import Store
from faults import campaign
from faults.campaign import Broken, Lab, Trial

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab.set_up(tmp_path_factory.mktemp("lab"))


SHORT = {"kills": 2, "flips": 2, "workers": 1, "full": 1, "stops": 1, "memory": 1, "clocks": 1, "pairs": 1}


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name, count in SHORT.items() for seed in range(count)])
def test_a_disturbed_run_ends_as_an_undisturbed_one(lab: Lab, name: str, seed: int) -> None:
    found = campaign.attempt(lab, name, seed)
    assert found["broken"] == ""
    assert found["hit"]
    assert found["went_on"]


def tampered(lab: Lab, folder: Path) -> Trial:
    trial = Trial(lab, folder, random.Random(0), 1)
    shutil.copytree(lab.folder / "reference" / "run", trial.run)
    lab.check(trial)
    return trial


def test_the_check_itself_sees_what_it_is_there_for(lab: Lab, tmp_path: Path) -> None:
    def other_result(trial: Trial) -> None:
        points = pl.read_parquet(trial.run / "points.parquet")
        points.with_columns(pl.col("kl") + 1e-12).write_parquet(trial.run / "points.parquet")

    def flipped(trial: Trial) -> None:
        path = next(trial.store.glob("arm-*/final.safetensors"))
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")

    def other_weights(trial: Trial) -> None:
        store = Store(trial.store)
        name = next(name for name in store.identities() if name.startswith("sft-"))
        files = {path.name: path.read_bytes() for path in store.get(name).path.glob("*.json")}
        shutil.rmtree(store.get(name).path)
        with store.writing(name, {}) as folder:  # whole by its own manifest, and yet not what was made
            (folder / "metrics.json").write_bytes(files["metrics.json"] + b" ")

    def left_behind(trial: Trial) -> None:
        Store(trial.store).partial("arm-1")

    for number, tamper in enumerate((other_result, flipped, other_weights, left_behind)):
        trial = tampered(lab, tmp_path / str(number))
        tamper(trial)
        with pytest.raises(Broken):
            lab.check(trial)
    with pytest.raises(Broken, match="made again"):
        campaign.not_again({"a": b"1", "b": b"2"}, {"a": b"1", "b": b"3"})


def test_the_table_counts_every_round(tmp_path: Path) -> None:
    rows = [
        {"trial": "kills", "seed": 100001, "date": "2026-01-01", "hit": {"arm": 1, "kills": 2}, "went_on": "again"},
        {"trial": "kills", "seed": 200001, "date": "2026-01-02", "hit": {"arm": 1, "kills": 1}, "went_on": "again"},
        {"trial": "flips", "seed": 200002, "date": "2026-01-02", "hit": {"sft": 1}, "went_on": ""},
    ]
    for k, row in enumerate(rows):
        with (tmp_path / f"{k % 2}.jsonl").open("a") as file:
            file.write(json.dumps(row | {"broken": "differs" if row["trial"] == "flips" else ""}) + "\n")
    table = campaign.summed([tmp_path / "0.jsonl", tmp_path / "1.jsonl"])
    assert "| kills | 3 | 2 | 2 | again 2 | arm 2 |" in table
    assert "| flips | 1 | 1 | 0 |  | sft 1 |" in table
    assert "Seeds 1, 2; 2026-01-01 to 2026-01-02." in table
