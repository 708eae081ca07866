"""A base for data that no checkpoint is at hand for: a tokenizer of its texts and a small decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from aligngap.errors import UserError
from aligngap.models.build import Architecture, parameter_count, random_model
from aligngap.models.policy import Policy
from aligngap.models.tokenizer import byte_tokenizer, end_tokens
from aligngap.sources.order import prompt_schedule
from aligngap.sources.recorded import Recorded
from aligngap.store.disk import new_folder
from aligngap.tasks.chat import prompt_text
from aligngap.tasks.datasets import DatasetSpec, Tally
from aligngap.tasks.encode import Encoded, encode, train_pairs
from aligngap.train.step import OptimSpec
from aligngap.train.supervised import Report, fit, sft_loss
from aligngap.types import PairBatch, Tokens


def scratch(
    data: DatasetSpec, shape: Architecture, vocabulary: int, optim: OptimSpec | None, out: Path, report: Report
) -> dict[str, float]:
    """Make a base and save it, with its tokenizer, to `out` as a Hugging Face folder, whole or not at all. Nothing of
    the held-out prompts is read into it. Returns its measures: parameters, tokens of its vocabulary, pairs it was made
    from, last loss.

    vocabulary: tokens, at most. optim: how it learns the train split's texts; None for random weights.

    Raises UserError for data that cannot be read, a shape that is none, and a folder that is not empty.
    """
    width, odd = divmod(shape.hidden, shape.heads)
    if odd or width % 2:
        raise UserError(
            f"{shape.heads} heads do not share a width of {shape.hidden} in even parts",
            where="--heads",
            hint="Give a width that is a multiple of twice the heads.",
        )
    with new_folder(out) as half:
        pairs = list(train_pairs(data))
        texts = (text for pair in pairs for text in (prompt_text(pair.prompt), pair.first, pair.second))
        tokenizer = byte_tokenizer(texts, vocabulary)
        model = random_model(shape, len(tokenizer), 0, purpose="scratch").eval()
        measures: dict[str, float] = {
            "parameters": parameter_count(model),
            "vocabulary": len(tokenizer),
            "pairs": len(pairs),
        }
        if optim is not None:
            policy = Policy(model, end_tokens(tokenizer), 1)
            documents = _documents((item for item in encode(pairs, tokenizer, Tally()) if item), shape.context)

            def watched(done: int, total: int, metrics: Mapping[str, float]) -> None:
                measures.update(metrics)
                report(done, total, metrics)

            source = Recorded(documents, prompt_schedule(0))
            fit(model, lambda batch, step: sft_loss(policy, batch), source, optim, watched)
        model.save_pretrained(half)
        tokenizer.save_pretrained(half)
    return measures


def _documents(items: Iterator[Encoded], context: int) -> PairBatch:
    """Both texts of each pair as two responses to the beginning of a sequence, so that every token of theirs is
    learned. What is longer than the context loses its beginning.
    """
    begin: list[list[int]] = []
    sides: tuple[list[list[int]], list[list[int]]] = ([], [])
    for item in items:
        begin.append(item.prompt[:1])
        for side, response in zip(sides, (item.first, item.second), strict=True):
            side.append([*item.prompt[1:], *response][1 - context :])
    count = len(begin)
    return PairBatch(
        torch.arange(count),
        Tokens.collate(begin),
        Tokens.collate(sides[0]),
        Tokens.collate(sides[1]),
        torch.full((count,), 0.5),
        ("text",) * count,
    )
