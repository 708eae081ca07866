"""What a model's folder holds is known before it is read, whatever is installed: one answer, or one error by name."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import aligngap.models.build as build
from aligngap.errors import UserError
from aligngap.judges.reward import RewardJudgeSpec
from aligngap.judges.spec import JudgeIngredients
from aligngap.models.build import check_read_back, load_backbone, load_language_model
from aligngap.models.check import check_vocabulary
from aligngap.models.folder import ModelFolder
from aligngap.models.lora import Lora, add_adapters, merge_adapters, save_adapters
from aligngap.models.spec import Checkpoint
from aligngap.models.tokenizer import byte_tokenizer, load_tokenizer
from checkpoints import KINDS, qwen2, saved

TEXTS = ["one two three", "four five six"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen2(tmp_path_factory.mktemp("folder") / "base", TEXTS)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "base"))


def reward(folder: Path) -> Path:
    """A reward model of Llama's type."""
    tokenizer = byte_tokenizer(TEXTS, 300)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=1,
        pad_token_id=0,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(str(folder / "model.safetensors")))


def with_tensors(folder: Path, **more: Any) -> None:
    save_file(tensors(folder) | more, folder / "model.safetensors", metadata={"format": "pt"})


def configured(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused_everywhere(folder: Path, match: str, *, judged: bool = False) -> UserError:
    """As policy, as preference model and by `plan`; judged: as reward model and by `plan`."""
    checkpoint = Checkpoint(path=str(folder))
    readers: list[Any] = [
        lambda: load_language_model(checkpoint),
        lambda: load_backbone(checkpoint),
        lambda: check_vocabulary(checkpoint),
    ]
    if judged:
        spec, own = RewardJudgeSpec(model=str(folder)), byte_tokenizer(TEXTS, 300)
        readers = [spec.check, lambda: spec.build(JudgeIngredients(tokenizer=own))]
    for reader in readers:
        with pytest.raises(UserError, match=match) as caught:
            reader()
    assert caught.value.hint
    return caught.value


def block_fp8(folder: Path, block: int = 8) -> None:
    """The folder's linear layers in float8 with a scale a block, as DeepSeek and Qwen 3 publish them."""
    found = tensors(folder)
    for name in [name for name in found if name.endswith("proj.weight")]:
        weight = found[name]
        rows, columns = (-(-size // block) for size in weight.shape)
        scale = torch.zeros(rows, columns)
        packed = torch.zeros_like(weight, dtype=torch.float8_e4m3fn)
        for r in range(rows):
            for c in range(columns):
                part = slice(r * block, (r + 1) * block), slice(c * block, (c + 1) * block)
                scale[r, c] = weight[part].abs().max() / 448
                packed[part] = (weight[part] / scale[r, c]).to(torch.float8_e4m3fn)
        found[name], found[f"{name}_scale_inv"] = packed, scale
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "fp8", "weight_block_size": [8, 8], "activation_scheme": "dynamic"},
        {"quant_method": "mxfp4"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "gptq", "bits": 4, "dataset": "c4"},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "hqq", "quant_config": {}},
        {"quant_method": "quanto", "weights": "int8"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
        {"quant_method": "nobody-knows-it"},
        {"bits": 3},
    ],
)
@pytest.mark.parametrize("judged", [False, True])
def test_quantised_checkpoints_are_refused_by_the_name_of_their_method(
    tmp_path: Path, whole: Path, settings: dict[str, Any], judged: bool
) -> None:
    folder = reward(tmp_path / "reward") if judged else Path(shutil.copytree(whole, tmp_path / "base"))
    configured(folder, quantization_config=settings)
    method = settings.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in settings else "by an unknown method")
    error = refused_everywhere(folder, rf"quantised \({method}\)", judged=judged)
    assert "dequantise" in str(error.hint)


def test_the_older_name_of_compressed_tensors_is_known(folder: Path) -> None:
    configured(folder, compression_config={"quant_method": "compressed-tensors"})
    refused_everywhere(folder, r"quantised \(compressed-tensors\)")


def test_a_block_fp8_folder_with_and_without_its_configuration(folder: Path) -> None:
    block_fp8(folder)
    refused_everywhere(folder, r"quantised weights \(.*proj\.weight(_scale_inv is F32| is F8_E4M3)\)")
    configured(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [8, 8]})
    refused_everywhere(folder, r"quantised \(fp8\)")


@pytest.mark.parametrize(
    "stored",
    [
        {"model.layers.0.self_attn.q_proj.weight": torch.zeros(16, 16, dtype=torch.float8_e5m2)},
        {"model.layers.0.self_attn.q_proj.weight": torch.zeros(128, 1, dtype=torch.uint8)},
        {"model.layers.0.self_attn.q_proj.weight": torch.zeros(16, 16, dtype=torch.int8)},
        {"model.layers.0.self_attn.q_proj.weight_scale": torch.ones(1)},
        {"model.layers.0.self_attn.q_proj.weight_scale_inv": torch.ones(1, 1)},
        {"model.layers.0.self_attn.q_proj.qweight": torch.zeros(2, 16, dtype=torch.int32)},
        {"model.layers.0.self_attn.q_proj.weight_packed": torch.zeros(2, 16, dtype=torch.int32)},
        {"model.layers.0.self_attn.q_proj.SCB": torch.ones(16)},
        {"model.layers.0.mlp.experts.down_proj_blocks": torch.zeros(2, 2, dtype=torch.uint8)},
        {"model.layers.0.self_attn.q_proj.weight.absmax": torch.ones(2)},
        {"model.layers.0.self_attn.q_proj.weight._data": torch.zeros(16, 16, dtype=torch.int8)},
        {"model.layers.0.self_attn.q_proj.weight._scale": torch.ones(16, 1)},
        {"model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4": torch.zeros(8, dtype=torch.uint8)},
    ],
    ids=lambda stored: next(iter(stored)).rpartition(".")[2],
)
def test_quantised_weights_that_lost_their_configuration(folder: Path, stored: dict[str, torch.Tensor]) -> None:
    with_tensors(folder, **stored)
    refused_everywhere(folder, "quantised weights")


def test_integers_that_are_no_weights_are_none(folder: Path) -> None:
    """Older releases saved what a model works out by itself."""
    with_tensors(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)})
    load_language_model(Checkpoint(path=str(folder)))
    load_backbone(Checkpoint(path=str(folder)))


@pytest.mark.parametrize("load", [load_language_model, load_backbone])
def test_weights_that_no_part_of_the_model_has_a_use_for(folder: Path, load: Any) -> None:
    with_tensors(folder, **{"model.layers.7.mlp.gate_proj.weight": torch.ones(2, 2)})
    with pytest.raises(UserError, match=r"1 weights .* no part of a qwen2 model: .*layers\.7"):
        load(Checkpoint(path=str(folder)))


def test_a_reward_model_with_weights_of_another(tmp_path: Path) -> None:
    folder = reward(tmp_path / "reward")
    with_tensors(folder, **{"v_head.summary.weight": torch.ones(1, 16)})
    spec = RewardJudgeSpec(model=str(folder))
    with pytest.raises(UserError, match="no part of a llama model: v_head"):
        spec.build(JudgeIngredients(tokenizer=byte_tokenizer(TEXTS, 300)))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("bart", "switch_transformers")])
def test_a_backbone_leaves_the_head_out_without_a_word(tmp_path: Path, kind: str) -> None:
    load_backbone(Checkpoint(path=str(saved(kind, tmp_path / kind, TEXTS))))


def test_the_backbone_of_a_reward_model(tmp_path: Path) -> None:
    load_backbone(Checkpoint(path=str(reward(tmp_path / "reward"))))


def leave_adapter(folder: Path) -> None:
    """A merged folder whose adapter files nobody removed."""
    model = load_language_model(str(folder))
    add_adapters(model, Lora(r=2), 0)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(weight.data)
    save_adapters(model, folder)
    merge_adapters(model)
    model.save_pretrained(folder)


@pytest.mark.parametrize("peft", [True, False])
@pytest.mark.parametrize("judged", [True, False])
def test_an_adapter_beside_whole_weights_is_the_same_with_and_without_peft(
    tmp_path: Path, whole: Path, peft: bool, judged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "base"))
    leave_adapter(folder)
    if judged:
        extra = [folder / name for name in ("adapter_config.json", "adapter_model.safetensors")]
        judge = reward(tmp_path / "reward")
        for path in extra:
            shutil.copy(path, judge)
        folder = judge
    if not peft:
        seen = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "peft" else seen(name, *a))
        for module in ("transformers.modeling_utils", "transformers.models.auto.auto_factory"):
            part = __import__(module, fromlist=["x"])
            if hasattr(part, "is_peft_available"):
                monkeypatch.setattr(part, "is_peft_available", lambda: False)
    error = refused_everywhere(folder, r"an adapter beside it \(adapter_config\.json", judged=judged)
    assert "remove" in str(error.hint)
    if not judged:
        for path in folder.glob("adapter_*"):
            path.unlink()
        load_language_model(Checkpoint(path=str(folder)))


def test_an_adapter_alone_is_no_model(folder: Path) -> None:
    leave_adapter(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    error = refused_everywhere(folder, "no Hugging Face model")
    assert "merge_and_unload" in str(error.hint)


def test_weights_twice(folder: Path) -> None:
    """A single file left from before beside an index and its shards: nobody can say which are meant."""
    old = tensors(folder)
    load_language_model(str(folder)).save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink()
    found = ModelFolder.of(folder)
    assert found.index
    assert len(found.weights) == len(found.shards) > 1
    load_language_model(Checkpoint(path=str(folder)))
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    refused_everywhere(folder, rf"weights twice: model\.safetensors, and the {len(found.shards)} files")


@pytest.mark.parametrize("backbone", [False, True])
def test_what_was_saved_is_read_back_or_it_is_an_error(folder: Path, tmp_path: Path, backbone: bool) -> None:
    model = (load_backbone if backbone else load_language_model)(str(folder))
    home = tmp_path / "saved"
    model.save_pretrained(home)
    check_read_back(model, Checkpoint(path=str(home)), backbone=backbone)
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[3] += 1e-7
    with pytest.raises(UserError, match="not read back as they were saved") as caught:
        check_read_back(model, Checkpoint(path=str(home)), backbone=backbone)
    assert caught.value.where == str(home)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_loading_saving_loading_is_the_identity(tmp_path: Path, kind: str, tied: bool) -> None:
    folder = saved(kind, tmp_path / "base", TEXTS)
    configured(folder, tie_word_embeddings=tied)
    if tied:  # as its own configuration makes it
        loaded = build.AutoModelForSeq2SeqLM if kind in ("t5", "bart", "switch_transformers") else None
        (loaded or build.AutoModelForCausalLM).from_pretrained(folder).save_pretrained(folder)
    model = load_language_model(Checkpoint(path=str(folder)))
    model.save_pretrained(tmp_path / "again")
    check_read_back(model, Checkpoint(path=str(tmp_path / "again")))


def test_a_model_with_tied_embeddings_keeps_them_so(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=30, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    again = load_language_model(str(tmp_path / "tied"))
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight


def test_a_folder_with_a_tokenizer_and_no_model(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (folder / name).unlink()
    alone = load_tokenizer(str(folder))
    assert alone.get_vocab() == tokenizer.get_vocab()
    assert alone("one two") == tokenizer("one two")
    assert alone.eos_token == tokenizer.eos_token
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({name: value for name, value in settings.items() if name != "tokenizer_class"})
    )
    assert load_tokenizer(str(folder))("one two") == tokenizer("one two")
