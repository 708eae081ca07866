"""Preference models: read a prompt and two responses, say which is preferred (Tang et al. 2024, appendix A).

`PairwiseModel` reads (x, y1, y2) together and gives r(x, y1, y2) in [0, 1]. Position bias is never fully removed, and
policies exploit it, so the decision is always the sign of r(x, y1, y2) - r(x, y2, y1). `PointwiseModel` is a Bradley-
Terry reward model r(x, y), the more controlled comparison. Golden and proxy are the same classes with other data and
sizes. Shapes are those of `models.engine`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from aligngap import ranks
from aligngap.models.build import load_backbone
from aligngap.models.layout import Layout
from aligngap.models.opponents import KeptOpponents, KeptPairwise, KeptPointwise, fits
from aligngap.models.reader import Reader
from aligngap.models.sharding import fill, save_folder, sharded, written
from aligngap.models.spec import Checkpoint
from aligngap.plugins import Registry, kind_of
from aligngap.types import Tokens


class PreferenceModel(nn.Module):
    """A Hugging Face decoder, or the encoder of an encoder-decoder, with a linear read-out. layout: which ways of
    reading hold for it (found out if not given).

    The score is read at the segment's last token and, summed, at the response's tokens: a small decoder cannot gather
    at one token what it only works out at its last layer.
    """

    kind: ClassVar[str]
    reads_order: ClassVar[bool]
    """Whether it reads both responses together, one before the other."""
    kept: ClassVar[type[KeptOpponents] | None] = None
    """What keeps for its models what they have read of opponents. Not inherited: what is derived may compare in another
    way."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.kept = vars(cls).get("kept")

    def __init__(self, backbone: PreTrainedModel, separator: int, layout: Layout | None = None) -> None:
        super().__init__()
        self.backbone, self.separator = backbone, separator
        self.reader = Reader(backbone, layout, predicting=False)
        width = int(backbone.config.hidden_size)
        # Zero weights: training starts at r = 1/2 everywhere, whatever the seed.
        self.readout = nn.ModuleDict({name: nn.Linear(width, 1, bias=False) for name in ("end", "first", "second")})
        for weight in self.readout.parameters():
            nn.init.zeros_(weight)

    @abstractmethod
    def logit(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        """Log-odds that `first` is preferred, read in the order given; [B]. What is trained."""

    @abstractmethod
    def both_orders(self, prompts: Tokens, first: Tokens, second: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-odds of r(x, y1, y2) and r(x, y2, y1), each for the response read first; [B] and [B], in one pass."""

    def hidden(self, prompts: Tokens, segments: list[Tokens]) -> list[torch.Tensor]:
        """Last hidden states over each segment, [B, T, E]."""
        return self.reader.hidden_states(prompts, segments)

    def keep(self, prompts: Tokens, answers: Sequence[Tokens]) -> KeptOpponents | None:
        """What is kept of opponents' answers to prompts, all on the model's device. None for a model that can keep
        nothing, or of which it would be too much.
        """
        if self.kept is None or not self.reader.reads_varlen:
            return None
        return self.kept(self, prompts, answers) if fits(self, prompts, answers) else None

    @property
    def layout(self) -> Layout:
        """Which ways of reading hold for the backbone."""
        return self.reader.layout

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.backbone.device

    def read(self, head: str, states: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Sum of a linear head over the marked positions (`where`, [B, T]) of states, [B, T, E]; [B]."""
        values: torch.Tensor = self.readout[head](states.float()).squeeze(-1)
        return (values * where).sum(-1)

    def save(self, folder: Path) -> None:
        """Backbone as a Hugging Face folder, read-out beside it. Of several ranks the first writes; all must ask."""
        save_folder(self.backbone, folder / "backbone")
        readout = {name: written(self.readout.get_parameter(f"{name}.weight").detach()) for name in self.readout}
        if ranks.first():
            save_file(
                {name: weight.contiguous() for name, weight in readout.items()}, str(folder / "readout.safetensors")
            )

    def load_readout(self, folder: Path) -> None:
        """The read-out that `save` wrote."""
        for name, weight in load_file(str(folder / "readout.safetensors")).items():
            fill(self.readout.get_parameter(f"{name}.weight").data, weight)


class PairwiseModel(PreferenceModel):
    """r(x, y1, y2): reads `prompt y1 <sep> y2 <sep>`."""

    kind: ClassVar[str] = "pairwise"
    reads_order: ClassVar[bool] = True
    kept: ClassVar[type[KeptOpponents] | None] = KeptPairwise

    def logit(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        return self._logits(prompts, [(first, second)])[0]

    def both_orders(self, prompts: Tokens, first: Tokens, second: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        forward, backward = self._logits(prompts, [(first, second), (second, first)])
        return forward, backward

    def _logits(self, prompts: Tokens, orders: list[tuple[Tokens, Tokens]]) -> list[torch.Tensor]:
        joined = [join(a, b, self.separator) for a, b in orders]
        states = self.hidden(prompts, [tokens for tokens, _, _ in joined])
        logits = []
        for state, (tokens, in_first, in_second) in zip(states, joined, strict=True):
            last = torch.nn.functional.one_hot(tokens.lengths - 1, tokens.ids.shape[1])
            logits.append(
                self.read("end", state, last)
                + self.read("first", state, in_first)
                - self.read("second", state, in_second)
            )
        return logits


class PointwiseModel(PreferenceModel):
    """Bradley-Terry: the log-odds are r(x, y1) - r(x, y2); no order to be biased by."""

    kind: ClassVar[str] = "pointwise"
    reads_order: ClassVar[bool] = False
    kept: ClassVar[type[KeptOpponents] | None] = KeptPointwise

    def logit(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        rewards = self.rewards(prompts, [first, second])
        return rewards[0] - rewards[1]

    def both_orders(self, prompts: Tokens, first: Tokens, second: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        difference = self.logit(prompts, first, second)
        return difference, -difference

    def rewards(self, prompts: Tokens, responses: list[Tokens]) -> list[torch.Tensor]:
        """r(x, y) of each response, [B] each."""
        hidden = self.hidden(prompts, responses)
        return [self.reward(states, tokens) for states, tokens in zip(hidden, responses, strict=True)]

    def reward(self, states: torch.Tensor, response: Tokens) -> torch.Tensor:
        """r(x, y) of a response, from its hidden states, [B, T, E]; [B]."""
        last = torch.nn.functional.one_hot(response.lengths - 1, response.ids.shape[1])
        return self.read("end", states, last) + self.read("first", states, response.mask())


PREFERENCE_MODELS: Registry[type[PreferenceModel]] = Registry(
    "preference model", {"pairwise": PairwiseModel, "pointwise": PointwiseModel}, kind_of(PreferenceModel, "kind")
)
"""A user's own module adds its by one line: `PREFERENCE_MODELS["mine"] = Mine`."""


def join(first: Tokens, second: Tokens, separator: int) -> tuple[Tokens, torch.Tensor, torch.Tensor]:
    """`y1 <sep> y2 <sep>` without padding inside; and bool masks of y1's and y2's tokens, [B, T]."""
    lengths = first.lengths + second.lengths + 2
    shape = (len(lengths), int(lengths.max()))
    ids = torch.full(shape, separator, dtype=torch.int64, device=first.ids.device)
    masks = []
    for tokens, offset in ((first, torch.zeros_like(first.lengths)), (second, first.lengths + 1)):
        mask = torch.zeros(shape, dtype=torch.bool, device=ids.device)
        row, column = tokens.mask().nonzero(as_tuple=True)
        mask[row, column + offset[row]] = True
        ids[row, column + offset[row]] = tokens.ids[row, column]
        masks.append(mask)
    return Tokens(ids, lengths), masks[0], masks[1]


def build_preference_model(kind: str, base: str | Checkpoint, separator: int, device: str = "cpu") -> PreferenceModel:
    """An untrained preference model on a base's weights. Raises UserError when they cannot be read."""
    model = PREFERENCE_MODELS[kind](load_backbone(base, device), separator).to(device)
    for head in model.readout.values():
        sharded(head)  # as the backbone is: an optimiser takes no mixture
    return model


def load_preference_model(
    kind: str, folder: Path, separator: int, device: str = "cpu", base: Checkpoint | None = None
) -> PreferenceModel:
    """A trained preference model, in evaluation mode, that takes no gradient. base: what it was trained from, whose
    options (dtype) it keeps.
    """
    backbone = folder / "backbone"
    model = build_preference_model(kind, base.at(backbone) if base else str(backbone), separator, device)
    model.load_readout(folder)
    return model.eval().requires_grad_(False)
