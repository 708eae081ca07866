"""What a set of training pairs is like: how good, how far apart, and how near the SFT policy (section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import polars as pl
import torch

from aligngap.measure.classify import pair_log_probs
from aligngap.pipeline.graph import Context, Stage
from aligngap.pipeline.stages import Generate, Relabel, Sft, load_judge, load_policy, utilities


class PairProfile(Stage):
    """Quality, contrast and proximity of the pairs that an offline arm trains on, a row a training pair.

    reference: `D_golden`, whose judge is golden, and with which the pairs' quality is compared on the same prompts,
    first response with first and second with second.

    table.parquet: prompt_number; golden_margin, golden's |r(x, y1, y2) - r(x, y2, y1)|; and for each side, first and
    second: utility_*, the true utility; gain_*, its excess over the reference's response; win_*, golden's decision
    against the reference's response (1, 0, or 0.5 for a tie); sft_log_prob_*, log pi_sft a token, nats.

    Raises:
        ValueError: pairs and reference do not hold the same prompts.
    """

    kind: ClassVar[str] = "pair_profile"
    together: ClassVar[bool] = True

    sft: Sft
    pairs: Relabel | Generate
    reference: Relabel

    @property
    def reads(self) -> Sequence[Stage]:
        return (self.reference.pairs, self.reference.judge)

    @property
    def label(self) -> str:
        what = self.pairs.origin if isinstance(self.pairs, Generate) else "D_golden"
        return f"{self.reference.pairs.name}: profile of pairs, {what}"

    @property
    def work(self) -> float:
        each = 3 * self.reference.judge.seconds + 3e-4 * self.sft.base.size + 2e-4
        return each * self.reference.pairs.count + 3

    def run(self, context: Context) -> None:
        pairs, reference = (stage.read(context) for stage in (self.pairs, self.reference))
        if not torch.equal(pairs.prompt_numbers, reference.prompt_numbers):
            raise ValueError("pairs whose quality is compared must be on the same prompts, in the same order")
        task, golden = self.reference.pairs, load_judge(self.reference.judge, context)
        truth = task.truth()
        log_probs = pair_log_probs(load_policy(context, self.sft, task), pairs)
        columns: dict[str, Any] = {
            "prompt_number": pairs.prompt_numbers.numpy(),
            "golden_margin": golden.margin(pairs.prompts, pairs.first, pairs.second).double().abs().numpy(),
        }
        for side, log_prob in zip(("first", "second"), log_probs, strict=True):
            ours, theirs = (getattr(batch, side) for batch in (pairs, reference))
            utility = utilities(truth, pairs.prompts, ours)
            columns |= {
                f"utility_{side}": utility,
                f"gain_{side}": utility - utilities(truth, pairs.prompts, theirs),
                f"win_{side}": golden.prefer(pairs.prompts, ours, theirs).double().numpy(),
                f"sft_log_prob_{side}": (log_prob / ours.lengths).numpy(),
            }
        pl.DataFrame(columns).write_parquet(context.out / "table.parquet")
