"""A built-in world's hidden utility as a judge: what no real study can see."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from aligngap.errors import UserError
from aligngap.judges.base import Judge
from aligngap.judges.spec import JudgeIngredients, JudgeSpec
from aligngap.judges.text import prompt_text, response_text
from aligngap.seeds import numpy_stream
from aligngap.tasks.worlds import WORLDS, world
from aligngap.tasks.worlds.base import World, Written
from aligngap.types import Tokens


class TrueUtilityJudge(Judge):
    """Prefers the response of higher true utility, without a rater's noise."""

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.world, self.tokenizer = world, tokenizer

    def compare(self, prompts: Tokens, first: Tokens, second: Tokens) -> torch.Tensor:
        """Difference of the true utilities; float64 [n]."""
        return self.utilities(prompts, first) - self.utilities(prompts, second)

    def compare_orders(self, prompts: Tokens, first: Tokens, second: Tokens) -> None:
        """It reads each response by itself."""

    def utilities(self, prompts: Tokens, responses: Tokens) -> torch.Tensor:
        """True utility of each response, float64 [n]."""
        return torch.tensor(
            [
                self.world.utility(self.text(prompt), self.read(response))
                for prompt, response in zip(prompts.rows(), responses.rows(), strict=True)
            ],
            dtype=torch.float64,
        )

    def rated(self, prompts: Tokens, first: Tokens, second: Tokens, seed: int) -> torch.Tensor:
        """One rater's preferences: 1.0 or 0.0, with the world's rating noise, a function of seed and texts; [n]."""
        ratings = []
        for rows in zip(prompts.rows(), first.rows(), second.rows(), strict=True):
            prompt, a, b = self.text(rows[0]), self.read(rows[1]), self.read(rows[2])
            rng = numpy_stream("rater", seed, prompt, a.text, b.text)
            ratings.append(self.world.rate(rng, prompt, a, b))
        return torch.tensor(ratings, dtype=torch.float32)

    def text(self, ids: list[int]) -> str:
        """Prompt ids as the world's text."""
        return prompt_text(self.tokenizer, ids)

    def read(self, ids: list[int]) -> Written:
        """Response ids as the world reads them; special tokens in mid-text stay visible, as broken words."""
        return Written(*response_text(self.tokenizer, ids))


class TrueUtilityJudgeSpec(JudgeSpec):
    """The hidden utility of the built-in world that the study's task is."""

    kind: Literal["true"] = "true"

    def identity(self, search: Path | None = None) -> dict[str, object]:
        """Its kind: the world is the task's, and part of the identity of the task's pairs."""
        return {"kind": self.kind}

    def build(self, given: JudgeIngredients) -> TrueUtilityJudge:
        if given.world is None:
            raise UserError(
                "only built-in worlds have a true utility, and this task is none",
                where="judge: {kind: true}",
                hint=f"Choose another judge, or a task of {', '.join(WORLDS)}.",
            )
        return TrueUtilityJudge(world(given.world), given.tokenizer)
