"""Preference models against opponents that stay the same: policies change, their prompts and whom they are compared
with do not. What a model reads of those it reads once (`varlen.kv_cache`), and behind it only what is new.

Shapes: A prompts with an answer of each of K opponents; B responses to some of the prompts; T, E as in `models.engine`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from aligngap.types import Tokens

if TYPE_CHECKING:
    from aligngap.models.preference import PreferenceModel

_MOST_BYTES = 1 << 27
"""Of keys and values that are kept: a large model's of long prompts would fill the memory."""


def fits(model: PreferenceModel, prompts: Tokens, answers: Sequence[Tokens]) -> bool:
    """Whether keys and values of prompts and answers, with a separator behind each, are few enough to be kept."""
    return cache_bytes(model, prompts, answers) <= _MOST_BYTES


def cache_bytes(model: PreferenceModel, prompts: Tokens, answers: Sequence[Tokens]) -> int:
    """Bytes of keys and values that are kept at most."""
    longest = max(part.ids.shape[1] for part in answers) + 1
    columns = prompts.ids.shape[1] + len(answers) * (prompts.ids.shape[1] + longest)
    return len(prompts.ids) * columns * model.reader.varlen.cache_bytes()


class KeptOpponents(ABC):
    """Answers of `count` opponents to prompts, as a model that is read by `varlen` has read them."""

    count: int

    @abstractmethod
    def __init__(self, model: Any, prompts: Tokens, answers: Sequence[Tokens]) -> None:
        """prompts: A rows; answers: A rows of each of K opponents."""

    @abstractmethod
    def both_orders(self, index: torch.Tensor, responses: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """`PreferenceModel.both_orders` of responses (B rows) to some of the prompts (index, [B]) as the first and each
        opponent's as the second; [K, B] each.
        """


class KeptPairwise(KeptOpponents):
    """Keeps `prompt` and, for each opponent, `prompt y2 <sep>`."""

    @torch.no_grad()
    def __init__(self, model: Any, prompts: Tokens, answers: Sequence[Tokens]) -> None:
        self.count, self._model, self._rows = len(answers), model, len(prompts.ids)
        self._prefill = model.reader.varlen.prefill
        self._answers = Tokens.stack(answers)  # K * A rows
        _, self._prompts = self._prefill(prompts)
        every = torch.arange(self._rows, device=prompts.ids.device).repeat(self.count)
        states, self._answered = self._prefill(self._closed(self._answers), self._prompts.take(every))
        self._first = self._response(states, self._answers, "first")

    def _closed(self, responses: Tokens) -> Tokens:
        """With a separator behind each."""
        ids = functional.pad(responses.ids, (0, 1))
        return Tokens(ids.scatter(1, responses.lengths[:, None], self._model.separator), responses.lengths + 1)

    def _response(self, states: torch.Tensor, responses: Tokens, place: str) -> torch.Tensor:
        """What a response adds to the log-odds, read first or second; from [B, T + 1, E], [B]."""
        return self._model.read(place, states, functional.pad(responses.mask(), (0, 1)))  # type: ignore[no-any-return]

    def _end(self, states: torch.Tensor, responses: Tokens) -> torch.Tensor:
        """What is read at the separator behind the second response; from [B, T + 1, E], [B]."""
        end = functional.one_hot(responses.lengths, states.shape[1])
        return self._model.read("end", states, end)  # type: ignore[no-any-return]

    def both_orders(self, index: torch.Tensor, responses: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        asked = torch.arange(len(index), device=index.device).repeat(self.count)  # [K * B]
        which = torch.cat([index + number * self._rows for number in range(self.count)])
        theirs, ours = self._answers.take(which), responses.take(asked)
        states, responded = self._prefill(self._closed(responses), self._prompts.take(index))
        first = self._response(states, responses, "first")[asked]
        states, _ = self._prefill(self._closed(theirs), responded.take(asked))
        forward = self._end(states, theirs) + first - self._response(states, theirs, "second")
        states, _ = self._prefill(self._closed(ours), self._answered.take(which))
        backward = self._end(states, ours) + self._first[which] - self._response(states, ours, "second")
        return forward.view(self.count, -1), backward.view(self.count, -1)


class KeptPointwise(KeptOpponents):
    """Keeps `prompt` and each opponent's reward."""

    @torch.no_grad()
    def __init__(self, model: Any, prompts: Tokens, answers: Sequence[Tokens]) -> None:
        self.count, self._model = len(answers), model
        self._prefill = model.reader.varlen.prefill
        _, self._prompts = self._prefill(prompts)
        every = torch.arange(len(prompts.ids), device=prompts.ids.device)
        self._theirs = torch.stack([self._rewards(every, part) for part in answers])  # [K, A]

    def _rewards(self, index: torch.Tensor, responses: Tokens) -> torch.Tensor:
        states, _ = self._prefill(responses, self._prompts.take(index))
        return self._model.reward(states, responses)  # type: ignore[no-any-return]

    def both_orders(self, index: torch.Tensor, responses: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        difference = self._rewards(index, responses) - self._theirs[:, index]
        return difference, -difference
