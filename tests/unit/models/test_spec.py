"""What a study says of a model, and what of it is identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from aligngap.errors import UserError
from aligngap.experiments.bench import Bench
from aligngap.experiments.study import load_study
from aligngap.models.lora import Lora
from aligngap.models.spec import Checkpoint
from aligngap.pipeline.stages import Base


def bench(*settings: str) -> Bench:
    return Bench(load_study("quick", settings), "summarisation")


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("small", "small"),
        ({"path": "small"}, "small"),
        ({"path": "small", "dtype": "float32", "lora": None}, "small"),
        ({"path": "a/b", "revision": "v1"}, {"path": "a/b", "revision": "v1"}),
        (
            {"path": "a/b", "lora": {"r": 2}, "trust_remote_code": True},
            {"path": "a/b", "trust_remote_code": True, "lora": {"r": 2, "alpha": 16.0, "targets": None}},
        ),
    ],
)
def test_it_is_written_as_short_as_it_can_be_and_read_back(given: Any, written: Any) -> None:
    checkpoint = Checkpoint.model_validate(given)
    assert checkpoint.model_dump(mode="json") == written
    assert Checkpoint.model_validate(written) == checkpoint


def test_unknown_keys_and_values_are_errors() -> None:
    for wrong in (
        {"path": "small", "revison": "x"},
        {"path": "small", "dtype": "int8"},
        {"lora": {"r": 0}, "path": "x"},
    ):
        with pytest.raises(ValidationError):
            Checkpoint.model_validate(wrong)


def test_only_what_decides_results_is_identity() -> None:
    plain = Base.of(Checkpoint(path="small")).model_dump(mode="json")
    assert plain.keys() == {"digest"}
    same = Checkpoint(path="small", gradient_checkpointing=True, trust_remote_code=True)
    assert Base.of(same).model_dump(mode="json") == plain
    other = Base.of(Checkpoint(path="small", dtype="bfloat16", lora=Lora(r=2))).model_dump(mode="json")
    assert other == plain | {"dtype": "bfloat16", "lora": {"r": 2, "alpha": 16.0, "targets": None}}
    assert Checkpoint(path="a/b").digest() == "hub:a/b"
    assert Checkpoint(path="a/b", revision="v1").digest() == "hub:a/b@v1"


def test_adapters_of_the_policy_change_policies_and_neither_data_nor_judges() -> None:
    plain, adapted = bench(), bench("models.policy={path: small, lora: {r: 4}}")
    assert adapted.pairs.identity == plain.pairs.identity
    assert adapted.golden.identity == plain.golden.identity
    assert adapted.proxy(0).identity == plain.proxy(0).identity
    assert adapted.sft.identity != plain.sft.identity
    assert adapted.online(0).stage.identity != plain.online(0).stage.identity


def test_what_was_made_of_it_keeps_its_options() -> None:
    checkpoint = Checkpoint(path="a/b", revision="v1", dtype="bfloat16", trust_remote_code=True, lora=Lora())
    made = checkpoint.at(Path("store/sft/model"))
    assert (made.path, made.revision) == ("store/sft/model", None)
    assert (made.dtype, made.trust_remote_code, made.lora) == ("bfloat16", True, Lora())


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no revisions"):
        _ = Checkpoint(path=str(tmp_path), revision="v1").location
