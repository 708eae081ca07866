"""Embeddings padded to a round size: a policy predicts the tokenizer's tokens and nothing else, wherever it is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from aligngap.errors import UserError
from aligngap.measure.kl import sequence_kl
from aligngap.models.build import check_read_back, load_backbone, load_language_model
from aligngap.models.check import check_alike, check_vocabulary
from aligngap.models.policy import Policy
from aligngap.models.spec import Checkpoint
from aligngap.models.tokenizer import byte_tokenizer, end_tokens, load_tokenizer, token_count
from aligngap.types import Tokens
from checkpoints import KINDS, model_of, saved

TEXTS = ["one two three", "four five six"]
TOKENS = token_count(byte_tokenizer(TEXTS, 320))
PADDED = TOKENS + 21


def padded(kind: str, folder: Path, *, tied: bool = False) -> Checkpoint:
    """A model whose rows beyond the tokenizer are the likeliest of all."""
    saved(kind, folder, TEXTS, rows=PADDED)
    seq2seq = kind in ("t5", "bart", "switch_transformers")
    loader = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    model = loader.from_pretrained(folder)
    if tied:
        model.config.tie_word_embeddings = True
        model = model_of(model.config)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[TOKENS:] = 9 * head[:21].sign()
    model.save_pretrained(folder)
    return Checkpoint(path=str(folder))


def whole_model(checkpoint: Checkpoint, kind: str) -> torch.nn.Module:
    loader = AutoModelForSeq2SeqLM if kind in ("t5", "bart", "switch_transformers") else AutoModelForCausalLM
    return loader.from_pretrained(checkpoint.path).eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_and_scoring_are_the_same_distribution_over_the_tokenizers_tokens(kind: str, tmp_path: Path) -> None:
    checkpoint = padded(kind, tmp_path / "base")
    tokenizer = load_tokenizer(checkpoint)
    model = load_language_model(checkpoint, tokenizer=tokenizer)
    policy = Policy(model, end_tokens(tokenizer), 6)
    prompts = Tokens.collate([tokenizer(text)["input_ids"] for text in TEXTS])
    noise = torch.rand(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = policy.sample(prompts, 20, noise)
    assert int(drawn.ids.max()) < TOKENS
    pairs = prompts.take(torch.arange(2).repeat_interleave(20))
    with torch.no_grad():
        logits = policy.next_token_logits(pairs, [drawn])[0]
        scored = policy.log_probs(pairs, [drawn])[0]
        plain = whole_model(checkpoint, kind)
        for row in (0, 25):
            ids, response = pairs.rows()[row], drawn.rows()[row]
            if model.config.is_encoder_decoder:
                start = torch.tensor([[model.config.decoder_start_token_id, *response[:-1]]])
                whole = plain(input_ids=torch.tensor([ids]), decoder_input_ids=start).logits[0]
            else:
                whole = plain(input_ids=torch.tensor([[*ids, *response]])).logits[0][len(ids) - 1 : -1]
            own = whole[:, :TOKENS].log_softmax(-1)  # what the published model says, given that it is a token
            expected = own[torch.arange(len(response)), torch.tensor(response)].sum()
            assert scored[row].item() == pytest.approx(expected.item(), abs=1e-4)
    assert logits.shape[-1] == TOKENS
    assert sequence_kl(policy, policy.frozen_copy(), prompts, drawn.take(torch.tensor([0, 20]))).abs().max() == 0


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("qwen2", True), ("gpt2", True), ("t5", False)])
def test_what_is_saved_has_a_row_a_token_and_is_read_back(kind: str, tied: bool, tmp_path: Path) -> None:
    checkpoint = padded(kind, tmp_path / "base", tied=tied)
    tokenizer = load_tokenizer(checkpoint)
    model = load_language_model(checkpoint, tokenizer=tokenizer)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    saved_one = checkpoint.at(tmp_path / "saved")
    check_read_back(model, saved_one)
    check_vocabulary(saved_one)
    again = load_language_model(saved_one, tokenizer=tokenizer)
    assert len(again.get_input_embeddings().weight) == TOKENS == again.config.vocab_size
    if tied:
        assert again.get_input_embeddings().weight is again.get_output_embeddings().weight


def test_models_padded_to_other_sizes_are_alike(tmp_path: Path) -> None:
    policy = padded("llama", tmp_path / "policy")
    others = [Checkpoint(path=str(saved("llama", tmp_path / f"{rows}", TEXTS, rows=rows))) for rows in (TOKENS, 512)]
    check_alike(policy, others)
    for each in (policy, *others):
        check_vocabulary(each)
        load_backbone(each)  # reads tokens and predicts none: what pads it is never looked up


def test_a_model_of_exactly_the_size_is_not_touched(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "base", TEXTS)
    tokenizer = load_tokenizer(str(folder))
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, other = load_language_model(str(folder)), load_language_model(str(folder), tokenizer=tokenizer)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.config.to_dict() == other.config.to_dict()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_fewer_rows_than_tokens_cannot_be_helped(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "base", TEXTS)
    larger = byte_tokenizer(TEXTS, 320)
    larger.add_tokens(["one more"])
    with pytest.raises(UserError, match=f"{TOKENS + 1} tokens, but the model's embedding has {TOKENS} rows"):
        load_language_model(str(folder), tokenizer=larger)


def test_a_decoder_that_starts_with_what_is_no_token(tmp_path: Path) -> None:
    checkpoint = padded("t5", tmp_path / "base")
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint.path)
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = TOKENS + 2
    model.save_pretrained(checkpoint.path)
    with pytest.raises(UserError, match=f"starts with token {TOKENS + 2}"):
        load_language_model(checkpoint, tokenizer=load_tokenizer(checkpoint))
