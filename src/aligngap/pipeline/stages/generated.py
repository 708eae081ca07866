"""Pairs generated from fixed policies."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from aligngap.pipeline.graph import Context
from aligngap.pipeline.stages.base import SPLITS, JudgeStage, PairsStage, load_judge, write_judge_cost
from aligngap.pipeline.stages.pairs import Pairs
from aligngap.pipeline.stages.policies import Arm, Sft, load_policy, prompts_of
from aligngap.sources.sampled import Sampled
from aligngap.tasks.pairs import write_pairs
from aligngap.types import concatenate


class Generate(PairsStage):
    """New pairs on the task's prompts, one a prompt: a response each from two fixed policies, and a label.

    first, second: arms whose checkpoints (`first_step`, `second_step`) respond; None is the SFT policy. judge: labels
    the pairs; None asks the world's raters.
    """

    kind: ClassVar[str] = "generate"
    together: ClassVar[bool] = True

    sft: Sft
    task: Pairs
    first: Arm | None = None
    first_step: int | None = None
    second: Arm | None = None
    second_step: int | None = None
    judge: JudgeStage | None = None
    prompts: int | None = None
    seed: int

    @property
    def origin(self) -> str:
        """Whose responses, against whose."""
        return " vs ".join("sft" if arm is None else f"step {step} of seed {arm.seed}" for arm, step in self.sides)

    @property
    def sides(self) -> tuple[tuple[Arm | None, int | None], tuple[Arm | None, int | None]]:
        """Who responds first and second: an arm and its step; None for the SFT policy."""
        return (self.first, self.first_step), (self.second, self.second_step)

    @property
    def label(self) -> str:
        who = f"{self.judge.role} labels" if self.judge else "raters' labels"
        return f"{self.task.name}: pairs of {self.origin}, {who}"

    @property
    def work(self) -> float:
        judged = self.judge.seconds if self.judge else 1e-4
        return (7e-4 * self.sft.base.size + judged) * (self.prompts or self.task.count) + 0.5

    def run(self, context: Context) -> None:
        first, second = (
            load_policy(context, self.sft, self.task, arm.weights(context, step) if arm else None)
            for arm, step in self.sides
        )
        truth = self.task.truth()
        judge = load_judge(self.judge, context) if self.judge else truth
        assert judge is not None, "a real data set's raters cannot be asked again"
        for split in SPLITS:
            prompts = prompts_of(self.task.read(context, split))[: self.prompts]
            source = Sampled(prompts, judge, self.seed, frozen=(first, second), purpose="generate")
            parts = []
            for index in torch.arange(len(prompts)).split(32):
                parts.append(source.next_batch(len(index)))
                if split == "train":
                    context.progress(int(index[-1]) + 1, len(prompts), {})
            pairs = concatenate(parts)
            # In the order of the prompts, as every other set of pairs on them, so that arms keep one schedule.
            pairs = pairs.take(torch.argsort(pairs.prompt_numbers))
            if self.judge is None and truth is not None:
                labels = truth.rated(pairs.prompts, pairs.first, pairs.second, self.seed)
                pairs = replace(pairs, preference=labels)
            write_pairs(pairs, context.out / f"{split}.parquet")
        write_judge_cost([judge], context.out)
