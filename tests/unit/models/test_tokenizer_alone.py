"""What the command line says of a tokenizer, with or without a model beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aligngap.cli import main
from aligngap.experiments.starter import starter
from aligngap.models.tokenizer import byte_tokenizer
from aligngap.tasks.datasets import DatasetSpec
from checkpoints import saved

ROWS = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No."} for n in range(30)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return path


def test_check_takes_a_folder_that_holds_a_tokenizer_and_no_model(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    byte_tokenizer(["one two"], 300).save_pretrained(tmp_path / "alone")
    assert main(["check", str(data), "--tokenizer", str(tmp_path / "alone")]) == 0
    said = capsys.readouterr().out
    assert "a response is closed by '<eos>'" in said
    assert "in tokens" in said


def test_init_says_what_ends_a_response_and_how_many_answers_have_one(data: Path, tmp_path: Path) -> None:
    rows = [row | {"rejected": "No.<eos> And more."} for row in ROWS]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    policy = saved("llama", tmp_path / "policy", ["one two"])
    notes = starter(tmp_path / "study.yaml", DatasetSpec(source=str(data)), str(policy)).notes
    (line,) = [note for note in notes if "a response is closed by '<eos>'" in note]
    assert line.endswith("answers in which the data wrote an end token: 30")
