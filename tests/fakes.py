"""Stand-ins small enough to be enumerated: a policy that is a table, beside those that the package offers users."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from aligngap.models.policy import Policy
from aligngap.testing.fakes import (
    END,
    ScriptedJudge,
    likes_token,
    pairs_of,
    prompts_of,
    ragged,
    random_pairs,
    same_pairs,
    same_weights,
    sharp_model,
    tiny_policy,
    weights_of,
)
from aligngap.types import Tokens

__all__ = [
    "END",
    "ScriptedJudge",
    "Table",
    "TablePolicy",
    "all_responses",
    "likes_token",
    "pairs_of",
    "prompts_of",
    "ragged",
    "random_pairs",
    "same_pairs",
    "same_weights",
    "sharp_model",
    "tiny_policy",
    "weights_of",
]


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
