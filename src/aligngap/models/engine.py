"""What every way of reading a model can do.

Shapes: B prompts; T tokens of the longest segment behind them; V tokens in the vocabulary; E numbers in a hidden state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from aligngap.models.sampling import Choose
from aligngap.types import Tokens


class Engine(ABC):
    """One way to run a model over prompts and the segments behind them, each segment read for itself."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @abstractmethod
    def next_token_logits(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        """Logits that predict each token of each segment behind its prompt, fp32 [B, T, V] a segment; anything at
        padding.
        """

    @abstractmethod
    def hidden_states(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        """Last hidden states at each token of each segment, [B, T, E] a segment; anything at padding."""

    @abstractmethod
    def decode(self, prompts: Tokens, samples: int, limit: int, choose: Choose, ends: Sequence[int]) -> Tokens:
        """B * samples responses, grouped by prompt, each ending with one of `ends` or `limit` tokens long."""

    def log_probs(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        """log pi(segment | prompt), summed over each segment's real tokens, in nats; [B] a segment."""
        return [
            ((logits.gather(2, segment.ids[..., None])[..., 0] - logits.logsumexp(-1)) * segment.mask()).sum(-1)
            for logits, segment in zip(self.next_token_logits(prompts, segments), segments, strict=True)
        ]
