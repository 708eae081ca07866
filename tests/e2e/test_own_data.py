"""A study on data of one's own, with a checkpoint of one's own, written as a user writes it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aligngap.cli import main
from aligngap.errors import UserError
from aligngap.experiments.bench import Bench
from aligngap.experiments.plan import Plan
from aligngap.experiments.study import load_study
from aligngap.models.build import Architecture, random_model
from aligngap.report.page import write_report
from aligngap.results import read
from tiny import make_study

EXPERIMENTS = ["goodhart", "quality", "classification", "scaling", "golden"]
SETTINGS = {
    "extends": "paper",
    "title": "Own data",
    "description": "a test",
    "datasets": {"walks": {"source": "walks.jsonl", "max_prompt_tokens": 24, "max_response_tokens": 8}},
    "models": {"policy": "base", "golden": "base", "proxy": "base"},
    "experiments": EXPERIMENTS,
    "sft": {"lr": 1e-3, "steps": 2, "batch": 8},
    "golden": {"model": "pairwise", "optim": {"lr": 1e-3, "steps": 3, "batch": 8}},
    "proxy": {"model": "pairwise", "train_pairs": 32, "optim": {"lr": 1e-3, "steps": 3, "batch": 8}},
    "baseline": {"optim": {"lr": 1e-2, "steps": 6, "batch": 4, "warmup_steps": 1}},
    "sweep": {"lr_factors": [1.0], "betas": [0.1], "online": False},
    "evaluation": {"prompts": 10, "pairs": 10, "checkpoints": 2},
    "analysis": {"replicates": 100},
}


def rows() -> list[dict[str, str]]:
    draw = random.Random(0)
    walks = ["the dog ran home", "a cat sat there", "we went out", "rain fell all day", "she slept"]
    return [
        {"prompt": f"Tell me of walk {number}.", "chosen": f" {a}, and so did I.", "rejected": f" {b}"}
        for number, (a, b) in enumerate(draw.sample(walks, 2) for _ in range(90))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file, a checkpoint and a study side by side, the study naming both by relative paths."""
    place = tmp_path_factory.mktemp("own")
    (place / "walks.jsonl").write_text("\n".join(json.dumps(row) for row in rows()), "utf-8")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((text for row in rows() for text in row.values()), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    shape = Architecture(hidden=16, layers=1, heads=2, intermediate=16)
    random_model(shape, len(tokenizer), 0).save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    (place / "study.yaml").write_text(yaml.safe_dump(SETTINGS), "utf-8")
    return place


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return make_study(load_study(str(folder / "study.yaml")), folder / "run")


def test_the_whole_study_runs_and_concludes_without_a_true_utility(results: dict[str, Any], folder: Path) -> None:
    task = results["tasks"]["walks"]
    assert {arm["status"] for arm in task["arms"]} == {"finished"}
    assert set(task["experiments"]) == {"goodhart", "quality", "classification"}
    assert set(task["not_asked"]) == {"scaling", "golden"}
    last = read(folder / "run").points.filter(family="online").row(-1, named=True)
    assert last["n_golden_policy_golden"] > 0
    by_truth = [last[f"{what}_golden_policy_true"] for what in ("rate", "se", "n", "ties")]
    assert by_truth == [None, None, 0, 0]
    assert last["utility"] is None
    by_truth = task["experiments"]["goodhart"]["estimates"]["average_gap_true"]
    assert (by_truth["value"], by_truth["n_prompts"]) == (None, 0)
    assert task["experiments"]["goodhart"]["estimates"]["average_gap"]["value"] is not None
    assert task["stages"]["data"]["train_pairs"] + task["stages"]["data"]["held_out_pairs"] == 90
    assert task["stages"]["agreement"].keys() == {"golden_rater", "proxy_golden", "proxy_rater"}
    page = write_report(folder / "run").read_text("utf-8")
    assert "Tell me of walk" in pl.read_parquet(folder / "run/samples.parquet")["prompt"][0]
    assert "Not asked on walks" in page
    assert "Nobody knows a real data set" in page


def test_responses_keep_to_the_limit_of_the_data_set(results: dict[str, Any], folder: Path) -> None:
    study = load_study(str(folder / "study.yaml"))
    evaluation = next(stage for stage in Plan(study).targets if stage.kind == "evaluate")
    frame = pl.read_parquet(folder / "run/store" / evaluation.identity / "per_prompt.parquet")
    assert frame["tokens"].max() <= 8


def test_identities_follow_the_contents_and_not_the_path(folder: Path, tmp_path: Path) -> None:
    def identities(place: Path) -> list[str]:
        return [stage.identity for stage in Plan(load_study(str(place / "study.yaml"))).stages]

    moved = tmp_path / "elsewhere"
    for path in folder.rglob("*"):
        if path.is_file() and "run" not in path.parts[len(folder.parts) :]:
            target = moved / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    before = identities(folder)
    assert identities(moved) == before
    with (moved / "walks.jsonl").open("a") as handle:
        handle.write("\n" + json.dumps({"prompt": "One more.", "chosen": " Yes.", "rejected": " No."}))
    assert not set(identities(moved)) & set(before)


def test_own_data_bring_their_own_task_and_sft_pool(folder: Path) -> None:
    study = load_study(str(folder / "study.yaml"))
    assert (study.tasks, study.sft_tasks) == (("walks",), None)
    assert [stage.name for stage in Bench(study, "walks").sft.pairs] == ["walks"]
    task = Plan(study).tasks["walks"]
    assert list(task.asked) == ["goodhart", "quality", "classification"]
    assert set(task.not_asked) == {"scaling", "golden"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"datasets": {"summarisation": {"source": "x.jsonl"}}}, ["cannot be called 'summarisation'"]),
        ({"datasets": {"a b": {"source": "x.jsonl"}}}, ["cannot be called 'a b'"]),
        ({"datasets": {"walks": {"sauce": "x.jsonl"}}}, ["no key 'sauce'", "source"]),
        ({"datasets": {"walks": {"source": "nowhere.jsonl"}}}, ["no such file", "nowhere.jsonl"]),
        ({"tasks": ["walk"]}, ["no task 'walk'", "walks"]),
        ({"models": {"policy": "bass", "golden": "base", "proxy": "base"}}, ["no base model 'bass'"]),
    ],
)
def test_a_mistake_is_one_error(folder: Path, change: dict[str, Any], words: list[str]) -> None:
    path = folder / "wrong.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | change), "utf-8")
    with pytest.raises(UserError) as caught:
        Plan(load_study(str(path))).check_models()
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("count", "ending", "words"),
    [
        (1, "", ["error: 1 pairs cannot be split"]),
        (60, "", ["error: 6 held-out prompts are too few", "hint: Hold out more"]),
        (90, '{"prompt": "a", "chos', ["error: malformed JSON", "walks.jsonl, line 91"]),
        (90, '{"chosen": "A b.", "rejected": "A c."}', ["error: the formats are mixed", "walks.jsonl, row 91"]),
    ],
)
def test_broken_data_end_a_run_with_one_error(
    folder: Path, tmp_path: Path, count: int, ending: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps(row) for row in rows()[:count]]
    (tmp_path / "walks.jsonl").write_text("\n".join([*lines, ending]), "utf-8")
    base = dict.fromkeys(("policy", "golden", "proxy"), str(folder / "base"))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(SETTINGS | {"models": base}), "utf-8")
    assert main(["run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert [line.partition(":")[0] for line in said.splitlines()] == ["error", "where", "hint"]


def test_init_writes_a_study_that_plans(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    file = folder / "first.yaml"
    given = ["init", str(file), "--data", "walks.jsonl", "--policy", "base"]
    assert main(given) == 0
    study = load_study(str(file))
    assert study.datasets["walks"].format == "preference"
    # The base takes 128 tokens: a prompt and both answers with their separators fit in.
    assert study.datasets["walks"].max_prompt_tokens + 2 * study.datasets["walks"].max_response_tokens + 2 <= 128
    Plan(study).check_models()
    written = file.read_bytes()
    assert main(given) == 2
    assert "there already" in capsys.readouterr().err
    assert file.read_bytes() == written
    assert main(["init", str(tmp_path / "x.yaml"), "--data", "walks.jsonl", "--policy", "nothing"]) == 2
    assert not (tmp_path / "x.yaml").exists()


def test_given_judges_take_the_place_of_trained_ones(folder: Path) -> None:
    (folder / "rules.py").write_text(
        "def shorter(prompts, pairs):\n    return [(len(a) < len(b)) + 0.5 * (len(a) == len(b)) for a, b in pairs]\n"
        "def longer(prompts, pairs):\n    return [1 - x for x in shorter(prompts, pairs)]\n",
        "utf-8",
    )
    given = {
        "golden": {"judge": {"kind": "function", "function": "rules:shorter"}},
        "proxy": {"judge": {"kind": "function", "function": "rules:longer"}},
        "experiments": ["goodhart", "proxy", "golden"],
        "sft": None,
    }
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | given), "utf-8")
    study = load_study(str(path))
    kinds = {stage.kind for stage in Plan(study).stages}
    assert "preference" not in kinds
    task = make_study(study, folder / "given")["tasks"]["walks"]
    assert set(task["not_asked"]) == {"proxy", "golden"}
    assert {arm["status"] for arm in task["arms"]} == {"finished"}
    # Whatever one says, the other says the opposite.
    assert task["stages"]["agreement"]["proxy_golden"]["value"] == 0.0
    samples = pl.read_parquet(folder / "given/samples.parquet").filter(pl.col("margin_golden").is_not_null())
    assert (samples["margin_golden"] == -samples["margin_proxy"]).all()

    before = Bench(study, "walks").golden.identity
    with (folder / "rules.py").open("a", encoding="utf-8") as handle:
        handle.write("# another file\n")
    assert Bench(load_study(str(path)), "walks").golden.identity != before


@pytest.mark.parametrize(
    ("golden", "words"),
    [
        ({"judge": {"kind": "functoin", "function": "rules:shorter"}}, ["no judge of kind", "function"]),
        ({"judge": {"kind": "function", "function": "rules:shorter"}, "optim": {"lr": 1e-3, "steps": 3}}, ["either"]),
        ({"judge": {"kind": "function", "function": "nowhere:f"}}, ["no such module"]),
    ],
)
def test_a_judge_that_cannot_be_is_one_error(folder: Path, golden: dict[str, Any], words: list[str]) -> None:
    path = folder / "wrong.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"golden": golden}), "utf-8")
    with pytest.raises(UserError) as caught:
        Plan(load_study(str(path))).check_models()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_judge_that_fails_ends_a_run_with_one_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken_rules.py").write_text("def prefer(prompts, pairs):\n    return [2.0] * len(pairs)\n", "utf-8")
    path = folder / "broken.yaml"
    judge = {"judge": {"kind": "function", "function": "broken_rules:prefer"}}
    path.write_text(yaml.safe_dump(SETTINGS | {"golden": judge}), "utf-8")
    assert main(["run", str(path), "--out", str(tmp_path / "run")]) == 2
    error, where, hint = capsys.readouterr().err.splitlines()
    assert error == "error: the function returned 2.0, which is no number from 0 to 1"
    assert where.startswith("where: judge function 'broken_rules:prefer', row 1 of ")
    assert hint.startswith("hint: ")


def test_nothing_is_analysed_by_a_truth_that_nobody_knows(folder: Path) -> None:
    with pytest.raises(UserError, match="nobody knows the true utility"):
        load_study(str(folder / "study.yaml"), ["analysis.judge=true"])
