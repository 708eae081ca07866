"""The gate of the dial `complexity`: what falls is what N labels teach, and not what there is to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch

from aligngap.gates.record import Gate, Score
from aligngap.pipeline.graph import Context
from aligngap.pipeline.stages import JudgeStage, Pairs, load_judge

_POINT = 0.01
_LEAST_KNOWN = 0.90


class Level(NamedTuple):
    """What is measured at a step of the dial, on held-out raters' labels: accuracy of the preference model of N labels
    and its standard error, of the larger one, of raters' labels as the true sign; the share of pairs within the raters'
    temperature; pairs.
    """

    small: float
    error: float
    large: float
    raters: float
    close: float
    pairs: int


class ComplexityGate(Gate):
    """From step to step of the dial the accuracy of a preference model of N labels falls by more than its error, while
    raters stay as sure as they were and a larger one of ten times the labels knows nearly all that they know. Noise, or
    a hash, would make raters or the larger one fall, too.

    prompts, small, large: for each complexity from 0 on, the gates' pairs, a preference model on N of the raters'
    labels, and golden.
    """

    kind: ClassVar[str] = "complexity_gate"

    prompts: tuple[Pairs, ...]
    small: tuple[JudgeStage, ...]
    large: tuple[JudgeStage, ...]

    @property
    def subject(self) -> str:
        return f"{self.prompts[0].name}'s complexity"

    @property
    def work(self) -> float:
        return sum(judge.seconds * self.prompts[0].count for judge in (*self.small, *self.large)) + 1

    def examine(self, context: Context) -> Sequence[Score]:
        levels = []
        for level, stages in enumerate(zip(self.prompts, self.small, self.large, strict=True)):
            levels.append(self._level(context, *stages))
            context.progress(level + 1, len(self.prompts), {})
        return complexity_scores(levels)

    def _level(self, context: Context, prompts: Pairs, small: JudgeStage, large: JudgeStage) -> Level:
        pairs, truth = prompts.read(context), prompts.truth()
        assert truth is not None, "a real data set's true utility is not known"
        margin = truth.margin(pairs.prompts, pairs.first, pairs.second)
        clear = pairs.take(torch.nonzero(margin != 0).squeeze(1))
        right = [
            (1 - (load_judge(judge, context).prefer(clear.prompts, clear.first, clear.second) - clear.preference).abs())
            for judge in (small, large)
        ]
        sign = (margin[margin != 0] > 0).float()
        return Level(
            small=float(right[0].double().mean()),
            error=float(right[0].double().std()) / len(clear) ** 0.5,
            large=float(right[1].double().mean()),
            raters=float((clear.preference == sign).double().mean()),
            close=float((margin.abs() <= truth.world.rater_temperature).double().mean()),
            pairs=len(clear),
        )


def complexity_scores(levels: Sequence[Level]) -> list[Score]:
    """The scores of the steps from 0 on. A fall must be larger than its standard error, of two independent measures."""
    scores = []
    for step, level in enumerate(levels):
        scores.append(
            Score(
                name=f"accuracy of N labels at {step}",
                value=round(level.small, 4),
                se=round(level.error, 4),
                n=level.pairs,
            )
        )
        known = (level.large - 0.5) / (level.raters - 0.5)
        scores.append(
            Score(
                name=f"what ten times the labels know at {step}",
                value=round(known, 4),
                at_least=_LEAST_KNOWN,
                n=level.pairs,
            )
        )
        if step:
            before = levels[step - 1]
            error = (level.error**2 + before.error**2) ** 0.5
            fall = Score(
                name=f"fall from {step - 1} to {step}", value=round(before.small - level.small, 4), se=round(error, 4)
            )
            scores.append(fall.model_copy(update={"at_least": round(error, 4)}))
            for name, change in (
                ("raters' agreement with the true sign", level.raters - levels[0].raters),
                ("pairs within the raters' temperature", level.close - levels[0].close),
            ):
                scores.append(
                    Score(name=f"{name}, {step} less 0", value=round(change, 4), at_least=-_POINT, at_most=_POINT)
                )
    return scores
