"""The gate of bases: they speak the worlds' language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from transformers import LlamaForCausalLM

from aligngap.gates.record import Gate, Score
from aligngap.models.build import load_language_model
from aligngap.models.tokenizer import load_tokenizer
from aligngap.pipeline.graph import Context
from aligngap.pipeline.stages import Base
from aligngap.tasks.worlds import WORLDS
from aligngap.train.pretrain import evaluate_base

REPORTED = ("who", "asked")
"""Questions that are asked and not gated."""
_LEAST = 0.95
_BATCHES = 32
_WORSE = 0.01


class BaseGate(Gate):
    """A base answers at least 95% of each question of its recipe, in every world, but for `who` and `asked`, which are
    reported. smaller: a base than which it must have a lower loss, and be worse at no question by more than a point.
    """

    kind: ClassVar[str] = "base_gate"

    base: Base
    worlds: tuple[str, ...]
    smaller: Base | None = None

    @property
    def subject(self) -> str:
        return self.base.name

    @property
    def work(self) -> float:
        return 4.0 * len(self.worlds) * self.base.size * (1 + (self.smaller is not None))

    def examine(self, context: Context) -> Sequence[Score]:
        words = {word for name in self.worlds for word in WORLDS[name]().vocabulary()}
        known = words & load_tokenizer(self.base.checkpoint).get_vocab().keys()
        scores = [Score(name="words of the worlds that it knows", value=len(known), n=len(words), at_least=len(words))]
        if len(known) < len(words):
            return scores  # it cannot be asked in words that it does not have
        mine = self._answers(self.base)
        for question in dict.fromkeys(name for answers in mine.values() for name in answers if name != "loss"):
            world, worst = min(
                ((world, answers[question]) for world, answers in mine.items() if question in answers),
                key=lambda pair: pair[1],
            )
            bound = None if question in REPORTED else _LEAST
            scores.append(Score(name=question, value=worst, at_least=bound, note=f"in {world}, its worst"))
        scores += [Score(name=f"loss in {world}", value=answers["loss"]) for world, answers in mine.items()]
        if self.smaller is None:
            return scores
        for world, answers in self._answers(self.smaller).items():
            for name, value in answers.items():
                more = mine[world][name] - value
                bounds = (None, 0.0) if name == "loss" else (-_WORSE, None)
                said = f"{name} in {world}, over {self.smaller.name}"
                scores.append(Score(name=said, value=round(more, 4), at_least=bounds[0], at_most=bounds[1]))
        return scores

    def _answers(self, base: Base) -> dict[str, dict[str, float]]:
        tokenizer = load_tokenizer(base.checkpoint)
        model = load_language_model(base.checkpoint, "cpu", tokenizer)
        assert isinstance(model, LlamaForCausalLM), "the shipped bases are"
        return {name: evaluate_base(model, tokenizer, [WORLDS[name]()], _BATCHES) for name in self.worlds}
