"""The policy as a classifier of its own samples (section 5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import polars as pl
import torch

from aligngap.measure.classify import correct, pair_log_probs
from aligngap.pipeline.graph import Context, Stage
from aligngap.pipeline.stages import (
    SPLITS,
    Arm,
    JudgeStage,
    evaluation_prompts,
    load_arm,
    load_judge,
    sample_in_chunks,
)
from aligngap.seeds import uniforms
from aligngap.types import PairBatch


class SelfAccuracy(Stage):
    """Self-classification: an arm's policy samples two responses a prompt, golden says which is better, and the sign of
    the policy's own log-ratio margin against SFT is held against that. At every checkpoint after step 0, where the
    margin is 0 by definition.

    Prompts and sampling noise are the same for all arms of a seed and all checkpoints.

    table.parquet: step, split, prompt_number, correct (1, 0, or 0.5 for a margin of exactly 0; NaN where golden calls
    a tie, as it does identical responses).
    """

    kind: ClassVar[str] = "self_accuracy"
    together: ClassVar[bool] = True

    arm: Arm
    golden: JudgeStage
    prompts: int

    @property
    def label(self) -> str:
        return f"self-classification of {self.arm.label}"

    @property
    def reads(self) -> Sequence[Stage]:
        return (self.arm.sft, self.arm.task)

    @property
    def steps(self) -> tuple[int, ...]:
        """Checkpoints that are looked at."""
        return tuple(step for step in self.arm.keep if step > 0)

    @property
    def work(self) -> float:
        # Two responses to sample, to judge, and to score under policy and SFT.
        each = (1.6e-3 + 2 * 3e-4) * self.arm.sft.base.size + self.golden.seconds
        return len(SPLITS) * self.prompts * len(self.steps) * each + 3

    def run(self, context: Context) -> None:
        policy, reference = load_arm(context, self.arm.sft, self.arm.task)
        golden = load_judge(self.golden, context)
        splits = evaluation_prompts(self.arm.task, context, self.prompts)
        tables = []
        for done, step in enumerate(self.steps, start=1):
            policy.load_weights(self.arm.weights(context, step))
            for split, (numbers, prompts) in splits.items():
                noise = uniforms(numbers, 2, policy.max_new_tokens, "self-classification", self.arm.seed)
                rows = torch.arange(len(numbers))
                sampled = sample_in_chunks(policy, prompts.take(rows.repeat_interleave(2)), noise)
                first, second = sampled.take(2 * rows), sampled.take(2 * rows + 1)
                labels = golden.prefer(prompts, first, second)
                pairs = PairBatch(numbers, prompts, first, second, labels, ("policy itself",) * len(numbers))
                ratios = pair_log_probs(policy, pairs) - pair_log_probs(reference, pairs)
                right = correct(ratios[0], ratios[1], labels).masked_fill(labels == 0.5, torch.nan)
                columns = {"prompt_number": numbers.numpy(), "correct": right.numpy()}
                tables.append(pl.DataFrame(columns).with_columns(step=pl.lit(step), split=pl.lit(split)))
            context.progress(done, len(self.steps), {})
        table = pl.concat(tables).select("step", "split", "prompt_number", "correct")
        table.write_parquet(context.out / "table.parquet")
