"""Preference models against opponents that stay the same: policies change, their prompts and whom they are compared
with do not. What a model reads of those it reads once (lean.py), and behind it only what is new.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from aligngap.models import lean
from aligngap.models.preference import PairwiseModel, PointwiseModel, PreferenceModel
from aligngap.types import Tokens

_KEPT = 1 << 27
"""Bytes of keys and values that are kept at most: a large model's of long prompts would fill the memory."""


class Opponents(ABC):
    """Responses of `count` opponents to prompts, as a model has read them."""

    count: int

    @abstractmethod
    def both_orders(self, index: torch.Tensor, responses: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """`PreferenceModel.both_orders` of responses to some of the prompts (index, [n]) as the first and each
        opponent's as the second; [count, n] each.
        """


@torch.no_grad()
def opponents_of(model: PreferenceModel, prompts: Tokens, answers: Sequence[Tokens]) -> Opponents | None:
    """What a model keeps of opponents' answers to prompts, all on its device. None for a model that can keep nothing,
    or of which it would be too much.
    """
    kind = _KINDS.get(type(model))  # a class derived from one of ours may compare in another way
    if kind is None or not model.layout.reads_lean(model.backbone) or _bytes(model, prompts, answers) > _KEPT:
        return None
    return kind(model, prompts, answers)


def _bytes(model: PreferenceModel, prompts: Tokens, answers: Sequence[Tokens]) -> int:
    backbone: Any = model.backbone
    config = backbone.config
    width = 2 * config.num_key_value_heads * backbone.layers[0].self_attn.head_dim
    longest = max(part.ids.shape[1] for part in answers) + 1
    columns = prompts.ids.shape[1] + len(answers) * (prompts.ids.shape[1] + longest)
    return len(prompts.ids) * columns * int(config.num_hidden_layers * width * backbone.dtype.itemsize)


class _Pairwise(Opponents):
    """Keeps `prompt` and, for each opponent, `prompt y2 <sep>`."""

    def __init__(self, model: PairwiseModel, prompts: Tokens, answers: Sequence[Tokens]) -> None:
        self.count, self._model, self._rows = len(answers), model, len(prompts.ids)
        self._answers = Tokens.stack(answers)
        _, self._prompts = lean.read_on(model.backbone, prompts)
        every = torch.arange(self._rows, device=prompts.ids.device).repeat(self.count)
        states, self._after = lean.read_on(model.backbone, self._closed(self._answers), self._prompts.take(every))
        self._first = self._of(states, self._answers, "first")

    def _closed(self, responses: Tokens) -> Tokens:
        """With a separator behind each."""
        ids = torch.nn.functional.pad(responses.ids, (0, 1))
        return Tokens(ids.scatter(1, responses.lengths[:, None], self._model.separator), responses.lengths + 1)

    def _of(self, states: torch.Tensor, responses: Tokens, place: str) -> torch.Tensor:
        """What a response adds to the log-odds, read first or second."""
        return self._model.read(place, states, torch.nn.functional.pad(responses.mask(), (0, 1)))

    def _end(self, states: torch.Tensor, responses: Tokens) -> torch.Tensor:
        """What is read at the separator behind the second response."""
        return self._model.read("end", states, torch.nn.functional.one_hot(responses.lengths, states.shape[1]))

    def both_orders(self, index: torch.Tensor, responses: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        backbone, asked = self._model.backbone, torch.arange(len(index), device=index.device).repeat(self.count)
        which = torch.cat([index + number * self._rows for number in range(self.count)])
        theirs, ours = self._answers.take(which), responses.take(asked)
        states, after = lean.read_on(backbone, self._closed(responses), self._prompts.take(index))
        first = self._of(states, responses, "first")[asked]
        states, _ = lean.read_on(backbone, self._closed(theirs), after.take(asked))
        forward = self._end(states, theirs) + first - self._of(states, theirs, "second")
        states, _ = lean.read_on(backbone, self._closed(ours), self._after.take(which))
        backward = self._end(states, ours) + self._first[which] - self._of(states, ours, "second")
        return forward.view(self.count, -1), backward.view(self.count, -1)


class _Pointwise(Opponents):
    """Keeps `prompt` and each opponent's reward."""

    def __init__(self, model: PointwiseModel, prompts: Tokens, answers: Sequence[Tokens]) -> None:
        self.count, self._model = len(answers), model
        _, self._prompts = lean.read_on(model.backbone, prompts)
        every = torch.arange(len(prompts.ids), device=prompts.ids.device)
        self._theirs = torch.stack([self._rewards(every, part) for part in answers])

    def _rewards(self, index: torch.Tensor, responses: Tokens) -> torch.Tensor:
        states, _ = lean.read_on(self._model.backbone, responses, self._prompts.take(index))
        return self._model.reward(states, responses)

    def both_orders(self, index: torch.Tensor, responses: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        difference = self._rewards(index, responses) - self._theirs[:, index]
        return difference, -difference


_KINDS: dict[type[PreferenceModel], Callable[[Any, Tokens, Sequence[Tokens]], Opponents]] = {
    PairwiseModel: _Pairwise,
    PointwiseModel: _Pointwise,
}
