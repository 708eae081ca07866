"""A preference model as a judge: golden and proxy alike, trained by the study or given as a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import field_validator
from transformers import PreTrainedTokenizerBase

from aligngap import ranks
from aligngap.errors import UserError, out_of_memory
from aligngap.judges.base import Against, Judge, Orders, decision, same_rows, share
from aligngap.judges.spec import JudgeIngredients, JudgeSpec, beside, digest_of
from aligngap.models.build import base_path
from aligngap.models.check import alike
from aligngap.models.folder import ModelFolder
from aligngap.models.opponents import KeptOpponents
from aligngap.models.preference import PREFERENCE_MODELS, PreferenceModel, load_preference_model
from aligngap.models.tokenizer import load_tokenizer
from aligngap.plugins import Registered
from aligngap.store.contents import check_within
from aligngap.timings import spending
from aligngap.types import Tokens


class ModelJudge(Judge):
    """Decides by the sign of r(x, y1, y2) - r(x, y2, y1) (Tang et al. 2024, appendix A)."""

    keeps_opponents: ClassVar[bool] = True
    """Whether what the model has read of opponents may be kept. Not inherited: what is derived may compare in another
    way."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.keeps_opponents = vars(cls).get("keeps_opponents", False)

    def __init__(self, model: PreferenceModel, chunk: int | None = None) -> None:
        super().__init__()
        self.model = model
        # Small chunks stay in a CPU's cache, larger ones have fewer operations (docs/lab-log.md).
        self.chunk = chunk or (32 if model.device.type == "cpu" else 256)

    def likelihood(self, margin: torch.Tensor) -> torch.Tensor:
        """Mean of r(x, y1, y2) and 1 - r(x, y2, y1); float32 [n]."""
        return share(margin)

    def compare(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        """r(x, y1, y2) - r(x, y2, y1), in [-1, 1]; float32 [n]."""
        return _difference(*self._both_orders(prompts, first, second))

    @spending("judging")
    def against(self, prompts: Tokens, opponents: Sequence[Tokens]) -> Against:
        """Where it can be, what is read of prompts and opponents is kept."""
        device, plain = self.model.device, super().against(prompts, opponents)
        if not self.keeps_opponents:
            return plain
        kept = self.model.keep(prompts.to(device), [tokens.to(device) for tokens in opponents])
        return plain if kept is None else _KeptAgainst(self, kept, plain)

    def compare_orders(self, prompts: Tokens, first: Tokens, second: Tokens) -> Orders | None:
        """Whether r(x, y1, y2) and 1 - r(x, y2, y1) are above one half; None for a point-wise model."""
        if not self.model.reads_order:
            return None
        forward, backward = self._both_orders(prompts, first, second)
        return decision(forward), decision(-backward)

    @torch.no_grad()
    def _both_orders(self, prompts: Tokens, first: Tokens, second: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-odds for the response read first: the first's, then the second's; [n] each."""
        asked, device = prompts.ids.device, self.model.device
        prompts, first, second = (tokens.to(device) for tokens in (prompts, first, second))
        if len(prompts.ids) <= self.chunk:  # the very same tensors are laid out once for judge, reference and policy
            forward, backward = self.model.both_orders(prompts, first, second)
            return forward.to(asked), backward.to(asked)
        result = []
        # Alike lengths together, so that little of a chunk is padding.
        order = torch.argsort(prompts.lengths + first.lengths + second.lengths, stable=True)
        for index in order.split(self.chunk):
            parts = self.model.both_orders(prompts.take(index), first.take(index), second.take(index))
            result.append(torch.stack(parts))
        forward, backward = torch.cat(result, 1)[:, torch.argsort(order)].to(asked)
        return forward, backward


class _KeptAgainst(Against):
    """What the model has read of prompts and opponents is not read again."""

    def __init__(self, judge: ModelJudge, kept: KeptOpponents, plain: Against) -> None:
        super().__init__(judge, plain.prompts, plain.opponents)
        self._kept, self._chunk, self._device = kept, judge.chunk, judge.model.device

    @spending("judging")
    def margins(self, index: torch.Tensor, responses: Tokens) -> torch.Tensor:
        self.judge.calls += len(self.opponents) * len(index)
        result = ranks.map_rows(self._margins, index, responses).T
        same = [same_rows(responses, other.take(index)) for other in self.opponents]
        return result.masked_fill(torch.stack(same), 0.0)

    @torch.no_grad()
    def _margins(self, index: torch.Tensor, responses: Tokens) -> torch.Tensor:
        result = []
        order = torch.argsort(self.prompts.lengths[index] + responses.lengths, stable=True)
        for part in order.split(self._chunk):
            asked = index[part].to(self._device), responses.take(part).to(self._device)
            result.append(_difference(*self._kept.both_orders(*asked)))
        return torch.cat(result, 1)[:, torch.argsort(order)].T.to(index.device)


def _difference(forward: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
    return forward.sigmoid() - backward.sigmoid()


def separator_of(tokenizer: Any) -> int:
    """The token between two responses: the tokenizer's separator, or its end token where it has none."""
    return int(tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id)


class PreferenceJudgeSpec(JudgeSpec):
    """A preference model that was trained before: a `preference-...` folder of a store, or what `PreferenceModel.save`
    wrote. model: its form. base: the base it was trained from, whose tokens it reads: they must be the policy's.
    """

    registered: ClassVar[Registered] = {"model": PREFERENCE_MODELS}

    kind: Literal["preference"] = "preference"

    folder: str
    base: str
    model: str = "pairwise"

    @field_validator("model")
    @classmethod
    def _known(cls, value: str) -> str:
        return PREFERENCE_MODELS.known(value)

    def identity(self, search: Path | None = None) -> dict[str, object]:
        """The weights' digests. What else an artefact's folder holds, its record among it, has times in it."""
        folder = self._folder(search)
        return {
            "kind": self.kind,
            "model": self.model,
            "backbone": digest_of(folder / "backbone"),
            "readout": digest_of(folder / "readout.safetensors"),
            "separator": separator_of(self._tokenizer(search)),
        }

    def check(self, search: Path | None = None) -> None:
        folder = self._folder(search)
        check_within(folder)
        ModelFolder.of(folder / "backbone").check()

    def build(self, given: JudgeIngredients) -> ModelJudge:
        self.check(given.search)
        own, folder = self._tokenizer(given.search), self._folder(given.search)
        if not alike(own, given.tokenizer):
            raise UserError(
                f"the preference model reads the tokens of '{self.base}', which are not the policy's",
                where=self.folder,
                hint="Give one that was trained with the policy's tokenizer, or a judge that reads text.",
            )
        try:
            model = load_preference_model(self.model, folder, separator_of(own), given.device)
        except Exception as error:  # whatever broken files make of the libraries that read them
            if out_of_memory(error):
                raise
            raise UserError(
                f"the preference model cannot be read: {error}", where=self.folder, hint="Check the folder's files."
            ) from error
        return ModelJudge(model)

    def _tokenizer(self, search: Path | None) -> PreTrainedTokenizerBase:
        return load_tokenizer(base_path(beside(self.base, search)))

    def _folder(self, search: Path | None) -> Path:
        folder = Path(beside(self.folder, search))
        for part in ("backbone/config.json", "readout.safetensors"):
            if not (folder / part).is_file():
                raise UserError(
                    f"this folder holds no preference model (no {part})",
                    where=self.folder,
                    hint="Give the folder of a trained preference model, such as a preference-... folder of a store.",
                )
        return folder
