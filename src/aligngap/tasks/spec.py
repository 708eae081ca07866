"""What a task is: a built-in world, or a data set of the user's own; and the pairs of a built-in world."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    model_serializer,
)
from transformers import PreTrainedTokenizerBase

from aligngap.errors import UserError
from aligngap.plugins import Pluggable, Registered
from aligngap.seeds import Key, numpy_stream
from aligngap.tasks.datasets import DatasetSpec, source_digest
from aligngap.tasks.worlds import WORLDS, world
from aligngap.tasks.worlds.advantage import authors_at
from aligngap.tasks.worlds.base import Dials, World, Written
from aligngap.types import PairBatch, Tokens


class TaskSpec(Pluggable):
    """A task and how much data its raters give. Every prompt has two responses by random writers, and one rater's
    preference.

    Held-out prompts, with their responses and preferences, are the same for every `seed`, `part` and `train_pairs`, and
    none of them is a training prompt of any.

    part: what the training pairs are for; each part draws prompts of its own, so golden learns from others than
    policies do. `gates` are the prompts that a judge is examined on: `golden` has none of them. draw: which writers
    answer, and who rates, on the same prompts. advantage: how much better the writers are than the world's own, as a
    share of the distance between the 10th and the 90th percentile of the utility of their responses; raters and prompts
    stay the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    registered: ClassVar[Registered] = {"world": WORLDS}

    world: str
    train_pairs: int = Field(8000, gt=0, le=1_000_000)  # held-out prompts are numbered from there on
    held_out_pairs: int = Field(1000, gt=0)
    seed: int = 0
    part: Literal["pairs", "golden", "gates"] = "pairs"
    draw: int = Field(0, ge=0)
    dials: Dials = Dials()
    advantage: float = 0.0

    @property
    def place(self) -> World:
        """The world with its dials set. Raises UserError for a setting that it does not have."""
        return world(self.world).at(self.dials)

    @property
    def name(self) -> str:
        """The world's."""
        return self.world

    @property
    def count(self) -> int:
        """Pairs of both splits."""
        return self.train_pairs + self.held_out_pairs


_RULES = 3
"""Of how rows become tokens (`encode.py`, `chat.py`); raised when the same data give other tokens."""


class DatasetTask(BaseModel):
    """A real data set as a task. Nobody knows its raters' true utility, and they cannot be asked again.

    name: what the study calls it; digest: of its contents, which stands for name and path in every identity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    dataset: DatasetSpec
    digest: str

    @classmethod
    def of(cls, name: str, dataset: DatasetSpec) -> DatasetTask:
        """From what a study says. Raises UserError when the file cannot be read."""
        try:
            return cls(name=name, dataset=dataset, digest=source_digest(dataset))
        except OSError as error:
            raise UserError(
                f"the data cannot be read: {error.strerror}", where=dataset.source, hint="Check path and rights."
            ) from error

    @model_serializer
    def _contents(self) -> dict[str, Any]:
        return {**self.dataset.model_dump(mode="json", exclude={"source"}), "digest": self.digest, "rules": _RULES}

    @property
    def count(self) -> int:
        """Pairs of both splits as far as the study limits them; else a guess, for estimates of work alone."""
        return (self.dataset.train_pairs or 8000) + (self.dataset.held_out_pairs or 1000)


@dataclass(frozen=True)
class TaskData:
    """`D_initial` of a task: raters' preferences, train and held-out. Prompts of the two splits never coincide."""

    train: PairBatch
    held_out: PairBatch
    max_new_tokens: int


GATE_PROMPTS = 4000
"""Prompts that judges are examined on, of which golden learns none."""
HELD_OUT_NUMBERS = 1_000_000
"""Held-out prompts are numbered from here on, whatever the number of training prompts."""
_REPEATS = 1000
"""So many prompts in a row that have come before are taken to say that there are no others."""


def make_pairs(spec: TaskSpec, tokenizer: PreTrainedTokenizerBase) -> TaskData:
    """The rater's data of a built-in world. Training prompts are numbered from 0, held-out ones from
    `HELD_OUT_NUMBERS`. Raises UserError for a world that has too few prompts.
    """
    place = spec.place
    writers = authors_at(place, spec.advantage)
    held_out = _prompts(place, spec, spec.held_out_pairs, (), "held-out prompts")
    taken = set(held_out)
    if spec.part == "golden":
        taken |= set(_prompts(place, spec, GATE_PROMPTS, taken, "prompts", "gates"))
    # The gates' are the same for every seed, as what judges are compared on.
    seed = () if spec.part == "gates" else (spec.seed,)
    train = _prompts(place, spec, spec.train_pairs, taken, "prompts", spec.part, *seed)

    def answered(prompts: Sequence[str], first_number: int, *key: Key) -> PairBatch:
        rows = []
        for number, prompt in enumerate(prompts, start=first_number):
            draw = numpy_stream("task", spec.world, "pair", *key, number)
            first, second = (place.write(draw, prompt, writers[int(draw.integers(len(writers)))]) for _ in range(2))
            rows.append((number, prompt, first, second, place.rate(draw, prompt, first, second)))
        return _batch(rows, tokenizer)

    return TaskData(
        answered(train, 0, spec.part, *seed, spec.draw), answered(held_out, HELD_OUT_NUMBERS, "held-out"), place.limit
    )


def _prompts(place: World, spec: TaskSpec, count: int, taken: Collection[str], *purpose: Key) -> list[str]:
    """Different prompts from the stream of this purpose, none of them `taken`."""
    texts: dict[str, None] = {}
    rng = numpy_stream("task", spec.world, *purpose)
    repeats = 0
    while len(texts) < count and repeats < _REPEATS:
        before, prompt = len(texts), place.prompt(rng)
        if prompt not in taken:
            texts[prompt] = None
        repeats = repeats + 1 if len(texts) == before else 0
    if len(texts) < count:
        known = len(texts) + len(taken)
        raise UserError(
            f"the world '{spec.world}' seems to have {known} different prompts, and {count + len(taken)} are asked for",
            where=WORLDS.place(spec.world),
            hint="Let its prompts differ more, or set data.train_pairs and data.held_out_pairs lower.",
        )
    return list(texts)


def _batch(rows: list[tuple[int, str, Written, Written, float]], tokenizer: PreTrainedTokenizerBase) -> PairBatch:
    numbers, prompts, first, second, preference = zip(*rows, strict=True)
    return PairBatch(
        torch.tensor(numbers, dtype=torch.int64),
        Tokens.collate(tokenizer(list(prompts))["input_ids"]),
        Tokens.collate(_responses_ids(first, tokenizer)),
        Tokens.collate(_responses_ids(second, tokenizer)),
        torch.tensor(preference, dtype=torch.float32),
        tuple(f"{a.writer} | {b.writer}" for a, b in zip(first, second, strict=True)),
    )


def response_ids(response: Written, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a response, with the end-of-sequence token if its writer ended it."""
    return _responses_ids([response], tokenizer)[0]


def _responses_ids(responses: Sequence[Written], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    result: list[list[int]] = tokenizer([one.text for one in responses], add_special_tokens=False)["input_ids"]
    return [[*ids, tokenizer.eos_token_id] if one.ended else ids for one, ids in zip(responses, result, strict=True)]
