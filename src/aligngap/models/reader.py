"""The one place that chooses how a model is read: varlen, packed, padded, or as an encoder-decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aligngap.models.engine import Engine
from aligngap.models.layout import Layout, detect, padded_engine
from aligngap.models.packing import Packed
from aligngap.models.sampling import Choose
from aligngap.models.varlen.engine import Varlen
from aligngap.types import Tokens


class Reader(Engine):
    """A model, read in the fastest way that holds.

    layout: which ways hold (found out if not given). predicting: a language model, else a backbone, of which hidden
    states alone are read. Chosen anew at each call: hooks, training mode and adapters come and go, and packed rows may
    be longer than a window. Shapes are those of `Engine`.
    """

    def __init__(self, model: Any, layout: Layout | None = None, *, predicting: bool = True) -> None:
        super().__init__(model)
        self.layout = detect(model, predicting=predicting) if layout is None else layout
        self.varlen, self.packed = Varlen(model), Packed(model)
        self.padded = padded_engine(model, predicting=predicting, generates=self.layout.generates)

    def _engine(self, prompts: Tokens, segments: Sequence[Tokens]) -> Engine:
        if self.reads_varlen:
            return self.varlen
        return self.packed if self.layout.packs(prompts, segments) else self.padded

    @property
    def reads_varlen(self) -> bool:
        """Whether our own forward pass reads the model as it is now. If so, `varlen.prefill` keeps what it has read."""
        return self.layout.varlen and self.varlen.reads()

    def next_token_logits(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        return self._engine(prompts, segments).next_token_logits(prompts, segments)

    def log_probs(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        return self._engine(prompts, segments).log_probs(prompts, segments)

    def hidden_states(self, prompts: Tokens, segments: Sequence[Tokens]) -> list[torch.Tensor]:
        return self._engine(prompts, segments).hidden_states(prompts, segments)

    def decode(self, prompts: Tokens, samples: int, limit: int, choose: Choose, ends: Sequence[int]) -> Tokens:
        if self.reads_varlen and self.varlen.decodes():
            engine: Engine = self.varlen
        else:
            engine = self.packed if self.layout.packs(prompts, [], more=limit) else self.padded
        return engine.decode(prompts, samples, limit, choose, ends)
