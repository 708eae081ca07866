"""Stand-ins for tests: tiny real policies, scripted judges, random pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import LlamaForCausalLM

from aligngap.judges.base import Judge
from aligngap.models.build import Architecture, random_model
from aligngap.models.policy import Policy
from aligngap.types import PairBatch, Prompt, Tokens

END = 2
"""The end token of every fake; 0 is padding, 1 begins a prompt, as in the shipped tokenizers."""


def sharp_model(
    vocabulary: int = 6, seed: int = 0, *, hidden: int = 16, layers: int = 2, scale: float = 12.0
) -> LlamaForCausalLM:
    """A tiny real decoder with weights so large that context, order and position all matter to what it says next.

    At its usual initial weights a decoder is all but uniform: a test on it passes whatever mask or position is wrong.
    """
    model = random_model(
        Architecture(hidden=hidden, layers=layers, heads=2, intermediate=2 * hidden, context=64), vocabulary, seed
    )
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(scale)
    model.eval()
    return model


def tiny_policy(vocabulary: int = 6, seed: int = 0, limit: int = 4, *, layers: int = 2) -> Policy:
    """A real policy on a `sharp_model`."""
    return Policy(sharp_model(vocabulary, seed, layers=layers), END, limit)


class ScriptedJudge(Judge):
    """Prefers by a score of (prompt ids, response ids); keeps what it was asked."""

    def __init__(self, score: Callable[[tuple[int, ...], tuple[int, ...]], float]) -> None:
        super().__init__()
        self.score, self.asked = score, list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]()

    def compare(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        rows = [
            (tuple(x), tuple(a), tuple(b)) for x, a, b in zip(prompts.rows(), first.rows(), second.rows(), strict=True)
        ]
        self.asked += rows
        return torch.tensor([self.score(x, a) - self.score(x, b) for x, a, b in rows], dtype=torch.float64)


def likes_token(token: int) -> ScriptedJudge:
    """The more often the token, the better."""
    return ScriptedJudge(lambda prompt, response: float(response.count(token)))


def prompts_of(rows: Sequence[Sequence[int]]) -> list[Prompt]:
    """Numbered from 0."""
    return [Prompt(number, tuple(ids)) for number, ids in enumerate(rows)]


def ragged(generator: torch.Generator, rows: int, vocabulary: int, shortest: int, longest: int) -> list[list[int]]:
    """Random token rows of random lengths, without padding or special tokens."""
    lengths = torch.randint(shortest, longest + 1, (rows,), generator=generator).tolist()
    return [torch.randint(3, vocabulary, (size,), generator=generator).tolist() for size in lengths]


def pairs_of(
    prompts: Sequence[Sequence[int]],
    first: Sequence[Sequence[int]],
    second: Sequence[Sequence[int]],
    preference: Sequence[float],
    provenance: Sequence[str] | None = None,
) -> PairBatch:
    """A batch from lists; prompts numbered from 0."""
    return PairBatch(
        torch.arange(len(prompts)),
        Tokens.collate(prompts),
        Tokens.collate(first),
        Tokens.collate(second),
        torch.tensor(preference, dtype=torch.float32),
        tuple(provenance) if provenance is not None else ("test",) * len(prompts),
    )


def random_pairs(seed: int, rows: int, vocabulary: int = 8, longest: int = 4) -> PairBatch:
    """Random ragged pairs with ties among them."""
    g = torch.Generator().manual_seed(seed)
    prompts = [[1, *row] for row in ragged(g, rows, vocabulary, 1, 4)]
    first, second = ([[*row, END] for row in ragged(g, rows, vocabulary, 0, longest - 1)] for _ in range(2))
    preference = torch.randint(0, 3, (rows,), generator=g) / 2
    return pairs_of(prompts, first, second, preference.tolist(), [f"pair {k}" for k in range(rows)])


def weights_of(policy: Policy) -> list[torch.Tensor]:
    """A copy of every weight."""
    return [weight.detach().clone() for weight in policy.model.state_dict().values()]


def same_weights(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    """Bit for bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def same_pairs(a: PairBatch, b: PairBatch) -> bool:
    """Token for token, whatever the padding."""
    return (
        torch.equal(a.prompt_numbers, b.prompt_numbers)
        and all(x.rows() == y.rows() for x, y in ((a.prompts, b.prompts), (a.first, b.first), (a.second, b.second)))
        and torch.equal(a.preference, b.preference)
        and a.provenance == b.provenance
    )
