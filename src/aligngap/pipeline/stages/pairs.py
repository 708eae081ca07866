"""A task's pairs with its raters' labels, and the same pairs with a judge's."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import ClassVar, NamedTuple

from aligngap.errors import UserError
from aligngap.judges.true_utility import TrueUtilityJudge
from aligngap.models.check import check_lengths
from aligngap.models.context import context_of
from aligngap.models.spec import Checkpoint
from aligngap.models.tokenizer import load_tokenizer
from aligngap.pipeline.graph import Context
from aligngap.pipeline.stages.base import (
    SPLITS,
    Base,
    JudgeStage,
    PairsStage,
    load_judge,
    predictions,
    write_judge_cost,
)
from aligngap.store.disk import read_json, write_json
from aligngap.tasks.encode import make_dataset_pairs
from aligngap.tasks.pairs import write_pairs
from aligngap.tasks.spec import DatasetTask, TaskSpec, make_pairs
from aligngap.types import PairBatch

_FEWEST = 8
"""Held-out prompts, as many as an evaluation must take: an interval over fewer is far too narrow."""


def check_held_out(prompts: int, source: str, dropped: Iterable[str] = ()) -> None:
    """Raises UserError where so many held-out prompts are too few for any conclusion. dropped: why no more are left."""
    if prompts < _FEWEST:
        raise UserError(
            f"{prompts} held-out prompts are too few to conclude anything from: at least {_FEWEST} are needed",
            where=source,
            hint=" ".join(
                [
                    "Hold out more (held_out_pairs, held_out_share or held_out_split), or give more data.",
                    *(f"Dropped: {reason}." for reason in dropped),
                ]
            ),
        )


_ANY_WORLD = (64, 31)
"""Most tokens of a prompt and of a response that are assumed of a built-in world: with both, the bases' context."""


class Pairs(PairsStage):
    """`D_initial`: prompts, two responses each, a rater's preference."""

    kind: ClassVar[str] = "pairs"
    version: ClassVar[int] = 3

    task: TaskSpec | DatasetTask
    base: Base

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def label(self) -> str:
        part = self.task.part if isinstance(self.task, TaskSpec) else "pairs"
        return f"{self.name}: raters' pairs{'' if part == 'pairs' else f' for {part}'}"

    @property
    def origin(self) -> str:
        return "raters' labels"

    @property
    def count(self) -> int:
        """About how many pairs there are, both splits, for estimates of work."""
        return self.task.count

    def max_new_tokens(self, context: Context) -> int:
        """The limit of responses to the task's prompts, from the artefact."""
        return int(read_json(context.folder(self) / "task.json")["max_new_tokens"])

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
            check_held_out(prompts, self.task.dataset.source, prepared.tally.reasons())
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
        judge = load_judge(self.judge, context)
        for split in SPLITS:
            pairs = self.pairs.read(context, split)
            write_pairs(replace(pairs, preference=predictions(judge, pairs)), context.out / f"{split}.parquet")
        write_judge_cost([judge], context.out)


class Reading(NamedTuple):
    """How a stage reads pairs with a model; see `check_lengths`."""

    checkpoint: Checkpoint
    backbone: bool = False
    both: bool = False


def check_beforehand(task: Pairs, readings: Collection[Reading]) -> None:
    """Raises UserError, before anything is made, where a model cannot read the longest of a task's pairs, or of the
    responses that policies may sample. Pairs are made only where the limits alone do not say already that all fit.
    """
    limits = _ANY_WORLD
    if isinstance(task.task, DatasetTask):
        limits = task.task.dataset.max_prompt_tokens, task.task.dataset.max_response_tokens
    tight = [reading for reading in readings if not _fits(reading, *limits)]
    if not tight:
        return
    tokenizer = load_tokenizer(task.base.checkpoint)
    if own := isinstance(task.task, DatasetTask):
        data = make_dataset_pairs(task.task.dataset, tokenizer).data
    else:
        data = make_pairs(task.task, tokenizer)
    prompt = max(int(pairs.prompts.lengths.max()) for pairs in (data.train, data.held_out))
    written = max(int(side.lengths.max()) for side in (data.train.first, data.train.second))
    for reading in tight:
        _check_lengths(reading, task, prompt, written if reading.backbone and not own else data.max_new_tokens)


def _fits(reading: Reading, prompt: int, response: int) -> bool:
    context = context_of(reading.checkpoint, backbone=reading.backbone)
    return context.fits(prompt, 2 * (response + 1) if reading.both else response)


def check_fits(reading: Reading, task: Pairs, pairs: PairBatch, *, response: int | None = None) -> None:
    """Raises UserError when a model cannot read the longest of a task's pairs; see `check_lengths`.

    response: the longest response's tokens, where those in the pairs do not say.
    """
    longest = max(int(side.lengths.max()) for side in (pairs.first, pairs.second))
    prompt = int(pairs.prompts.lengths.max())
    _check_lengths(reading, task, prompt, longest if response is None else response)


def _check_lengths(reading: Reading, task: Pairs, prompt: int, response: int) -> None:
    own = isinstance(task.task, DatasetTask)
    checkpoint, backbone, both = reading
    check_lengths(checkpoint, prompt, response, task=task.name, own_data=own, backbone=backbone, both=both)
