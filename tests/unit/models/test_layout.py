"""Any architecture says, packed or not, what it says of each sequence alone, unpadded; and is sampled accordingly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig

from aligngap.errors import UserError
from aligngap.measure.kl import sequence_kl
from aligngap.models.build import load_language_model
from aligngap.models.layout import Layout, detect
from aligngap.models.lora import Lora, add_adapters
from aligngap.models.padded import behind
from aligngap.models.policy import Policy, WithoutAdapters
from aligngap.models.preference import PREFERENCE_MODELS, PointwiseModel, PreferenceModel
from aligngap.models.sampling import _invert
from aligngap.models.spec import Checkpoint
from aligngap.train.step import Optimiser, OptimSpec
from aligngap.types import Tokens
from checkpoints import KINDS, WINDOW, config_of, model_of, saved
from fakes import pairs_of, ragged

VOCABULARY, ENDS, LIMIT = 24, (2, 5, 13), 9
PACKED = {"llama", "qwen2", "qwen3", "gpt2", "mistral", "gemma3"}
WINDOWED = {"mistral", "gemma3", "gemma2"}
ENCODERS = {"t5", "switch_transformers", "bart"}
DECODERS = [kind for kind in KINDS if kind not in ENCODERS]


# Sharp enough that context and order matter, and not so sharp that rounding does.
SCALES = {"t5": 0.7, "switch_transformers": 0.7, "mamba": 2.0, "bart": 12.0}


def model(kind: str, scale: float | None = None, seed: int = 0) -> Any:
    made = config_of(kind, vocab_size=VOCABULARY, pad_token_id=0)
    return model_of(made, scale=SCALES.get(kind, 8.0) if scale is None else scale, seed=seed)


@pytest.fixture(scope="module", params=KINDS)
def policy(request: pytest.FixtureRequest) -> Policy:
    return Policy(model(request.param), ENDS, LIMIT)


def kind_of(policy: Policy) -> str:
    name: str = policy.model.config.model_type
    return {"gemma3_text": "gemma3"}.get(name, name)


def batch(longest: int = 7) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompts, and three segments behind each, of many lengths."""
    g = torch.Generator().manual_seed(5)
    prompts = [[1, *row] for row in ragged(g, 6, VOCABULARY, 0, longest)]
    return prompts, [ragged(g, 6, VOCABULARY, 1, longest) for _ in range(3)]


def alone(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """What predicts each token of the response, from a plain forward pass of one unpadded row."""
    if model.config.is_encoder_decoder:
        start = [model.config.decoder_start_token_id, *response]
        return model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([start])).logits[0][:-1]  # type: ignore[no-any-return]
    return model(input_ids=torch.tensor([prompt + response])).logits[0][len(prompt) - 1 : -1]  # type: ignore[no-any-return]


def log_prob(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    chosen = alone(model, prompt, response).double().log_softmax(-1)
    return chosen[torch.arange(len(response)), torch.tensor(response)].sum()


def test_it_is_known_what_can_be_packed(policy: Policy) -> None:
    kind = kind_of(policy)
    assert policy.layout.packed == (kind in PACKED)
    assert policy.layout.window == (WINDOW if kind in WINDOWED else None)
    # It mixes up the states of rows that are generated together.
    assert policy.layout.generates == (kind != "rwkv")


@pytest.mark.parametrize("kind", sorted({*KINDS} - PACKED - ENCODERS))
def test_what_cannot_be_packed_is_known_of_a_model_that_has_learned_nothing(kind: str) -> None:
    """All but uniform, it says nearly the same in any layout."""
    assert not detect(model(kind, scale=1.0)).packed


@pytest.mark.parametrize("longest", [4, 7, 14])
@torch.no_grad()
def test_log_probabilities_are_those_of_the_sequence_alone(policy: Policy, longest: int) -> None:
    """The longest of them reach beyond the sliding windows."""
    prompts, segments = batch(longest)
    found = policy.log_probs(Tokens.collate(prompts), [Tokens.collate(rows) for rows in segments])
    for rows, values in zip(segments, found, strict=True):
        for prompt, row, value in zip(prompts, rows, values, strict=True):
            assert value.item() == pytest.approx(log_prob(policy.model, prompt, row).item(), abs=1e-4)


@torch.no_grad()
def test_context_and_order_matter_to_these_models(policy: Policy) -> None:
    """Or the tests here would pass whatever is wrong."""
    one, other, third = (
        alone(policy.model, prompt, [3, 4])[1].softmax(-1) for prompt in ([1, 7, 9], [1, 9, 7], [1, 8, 9])
    )
    assert (one - other).abs().max() > 1e-3
    assert (one - third).abs().max() > 1e-3


@torch.no_grad()
def test_next_token_logits_are_those_of_the_sequence_alone(policy: Policy) -> None:
    prompts, segments = batch()
    found = policy.next_token_logits(Tokens.collate(prompts), [Tokens.collate(rows) for rows in segments])
    for rows, logits in zip(segments, found, strict=True):
        for prompt, row, line in zip(prompts, rows, logits, strict=True):
            torch.testing.assert_close(line[: len(row)], alone(policy.model, prompt, row), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "mistral", "bloom", "mamba", "t5"])
def test_gradients_are_those_of_the_sequences_alone(kind: str) -> None:
    policy = Policy(model(kind), ENDS, LIMIT)
    prompts, segments = batch(10)

    def gradient(total: torch.Tensor) -> torch.Tensor:
        policy.model.zero_grad()
        total.backward()
        return torch.cat([w.grad.flatten() for w in policy.model.parameters() if w.grad is not None])

    ours = gradient(sum(policy.log_probs(Tokens.collate(prompts), [Tokens.collate(r) for r in segments])).sum())  # type: ignore[arg-type,union-attr]
    parts = [log_prob(policy.model, p, r) for rows in segments for p, r in zip(prompts, rows, strict=True)]
    theirs = gradient(torch.stack(parts).sum())
    assert ours.abs().max() > 1
    torch.testing.assert_close(ours, theirs, atol=1e-3 * float(theirs.abs().max()), rtol=1e-3)


def naive(model: Any, prompt: list[int], noise: torch.Tensor) -> list[int]:
    """Token by token, each from a plain forward pass."""
    row: list[int] = []
    while len(row) < len(noise) and not (row and row[-1] in ENDS):
        row.append(int(_invert(alone(model, prompt, [*row, 0])[-1:].float(), noise[len(row), None])))
    return row


@pytest.mark.parametrize("longest", [4, 14])
@torch.no_grad()
def test_samples_are_those_of_a_naive_loop(policy: Policy, longest: int) -> None:
    prompts, _ = batch(longest)
    noise = torch.rand(18, LIMIT, dtype=torch.float64, generator=torch.Generator().manual_seed(longest))
    drawn = policy.sample(Tokens.collate(prompts), 3, noise)
    rows = drawn.rows()
    assert rows == [naive(policy.model, prompts[k // 3], noise[k]) for k in range(18)]
    assert len({tuple(row) for row in rows}) > 12
    assert any(len(row) < LIMIT for row in rows)  # some end early
    for row in rows:
        assert not any(token in ENDS for token in row[:-1])
        assert len(row) == LIMIT or row[-1] in ENDS
    assert not (drawn.ids * ~drawn.mask()).any()


def test_samples_have_the_models_distribution() -> None:
    policy = Policy(model("bloom"), ENDS, 1)
    noise = torch.rand(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = policy.sample(Tokens.collate([[1, 7, 9]]), 4000, noise).ids[:, 0]
    with torch.no_grad():
        expected = alone(policy.model, [1, 7, 9], [0])[0].softmax(-1)
    found = torch.bincount(drawn, minlength=VOCABULARY) / 4000
    assert (found - expected).abs().max() < 0.03


@pytest.mark.parametrize("kind", ["llama", "bloom", "bart"])
def test_what_a_generation_configuration_asks_for_changes_no_sample(kind: str) -> None:
    """A policy's distribution is its model's, or scoring and sampling would part."""
    made = model(kind)
    prompts = Tokens.collate(batch()[0])
    noise = torch.rand(6, LIMIT, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = Policy(made, ENDS, LIMIT).sample(prompts, 1, noise).rows()
    made.generation_config.update(
        temperature=0.1, top_k=1, repetition_penalty=9.0, min_new_tokens=LIMIT, suppress_tokens=[3, 4], max_length=1
    )
    given = made.generation_config.to_dict()
    assert Policy(made, ENDS, LIMIT).sample(prompts, 1, noise).rows() == before
    assert made.generation_config.to_dict() == given  # and it is there for export


def test_an_encoder_reads_each_prompt_once() -> None:
    policy = Policy(model("t5"), ENDS, LIMIT)
    prompts, segments = batch()
    read: list[int] = []
    policy.model.get_encoder().register_forward_hook(lambda *given: read.append(len(given[2].last_hidden_state)))
    with torch.no_grad():
        policy.log_probs(Tokens.collate(prompts), [Tokens.collate(rows) for rows in segments])
    assert read == [6]
    policy.sample(Tokens.collate(prompts), 4, torch.rand(24, LIMIT, dtype=torch.float64))
    assert read == [6, 6]


@pytest.mark.parametrize("kind", ["bloom", "t5"])
def test_kl_is_zero_from_itself_and_not_from_another(kind: str) -> None:
    policy, other = (Policy(model(kind, seed=seed), ENDS, LIMIT) for seed in (0, 1))
    prompts, segments = batch()
    given = Tokens.collate(prompts), Tokens.collate(segments[0])
    assert sequence_kl(policy, policy.frozen_copy(), *given).abs().max() == 0
    assert sequence_kl(policy, other, *given).min() > 1e-3


def backbone(kind: str) -> Any:
    made = model(kind)
    return made.get_encoder() if kind == "t5" else made.base_model


def judge(kind: str, form: str) -> PreferenceModel:
    made = PREFERENCE_MODELS[form](backbone(kind), 3)
    g = torch.Generator().manual_seed(0)
    for weight in made.readout.parameters():
        weight.data.normal_(generator=g)
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["t5", *DECODERS])
def test_a_preference_model_reads_one_unpadded_row(kind: str) -> None:
    made = judge(kind, "pairwise")
    assert made.layout.packed == (kind in PACKED)
    prompts, (first, second, _) = batch(5)
    pairs = pairs_of(prompts, first, second, [1.0] * 6)
    forward, backward = made.both_orders(pairs.prompts, pairs.first, pairs.second)
    for found, ours, theirs in ((forward, first, second), (backward, second, first)):
        for prompt, a, b, value in zip(prompts, ours, theirs, found, strict=True):
            row = torch.tensor([[*prompt, *a, 3, *b, 3]])
            states = made.backbone(input_ids=row).last_hidden_state[0]
            end, one, two = (states @ made.readout[name].weight[0] for name in ("end", "first", "second"))
            at = len(prompt)
            expected = end[-1] + one[at : at + len(a)].sum() - two[at + len(a) + 1 : -1].sum()
            assert value.item() == pytest.approx(expected.item(), abs=1e-3 * max(1, abs(expected.item())))


@pytest.mark.parametrize("kind", ["bloom", "t5"])
def test_a_pointwise_model_reads_one_unpadded_row(kind: str) -> None:
    made = judge(kind, "pointwise")
    assert isinstance(made, PointwiseModel)
    prompts, (first, _, _) = batch(5)
    found = made.rewards(Tokens.collate(prompts), [Tokens.collate(first)])[0]
    for prompt, row, value in zip(prompts, first, found, strict=True):
        states = made.backbone(input_ids=torch.tensor([prompt + row])).last_hidden_state[0, len(prompt) :]
        end, one = (states @ made.readout[name].weight[0] for name in ("end", "first"))
        assert value.item() == pytest.approx((end[-1] + one.sum()).item(), abs=1e-3)


def test_a_window_decides_by_length() -> None:
    layout = Layout(packed=True, window=10)
    prompts, short, long = (Tokens.collate([[1] * size]) for size in (6, 4, 5))
    assert layout.packs(prompts, [short, short])
    assert not layout.packs(prompts, [short, long])
    assert layout.packs(prompts, [], more=4)
    assert not layout.packs(prompts, [], more=5)


def test_behind_leaves_no_padding_in_between() -> None:
    prompts, segment = Tokens.collate([[1, 2, 3], [4]]), Tokens.collate([[5], [6, 7]])
    joined = behind(prompts, segment)
    assert joined.rows() == [[1, 2, 3, 5], [4, 6, 7]]
    assert joined.ids.tolist() == [[1, 2, 3, 5], [4, 6, 7, 0]]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            BertConfig(
                vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
            ),
            "what follows a token changes what it says",
        ),
    ],
)
def test_what_no_layout_suits_is_refused(config: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        Policy(model_of(config, scale=4.0), ENDS, LIMIT)
    assert config.model_type in str(caught.value)


@pytest.mark.parametrize("kind", ["llama", "bloom", "t5"])
def test_half_precision_is_read_in_the_layout_of_the_architecture(kind: str) -> None:
    assert detect(model(kind).to(torch.bfloat16)) == detect(model(kind))


@pytest.mark.parametrize("kind", ["gemma3", "bloom", "lfm2", "t5"])
def test_a_step_in_half_precision_with_adapters_and_checkpointed_gradients(kind: str, tmp_path: Path) -> None:
    folder = saved(kind, tmp_path / "base", ["one two three"], scale=SCALES.get(kind, 8.0))
    checkpoint = Checkpoint(path=str(folder), dtype="bfloat16", gradient_checkpointing=True)
    policy = Policy(load_language_model(checkpoint), ENDS, LIMIT)
    add_adapters(policy.model, Lora(r=2), 0)
    reference = WithoutAdapters(policy.model, ENDS, LIMIT, policy.layout)
    prompts, segments = batch()
    given = Tokens.collate(prompts), [Tokens.collate(rows) for rows in segments[:1]]
    optimiser = Optimiser(policy.model.parameters(), OptimSpec(lr=0.05, steps=3, warmup_steps=0))
    before = policy.log_probs(*given)[0]
    assert torch.equal(before, reference.log_probs(*given)[0])
    for _ in range(3):
        optimiser.step(-policy.log_probs(*given)[0].sum())
    with torch.no_grad():
        assert policy.log_probs(*given)[0].sum() > before.sum() + 1
        assert torch.equal(reference.log_probs(*given)[0], before)


def test_what_fails_in_its_own_way_is_one_error() -> None:
    made = model("llama")
    made.register_forward_pre_hook(lambda *_: torch.zeros(4) + torch.zeros(8))
    with pytest.raises(UserError, match=r"type 'llama' cannot be used: it does not read .*size of tensor"):
        Policy(made, ENDS, LIMIT)


@pytest.mark.parametrize("kind", ["llama", "bloom", "rwkv", "t5"])
@torch.no_grad()
def test_an_empty_response_has_probability_one(kind: str) -> None:
    policy = Policy(model(kind), ENDS, LIMIT)
    prompts = Tokens.collate([[1, 4], [1, 5, 7]])
    found = policy.log_probs(prompts, [Tokens.collate([[], [6]]), Tokens.collate([[], []])])
    assert found[0][0] == 0
    assert found[0][1].item() == pytest.approx(log_prob(policy.model, [1, 5, 7], [6]).item(), abs=1e-4)
    assert found[1].tolist() == [0, 0]


def test_sampling_without_a_cache_draws_the_same() -> None:
    """Whatever way a token is read, the noise decides which it is."""
    prompts = Tokens.collate(batch(14)[0])
    noise = torch.rand(12, LIMIT, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for kind in ("llama", "bloom", "t5"):
        policy = Policy(model(kind), ENDS, LIMIT)
        ways = (policy.layout, Layout(packed=False), Layout(packed=False, generates=False))
        drawn = [Policy(policy.model, ENDS, LIMIT, way).sample(prompts, 2, noise).rows() for way in ways]
        assert drawn[0] == drawn[1] == drawn[2]
        assert len({tuple(row) for row in drawn[0]}) > 8
