"""Checkpoints that are broken, and those that do not fit the study: one error, before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from aligngap.errors import UserError
from aligngap.experiments.plan import Plan
from aligngap.experiments.study import load_study
from aligngap.models.build import base_path, load_language_model
from aligngap.models.check import check_alike, check_lengths, check_vocabulary
from aligngap.models.layout import detect
from aligngap.models.spec import Checkpoint
from aligngap.models.tokenizer import byte_tokenizer, load_tokenizer
from aligngap.models.varlen.engine import Varlen
from checkpoints import qwen2

TEXTS = ["one two three", "four five six"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen2(tmp_path_factory.mktemp("whole") / "base", TEXTS, context=32)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "base"))


def changed(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_whole_one_passes(whole: Path) -> None:
    checkpoint = Checkpoint(path=str(whole))
    check_vocabulary(checkpoint)
    check_alike(checkpoint, [checkpoint, checkpoint])
    assert load_language_model(checkpoint).training is False


def test_no_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="no Hugging Face model") as caught:
        load_language_model(Checkpoint(path=str(folder)))
    assert caught.value.where == str(folder)


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(UserError, match="model cannot be read"):
        load_language_model(Checkpoint(path=str(folder)))


def test_garbage_in_place_of_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="model cannot be read"):
        load_language_model(Checkpoint(path=str(folder)))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer cannot be read"):
        load_tokenizer(Checkpoint(path=str(folder)))


def test_missing_weights_are_not_drawn_at_random(folder: Path) -> None:
    weights = load_file(str(folder / "model.safetensors"))
    save_file(
        {name: value for name, value in weights.items() if name != "lm_head.weight"}, folder / "model.safetensors"
    )
    with pytest.raises(UserError, match=r"weights are missing .*lm_head\.weight"):
        load_language_model(Checkpoint(path=str(folder)))


def sharded(folder: Path) -> list[Path]:
    """The same model in several files."""
    load_language_model(Checkpoint(path=str(folder))).save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return sorted(folder.glob("model-*.safetensors"))


def test_shards_are_all_needed(folder: Path) -> None:
    whole = load_language_model(Checkpoint(path=str(folder))).state_dict()
    first, second, *_ = sharded(folder)
    found = load_language_model(Checkpoint(path=str(folder))).state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in whole.items())
    second.write_bytes(second.read_bytes()[:100])
    with pytest.raises(UserError, match="model cannot be read"):
        load_language_model(Checkpoint(path=str(folder)))
    first.unlink()
    with pytest.raises(UserError, match=first.name):
        load_language_model(Checkpoint(path=str(folder)))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../b"}}')
    with pytest.raises(UserError, match="KeyError: 'metadata'") as caught:
        load_language_model(Checkpoint(path=str(folder)))
    assert "network" not in str(caught.value.hint)


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    changed(folder / "config.json", vocab_size=999)
    with pytest.raises(UserError, match=r"lm_head\.weight is \[\d+, \d+\], not \[999, \d+\]"):
        load_language_model(Checkpoint(path=str(folder)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder: Path, value: float) -> None:
    weights = load_file(str(folder / "model.safetensors"))
    weights["lm_head.weight"][3, 1] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"no numbers: lm_head\.weight"):
        load_language_model(Checkpoint(path=str(folder)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_saved_in_another_precision_are_computed_in_the_one_asked_for(folder: Path, dtype: torch.dtype) -> None:
    load_language_model(Checkpoint(path=str(folder))).to(dtype).save_pretrained(folder)  # type: ignore[arg-type]
    assert {weight.dtype for weight in load_file(str(folder / "model.safetensors")).values()} == {dtype}
    for name, asked in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = load_language_model(Checkpoint.model_validate({"path": str(folder), "dtype": name}))
        assert {weight.dtype for weight in model.parameters()} == {asked}


def test_what_the_likely_fault_is_is_said(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=r"model\.safetensors is a pointer of Git LFS") as caught:
        load_language_model(Checkpoint(path=str(folder)))
    assert caught.value.hint == "git lfs pull"
    weights.rename(folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError) as caught:
        load_language_model(Checkpoint(path=str(folder)))
    assert "pytorch_model.bin is a pickle" in str(caught.value.hint)
    changed(folder / "config.json", model_type="wonder")
    with pytest.raises(UserError, match="wonder") as caught:
        load_language_model(Checkpoint(path=str(folder)))
    assert "\n" not in caught.value.what
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(UserError, match="no Hugging Face model") as caught:
        load_language_model(Checkpoint(path=str(folder)))
    assert "Merge the adapters" in str(caught.value.hint)


def test_a_vocabulary_larger_than_the_embedding_names_both(tmp_path: Path) -> None:
    folder = qwen2(tmp_path / "base", TEXTS, rows=200)
    size = len(load_tokenizer(Checkpoint(path=str(folder))))
    with pytest.raises(UserError, match=f"{size} tokens.*200 rows"):
        check_vocabulary(Checkpoint(path=str(folder)))


def test_no_pad_token_is_mended_and_no_end_token_is_not(folder: Path) -> None:
    tokenizer = byte_tokenizer(TEXTS, 300)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    loaded = load_tokenizer(Checkpoint(path=str(folder)))
    assert loaded.pad_token_id == loaded.eos_token_id
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        load_tokenizer(Checkpoint(path=str(folder)))


def test_a_tokenizer_is_what_its_file_says(whole: Path) -> None:
    """Not what models of its type usually have, which `AutoTokenizer` puts in its place."""
    made = byte_tokenizer(TEXTS, 320)
    loaded = load_tokenizer(Checkpoint(path=str(whole)))
    assert loaded.get_vocab() == made.get_vocab()
    text = "one two  three\n\nfour, 1234!"
    assert loaded(text)["input_ids"] == made(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == text


def test_code_of_its_own_is_run_only_on_demand(folder: Path) -> None:
    changed(
        folder / "config.json",
        model_type="mine",
        auto_map={"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"},
    )
    (folder / "mine.py").write_text(
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n"
        "class MyConfig(Qwen2Config):\n    model_type = 'mine'\n"
        "class MyModel(Qwen2ForCausalLM):\n    config_class = MyConfig\n"
    )
    with pytest.raises(UserError, match="Python code of its own") as caught:
        load_language_model(Checkpoint(path=str(folder)))
    assert "trust_remote_code: true" in str(caught.value.hint)
    assert type(load_language_model(Checkpoint(path=str(folder), trust_remote_code=True))).__name__ == "MyModel"


def test_another_tokenizer_than_the_policys(whole: Path, tmp_path: Path) -> None:
    other = qwen2(tmp_path / "other", ["quite other words", "yet other words"])
    with pytest.raises(UserError, match="another tokenizer than the policy") as caught:
        check_alike(Checkpoint(path=str(whole)), [Checkpoint(path=str(other))])
    assert "docs/judges.md" in str(caught.value.hint)
    with pytest.raises(UserError, match="another tokenizer"):
        check_alike(Checkpoint(path="small"), [Checkpoint(path=str(other))])
    check_alike(Checkpoint(path="small"), [Checkpoint(path="large")])


def test_too_long_names_the_numbers_and_the_keys(whole: Path) -> None:
    checkpoint = Checkpoint(path=str(whole))  # takes 32 tokens
    check_lengths(checkpoint, 20, 12, task="walks", own_data=True)
    check_lengths(checkpoint, 10, 10, task="walks", own_data=True, both=True)
    with pytest.raises(UserError, match=r"prompt of 21 tokens .* 33 tokens; 'base' takes 32") as caught:
        check_lengths(checkpoint, 21, 12, task="walks", own_data=True)
    assert "datasets.walks.max_prompt_tokens" in str(caught.value.hint)
    assert "datasets.walks.max_response_tokens" in str(caught.value.hint)
    with pytest.raises(UserError, match=r"two separators is 33 tokens; 'base' takes 32"):
        check_lengths(checkpoint, 11, 10, task="walks", own_data=True, both=True)
    with pytest.raises(UserError, match="task arena") as caught:
        check_lengths(checkpoint, 33, 1, task="arena", own_data=False)
    assert "datasets" not in str(caught.value.hint)


def test_what_cannot_be_divided_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base_path("small"))
    tokenizer.save_pretrained(tmp_path)
    T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
        )
    ).save_pretrained(tmp_path)
    settings = [f"models.policy={tmp_path}", "parallel.processes=2"]
    Plan(load_study("tandem", settings)).check_models()
    with pytest.raises(UserError, match="an encoder-decoder cannot be divided") as caught:
        Plan(load_study("tandem", [*settings, "parallel.sharding=full"])).check_models()
    assert caught.value.where == "parallel.sharding"


@pytest.mark.parametrize("error", [MemoryError(), OSError("Cannot allocate memory (os error 12)")])
def test_memory_that_runs_out_is_no_fault_of_the_checkpoint(
    whole: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A campaign met it: the stage was to be tried again, and the model was said to be unreadable."""

    def fails(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fails)
    with pytest.raises(type(error)):
        load_language_model(Checkpoint(path=str(whole)))


def test_memory_that_runs_out_is_no_layout(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that fails decides how a model is read, and so the last bits of results."""
    model = load_language_model(Checkpoint(path=str(whole)))
    assert detect(model).varlen

    def fails(*args: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes.")

    for part in ("next_token_logits", "decode"):
        with monkeypatch.context() as patch:
            patch.setattr(Varlen, part, fails)
            with pytest.raises(RuntimeError, match="allocate memory"):
                detect(model)
