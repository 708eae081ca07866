"""Classifiers of preferences along the online stream (section 5.3, figure 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import polars as pl
import torch

from aligngap.judges.base import Judge
from aligngap.measure.classify import correct, pair_log_probs
from aligngap.pipeline.graph import Context, Stage
from aligngap.pipeline.stages import Arm, JudgeStage, load_judge, load_policy, predictions


def windows(length: int, batch: int, points: int, pairs: int) -> dict[int, torch.Tensor]:
    """For `points` evenly spaced steps of a run, the last among them, the `pairs` recorded pairs closest to each.

    length: pairs in the stream, `batch` a step. A step lies between the batch that it learned from and the next one,
    so half of its pairs come from before it and half from after, as far as the stream goes. Returns positions in the
    stream by step, int64 [min(pairs, length)].
    """
    result = {}
    for k in range(1, points + 1):
        step = round(length / batch * k / points)
        start = min(max(0, step * batch - pairs // 2), max(0, length - pairs))
        result[step] = torch.arange(start, min(start + pairs, length))
    return result


class StreamAccuracy(Stage):
    """The proxy, the final online and the final offline policy as classifiers of the pairs that the online run saw,
    against golden's labels. A policy's sign of the log-ratio margin against SFT is its decision.

    table.parquet: step (of the online run), pair (position in its stream), classifier (proxy, online, offline, true:
    the true utility), correct (1, 0, or 0.5 where the classifier calls a tie; NaN where golden does).
    """

    kind: ClassVar[str] = "stream_accuracy"
    together: ClassVar[bool] = True

    online: Arm
    offline: Arm
    golden: JudgeStage
    proxy: JudgeStage
    points: int = 10
    pairs: int = 64

    @property
    def reads(self) -> Sequence[Stage]:
        return (self.online.sft, self.online.task)

    @property
    def label(self) -> str:
        return f"{self.online.task.name}: classifiers along the online stream (seed {self.online.seed})"

    @property
    def work(self) -> float:
        judged = self.golden.seconds + self.proxy.seconds + 1e-4
        return self.points * self.pairs * (judged + 3 * 3e-4 * self.online.sft.base.size) + 3

    def run(self, context: Context) -> None:
        stream, sft, task = self.online.read(context), self.online.sft, self.online.task
        reference = load_policy(context, sft, task)
        policies = {
            name: load_policy(context, sft, task, arm.weights(context))
            for name, arm in (("online", self.online), ("offline", self.offline))
        }
        golden = load_judge(self.golden, context)
        judges: dict[str, Judge] = {"proxy": load_judge(self.proxy, context)}
        if truth := task.truth():
            judges["true"] = truth
        near = windows(len(stream), self.online.optim.batch, self.points, self.pairs)
        tables = []
        for done, (step, index) in enumerate(near.items(), start=1):
            pairs = stream.take(index)
            labels, fixed = predictions(golden, pairs), pair_log_probs(reference, pairs)
            scores = {name: pair_log_probs(policy, pairs) - fixed for name, policy in policies.items()}
            for name, judge in judges.items():
                decided = predictions(judge, pairs)
                scores[name] = torch.stack([decided, 1 - decided])
            for name, (first, second) in scores.items():
                right = correct(first, second, labels).masked_fill(labels == 0.5, torch.nan)
                columns = {"pair": index.numpy(), "correct": right.double().numpy()}
                tables.append(pl.DataFrame(columns).with_columns(step=pl.lit(step), classifier=pl.lit(name)))
            context.progress(done, len(near), {})
        pl.concat(tables).select("step", "pair", "classifier", "correct").write_parquet(context.out / "table.parquet")
