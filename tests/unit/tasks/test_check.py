"""`aligngap check`: every number on data whose answer is known, and what breaks is one error without a traceback."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from aligngap.cli import main
from aligngap.models.tokenizer import word_tokenizer
from aligngap.tasks.check import Contents, describe
from aligngap.tasks.datasets import DatasetSpec
from unit.tasks import rows
from unit.tasks.rows import Row, battle, hh


def pair(prompt: str, chosen: str, rejected: str, **more: Any) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


TRAIN = [
    pair("a b c d", "one two three", "one"),
    pair("a b c d", "one two three", "one"),  # the same pair again
    pair("a b c d", "one", "one two three"),  # and against itself
    pair("e f", "one two", "three four"),
    pair("g", "g one", "two"),  # repeats its prompt
    pair("h", "one", ""),
]
TEST = [pair("e f", "two one", "x"), pair("e f", "three four", "one two"), pair("i", "one", "two")]


def saved(path: Path, data: list[Row]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    return path


def found(path: Path, **options: Any) -> Contents:
    return describe(DatasetSpec(source=str(path)), **options)


def test_every_number_in_words(tmp_path: Path) -> None:
    data = [{**row, "split": "train"} for row in TRAIN] + [{**row, "split": "test"} for row in TEST]
    d = found(saved(tmp_path / "pairs.jsonl", data))
    assert (d.format, d.unit, d.tally.read, d.kept) == ("preference", "words", 9, 8)
    assert d.as_json()["dropped"] == {"rejected is empty": {"count": 1, "rows": ["row 6"]}}
    assert d.splits == {"train": 5, "test": 3}
    assert d.lengths["prompt"] == {"min": 1, "5%": 1, "median": 2, "95%": 4, "max": 4, "mean": 20 / 8}
    assert (d.prompts, d.repeated_prompts) == (4, 4)
    assert d.repeated_pairs == 3  # twice within train, once across the splits
    assert d.conflicting_pairs == 5
    assert d.repeat_the_prompt == 1
    assert d.train_split == "train"
    assert [tuple(leak) for leak in d.leaks] == [("test", 2, 1, 1, 0)]
    assert (d.positioned, d.first_preferred, d.ties, d.decided) == (0, None, 0, 8)
    assert (d.chosen_longer, d.same_length) == (4 / 8, 3 / 8)
    assert d.mean_difference == pytest.approx((2 + 2 - 2 + 0 + 1 + 1 + 0 + 0) / 8)
    one = found(tmp_path / "pairs.jsonl", split="test")
    assert (one.tally.read, one.kept, one.train_split, one.leaks) == (3, 3, None, ())


def test_lengths_in_tokens_and_limits(tmp_path: Path) -> None:
    path = saved(tmp_path / "pairs.jsonl", TRAIN)
    spec = DatasetSpec(source=str(path), max_prompt_tokens=3, max_response_tokens=3)
    d = describe(spec, word_tokenizer("a b c d e f g h one two".split()))
    assert d.unit == "tokens"
    assert d.lengths["prompt"]["max"] == 1 + 4  # begin
    assert d.lengths["chosen"]["max"] == 3 + 1  # end
    assert [*d.over_limit.values()] == [3, 3, 0] if d.over_limit else False
    assert d.unknown_tokens == pytest.approx((3 + 2) / (5 * 3 + 3 + 2 + 6 * 3 + 6 + 3 + 2))


def test_balance_and_ties_of_what_a_rater_saw(tmp_path: Path) -> None:
    winners = ["model_a", "model_b", "model_b", "model_b", "tie"]
    path = saved(tmp_path / "arena.jsonl", [battle(winner) for winner in winners])
    d = found(path)
    assert (d.positioned, d.first_preferred, d.ties) == (4, 0.25, 0)
    assert d.as_json()["dropped"] == {"a tie": {"count": 1, "rows": ["row 5"]}}
    d = describe(DatasetSpec(source=str(path), ties="keep"))
    assert (d.positioned, d.ties, d.decided) == (5, 1, 4)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "pairs.jsonl", [hh(" yes I do", " no"), hh("", " b"), hh(" no", " yes I do")])
    assert main(["check", str(path)]) == 0
    out = capsys.readouterr().out
    assert "hh: two whole transcripts" in out
    assert "3 read, 2 kept, 1 dropped" in out
    assert "dropped: the answer in chosen is empty: 1 (row 2)" in out
    assert "chosen is longer in 50.0%" in out
    assert "2 are also there with the opposite preference" in out
    assert main(["check", str(path), "--json", "--format", "hh"]) == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == {
        "the answer in chosen is empty": {"count": 1, "rows": ["row 2"]}
    }
    other = saved(tmp_path / "other.jsonl", [{"question": "q", "chosen": "won", "rejected": "b"}])
    assert main(["check", str(other), "--column", "prompt=question", "--tokenizer", "small"]) == 0
    assert "tokens that the tokenizer does not know: " in capsys.readouterr().out


BROKEN = {
    "fields.jsonl": json.dumps({"prompt": "p", "choosen": "a", "rejected": "b"}).encode(),
    "missing.jsonl": json.dumps({"prompt": "p", "chosen": "a"}).encode(),
    "null.jsonl": json.dumps({**rows.TLDR, "rejected": None}).encode(),
    "mixed.jsonl": "\n".join(map(json.dumps, (rows.TLDR, rows.CONVERSATION))).encode(),
    "cut.jsonl.gz": gzip.compress(json.dumps(rows.TLDR).encode())[:-6],
    "bytes.jsonl": b'{"prompt": "\xff"}\n',
    "line.jsonl": b'{"prompt": "a"\n',
    "cut.json": b'[{"prompt": "a"}, ',
    "cut.parquet": b"PAR1xx",
    "cut.csv": b'prompt,chosen,rejected\n"a,b,c',
    "empty.jsonl": b"",
    "picture.png": b"\x89PNG",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_one_error(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(BROKEN[name])
    assert main(["check", str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.partition(":")[0] for line in lines] in (["error", "where", "hint"], ["error", "where"])
    assert name in lines[1]


@pytest.mark.parametrize(
    "arguments", [["--format", "nothing"], ["--split", "test"], ["--column", "prompt"], ["--column", "prompt=question"]]
)
def test_wrong_options_are_one_error(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "pairs.jsonl", [rows.TLDR])
    assert main(["check", str(path), *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_long_prompt_is_no_trouble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "pairs.jsonl", [pair("word " * 100_000, "won", "left")])
    assert main(["check", str(path), "--tokenizer", "small", "--json"]) == 0
    captured = capsys.readouterr()
    assert [*json.loads(captured.out)["over_limit"].values()] == [1, 0, 0]
    assert "longer than" not in captured.err
