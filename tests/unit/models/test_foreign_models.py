"""A model's folder from elsewhere is data: neither the code nor the pickles that lie in it are run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from aligngap.errors import UserError
from aligngap.models.build import Architecture, load_language_model, random_model
from aligngap.models.context import context_of
from aligngap.models.preference import build_preference_model
from aligngap.models.tokenizer import load_tokenizer, word_tokenizer

CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import {base} as Evil
"""


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    tokenizer = word_tokenizer(["a", "b"])
    random_model(Architecture(hidden=8, layers=1, heads=2, intermediate=8), len(tokenizer), 0).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def test_code_beside_the_weights_is_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for name, base in (
        ("configuration", "LlamaConfig"),
        ("modeling", "LlamaForCausalLM"),
        ("tokens", "LlamaTokenizer"),
    ):
        (folder / f"{name}.py").write_text(CODE.format(mark=str(mark), base=base))
    auto = {"AutoConfig": "configuration.Evil", "AutoModel": "modeling.Evil", "AutoModelForCausalLM": "modeling.Evil"}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto, "model_type": "evil"}))
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    tokens |= {"auto_map": {"AutoTokenizer": ["tokens.Evil", "tokens.Evil"]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    for load in (load_language_model, load_tokenizer, context_of):
        with pytest.raises(UserError):
            load(str(folder))
    with pytest.raises(UserError, match="trust_remote_code"):
        build_preference_model("pairwise", str(folder), 3)
    assert not mark.exists()


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(UserError, match="safetensors"):
        load_language_model(str(folder))
    with pytest.raises(UserError, match="safetensors"):
        build_preference_model("pairwise", str(folder), 3)
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")  # nor are harmless ones
    with pytest.raises(UserError, match="safetensors"):
        load_language_model(str(folder))
    assert not mark.exists()


def test_what_is_saved_does_not_say_how_it_was_read(folder: Path, tmp_path: Path) -> None:
    load_tokenizer(str(folder)).save_pretrained(tmp_path / "again")
    said = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert "model_max_length" in said
    assert not {"is_local", "local_files_only", "name_or_path"} & set(said)  # depend on machine and place
