"""Sampling draws from exactly the distribution that scoring computes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from aligngap.models.policy import Policy
from aligngap.models.sampling import _invert
from aligngap.seeds import uniforms
from aligngap.types import Tokens
from fakes import END, all_responses, ragged, tiny_policy

VOCABULARY, LIMIT = 5, 3
PROMPTS = [[1, 3, 4, 4, 3], [1], [1, 4]]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(VOCABULARY, seed=1, limit=LIMIT)


def noise(rows: int, limit: int = LIMIT, seed: int = 0) -> torch.Tensor:
    return torch.rand((rows, limit), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(policy: Policy, prompt: list[int]) -> torch.Tensor:
    responses = all_responses(VOCABULARY, LIMIT)
    with torch.no_grad():
        return (
            policy.log_probs(Tokens.collate([prompt] * len(responses)), [Tokens.collate(responses)])[0].double().exp()
        )


def test_probabilities_of_all_responses_sum_to_one(policy: Policy) -> None:
    for prompt in PROMPTS:
        found = exact(policy, prompt)
        assert len(found) == 85
        assert found.sum().item() == pytest.approx(1, abs=1e-5)
        assert found.max() > 3 / 85  # far from uniform


def test_frequencies_are_the_models_own_probabilities(policy: Policy) -> None:
    """All 85 responses to each of three ragged prompts, drawn in one left-padded batch."""
    draws = 3000
    drawn = policy.sample(Tokens.collate(PROMPTS), draws, noise(3 * draws)).rows()
    for k, prompt in enumerate(PROMPTS):
        counts = Counter(map(tuple, drawn[k * draws : (k + 1) * draws]))
        responses, expected = all_responses(VOCABULARY, LIMIT), exact(policy, prompt) * draws
        assert set(counts) <= {tuple(row) for row in responses}
        observed = torch.tensor([counts[tuple(row)] for row in responses], dtype=torch.float64)
        # Rare responses are pooled, as the test needs about five expected in each cell.
        common = expected >= 5
        assert common.sum() >= 15
        cells = [torch.cat([part[common], part[~common].sum()[None]]) for part in (observed, expected)]
        cells[1] *= cells[0].sum() / cells[1].sum()
        assert chisquare(cells[0].numpy(), cells[1].numpy()).pvalue > 1e-3
        # The same counts against another prompt's probabilities would not pass: the test can fail.
        other = exact(policy, PROMPTS[(k + 1) % 3])[common]
        assert chisquare(cells[0][:-1].numpy(), (other * cells[0][:-1].sum() / other.sum()).numpy()).pvalue < 1e-6


def test_nothing_after_the_end_and_lengths_right(policy: Policy) -> None:
    drawn = policy.sample(Tokens.collate(PROMPTS), 300, noise(900))
    assert drawn.ids.shape == (900, int(drawn.lengths.max()))
    assert (drawn.ids[~drawn.mask()] == 0).all()
    ended = 0
    for row in drawn.rows():
        assert 1 <= len(row) <= LIMIT
        assert END not in row[:-1]
        assert row[-1] == END or len(row) == LIMIT
        ended += row[-1] == END
    assert 50 < ended < 850


def test_same_noise_same_responses(policy: Policy) -> None:
    prompts = Tokens.collate(PROMPTS)
    one, again, other = (policy.sample(prompts, 4, noise(12, seed=s)).rows() for s in (0, 0, 1))
    assert one == again
    assert one != other


@pytest.mark.parametrize("chunk", [1, 3])
def test_batch_split_and_order_do_not_matter(chunk: int) -> None:
    policy = tiny_policy(12, seed=4, limit=6)
    g = torch.Generator().manual_seed(2)
    prompts = Tokens.collate([[1, *row] for row in ragged(g, 8, 12, 0, 6)])
    numbers = torch.arange(8)
    whole = policy.sample(prompts, 2, uniforms(numbers, 2, 6, "test", 0)).rows()
    parts = []
    for index in torch.tensor([3, 0, 5, 1, 7, 2, 6, 4]).split(chunk):
        drawn = policy.sample(prompts.take(index), 2, uniforms(numbers[index], 2, 6, "test", 0)).rows()
        parts += [(int(number), drawn[2 * k : 2 * k + 2]) for k, number in enumerate(index)]
    assert [row for _, rows in sorted(parts) for row in rows] == whole
    assert len({tuple(row) for row in whole}) > 8


def test_samples_sharing_a_prefill_equal_separate_ones() -> None:
    policy = tiny_policy(12, seed=4, limit=6)
    prompts = Tokens.collate([[1, 5, 6], [1, 7, 8, 9, 4], [1, 3]])
    drawn = noise(12, 6, seed=9)
    shared = policy.sample(prompts, 4, drawn).rows()
    separate = policy.sample(prompts.take(torch.arange(3).repeat_interleave(4)), 1, drawn).rows()
    assert shared == separate


def test_follows_the_likeliest_token_when_noise_says_so() -> None:
    """Step by step against scoring: the cumulative probability of each drawn token brackets its noise."""
    policy = tiny_policy(9, seed=6, limit=5)
    prompts = Tokens.collate([[1, 4, 5, 6], [1, 8], [1, 7, 7]])
    drawn_with = noise(3, 5, seed=3)
    drawn = policy.sample(prompts, 1, drawn_with)
    with torch.no_grad():
        cumulative = policy.next_token_logits(prompts, [drawn])[0].double().softmax(-1).cumsum(-1)
    for k, row in enumerate(drawn.rows()):
        for at, token in enumerate(row):
            low = cumulative[k, at, token - 1].item() if token else 0.0
            assert low - 1e-5 <= drawn_with[k, at].item() < cumulative[k, at, token].item() + 1e-5


def test_a_limit_of_one_token(policy: Policy) -> None:
    drawn = policy.sample(Tokens.collate(PROMPTS), 2, noise(6, 1))
    assert drawn.ids.shape == (6, 1)
    assert drawn.lengths.tolist() == [1] * 6


def test_invert_at_the_edges() -> None:
    logits = torch.tensor([0.25, 0.25, 0.5]).log().repeat(5, 1)
    assert _invert(logits, torch.tensor([0.0, 0.2499, 0.2501, 0.5001, 1 - 1e-12], dtype=torch.float64)).tolist() == [
        0,
        0,
        1,
        2,
        2,
    ]
    # A token of probability 0 is never drawn, not even by noise 0.
    assert _invert(torch.tensor([[-torch.inf, 0.0]]), torch.zeros(1, dtype=torch.float64)).tolist() == [1]
