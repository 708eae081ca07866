"""Any architecture learns: the loop lowers its loss, and preference models find out what is preferred."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aligngap.models.build import load_language_model
from aligngap.models.policy import Policy
from aligngap.models.preference import build_preference_model, load_preference_model
from aligngap.sources.base import Ingredients
from aligngap.sources.order import uniform
from aligngap.sources.recorded import Recorded
from aligngap.sources.sampled import SampledSpec
from aligngap.train.loop import LossSpec, batch_loss, train
from aligngap.train.step import OptimSpec
from aligngap.train.supervised import fit, preference_loss
from aligngap.types import PairBatch, Tokens
from checkpoints import config_of, model_of
from fakes import END, likes_token, pairs_of, prompts_of, ragged

VOCABULARY, LIMIT, SEPARATOR, LIKED = 16, 5, 3, 7
# Packed; ALiBi; recurrent; encoder-decoder.
KINDS = ["gpt2", "bloom", "mamba", "t5"]


def saved(kind: str, folder: Path) -> str:
    # T5 starts with weights of 1, from which its first tokens are all but certain.
    scale = 0.3 if kind == "t5" else 1.0
    model_of(config_of(kind, vocab_size=VOCABULARY, pad_token_id=0), scale=scale).save_pretrained(folder)
    return str(folder)


def pairs(count: int) -> PairBatch:
    """Ragged responses to two prompts; more of the liked token is better."""
    g = torch.Generator().manual_seed(0)
    first, second = ([[*row, END] for row in ragged(g, 5 * count, VOCABULARY, 1, LIMIT - 1)] for _ in range(2))
    different = [(a, b) for a, b in zip(first, second, strict=True) if a.count(LIKED) != b.count(LIKED)][:count]
    assert len(different) == count
    return pairs_of(
        [[1, 4, 5], [1, 6]] * (count // 2),
        [a for a, _ in different],
        [b for _, b in different],
        [float(a.count(LIKED) > b.count(LIKED)) for a, b in different],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_ipo_on_recorded_pairs_lowers_its_loss(kind: str, tmp_path: Path) -> None:
    policy = Policy(load_language_model(saved(kind, tmp_path)), END, LIMIT)
    reference, data, loss = policy.frozen_copy(), pairs(64), LossSpec(beta=0.1)

    def value() -> float:
        with torch.no_grad():
            return float(batch_loss(policy, reference, data, loss))

    assert value() == pytest.approx(0.25)  # policy and reference are the same
    optim = OptimSpec(lr=1e-2, steps=20, batch=16, warmup_steps=2)
    train(policy, reference, Recorded(data, uniform("t")), loss, optim, keep=(), save_policy=lambda *_: None)
    assert value() < 0.06


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_ipo_on_its_own_samples_finds_what_the_judge_likes(kind: str, tmp_path: Path) -> None:
    policy = Policy(load_language_model(saved(kind, tmp_path)), END, LIMIT)
    reference = policy.frozen_copy()
    source = SampledSpec().build(Ingredients(0, 16, prompts_of([[1, 4, 5], [1, 6]]), likes_token(LIKED)))
    optim = OptimSpec(lr=1e-2, steps=20, batch=16, warmup_steps=2)
    train(policy, reference, source, LossSpec(beta=0.05), optim, keep=(), save_policy=lambda *_: None)
    noise = torch.rand((200, LIMIT), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prompts = Tokens.collate([[1, 4, 5], [1, 6]])
    after, before = (
        sum(row.count(LIKED) for row in one.sample(prompts, 100, noise).rows()) / 200 for one in (policy, reference)
    )
    assert after > before + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_preference_model_learns_and_is_read_back(kind: str, tmp_path: Path) -> None:
    made = build_preference_model("pairwise", saved(kind, tmp_path / "base"), SEPARATOR)
    data = pairs(300)
    learn, held_out = data.take(torch.arange(200)), data.take(torch.arange(200, 300))
    fit(
        made,
        lambda batch, step: preference_loss(made, batch, step, 0),
        Recorded(learn, uniform("t")),
        OptimSpec(lr=1e-2, steps=40, batch=32, warmup_steps=2),
        lambda *_: None,
    )
    made.save(tmp_path / "out")
    again = load_preference_model("pairwise", tmp_path / "out", SEPARATOR)
    given = held_out.prompts, held_out.first, held_out.second
    with torch.no_grad():
        forward, backward = again.both_orders(*given)
        torch.testing.assert_close((forward, backward), made.both_orders(*given), atol=1e-3, rtol=1e-4)
    assert ((forward > backward) == (held_out.preference == 1)).float().mean() > 0.85
