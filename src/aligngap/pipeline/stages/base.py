"""What every stage of the protocol stands on: the splits, models with their identity, and what pairs and judges are to
the stages that use them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from aligngap.judges.base import Judge
from aligngap.models.build import SHIPPED
from aligngap.models.context import SlowPath, slow_path
from aligngap.models.spec import Checkpoint
from aligngap.pipeline.graph import Context, Stage
from aligngap.results import SPLITS as SPLITS
from aligngap.store.disk import write_json
from aligngap.tasks.pairs import read_pairs
from aligngap.types import PairBatch


class Base(BaseModel):
    """A pretrained model and its tokenizer. The digest of their files is part of every identity built on them, and so
    is what else the checkpoint says that decides results, where it is not the default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    checkpoint: Checkpoint = Field(exclude=True)  # holds a path, which no identity may depend on
    digest: str

    @model_serializer(mode="wrap")
    def _deciding(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), **self.checkpoint.deciding()}

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Base:
        """From what a study says of a model. Raises UserError when there is no such model."""
        return cls(checkpoint=checkpoint, digest=checkpoint.digest())

    @property
    def name(self) -> str:
        """What people call it."""
        return self.checkpoint.name

    @property
    def size(self) -> float:
        """Cost of a training step relative to the small base: measured; of another model only its kind is known."""
        measured = {"small": 1.0, "medium": 2.3, "large": 7.0}
        if self.checkpoint.path in measured:
            return measured[self.checkpoint.path]
        slow = self.slow_path
        return slow.times if slow else 1.0

    @property
    def slow_path(self) -> SlowPath | None:
        """What keeps the model from the fast ways of reading, if anything is known to."""
        return None if self.checkpoint.path in SHIPPED else _slow_path(self.checkpoint.as_loaded, self.digest)


@lru_cache(maxsize=64)
def _slow_path(checkpoint: Checkpoint, digest: str) -> SlowPath | None:
    """Once a process for the same files."""
    return slow_path(checkpoint)


class PairsStage(Stage):
    """A stage whose artefact holds pairs to train on, in `train_file`."""

    activity: ClassVar[str] = "data"
    train_file: ClassVar[str] = "train.parquet"

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where the pairs or their labels come from, in a word or two for people."""

    def read(self, context: Context, split: str = "train") -> PairBatch:
        """The pairs of a split, from the artefact."""
        return read_pairs(context.folder(self) / (self.train_file if split == "train" else f"{split}.parquet"))


class JudgeStage(Stage):
    """A judge as a stage: trained here, or given. role: `golden` or `proxy`."""

    role: str
    seed: int

    @property
    @abstractmethod
    def seconds(self) -> float:
        """Estimated seconds to judge one pair, on one core of the reference machine."""

    @abstractmethod
    def judge(self, folder: Path, context: Context) -> Judge:
        """The judge that this stage's artefact in `folder` holds."""


def load_judge(stage: JudgeStage, context: Context) -> Judge:
    """The judge that a stage's artefact holds."""
    return stage.judge(context.folder(stage), context)


def write_judge_cost(judges: Iterable[Judge | None], folder: Path) -> None:
    """`cost.json`: what the judges' answers cost beside time (requests, tokens), summed; no file where they cost
    nothing else.
    """
    cost: dict[str, float] = {}
    for judge in judges:
        for name, amount in judge.spent.items() if judge else ():
            cost[name] = cost.get(name, 0.0) + amount
    if cost:
        write_json(folder / "cost.json", {"judge_spent": cost})


def predictions(judge: Judge, pairs: PairBatch) -> torch.Tensor:
    """A judge's labels of pairs, float32 [n]."""
    return judge.prefer(pairs.prompts, pairs.first, pairs.second)
