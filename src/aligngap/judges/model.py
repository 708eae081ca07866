"""A preference model as a judge: golden and proxy alike."""

from __future__ import annotations

import torch

from aligngap.judges.base import Judge
from aligngap.models.preference import PreferenceModel
from aligngap.types import Tokens


class ModelJudge(Judge):
    """Decides by the sign of r(x, y1, y2) - r(x, y2, y1) (Tang et al. 2024, appendix A)."""

    def __init__(self, model: PreferenceModel, chunk: int | None = None) -> None:
        super().__init__()
        self.model = model
        # Small chunks stay in a CPU's cache: 16 pairs at a time judge 1.7 times as fast as 128 (docs/lab-log.md).
        self.chunk = chunk or (16 if model.device.type == "cpu" else 256)

    def probability(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        """Mean of r(x, y1, y2) and 1 - r(x, y2, y1); float32 [n]."""
        return (self.margin(prompts, first, second).float() + 1) / 2

    @torch.no_grad()
    def compare(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        """r(x, y1, y2) - r(x, y2, y1), in [-1, 1]; float32 [n]."""
        asked, device = prompts.ids.device, self.model.device
        prompts, first, second = (tokens.to(device) for tokens in (prompts, first, second))
        margins = []
        # Alike lengths together, so that little of a chunk is padding.
        order = torch.argsort(prompts.lengths + first.lengths + second.lengths, stable=True)
        for index in order.split(self.chunk):
            forward, backward = self.model.both_orders(prompts.take(index), first.take(index), second.take(index))
            margins.append(forward.sigmoid() - backward.sigmoid())
        return torch.cat(margins)[torch.argsort(order)].to(asked)
