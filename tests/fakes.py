"""Stand-ins small enough to be enumerated: tiny real models, a policy that is a table, scripted judges."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
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
    return model.eval()


def tiny_policy(vocabulary: int = 6, seed: int = 0, limit: int = 4, *, layers: int = 2) -> Policy:
    """A real policy on a `sharp_model`."""
    return Policy(sharp_model(vocabulary, seed, layers=layers), END, limit)


def all_responses(vocabulary: int, limit: int) -> list[list[int]]:
    """Every response there is: ended by the end token, or `limit` tokens long."""
    others = [token for token in range(vocabulary) if token != END]
    ended = [[*start, END] for size in range(limit) for start in itertools.product(others, repeat=size)]
    return [*ended, *(list(row) for row in itertools.product(others, repeat=limit))]


class Table(nn.Module):
    """Logits of enumerated responses, one row a prompt. Has what `Policy` asks of a model."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    @property
    def device(self) -> torch.device:
        return self.logits.device


class TablePolicy(Policy):
    """A policy that is a table: exact probabilities of an enumerated set of responses to each of a few prompts.

    Goes wherever a `Policy` goes. Scoring a prompt or response that is not in its lists is a KeyError.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        logits: torch.Tensor,
        vocabulary: int = 16,
    ) -> None:
        self.model = Table(logits)  # type: ignore[assignment]
        self.ends, self.max_new_tokens = (END,), max(map(len, responses))
        self.prompts, self.responses, self.vocabulary = (
            [tuple(p) for p in prompts],
            [tuple(r) for r in responses],
            vocabulary,
        )
        self._row = {prompt: index for index, prompt in enumerate(self.prompts)}
        self._column = {response: index for index, response in enumerate(self.responses)}

    @property
    def table(self) -> torch.Tensor:
        """log pi(response | prompt), [prompts, responses]."""
        return self.model.logits.log_softmax(-1)  # type: ignore[union-attr,operator]

    def _rows(self, prompts: Tokens) -> torch.Tensor:
        return torch.tensor([self._row[tuple(ids)] for ids in prompts.rows()])

    def log_probs(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        rows, table = self._rows(prompts), self.table
        return [table[rows, torch.tensor([self._column[tuple(ids)] for ids in segment.rows()])] for segment in segments]

    def next_token_logits(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        table = self.table[self._rows(prompts)]
        found = []
        for segment in segments:
            logits = torch.full((*segment.ids.shape, self.vocabulary), -1e9, dtype=table.dtype)
            for row, ids in enumerate(segment.rows()):
                for at in range(len(ids)):
                    for token in range(self.vocabulary):
                        begins = [k for k, r in enumerate(self.responses) if r[: at + 1] == (*ids[:at], token)]
                        if begins:
                            logits[row, at, token] = table[row, begins].logsumexp(0)
            found.append(logits)
        return found

    @torch.no_grad()
    def sample(self, prompts: Tokens, samples: int, noise: torch.Tensor) -> Tokens:
        cumulative = self.table[self._rows(prompts)].double().exp().cumsum(-1).repeat_interleave(samples, 0)
        index = (cumulative <= noise[:, :1] * cumulative[:, -1:]).sum(-1)
        return Tokens.collate([self.responses[k] for k in index.tolist()])

    def frozen_copy(self) -> TablePolicy:
        copy = TablePolicy(self.prompts, self.responses, self.model.logits.detach(), self.vocabulary)  # type: ignore[arg-type]
        copy.model.requires_grad_(False)
        return copy

    def save_weights(self, path: Path) -> None:
        raise NotImplementedError("keep tables in memory")


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
