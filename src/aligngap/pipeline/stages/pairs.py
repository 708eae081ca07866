"""A task's pairs with its raters' labels, and the same pairs with a judge's."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from aligngap.errors import UserError
from aligngap.judges.true_utility import TrueUtilityJudge
from aligngap.models.build import load_tokenizer
from aligngap.models.check import check_lengths
from aligngap.models.spec import Checkpoint
from aligngap.pipeline.graph import Context
from aligngap.pipeline.stages.base import SPLITS, Base, JudgeStage, PairsStage, load_judge, predictions, write_spent
from aligngap.store.store import write_json
from aligngap.tasks.encode import make_dataset_pairs
from aligngap.tasks.pairs import read_pairs, write_pairs
from aligngap.tasks.spec import DatasetTask, TaskSpec, make_pairs
from aligngap.types import PairBatch

_FEWEST = 8
"""Held-out prompts, as many as an evaluation must take: an interval over fewer is far too narrow."""


class Pairs(PairsStage):
    """`D_initial`: prompts, two responses each, a rater's preference."""

    kind: ClassVar[str] = "pairs"
    version: ClassVar[int] = 2

    task: TaskSpec | DatasetTask
    base: Base

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def label(self) -> str:
        return f"{self.name}: raters' pairs"

    @property
    def origin(self) -> str:
        return "raters' labels"

    @property
    def count(self) -> int:
        """About how many pairs there are, both splits, for estimates of work."""
        return self.task.count

    def truth(self) -> TrueUtilityJudge | None:
        """The task's hidden utility, where there is one: in built-in worlds only."""
        if isinstance(self.task, DatasetTask):
            return None
        return TrueUtilityJudge(self.task.place, load_tokenizer(self.base.checkpoint))

    @property
    def work(self) -> float:
        return 2.8e-4 * self.count + 0.2

    def run(self, context: Context) -> None:
        tokenizer = load_tokenizer(self.base.checkpoint)
        if isinstance(self.task, DatasetTask):
            prepared = make_dataset_pairs(self.task.dataset, tokenizer)
            data = prepared.data
            prompts = len({tuple(ids) for ids in data.held_out.prompts.rows()})
            if prompts < _FEWEST:
                raise UserError(
                    f"{prompts} held-out prompts are too few to conclude anything from: at least {_FEWEST} are needed",
                    where=self.task.dataset.source,
                    hint="Hold out more (held_out_pairs, held_out_share or held_out_split), or give more data.",
                )
            write_json(context.out / "data.json", prepared.as_json())
        else:
            data = make_pairs(self.task, tokenizer)
        for split in SPLITS:
            write_pairs(getattr(data, split), context.out / f"{split}.parquet")
        write_json(context.out / "task.json", {"max_new_tokens": data.max_new_tokens})


class Relabel(PairsStage):
    """The same pairs with a preference model's labels in place of the rater's; golden's make `D_golden`."""

    kind: ClassVar[str] = "relabel"
    together: ClassVar[bool] = True

    pairs: Pairs
    judge: JudgeStage

    @property
    def origin(self) -> str:
        return f"{self.judge.role} labels"

    @property
    def label(self) -> str:
        seed = f" (seed {self.judge.seed})" if self.judge.role == "proxy" else ""
        return f"{self.pairs.name}: {self.judge.role} labels{seed}"

    @property
    def work(self) -> float:
        return self.judge.seconds * self.pairs.count + 0.3

    def run(self, context: Context) -> None:
        judge = load_judge(self.judge, context.one("judge"), context)
        for split in SPLITS:
            pairs = read_pairs(context.one("pairs") / f"{split}.parquet")
            write_pairs(replace(pairs, preference=predictions(judge, pairs)), context.out / f"{split}.parquet")
        write_spent([judge], context.out)


def check_fits(
    checkpoint: Checkpoint, task: Pairs, pairs: PairBatch, *, response: int | None = None, both: bool = False
) -> None:
    """Raises UserError when a model cannot read the longest of a task's pairs; see `check_lengths`.

    response: the longest response's tokens, where those in the pairs do not say.
    """
    found = max(int(side.lengths.max()) for side in (pairs.first, pairs.second))
    check_lengths(
        checkpoint,
        int(pairs.prompts.lengths.max()),
        found if response is None else response,
        task=task.name,
        own_data=isinstance(task.task, DatasetTask),
        both=both,
    )
