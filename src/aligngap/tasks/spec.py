"""What a study says about its tasks, and the pairs of a built-in world."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerBase

from aligngap.seeds import numpy_stream
from aligngap.tasks.worlds import world
from aligngap.tasks.worlds.base import Written
from aligngap.types import PairBatch, Tokens


class TaskSpec(BaseModel):
    """A task and how much data its raters give. Every prompt has two responses by random writers, and one rater's
    preference.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    world: str
    train_pairs: int = Field(8000, gt=0)
    held_out_pairs: int = Field(1000, gt=0)
    seed: int = 0


@dataclass(frozen=True)
class TaskData:
    """`D_initial` of a task: raters' preferences, train and held-out. Prompts of the two splits never coincide."""

    train: PairBatch
    held_out: PairBatch
    max_new_tokens: int


def make_pairs(spec: TaskSpec, tokenizer: PreTrainedTokenizerBase) -> TaskData:
    """The rater's data of a built-in world. Prompts are numbered from 0, held-out after train."""
    place = world(spec.world)
    writers = place.writers()
    texts: dict[str, None] = {}
    rng = numpy_stream("task", spec.world, "prompts", spec.seed)
    while len(texts) < spec.train_pairs + spec.held_out_pairs:
        texts[place.prompt(rng)] = None
    rows = []
    for number, prompt in enumerate(texts):
        draw = numpy_stream("task", spec.world, "pair", spec.seed, number)
        first, second = (place.write(draw, prompt, writers[int(draw.integers(len(writers)))]) for _ in range(2))
        rows.append((number, prompt, first, second, place.rate(draw, prompt, first, second)))
    train, held_out = (_batch(part, tokenizer) for part in (rows[: spec.train_pairs], rows[spec.train_pairs :]))
    return TaskData(train, held_out, place.max_response_tokens)


def _batch(rows: list[tuple[int, str, Written, Written, float]], tokenizer: PreTrainedTokenizerBase) -> PairBatch:
    numbers, prompts, first, second, preference = zip(*rows, strict=True)
    return PairBatch(
        torch.tensor(numbers, dtype=torch.int64),
        Tokens.collate([tokenizer(text)["input_ids"] for text in prompts]),
        Tokens.collate([response_ids(response, tokenizer) for response in first]),
        Tokens.collate([response_ids(response, tokenizer) for response in second]),
        torch.tensor(preference, dtype=torch.float32),
        tuple(f"{a.writer} | {b.writer}" for a, b in zip(first, second, strict=True)),
    )


def response_ids(response: Written, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a response, with the end-of-sequence token if its writer ended it."""
    ids: list[int] = tokenizer(response.text, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id] if response.ended else ids
