"""Packed rows score as separate, unpadded rows do, and their parts do not see each other."""

from __future__ import annotations

import pytest
import torch

from aligngap.models.packing import left_pad, pack
from aligngap.models.policy import Policy
from aligngap.types import Tokens
from fakes import ragged, sharp_model

VOCABULARY = 12


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(sharp_model(VOCABULARY, seed=3, scale=8.0), 2, 8)


@pytest.fixture(scope="module")
def batch() -> tuple[list[list[int]], list[list[list[int]]]]:
    g = torch.Generator().manual_seed(5)
    prompts = [[1, *row] for row in ragged(g, 9, VOCABULARY, 0, 6)]
    return prompts, [ragged(g, 9, VOCABULARY, 1, 7) for _ in range(3)]


def logits_alone(policy: Policy, prompt: list[int], response: list[int]) -> torch.Tensor:
    """What predicts each token of the response, from a plain forward pass of one unpadded row."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([prompt + response])).logits[0]
    return logits[len(prompt) - 1 : -1]


def alone(policy: Policy, prompt: list[int], response: list[int]) -> float:
    chosen = logits_alone(policy, prompt, response).double().log_softmax(-1)
    return sum(chosen[at, token].item() for at, token in enumerate(response))


def collated(rows: list[list[list[int]]]) -> list[Tokens]:
    return [Tokens.collate(part) for part in rows]


def test_the_model_is_worth_testing_with(policy: Policy) -> None:
    """Order and context change what it says."""
    a, b, c = (logits_alone(policy, prompt, [3])[0].softmax(-1) for prompt in ([1, 5, 6], [1, 6, 5], [1, 7, 6]))
    assert (a - b).abs().max() > 0.02
    assert (a - c).abs().max() > 0.02


@pytest.mark.parametrize("count", [1, 2, 3])
def test_log_probs_equal_separate_rows(
    policy: Policy, batch: tuple[list[list[int]], list[list[list[int]]]], count: int
) -> None:
    prompts, segments = batch[0], batch[1][:count]
    with torch.no_grad():
        found = policy.log_probs(Tokens.collate(prompts), collated(segments))
    assert len(found) == count
    for packed, rows in zip(found, segments, strict=True):
        expected = torch.tensor([alone(policy, p, r) for p, r in zip(prompts, rows, strict=True)])
        torch.testing.assert_close(packed, expected.float(), atol=1e-5, rtol=1e-5)


def test_next_token_logits_equal_a_plain_forward(
    policy: Policy, batch: tuple[list[list[int]], list[list[list[int]]]]
) -> None:
    prompts, segments = batch
    with torch.no_grad():
        found = policy.next_token_logits(Tokens.collate(prompts), collated(segments))
    for logits, rows in zip(found, segments, strict=True):
        for k, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            torch.testing.assert_close(logits[k, : len(row)], logits_alone(policy, prompt, row), atol=2e-5, rtol=1e-5)


def test_batch_order_and_company_do_not_matter(
    policy: Policy, batch: tuple[list[list[int]], list[list[list[int]]]]
) -> None:
    prompts, segments = Tokens.collate(batch[0]), collated(batch[1][:2])
    order = torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5])
    with torch.no_grad():
        straight = policy.log_probs(prompts, segments)
        mixed = policy.log_probs(prompts.take(order), [part.take(order) for part in segments])
        split = [
            policy.log_probs(prompts.take(i), [part.take(i) for part in segments]) for i in torch.arange(9).split(2)
        ]
    for k in range(2):
        torch.testing.assert_close(mixed[k], straight[k][order], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.cat([part[k] for part in split]), straight[k], atol=1e-5, rtol=1e-5)


def test_segments_do_not_see_each_other(policy: Policy, batch: tuple[list[list[int]], list[list[list[int]]]]) -> None:
    prompts, (one, two, other) = Tokens.collate(batch[0]), collated(batch[1])
    changed = Tokens((two.ids - 3 + 4) % (VOCABULARY - 3) + 3, two.lengths)
    with torch.no_grad():
        before, after, back = (
            policy.next_token_logits(prompts, parts)
            for parts in ([one, two, other], [one, changed, other], [changed, two, other])
        )
    mask = one.mask()
    assert torch.equal(before[0][mask], after[0][mask])
    assert torch.equal(before[2][other.mask()], after[2][other.mask()])
    assert not torch.equal(before[1][two.mask()], after[1][two.mask()])
    assert torch.equal(before[1][two.mask()], back[1][two.mask()])


def test_padding_content_does_not_matter(policy: Policy, batch: tuple[list[list[int]], list[list[list[int]]]]) -> None:
    def dirty(tokens: Tokens) -> Tokens:
        return Tokens(torch.where(tokens.mask(), tokens.ids, torch.full_like(tokens.ids, 7)), tokens.lengths)

    def wider(tokens: Tokens) -> Tokens:
        return Tokens(torch.nn.functional.pad(tokens.ids, (0, 3), value=9), tokens.lengths)

    prompts, segments = Tokens.collate(batch[0]), collated(batch[1][:2])
    with torch.no_grad():
        clean = policy.log_probs(prompts, segments)
        soiled = policy.log_probs(dirty(prompts), [dirty(part) for part in segments])
        padded = policy.log_probs(wider(prompts), [wider(part) for part in segments])
    for k in range(2):
        assert torch.equal(clean[k], soiled[k])
        torch.testing.assert_close(clean[k], padded[k], atol=1e-5, rtol=1e-5)


def test_nothing_is_nan_and_gradients_flow(
    policy: Policy, batch: tuple[list[list[int]], list[list[list[int]]]]
) -> None:
    policy.model.zero_grad()
    sum(part.sum() for part in policy.log_probs(Tokens.collate(batch[0]), collated(batch[1]))).backward()  # type: ignore[union-attr]
    gradients = [weight.grad for weight in policy.model.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    assert all(bool((g != 0).any()) for g in gradients if g is not None)


def test_an_empty_response_has_probability_one(policy: Policy) -> None:
    with torch.no_grad():
        found = policy.log_probs(
            Tokens.collate([[1, 4], [1, 5]]), [Tokens.collate([[], [6]]), Tokens.collate([[], []])]
        )
    assert found[0][0] == 0
    assert found[0][1] < 0
    assert found[1].tolist() == [0, 0]


def test_left_pad() -> None:
    ids, real = left_pad(Tokens.collate([[1, 4, 5], [1]]))
    assert ids.tolist() == [[1, 4, 5], [0, 0, 1]]
    assert real.tolist() == [[True, True, True], [False, False, True]]


def test_layout_by_hand() -> None:
    packed = pack(Tokens.collate([[1, 4], [1]]), [Tokens.collate([[5], [6]]), Tokens.collate([[7, 8], [9]])])
    assert packed.prompt_width == 2
    assert packed.starts == (2, 3)
    assert packed.ids.tolist() == [[1, 4, 5, 7, 8], [0, 1, 6, 9, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 2, 3], [0, 0, 1, 1, 2]]
    assert packed.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    # Padding (columns 0 and 4) looks at itself and is seen by nobody else.
    assert packed.mask[1, 0, :, 0].int().tolist() == [1, 0, 0, 0, 0]
    assert packed.mask[1, 0, :, 4].int().tolist() == [0, 0, 0, 0, 1]
    assert packed.mask[1, 0, 3].int().tolist() == [0, 1, 0, 1, 0]
