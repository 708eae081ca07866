"""`aligngap init`: what it writes is accepted by `plan`, or it says why nothing can be.

The kind of fault: a command that writes what another one refuses, or that leaves unsaid what it chose.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aligngap.errors import UserError
from aligngap.experiments.gather import _data_summary
from aligngap.experiments.plan import Plan
from aligngap.experiments.starter import starter, write_starter
from aligngap.experiments.study import load_study
from aligngap.models.tokenizer import load_tokenizer
from aligngap.tasks.datasets import DatasetSpec
from aligngap.tasks.encode import READ_AS_CONTROL, make_dataset_pairs
from checkpoints import saved

TEXTS = ["What is the river? It is long, and no."] * 3


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"What is river {number}?", "chosen": f" It is {number}.", "rejected": " No.", **more}


def written(path: Path, rows: list[dict[str, Any]]) -> DatasetSpec:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetSpec(source=str(path))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved("llama", tmp_path_factory.mktemp("models") / "policy", TEXTS))


@pytest.mark.parametrize("pairs", [17, 40, 90, 500])
@pytest.mark.parametrize("smoke", [False, True])
def test_what_it_writes_is_accepted_by_plan(pairs: int, smoke: bool, policy: str, tmp_path: Path) -> None:
    data = written(tmp_path / "few.jsonl", [row(number) for number in range(pairs)])
    file = tmp_path / "study.yaml"
    notes = write_starter(file, data, policy)
    plan = Plan(load_study(str(file), smoke=smoke))
    plan.check_models()
    plan.check_data()
    spec = load_study(str(file)).datasets["few"]
    assert any("few prompts" in note for note in notes) == (spec.held_out_share != 0.1) == (pairs < 80)


@pytest.mark.parametrize("pairs", [1, 2, 9])
def test_too_few_for_any_study_are_refused_with_the_reason(pairs: int, policy: str, tmp_path: Path) -> None:
    data = written(tmp_path / "few.jsonl", [row(number) for number in range(pairs)])
    with pytest.raises(UserError, match="too few data for any study"):
        write_starter(tmp_path / "study.yaml", data, policy)
    assert not (tmp_path / "study.yaml").exists()


def test_what_was_dropped_is_part_of_why_there_are_too_few(policy: str, tmp_path: Path) -> None:
    rows = [row(number) for number in range(12)] + [
        row(number, rejected=f" It is {number}.<eos>") for number in range(90)
    ]
    with pytest.raises(UserError, match="too few data for any study") as caught:
        starter(tmp_path / "study.yaml", written(tmp_path / "few.jsonl", rows), policy)
    assert "the same once the tokenizer has read them: 90 (row 13," in str(caught.value.hint)


def test_a_golden_model_that_reads_other_tokens_is_refused(policy: str, tmp_path: Path) -> None:
    other = saved("llama", tmp_path / "other", ["quite different words: zebra, xylophone"] * 3)
    data = written(tmp_path / "few.jsonl", [row(number) for number in range(40)])
    for models in ({"golden": str(other)}, {"proxy": str(other)}):
        with pytest.raises(UserError, match="has another tokenizer than the policy"):
            starter(tmp_path / "study.yaml", data, policy, **models)


def test_limits_fit_the_shortest_of_the_models(policy: str, tmp_path: Path) -> None:
    short = saved("llama", tmp_path / "short", TEXTS, context=64)
    long = [row(number, chosen=" It is long." * 20) for number in range(40)]
    file = tmp_path / "study.yaml"
    notes = write_starter(file, written(tmp_path / "few.jsonl", long), policy, golden=str(short))
    spec = load_study(str(file)).datasets["few"]
    assert spec.max_prompt_tokens + 2 * spec.max_response_tokens + 2 <= 64
    assert any("below the median" in note for note in notes)


@pytest.mark.parametrize("by_column", [False, True])
def test_splits_that_are_not_used_are_named(by_column: bool, policy: str, tmp_path: Path) -> None:
    """The same whether a split is a file or a column: `init`, `plan` and the run train on one of them."""
    if by_column:
        rows = [row(number, split="test_prefs" if number % 4 == 0 else "train_prefs") for number in range(120)]
        data = written(tmp_path / "set.jsonl", rows)
    else:
        pytest.importorskip("datasets")
        card = [f"  - split: {name}\n    path: {name}.jsonl\n" for name in ("train_prefs", "test_prefs")]
        for name, numbers in (("train_prefs", range(90)), ("test_prefs", range(90, 120))):
            written(tmp_path / "set" / f"{name}.jsonl", [row(number) for number in numbers])
        head = "---\nconfigs:\n- config_name: default\n  data_files:\n"
        (tmp_path / "set" / "README.md").write_text(head + "".join(card) + "---\n")
        data = DatasetSpec(source=str(tmp_path / "set"))
    made = starter(tmp_path / "study.yaml", data, policy)
    (line,) = [note for note in made.notes if "not used" in note]
    assert "trained on: the split train_prefs; not used: test_prefs." in line
    assert "held_out_split: test_prefs" in line
    assert '# not used: "test_prefs"' in made.text
    pairs = make_dataset_pairs(data, load_tokenizer(policy))
    assert (pairs.tally.read, len(pairs.data.train) + len(pairs.data.held_out)) == (90, 90)


def test_a_row_that_names_no_split_where_others_do_is_counted(policy: str, tmp_path: Path) -> None:
    rows = [row(number, split="train") for number in range(60)] + [row(61), row(62, split=None)]
    made = make_dataset_pairs(written(tmp_path / "set.jsonl", rows), load_tokenizer(policy))
    assert made.tally.dropped == {"it names no split, as other rows do": 2}


def test_control_tokens_that_texts_spell_are_told(policy: str, tmp_path: Path) -> None:
    rows = [row(number, rejected=" No <eos> and more.") for number in range(40)]
    notes = starter(tmp_path / "study.yaml", written(tmp_path / "few.jsonl", rows), policy).notes
    assert any(READ_AS_CONTROL.format("<eos>") in note and "40 (row 1" in note for note in notes)
    made = make_dataset_pairs(written(tmp_path / "few.jsonl", rows), load_tokenizer(policy))
    task: Any = SimpleNamespace(name="few", stages={"data": made.as_json()})
    assert f"few: 40 rows are kept, but: {READ_AS_CONTROL.format('<eos>')}" in _data_summary(task)  # a run's last lines
