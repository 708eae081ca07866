"""How many tokens a model takes is a matter of its architecture: as many as it can read, and not one more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BioGptConfig,
    LEDConfig,
    M2M100Config,
    MarianConfig,
    OPTConfig,
    PegasusConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
    XGLMConfig,
)

from aligngap.errors import UserError
from aligngap.judges.reward import longest_input
from aligngap.models.build import load_language_model
from aligngap.models.check import check_lengths
from aligngap.models.context import NO_LIMIT, Context, context_of, positions, slow_path
from aligngap.models.policy import Policy
from aligngap.models.spec import Checkpoint
from aligngap.types import Tokens
from checkpoints import KINDS, config_of, model_of, saved

LIMIT = 24
_BART = {name: value for name, value in KINDS["bart"][1].items() if not name.endswith("_token_id")}
_OPT = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 16}
_XGLM = {"d_model": 16, "ffn_dim": 24, "num_layers": 2, "attention_heads": 4}
_ROBERTA = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
_SPECIAL = {"vocab_size": 40, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}

DECODERS: dict[str, tuple[Any, int]] = {
    "gpt2": (config_of("gpt2", context=LIMIT, **_SPECIAL), LIMIT),
    "opt": (OPTConfig(**_OPT, **_SPECIAL, max_position_embeddings=LIMIT), LIMIT),
    "biogpt": (BioGptConfig(**_ROBERTA, **_SPECIAL, max_position_embeddings=LIMIT), LIMIT),
    # Positions are counted from behind the padding's number.
    "roberta": (RobertaConfig(**_ROBERTA, **_SPECIAL, max_position_embeddings=LIMIT, is_decoder=True), LIMIT - 2),
}
"""Configurations, and the tokens that a table of positions lets them read."""

ENCODER_DECODERS: dict[str, tuple[Any, Context]] = {
    "bart": (
        BartConfig(**_BART, **_SPECIAL, max_position_embeddings=LIMIT, decoder_start_token_id=2),
        Context(LIMIT, LIMIT, NO_LIMIT),
    ),
    "marian": (
        MarianConfig(**_BART, **_SPECIAL, max_position_embeddings=LIMIT, decoder_start_token_id=1),
        Context(LIMIT, LIMIT, NO_LIMIT),
    ),
    "pegasus": (
        PegasusConfig(**_BART, **_SPECIAL, max_position_embeddings=LIMIT, decoder_start_token_id=1),
        Context(LIMIT, LIMIT, NO_LIMIT),
    ),
    "led": (
        LEDConfig(
            **_BART,
            **_SPECIAL,
            max_encoder_position_embeddings=64,
            max_decoder_position_embeddings=LIMIT,
            attention_window=8,
            decoder_start_token_id=2,
        ),
        Context(64, LIMIT, NO_LIMIT),
    ),
    "m2m_100": (
        M2M100Config(**_BART, **_SPECIAL, max_position_embeddings=LIMIT, decoder_start_token_id=2),
        Context(NO_LIMIT, NO_LIMIT, NO_LIMIT),
    ),
}


def written(config: Any, folder: Path) -> Checkpoint:
    model_of(config).save_pretrained(folder)
    return Checkpoint(path=str(folder))


def of(length: int, rows: int = 2) -> Tokens:
    g = torch.Generator().manual_seed(length)
    return Tokens.collate([torch.randint(3, 40, (length,), generator=g).tolist() for _ in range(rows)])


def read(policy: Policy, prompt: int, response: int) -> torch.Tensor:
    with torch.no_grad():
        return policy.log_probs(of(prompt), [of(response)])[0]


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_reads_as_many_as_it_is_said_to_and_no_more(kind: str, tmp_path: Path) -> None:
    config, limit = DECODERS[kind]
    checkpoint = written(config, tmp_path / kind)
    assert context_of(checkpoint) == (limit, limit, limit)
    policy = Policy(load_language_model(checkpoint), 2, 4)
    assert read(policy, limit - 5, 5).isfinite().all()
    noise = torch.rand(2, 5, dtype=torch.float64)
    assert policy.sample(of(limit - 5), 1, noise).lengths.max() <= 5
    with pytest.raises((IndexError, RuntimeError)):
        read(policy, limit - 4, 5 + 2)  # beyond what is asked of the last token as well


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_prompt_and_response_of_an_encoder_decoder_do_not_add_up(kind: str, tmp_path: Path) -> None:
    config, context = ENCODER_DECODERS[kind]
    checkpoint = written(config, tmp_path / kind)
    assert context_of(checkpoint) == context
    policy = Policy(load_language_model(checkpoint), 2, 4)
    prompt, response = min(context.prompt, 60), min(context.response, 60)
    assert context.fits(prompt, response)
    assert read(policy, prompt, response).isfinite().all()
    noise = torch.rand(2, response, dtype=torch.float64)
    assert policy.sample(of(prompt), 1, noise).lengths.max() <= response
    if context.response != NO_LIMIT:
        with pytest.raises(IndexError):
            read(policy, 4, response + 1)


def test_sinusoids_that_are_worked_out_limit_nothing(tmp_path: Path) -> None:
    checkpoint = written(XGLMConfig(**_XGLM, **_SPECIAL, max_position_embeddings=LIMIT), tmp_path / "xglm")
    assert context_of(checkpoint) == (NO_LIMIT, NO_LIMIT, NO_LIMIT)
    policy = Policy(load_language_model(checkpoint), 2, 4)
    assert read(policy, LIMIT, LIMIT).isfinite().all()
    check_lengths(checkpoint, LIMIT, LIMIT, task="mine", own_data=True)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_the_configuration_says_where_there_is_no_table(kind: str, tmp_path: Path) -> None:
    unlimited = ("bloom", "mamba", "switch_transformers", "t5")
    checkpoint = Checkpoint(path=str(saved(kind, tmp_path / kind, ["one", "two"], context=48)))
    expected = NO_LIMIT if kind in unlimited else 1024 if kind == "rwkv" else 48  # its own default
    assert context_of(checkpoint).prompt == expected
    if kind != "bart":
        backbone = context_of(checkpoint, backbone=True)
        assert backbone == (expected, expected, expected)


def test_the_message_says_what_is_too_long(tmp_path: Path) -> None:
    checkpoint = written(ENCODER_DECODERS["led"][0], tmp_path / "led")
    check_lengths(checkpoint, 64, LIMIT, task="mine", own_data=True)
    with pytest.raises(UserError, match=rf"takes a prompt of 64 and a response of {LIMIT}"):
        check_lengths(checkpoint, 10, LIMIT + 1, task="mine", own_data=True)
    roberta = written(DECODERS["roberta"][0], tmp_path / "roberta")
    with pytest.raises(UserError, match=rf"is {LIMIT - 1} tokens; 'roberta' takes {LIMIT - 2}"):
        check_lengths(roberta, LIMIT - 9, 8, task="mine", own_data=True)


def test_a_reward_model_is_measured_by_the_same_rule() -> None:
    config = RobertaConfig(**_ROBERTA, **_SPECIAL, max_position_embeddings=66, num_labels=1)
    model = RobertaForSequenceClassification(config).eval()

    class Own:
        model_max_length = 512

    assert longest_input(model, Own()) == positions(model.base_model, config) == 64
    with torch.no_grad():
        model(input_ids=of(64).ids)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=of(65).ids)


def test_a_policy_that_only_plan_has_seen_is_known_to_be_slow(tmp_path: Path) -> None:
    """By its kind: what is known of it without its weights agrees with what a trial of it finds."""
    slow: dict[str, bool] = {}
    for kind in ("llama", "gpt2", "bloom", "mamba", "rwkv"):
        checkpoint = Checkpoint(path=str(saved(kind, tmp_path / kind, ["one", "two"])))
        slow[kind] = slow_path(checkpoint) is not None
    for kind, (config, _) in DECODERS.items():
        checkpoint = written(config, tmp_path / f"other-{kind}")
        slow[kind] = slow_path(checkpoint) is not None
        assert slow[kind] or Policy(load_language_model(checkpoint), 2, 4).layout.generates
    bart = BartConfig(**_BART, **_SPECIAL, is_encoder_decoder=False, is_decoder=True)
    AutoModelForCausalLM.from_config(bart).save_pretrained(tmp_path / "cut")
    cut = Checkpoint(path=str(tmp_path / "cut"))
    slow["cut"] = slow_path(cut) is not None
    assert not Policy(load_language_model(cut), 2, 4).layout.generates
    assert {kind for kind, value in slow.items() if value} == {"mamba", "rwkv", "roberta", "cut"}
    assert json.loads((tmp_path / "mamba" / "config.json").read_text())["model_type"] == "mamba"
