"""KL against a brute-force sum, the policy as classifier and win rates against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aligngap.measure.classify import correct, pair_log_probs, winner_drift
from aligngap.measure.kl import sequence_kl
from aligngap.measure.winrate import mean_se, win_rate
from aligngap.models.policy import Policy
from aligngap.types import Tokens
from fakes import TablePolicy, all_responses, random_pairs, tiny_policy

VOCABULARY, LIMIT = 5, 3


@pytest.fixture(scope="module")
def pair() -> tuple[Policy, Policy]:
    return tiny_policy(VOCABULARY, 1, LIMIT), tiny_policy(VOCABULARY, 2, LIMIT)


@pytest.mark.parametrize("prompt", [[1], [1, 3, 4, 4]])
def test_expected_kl_is_the_brute_force_sum(pair: tuple[Policy, Policy], prompt: list[int]) -> None:
    """Over every response, the sum of pi log(pi/sft) is the sum of pi times its estimate: unbiased, exactly."""
    policy, reference = pair
    responses = Tokens.collate(all_responses(VOCABULARY, LIMIT))
    prompts = Tokens.collate([prompt] * len(responses.ids))
    with torch.no_grad():
        log_p, log_q = (model.log_probs(prompts, [responses])[0].double() for model in pair)
    brute = (log_p.exp() * (log_p - log_q)).sum()
    assert brute > 0.5
    estimates = sequence_kl(policy, reference, prompts, responses)
    assert estimates.dtype == torch.float64
    torch.testing.assert_close((log_p.exp() * estimates).sum(), brute, atol=1e-5, rtol=1e-4)
    # and with far less variance than the single-sample log-ratio has
    variance = [(log_p.exp() * (value - brute) ** 2).sum() for value in (estimates, log_p - log_q)]
    assert variance[0] < variance[1]


def test_table_kl() -> None:
    """Two responses of one token after which all is said: KL = .8 log(.8/.5) + .2 log(.2/.5) = 0.19274 nats."""
    tables = [TablePolicy([[1]], [[3, 2], [4, 2]], torch.tensor([row]).log()) for row in ([0.8, 0.2], [0.5, 0.5])]
    found = sequence_kl(*tables, Tokens.collate([[1], [1]]), Tokens.collate([[3, 2], [4, 2]]))
    assert found.tolist() == pytest.approx([0.192745] * 2, abs=1e-5)


def test_same_policy_zero_kl(pair: tuple[Policy, Policy]) -> None:
    prompts, responses = Tokens.collate([[1, 3], [1]]), Tokens.collate([[3, 4, 2], [2]])
    assert sequence_kl(pair[0], pair[0].frozen_copy(), prompts, responses).tolist() == [0, 0]
    assert (sequence_kl(*pair, prompts, responses) > 0).all()


def test_kl_masks_padding_and_chunks(pair: tuple[Policy, Policy]) -> None:
    rows = [[2], [3, 2], [4, 3, 4], [4, 2]]
    prompts = [[1, 3], [1], [1, 4, 4], [1, 3, 4, 3]]
    together = sequence_kl(*pair, Tokens.collate(prompts), Tokens.collate(rows))
    alone = torch.cat(
        [sequence_kl(*pair, Tokens.collate([p]), Tokens.collate([r])) for p, r in zip(prompts, rows, strict=True)]
    )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        sequence_kl(*pair, Tokens.collate(prompts), Tokens.collate(rows), chunk=3), together, atol=1e-5, rtol=1e-5
    )
    padded = Tokens(torch.nn.functional.pad(Tokens.collate(rows).ids, (0, 4), value=3), Tokens.collate(rows).lengths)
    torch.testing.assert_close(sequence_kl(*pair, Tokens.collate(prompts), padded), together, atol=1e-5, rtol=1e-5)
    # A longer response adds the KL of its further positions.
    prefix = sequence_kl(*pair, Tokens.collate([[1, 4, 4]]), Tokens.collate([[4, 3]]))
    assert prefix.item() < together[2].item()


def test_pair_log_probs(pair: tuple[Policy, Policy]) -> None:
    batch = random_pairs(0, 11, VOCABULARY)
    found = pair_log_probs(pair[0], batch, chunk=4)
    assert found.shape == (2, 11)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    with torch.no_grad():
        for side, alone in zip((batch.first, batch.second), found, strict=True):
            expected = pair[0].log_probs(batch.prompts, [side])[0]
            torch.testing.assert_close(alone.float(), expected, atol=1e-4, rtol=1e-5)


def test_correct_and_drift_by_hand() -> None:
    first = torch.tensor([1.0, 1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64)
    second = torch.tensor([0.0, 2.0, -1.0, 0.5, 1.0, -4.0], dtype=torch.float64)
    preference = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5, 0.0])
    assert correct(first, second, preference).tolist() == [1, 1, 0, 0.5, 0.5, 0]
    drift = winner_drift(first, second, preference)
    assert drift[[0, 1, 2, 3, 5]].tolist() == [1, 2, -2, 0.5, -4]
    assert drift[4].isnan()


def test_win_rate_by_hand() -> None:
    rate = win_rate(np.array([1.0, 0.0, 0.5, 1.0, np.nan]))
    assert rate[:1] + rate[2:] == (0.625, 4, 1)
    # deviations .375, -.625, -.125, .375: squares sum to .6875; se = sqrt(.6875 / 3 / 4)
    assert rate.se == pytest.approx((0.6875 / 12) ** 0.5)


def test_no_data_is_nan_with_a_count() -> None:
    for outcomes in (np.array([]), np.array([np.nan, np.nan])):
        rate = win_rate(outcomes)
        assert np.isnan(rate.rate)
        assert np.isnan(rate.se)
        assert (rate.n, rate.ties) == (0, 0)
    mean, se = mean_se(np.array([2.0, np.nan]))
    assert mean == 2
    assert np.isnan(se)
