"""Typicality on a policy that is a table: everything can be written out."""

from __future__ import annotations

import math

import pytest
import torch

from aligngap.measure.typicality import typicality
from aligngap.seeds import uniforms
from aligngap.types import Tokens
from fakes import END, TablePolicy, tiny_policy

PROMPTS = [[1, 4], [1, 5]]
RESPONSES = [[3, END], [4, END], [5, 3, END]]
P = [[0.5, 0.25, 0.25], [0.7, 0.2, 0.1]]


def table() -> TablePolicy:
    return TablePolicy(PROMPTS, RESPONSES, torch.tensor(P, dtype=torch.float64).log())


def test_all_sums_are_those_of_the_table() -> None:
    """Only the first token leaves a choice: its entropy and variance are all there is."""
    found = typicality(table(), Tokens.collate([PROMPTS[0], PROMPTS[1]]), Tokens.collate([RESPONSES[1], RESPONSES[2]]))
    for row, (probabilities, said) in enumerate(zip(P, (1, 2), strict=True)):
        information = [-math.log(p) for p in probabilities]
        entropy = sum(p * i for p, i in zip(probabilities, information, strict=True))
        variance = sum(p * i * i for p, i in zip(probabilities, information, strict=True)) - entropy**2
        assert found.log_prob[row].item() == pytest.approx(-information[said])
        assert found.entropy[row].item() == pytest.approx(entropy)
        assert found.variance[row].item() == pytest.approx(variance)
        assert found.excess[row].item() == pytest.approx(information[said] - entropy)
        assert found.first[row].item() == pytest.approx(information[said] - entropy)
        assert found.last[row].item() == pytest.approx(0, abs=1e-9)
        assert found.z[row].item() == pytest.approx((information[said] - entropy) / math.sqrt(variance))
    assert found.tokens.tolist() == [2, 3]


def test_over_the_policys_own_the_excess_is_0_and_z_has_variance_1() -> None:
    prompts = Tokens.collate([PROMPTS[row] for row in (0, 0, 0, 1, 1, 1)])
    found = typicality(table(), prompts, Tokens.collate([*RESPONSES, *RESPONSES]))
    weights = torch.tensor([*P[0], *P[1]], dtype=torch.float64) / 2
    assert (found.excess * weights).sum().item() == pytest.approx(0, abs=1e-9)
    assert (found.z * weights).sum().item() == pytest.approx(0, abs=1e-9)
    assert (found.z.square() * weights).sum().item() == pytest.approx(1)


def test_the_excess_of_other_data_is_kl_plus_the_difference_of_entropies() -> None:
    """What the docstring says, by arithmetic: mu leaves a choice at the first token only, too."""
    mu = [0.1, 0.2, 0.7]
    found = typicality(table(), Tokens.collate([PROMPTS[0]] * 3), Tokens.collate(RESPONSES))
    mean = sum(weight * value for weight, value in zip(mu, found.excess.tolist(), strict=True))
    kl = sum(m * math.log(m / p) for m, p in zip(mu, P[0], strict=True))
    of_mu, of_pi = (-sum(p * math.log(p) for p in row) for row in (mu, P[0]))
    assert mean == pytest.approx(kl + of_mu - of_pi)


def test_a_policy_without_a_choice_surprises_nobody() -> None:
    sure = TablePolicy([[1, 4]], [[3, END], [4, END]], torch.tensor([[0.0, -1e9]]))
    found = typicality(sure, Tokens.collate([[1, 4]]), Tokens.collate([[3, END]]))
    assert (found.z.item(), found.excess.item()) == (0, 0)


def test_a_real_policys_own_samples_have_no_excess_whatever_the_padding() -> None:
    policy = tiny_policy(limit=6)
    prompts = Tokens.collate([[1, 3, 4], [1, 5]] * 600)
    noise = uniforms(torch.arange(1200), 1, 6, "test")
    responses = policy.sample(prompts, 1, noise)
    assert len(set(responses.lengths.tolist())) > 2
    found = typicality(policy, prompts, responses, chunk=64)
    error = found.excess.std() / 1200**0.5
    assert abs(found.excess.mean()) < 4 * error
    square = found.excess.square() - found.variance
    assert abs(square.mean()) < 4 * square.std() / 1200**0.5
    expected = policy.log_probs(prompts.take(torch.arange(8)), [responses.take(torch.arange(8))])[0]
    torch.testing.assert_close(found.log_prob[:8].float(), expected.detach(), atol=1e-4, rtol=1e-4)
    wide = Tokens(torch.nn.functional.pad(responses.ids, (0, 3), value=5), responses.lengths)
    torch.testing.assert_close(typicality(policy, prompts, wide).excess, found.excess, atol=1e-4, rtol=1e-4)
