"""Golden audited: an arm's stored responses, judged by other goldens and by the true utility."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import polars as pl

from aligngap.pipeline.graph import Context, Stage
from aligngap.pipeline.stages import SPLITS, Evaluate, JudgeStage, Responses, load_judge
from aligngap.types import Tokens

GOLDENS = {
    "golden": "golden",
    "more_pairs": "golden, more pairs",
    "on_policy": "golden, on-policy pairs",
}
"""Who judges, and what they are called: the study's golden, and with further raters' pairs, off and on policy."""


class GoldenAudit(Stage):
    """An arm's responses along its checkpoints against those of SFT, by several goldens and by the true utility.

    evaluation: whose responses, golden and opponents; more_pairs, on_policy: that golden with further pairs. All are
    trained for equally many steps.

    table.parquet, a row an evaluation prompt and checkpoint: step, split, prompt_number, kl (nats), win_true and
    win_golden, win_more_pairs, win_on_policy: 1, 0, or 0.5 for a tie.
    """

    kind: ClassVar[str] = "golden_audit"
    together: ClassVar[bool] = True

    evaluation: Evaluate
    more_pairs: JudgeStage
    on_policy: JudgeStage

    @property
    def opponent(self) -> Responses:
        """The responses of SFT."""
        return next(stage for stage in self.evaluation.start.opponents if stage.who == "sft")

    @property
    def golden(self) -> JudgeStage:
        """The study's golden."""
        return self.evaluation.start.golden

    @property
    def reads(self) -> Sequence[Stage]:
        return (self.evaluation.start.task, self.opponent, self.golden)

    @property
    def label(self) -> str:
        return f"audit of golden on {self.evaluation.arm.label}"

    @property
    def work(self) -> float:
        rows = len(SPLITS) * self.evaluation.start.prompts * len(self.evaluation.arm.keep)
        return rows * len(GOLDENS) * self.golden.seconds + 3

    def run(self, context: Context) -> None:
        # A prompt's number names it over both splits.
        prompts, against = (
            pl.concat(
                pl.read_parquet(context.folder(stage) / f"{split}.parquet", columns=["prompt_number", column])
                for split in SPLITS
            ).rename({column: name})
            for name, stage, column in (
                ("prompt", self.evaluation.start.task, "prompt_ids"),
                ("opponent", self.opponent, "response_ids"),
            )
        )
        rows = (
            pl.read_parquet(context.folder(self.evaluation) / "per_prompt.parquet")
            .join(prompts, on="prompt_number", validate="m:1", maintain_order="left")
            .join(against, on="prompt_number", validate="m:1", maintain_order="left")
        )
        asked = [Tokens.collate(rows[column].to_list()) for column in ("prompt", "response_ids", "opponent")]
        wins: dict[str, Any] = {}
        for done, name in enumerate(GOLDENS, start=1):
            judge = load_judge(getattr(self, name), context)
            wins[f"win_{name}"] = judge.prefer(*asked).double().numpy()
            context.progress(done, len(GOLDENS), {})
        table = rows.select("step", "split", "prompt_number", "kl", win_true="win_sft_true")
        table.with_columns(pl.Series(name, values) for name, values in wins.items()).write_parquet(
            context.out / "table.parquet"
        )
