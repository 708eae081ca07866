"""`aligngap diagnose` as users give it: real files, real models, all small."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aligngap
from aligngap.cli import main
from aligngap.errors import UserError
from aligngap.experiments.bench import Bench
from aligngap.experiments.study import load_study
from aligngap.models.build import Architecture, random_model
from aligngap.models.tokenizer import load_tokenizer
from aligngap.store import write_json
from tiny import SETTINGS, Tiny
from unit.judges.texts import bpe

PROMPTS = 24
RULES = """
def longer(prompts, pairs):
    print("as a user debugs")
    return [0.5 + (len(a) - len(b)) / (2 * max(len(a), len(b), 1)) for a, b in pairs]

def broken(prompts, pairs):
    raise RuntimeError("no luck")
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file, a policy and a judge's module."""
    place = tmp_path_factory.mktemp("diagnose")
    draw = random.Random(0)
    said = [
        "Take the wheel off.",
        "Paris is the capital.",
        "Rain on the roof, rain on the road.",
        "Glue a patch on it.",
    ]
    rows = [
        {"prompt": f"Question {number}?", "chosen": f" {a}", "rejected": f" {b}"}
        for number, (a, b) in enumerate(draw.sample(said, 2) for _ in range(60))
    ]
    (place / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in [*rows, rows[0]]), "utf-8")
    (place / "few.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:8]), "utf-8")
    (place / "my_rules.py").write_text(RULES, "utf-8")
    (place / "judge.yaml").write_text("{kind: function, function: 'my_rules:longer'}", "utf-8")
    tokenizer = bpe(eos_token="</s>", bos_token="<s>", pad_token="<pad>")
    shape = Architecture(hidden=16, layers=1, heads=2, intermediate=16, context=48)
    random_model(shape, len(tokenizer), 0).save_pretrained(place / "sft")
    tokenizer.save_pretrained(place / "sft")
    random_model(shape, 50, 0).save_pretrained(place / "narrow")
    tokenizer.save_pretrained(place / "narrow")
    return place


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("ALIGNGAP_STORE", raising=False)

    def call(*given: str) -> tuple[int, str, str]:
        code = main(["diagnose", *given])
        return code, *capsys.readouterr()

    return call


GIVEN = ("--policy", "sft", "--data", "pairs.jsonl", "--prompts", str(PROMPTS), "--max-response-tokens", "12")


def test_everything_as_json_and_as_a_page(run: Run, folder: Path) -> None:
    code, out, err = run(*GIVEN, "--judge", "judge.yaml", "--json", "--out", "page.html")
    assert (code, "error" in err) == (0, False)
    found = json.loads(out)
    about = found["about"]
    assert (about["policy"], about["data"], about["format"], about["judge"]) == (
        "sft",
        "pairs.jsonl",
        "preference",
        "judge.yaml",
    )
    assert (about["pairs"], about["prompts"], about["repeated_pairs"], about["rows_read"]) == (61, 60, 1, 61)
    # The policy takes 48 tokens.
    assert (about["max_response_tokens"], about["max_prompt_tokens"]) == (12, 36)
    assert found["counts"]["prompts"] == PROMPTS
    assert found["counts"]["judge_calls"] == 5 * PROMPTS
    assert set(found) == {
        "schema",
        "about",
        "counts",
        "on_policy",
        "contrast",
        "tells",
        "quality",
        "coverage",
        "judge",
        "regime",
    }
    # A random policy rarely says the one word that ends.
    assert 11 < found["on_policy"]["tokens"]["own"]["value"] <= 12
    assert found["on_policy"]["ended"]["own"]["value"] < 0.1
    assert found["coverage"]["nearest_relative"]["policy_by_data"]["n"] == PROMPTS
    assert found["regime"]["name"] == "undecided"
    assert f"{PROMPTS} prompts" in found["regime"]["evidence"][0]
    page = (folder / "page.html").read_text("utf-8")
    assert "<script" not in page
    assert not re.search(r"(src|href)=.(?!data:)|url\(", page)
    assert found["regime"]["limits"][0].split(":")[0] in page
    assert not list(folder.glob(".*.part"))


def test_the_terminal_says_what_is_known_and_what_is_not(run: Run) -> None:
    code, out, _ = run(*GIVEN)
    assert code == 0
    for words in ("HOW ON-POLICY THE DATA ARE", "KL proxy", "WHAT COVERS WHAT", "REGIME: undecided", "limits:"):
        assert words in out
    assert "ABSOLUTE QUALITY" not in out
    assert "without a judge nothing is known of quality" in out
    assert max(map(len, out.splitlines())) <= 160
    again = run(*GIVEN)[1]
    assert again == out


def test_from_python_it_is_the_same(run: Run) -> None:
    judge, limit = "function:my_rules:longer", 12
    said = json.loads(run(*GIVEN, "--judge", judge, "--json")[1])
    found = aligngap.diagnose("sft", "pairs.jsonl", judge, prompts=PROMPTS, max_response_tokens=limit)
    assert json.loads(json.dumps(found.as_json())) == said
    rows = {(row["section"], row["quantity"], row["column"]): row for row in found.numbers.iter_rows(named=True)}
    for section, quantity, column in (("on_policy", "tokens", "own"), ("quality", "win_rate", "either")):
        number = {name: rows[section, quantity, column][name] for name in ("value", "low", "high", "n")}
        assert number == said[section][quantity][column]
    assert found.regime.name == said["regime"]["name"]
    with pytest.raises(UserError, match="max_response_token"):
        aligngap.diagnose("sft", "pairs.jsonl", max_response_token=3)


def test_inline_judges_and_their_failures(run: Run, folder: Path) -> None:
    code, out, _ = run(*GIVEN, "--judge", "function:my_rules:longer")
    assert code == 0
    assert "ABSOLUTE QUALITY" in out
    before = set(folder.iterdir())
    code, out, err = run(*GIVEN, "--judge", "function:my_rules:broken", "--out", "other.html")
    assert (code, out) == (2, "")
    assert "no luck" in err
    assert "Traceback" not in err
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--policy", "nothing", "--data", "pairs.jsonl"), ["no base model 'nothing'"]),
        (("--policy", "sft", "--data", "nowhere.jsonl"), ["no such file", "nowhere.jsonl"]),
        (("--policy", "sft", "--data", "few.jsonl"), ["too few", "at least 10"]),
        (("--policy", "sft", "--data", "summarisation"), ["does not know the words", "./summarisation"]),
        (("--policy", "narrow", "--data", "pairs.jsonl"), ["the model's embedding has 50 rows"]),
        (("--policy", "sft", "--data", "pairs.jsonl", "--judge", "true"), ["only built-in worlds"]),
        (("--policy", "sft", "--data", "pairs.jsonl", "--judge", "fuction:a:b"), ["Did you mean 'function'?"]),
        (("--policy", "sft", "--data", "pairs.jsonl", "--device", "cuda:99"), ["no device 'cuda:99'"]),
        (("--policy", "sft", "--data", "pairs.jsonl", "--device", "nonsense"), ["no device 'nonsense'"]),
        (("--policy", "sft", "--data", "pairs.jsonl", "--out", "page.txt"), ["ends in .html"]),
        (("--policy", "sft", "--data", "pairs.jsonl", "--out", "no/page.html"), ["no such folder"]),
        (("--policy", "sft", "--data", "pairs.jsonl", "--column", "x"), ["names no column"]),
        (("--policy", "sft", "--data", "pairs.jsonl", "--split", "test"), ["test"]),
    ],
)
def test_a_mistake_is_one_error(run: Run, folder: Path, given: tuple[str, ...], words: list[str]) -> None:
    before = set(folder.iterdir())
    code, out, err = run(*given)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert all(word in err for word in words), err
    assert set(folder.iterdir()) == before


def test_a_runs_sft_policy_and_a_world_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = Tiny(tmp_path)
    settings = [f"models.{role}={tmp_path}/base" for role in ("policy", "proxy", "golden")]
    study = load_study("paper", [*settings, "tasks=[summarisation]", "sft_tasks=[summarisation]", *SETTINGS])
    sft = Bench(study, "summarisation").sft
    made = tiny.made(sft)
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / "study.json", study.model_dump(mode="json"))
    stage: dict[str, Any] = {"identity": sft.identity, "kind": "sft", "label": sft.label, "status": "finished"}
    stage |= {"done": 0, "total": 0, "rate": None, "seconds": 0.0, "reason": ""}
    status = {"schema": 1, "state": "finished", "store": "../store", "stages": [stage], "pid": 1, "jobs": 1}
    status |= {"started": "", "updated": "", "seconds": 0.0, "left": None, "fraction": 1.0}
    write_json(folder / "status.json", status)
    given = ["diagnose", "--policy", str(folder), "--data", "summarisation", "--judge", "true", "--prompts", "12"]
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["about"]["policy"] == str(made / "model")
    assert (found["about"]["format"], found["about"]["pairs"]) == ("built-in world", 8000)
    assert found["judge"]["read_first"]["data"]["value"] is None
    assert found["judge"]["agreement"]["data"]["value"] > 0.5
    assert len(load_tokenizer(str(made / "model"))) > 50
    write_json(folder / "status.json", status | {"state": "failed", "stages": []})
    assert main(given) == 2
    assert "no SFT policy yet" in capsys.readouterr().err
