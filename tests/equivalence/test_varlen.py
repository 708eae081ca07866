"""Our own forward pass of Llama-type decoders says what `transformers` says, and is not used where it would not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from aligngap.models.build import base_path, load_language_model
from aligngap.models.layout import Layout, detect
from aligngap.models.lora import Lora, adapters, add_adapters
from aligngap.models.packing import Packed
from aligngap.models.policy import Policy
from aligngap.models.preference import PointwiseModel
from aligngap.models.tokenizer import load_tokenizer
from aligngap.models.varlen import attention
from aligngap.models.varlen.batch import varlen_batch
from aligngap.models.varlen.engine import Varlen
from aligngap.tasks.spec import TaskSpec, make_pairs
from aligngap.types import Tokens
from checkpoints import config_of, model_of
from fakes import ragged

VOCABULARY, END, LIMIT = 24, 2, 9
PACKED = Layout(packed=True)
"""How a model is read without our own forward pass."""

KINDS = {
    "llama": {},
    "qwen2": {},
    "mistral": {"sliding_window": None},
    "one head a group": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "turned otherwise": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
}


def model(kind: str = "llama", **values: Any) -> Any:
    of = kind if kind in ("qwen2", "mistral") else "llama"
    made = model_of(config_of(of, vocab_size=VOCABULARY, pad_token_id=0, **KINDS[kind] | values), scale=8.0)
    for name, weight in made.named_parameters():
        if "bias" in name or "norm" in name:  # they begin as 0 and 1, where much that is wrong is not seen
            weight.data.uniform_(-0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return made


def both(made: Any) -> tuple[Policy, Policy]:
    """Read by our own forward pass, and by `transformers`."""
    ours = Policy(made, END, LIMIT)
    assert ours.layout.varlen
    return ours, Policy(made, END, LIMIT, PACKED)


def batch(rows: int = 9, longest: int = 7) -> tuple[Tokens, list[Tokens]]:
    g = torch.Generator().manual_seed(5)
    prompts = [[1, *row] for row in ragged(g, rows, VOCABULARY, 0, longest)]
    return Tokens.collate(prompts), [Tokens.collate(ragged(g, rows, VOCABULARY, 0, longest)) for _ in range(3)]


def noise(rows: int, limit: int = LIMIT) -> torch.Tensor:
    return torch.rand((rows, limit), generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def gradients(policy: Policy, values: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a sum in which every response has a weight of its own."""
    policy.model.zero_grad()
    rows = torch.cat(values)
    (rows * torch.linspace(-1, 2, len(rows))).sum().backward()
    return {name: weight.grad for name, weight in policy.model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("kernel", ["by hand", "PyTorch's"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_same_log_probabilities_and_gradients(
    kind: str, count: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel != "by hand":
        monkeypatch.setattr(attention, "_MATMUL_SCORES", 0)
    ours, theirs = both(model(kind))
    prompts, segments = batch()
    values = [policy.log_probs(prompts, segments[:count]) for policy in (ours, theirs)]
    for one, other in zip(*values, strict=True):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=1e-5)
    found, expected = (gradients(policy, rows) for policy, rows in zip((ours, theirs), values, strict=True))
    assert found.keys() == expected.keys() == dict(ours.model.named_parameters()).keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert scale > 0
        torch.testing.assert_close(found[name], gradient, atol=2e-4 * scale, rtol=1e-3, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_same_logits_and_same_hidden_states(kind: str) -> None:
    made = model(kind)
    ours, theirs = both(made)
    prompts, segments = batch()
    found, expected = (policy.next_token_logits(prompts, segments) for policy in (ours, theirs))
    for one, other, segment in zip(found, expected, segments, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one[segment.mask()], other[segment.mask()], atol=5e-5, rtol=1e-4)
    readers = [PointwiseModel(made.model, 4, layout) for layout in (None, PACKED)]
    assert readers[0].layout.varlen
    states = [reader.hidden(prompts, segments) for reader in readers]
    for one, other, segment in zip(*states, segments, strict=True):
        torch.testing.assert_close(one[segment.mask()], other[segment.mask()], atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_responses_without_a_token_have_probability_one() -> None:
    policy, _ = both(model())
    prompts, nothing = Tokens.collate([[1, 4], [1]]), Tokens.collate([[], []])
    assert [rows.tolist() for rows in policy.log_probs(prompts, [nothing, nothing])] == [[0, 0], [0, 0]]
    assert policy.next_token_logits(prompts, [nothing])[0].shape == (2, 1, VOCABULARY)


@pytest.mark.parametrize("kind", KINDS)
def test_same_samples(kind: str) -> None:
    ours, theirs = both(model(kind))
    prompts, _ = batch(60)
    drawn = [policy.sample(prompts, 2, noise(120)).rows() for policy in (ours, theirs)]
    assert drawn[0] == drawn[1]
    assert len({tuple(row) for row in drawn[0]}) > 60
    assert {len(row) for row in drawn[0]} > {1, LIMIT}


@pytest.mark.parametrize("kernel", ["by hand", "PyTorch's"])
@pytest.mark.parametrize("samples", [1, 3, 4, 8])
@pytest.mark.parametrize("kind", ["qwen2", "one head a group"])
def test_same_samples_however_many_share_a_prompt(
    kind: str, samples: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight, two rows of four each; of three, each has a row of its own."""
    if kernel != "by hand":
        monkeypatch.setattr(attention, "_MATMUL_SCORES", 0)
    made = model(kind)
    ours, theirs = both(made)
    before = {name: weight.clone() for name, weight in made.state_dict().items()}
    prompts, _ = batch(20)
    drawn = [policy.sample(prompts, samples, noise(20 * samples)).rows() for policy in (ours, theirs)]
    assert drawn[0] == drawn[1]
    assert len({tuple(row) for row in drawn[0]}) > 10
    assert all(torch.equal(weight, before[name]) for name, weight in made.state_dict().items())


def test_what_was_sampled_can_be_learned_from() -> None:
    """The mode in which tokens are drawn marks its tensors; those that come out of it are not marked."""
    policy, _ = both(model())
    prompts, _ = batch()
    drawn = policy.sample(prompts, 1, noise(9))
    policy.log_probs(prompts, [drawn])[0].sum().backward()
    assert all(weight.grad is not None for weight in policy.model.parameters())


def test_same_samples_of_a_shipped_base() -> None:
    """Token by token; a response may part from the other's where the noise falls on the edge between two tokens."""
    path = base_path("small")
    tokenizer = load_tokenizer(path)
    data = make_pairs(TaskSpec(world="summarisation", train_pairs=400, held_out_pairs=1), tokenizer)
    made = load_language_model(path)
    drawn = [
        policy.sample(data.train.prompts, 2, noise(800, data.max_new_tokens)).rows()
        for policy in (
            Policy(made, int(tokenizer.eos_token_id), 1),
            Policy(made, int(tokenizer.eos_token_id), 1, PACKED),
        )
    ]
    assert sum(map(len, drawn[0])) > 5000
    assert sum(one != other for one, other in zip(*drawn, strict=True)) <= 1


@torch.no_grad()
def test_samples_share_what_their_prompt_was_read_for() -> None:
    policy, _ = both(model())
    prompts, _ = batch()
    twice = prompts.take(torch.arange(9).repeat_interleave(2))
    assert policy.sample(prompts, 2, noise(18)).rows() == policy.sample(twice, 1, noise(18)).rows()


def test_a_batch_is_laid_out_once_for_policy_and_reference() -> None:
    prompts, segments = batch()
    first = varlen_batch(prompts, segments)
    assert varlen_batch(prompts, segments) is first
    others = [Tokens(part.ids.clone(), part.lengths) for part in segments]
    assert varlen_batch(prompts, others) is not first
    assert varlen_batch(prompts, segments[:2]).segments.shape[0] == 2


@torch.no_grad()
def test_adapters_are_read_and_sampled_from() -> None:
    made = model()
    policy, theirs = both(made)
    prompts, segments = batch()
    before = policy.log_probs(prompts, segments)
    add_adapters(made, Lora(r=2), 0)
    for weight in adapters(made).values():
        weight.normal_(generator=torch.Generator().manual_seed(0))
    assert policy.reader.reads_varlen
    assert not policy.reader.varlen.decodes()
    found, expected = (reader.log_probs(prompts, segments) for reader in (policy, theirs))
    for one, other, old in zip(found, expected, before, strict=True):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=1e-5)
        assert (one - old).abs().max() > 0.1
    assert policy.sample(prompts, 2, noise(18)).rows() == theirs.sample(prompts, 2, noise(18)).rows()


def test_what_asks_for_the_models_own_forward_pass_gets_it() -> None:
    made = model()
    policy, _ = both(made)
    prompts, segments = batch()
    seen: list[int] = []
    handle = made.model.layers[0].self_attn.register_forward_hook(lambda *_: seen.append(1))
    policy.log_probs(prompts, segments)
    assert seen
    handle.remove()
    assert policy.reader.reads_varlen
    made.config.attention_dropout = 0.1
    assert policy.reader.reads_varlen
    made.train()
    assert not policy.reader.reads_varlen


class Louder(nn.Module):
    """Attention that is Llama's by name and says twice as much."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *given: Any, **named: Any) -> Any:
        said, weights = self.inner(*given, **named)
        return 2 * said, weights


def test_a_model_that_is_llamas_by_name_alone_is_found_out() -> None:
    made = model()
    made.model.layers[1].self_attn = Louder(made.model.layers[1].self_attn)
    assert Varlen(made).reads()
    assert detect(made) == PACKED


@pytest.mark.parametrize("values", [{"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}])
def test_what_turns_by_the_sequences_length_is_not_read(values: dict[str, Any]) -> None:
    assert not Varlen(model(**values)).reads()
    assert not Varlen(model_of(config_of("mistral", vocab_size=VOCABULARY))).reads()
    assert not Varlen(model_of(config_of("gpt2", vocab_size=VOCABULARY))).reads()


def test_half_precision_is_as_near_as_transformers_own() -> None:
    """Of log-probabilities in bf16 both are off by as much from those of the same weights in fp32."""
    made: LlamaForCausalLM = model("one head a group").bfloat16()
    prompts, segments = batch(40)
    exact = Policy(model("one head a group"), END, LIMIT, PACKED)
    exact.model.load_state_dict({name: value.float() for name, value in made.state_dict().items()})
    assert Varlen(made).reads()
    with torch.no_grad():
        truth = torch.cat(exact.log_probs(prompts, segments))
        ours, theirs = (
            (torch.cat(Policy(made, END, LIMIT, layout).log_probs(prompts, segments)) - truth).abs().mean()
            for layout in (Layout(packed=True, varlen=True), PACKED)
        )
        assert 0 < ours < 1.5 * theirs
        cached = Packed(made).decode(prompts, 1, LIMIT, lambda logits, at: logits.argmax(-1), (END,)).rows()
        drawn = Varlen(made).decode(prompts, 1, LIMIT, lambda logits, at: logits.argmax(-1), (END,)).rows()
    assert sum(one == other for one, other in zip(cached, drawn, strict=True)) > 30
