"""Adapters: one model in memory, the reference beneath, and weights that are the adapters' alone."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from aligngap.errors import UserError
from aligngap.models.build import check_read_back, load_language_model
from aligngap.models.lora import Lora, adapters, adapters_off, add_adapters, merge_adapters, save_adapters
from aligngap.models.policy import Policy, WithoutAdapters
from aligngap.models.spec import Checkpoint
from aligngap.sources.order import in_sequence
from aligngap.sources.recorded import Recorded
from aligngap.sources.sampled import Sampled
from aligngap.train.checkpoint import Checkpointer
from aligngap.train.loop import LossSpec, train
from aligngap.train.step import OptimSpec
from aligngap.types import PairBatch, Prompt, Tokens
from checkpoints import config_of, model_of, qwen2
from fakes import ScriptedJudge

PROMPTS = Tokens.collate([[1, 5, 6, 7], [1, 9], [1, 8, 8], [1, 7, 5, 9, 6]])
PAIRS = PairBatch(
    torch.arange(4),
    PROMPTS,
    Tokens.collate([[10, 11, 2], [12, 2], [13, 14, 15], [2]]),
    Tokens.collate([[20, 2], [21, 22, 23, 2], [24, 2], [25, 26, 2]]),
    torch.tensor([1.0, 0.0, 1.0, 0.0]),
    ("made up",) * 4,
)
LORA = Lora(r=2, alpha=4.0)
OPTIM = OptimSpec(lr=0.02, steps=6, batch=4, warmup_steps=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen2(tmp_path_factory.mktemp("lora") / "base", ["one two three", "four five six"])


def adapted(folder: Path, seed: int = 0, **options: Any) -> tuple[Policy, Policy]:
    model = load_language_model(Checkpoint(path=str(folder), **options))
    add_adapters(model, LORA, seed)
    return Policy(model, 2, 5), WithoutAdapters(model, 2, 5)


def scores(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat(policy.log_probs(PROMPTS, [PAIRS.first, PAIRS.second]))


def trained(policy: Policy, reference: Policy, source: Any = None, optim: OptimSpec = OPTIM, **more: Any) -> None:
    source = source or Recorded(PAIRS, in_sequence)
    train(policy, reference, source, LossSpec(), optim, keep=(), save_policy=lambda step, policy: None, **more)


def storages(*models: torch.nn.Module) -> int:
    """Bytes of the different memory behind all parameters."""
    found = {
        weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes()
        for m in models
        for weight in m.parameters()
    }
    return sum(found.values())


def test_the_reference_is_the_start_and_takes_no_memory(folder: Path) -> None:
    plain = Policy(load_language_model(Checkpoint(path=str(folder))), 2, 5)
    policy, reference = adapted(folder)
    start = scores(plain)
    assert torch.equal(scores(policy), start)
    trained(policy, reference)
    assert not torch.allclose(scores(policy), start, atol=1e-3)
    assert torch.equal(scores(reference), start)
    assert not torch.allclose(scores(policy), start, atol=1e-3)  # the reference leaves them on
    small = sum(weight.numel() for weight in adapters(policy.model).values()) * 4
    assert storages(policy.model, reference.model) == storages(plain.model) + small
    noise = torch.rand(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert reference.sample(PROMPTS, 1, noise).rows() == plain.sample(PROMPTS, 1, noise).rows()
    with torch.no_grad():
        logits = [p.next_token_logits(PROMPTS, [PAIRS.first])[0] for p in (reference, plain)]
    assert torch.equal(*logits)


def test_only_adapters_are_trained_kept_and_loaded(folder: Path, tmp_path: Path) -> None:
    policy, reference = adapted(folder)
    names = set(adapters(policy.model))
    assert {name for name, weight in policy.model.named_parameters() if weight.requires_grad} == names
    trained(policy, reference)
    assert {name for name, weight in policy.model.named_parameters() if weight.requires_grad} == names
    policy.save_weights(tmp_path / "final.safetensors")
    assert load_file(tmp_path / "final.safetensors").keys() == names
    assert not any("lm_head" in name for name in names)
    other, _ = adapted(folder, seed=7)
    other.load_weights(tmp_path / "final.safetensors")
    assert torch.equal(scores(other), scores(policy))


def test_first_weights_are_the_seeds(folder: Path) -> None:
    torch.manual_seed(1)
    one, again, other = (adapted(folder, seed)[0] for seed in (3, 3, 4))
    first, second, third = (torch.cat([w.flatten() for w in adapters(p.model).values()]) for p in (one, again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_stale_copies_share_what_lies_beneath(folder: Path) -> None:
    policy, reference = adapted(folder)
    stale = policy.frozen_copy()
    before, small = scores(policy), sum(weight.numel() for weight in adapters(policy.model).values()) * 4
    assert storages(policy.model, stale.model) == storages(policy.model) + small
    trained(policy, reference)
    assert torch.equal(scores(stale), before)
    assert not any(weight.requires_grad for weight in stale.model.parameters())
    stale.load_from(policy)
    assert torch.equal(scores(stale), scores(policy))


def test_merged_it_is_an_ordinary_folder(folder: Path, tmp_path: Path) -> None:
    policy, reference = adapted(folder)
    trained(policy, reference)
    expected = scores(policy)
    merge_adapters(policy.model)
    assert torch.allclose(scores(policy), expected, atol=1e-4)
    policy.model.save_pretrained(tmp_path / "merged")
    names = load_file(tmp_path / "merged/model.safetensors").keys()
    assert names == load_file(folder / "model.safetensors").keys()
    assert torch.equal(scores(Policy(load_language_model(str(tmp_path / "merged")), 2, 5)), scores(policy))


@pytest.mark.parametrize("sync_period", [1, 4])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_killed_run_ends_bit_identical(
    folder: Path, tmp_path: Path, sync_period: int, dtype: str, lora: bool
) -> None:
    def start() -> tuple[Policy, Policy, Sampled]:
        prompts = [Prompt(number, tuple(ids)) for number, ids in enumerate(PROMPTS.rows())]
        judge = ScriptedJudge(lambda prompt, response: float(sum(response)))
        both = adapted(folder, dtype=dtype)
        if not lora:
            plain = [load_language_model(Checkpoint(path=str(folder), dtype=dtype)) for _ in range(2)]
            both = Policy(plain[0], 2, 5), Policy(plain[1].requires_grad_(False), 2, 5)
        return *both, Sampled(prompts, judge, 0, sync_period=sync_period)

    whole = start()
    trained(*whole)
    first = start()
    checkpointer = Checkpointer(tmp_path, 0.0)
    trained(*first, OPTIM.model_copy(update={"steps": 3}), checkpointer=checkpointer)
    second = start()
    trained(*second, checkpointer=Checkpointer(tmp_path, 1e9))
    assert not torch.equal(scores(second[0]), scores(first[0]))
    assert torch.equal(scores(second[0]), scores(whole[0]))


def test_gradient_checkpointing_changes_no_gradient_and_no_sample(folder: Path) -> None:
    found = []
    for option in (False, True):
        policy, _ = adapted(folder, gradient_checkpointing=option)
        for weight in adapters(policy.model).values():
            weight.data.normal_(generator=torch.Generator().manual_seed(0))
        calls = []
        for layer in policy.model.model.layers:
            layer.input_layernorm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        (-policy.log_probs(PROMPTS, [PAIRS.first])[0].mean()).backward()
        count = len(calls)
        noise = torch.rand(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        rows = policy.sample(PROMPTS, 1, noise).rows()
        gradients = torch.cat([weight.grad.flatten() for weight in adapters(policy.model).values()])
        found.append((count, rows, gradients))
    (plain, rows, gradients), (twice, rows_again, gradients_again) = found
    assert (plain, twice) == (2, 4)  # two layers, each computed again
    assert rows == rows_again
    assert torch.equal(gradients, gradients_again)


def test_a_base_in_bfloat16_has_adapters_in_fp32(folder: Path) -> None:
    policy, reference = adapted(folder, dtype="bfloat16")
    own = adapters(policy.model)
    assert {weight.dtype for weight in own.values()} == {torch.float32}
    others = {weight.dtype for name, weight in policy.model.named_parameters() if name not in own}
    assert others == {torch.bfloat16}
    assert torch.equal(scores(policy), scores(reference))


def test_targets_that_are_no_layers_name_those_that_are(folder: Path) -> None:
    model = load_language_model(Checkpoint(path=str(folder)))
    with pytest.raises(UserError, match="no such adapters") as caught:
        add_adapters(model, Lora(targets=("query",)), 0)
    assert "q_proj" in str(caught.value.hint)
    add_adapters(model, Lora(targets=("q_proj",)), 0)
    assert all("q_proj" in name for name in adapters(model))


def test_without_peft_it_is_one_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.split(".")[0] == "peft":
            raise ImportError(name)
        return real(name, *args, **options)

    model = load_language_model(Checkpoint(path=str(folder)))
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="peft") as caught:
        add_adapters(model, LORA, 0)
    assert "aligngap[lora]" in str(caught.value.hint)


TIED = {"llama": ("lm_head", "embed_tokens"), "qwen2": ("lm_head", "embed_tokens"), "gpt2": ("lm_head", "wte")}
PLAIN = {
    "llama": ("q_proj", "down_proj", "lm_head", "embed_tokens"),
    "gpt2": ("c_attn", "c_fc", "lm_head"),
    "mamba": ("in_proj", "lm_head"),
    "bloom": ("query_key_value",),
    "t5": ("q", "wi"),
    "bart": ("q_proj", "fc1", "lm_head"),
}
TARGETS = [
    *((kind, True, (target,)) for kind, targets in TIED.items() for target in targets),
    *((kind, False, (target,)) for kind, targets in PLAIN.items() for target in targets),
    ("llama", True, ("q_proj", "lm_head")),
    ("llama", True, ("lm_head", "embed_tokens")),
    ("llama", True, None),
    ("t5", False, None),
]


def seeded(kind: str, tied: bool, targets: tuple[str, ...] | None) -> Policy:
    """A policy with adapters that say something."""
    config = config_of(kind, vocab_size=30, pad_token_id=0, tie_word_embeddings=tied)
    model = model_of(config, scale=2.0)
    add_adapters(model, Lora(r=2, alpha=4.0, targets=targets), 0)
    g = torch.Generator().manual_seed(0)
    for weight in adapters(model).values():
        weight.data.normal_(std=0.3, generator=g)
    return Policy(model, 2, 5)


@pytest.mark.parametrize(("kind", "tied", "targets"), TARGETS)
def test_merged_or_as_an_adapter_it_is_the_policy_that_was_evaluated(
    kind: str, tied: bool, targets: tuple[str, ...] | None, tmp_path: Path
) -> None:
    """For every target that is accepted, layers whose weight others have as well among them."""
    policy = seeded(kind, tied, targets)
    expected = scores(policy)
    with adapters_off(policy.model):
        plain = scores(policy)
    assert (expected - plain).abs().max() > 1e-4  # or nothing would be tested
    save_adapters(policy.model, tmp_path / "adapter")
    start = model_of(config_of(kind, vocab_size=30, pad_token_id=0, tie_word_embeddings=tied), scale=2.0)
    loaded = peft.PeftModel.from_pretrained(start, tmp_path / "adapter").eval()
    assert torch.allclose(scores(Policy(loaded.get_base_model(), 2, 5)), expected, atol=1e-5)
    merge_adapters(policy.model)
    assert torch.allclose(scores(policy), expected, atol=1e-5)
    policy.model.save_pretrained(tmp_path / "merged")
    check_read_back(policy.model, Checkpoint(path=str(tmp_path / "merged")))
    again = Policy(load_language_model(str(tmp_path / "merged")), 2, 5)
    assert torch.allclose(scores(again), scores(policy), atol=1e-6)


def test_a_layer_that_the_model_reads_past_takes_no_adapter() -> None:
    """Evaluated, it would do nothing; merged, it would."""
    with pytest.raises(UserError, match="dt_proj past the layer"):
        seeded("mamba", False, ("dt_proj",))


@pytest.mark.parametrize(("kind", "target"), [("t5", "shared"), ("t5", "embed_tokens"), ("bart", "lm_head")])
def test_a_weight_of_encoder_decoder_and_head_together_takes_no_adapter(kind: str, target: str) -> None:
    with pytest.raises(UserError, match=f"{target}.* could not be merged") as caught:
        seeded(kind, True, (target,))
    assert caught.value.where == "lora.targets"
