"""What a study's limits and its tokenizer leave of a data set, before anything is made."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from aligngap.tasks.datasets import DatasetSpec
from aligngap.tasks.encode import PreparedData, make_dataset_pairs, sizes

_MOST = 8192
"""Pairs of a split that are tokenised: a few seconds' worth, and a share of more is known as well as anybody needs."""


class Preview(NamedTuple):
    """train: pairs that are left to train on, estimated from the first of them where there are very many;
    held_out_prompts: different ones that are left. told: what became of the rows, in sentences with counts and rows;
    reasons: of those, why rows are dropped.
    """

    train: int
    held_out_prompts: int
    told: tuple[str, ...]
    reasons: tuple[str, ...]


def preview(spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase) -> Preview:
    """What `make_dataset_pairs` will leave. Reads the data as often as that, and once more. Raises UserError as that
    does.
    """
    begun = sizes(spec)
    partly = max(begun.train, begun.held_out) > _MOST
    looked = spec
    if partly:
        most = {name: min(getattr(spec, name) or _MOST, _MOST) for name in ("train_pairs", "held_out_limit")}
        looked = spec.model_copy(update=most)
    made = make_dataset_pairs(looked, tokenizer)
    train, held = made.data.train, made.data.held_out
    left = round(begun.train * len(train) / min(begun.train, _MOST)) if partly else len(train)
    prompts = len({tuple(ids) for ids in held.prompts.rows()})
    reasons = tuple(made.tally.reasons())
    told = [*_told(spec, made, partly), *(f"dropped: {line}" for line in reasons)]
    return Preview(left, prompts, tuple(told), reasons)


def _told(spec: DatasetSpec, made: PreparedData, partly: bool) -> list[str]:
    pairs = len(made.data.train) + len(made.data.held_out)
    among = f"the first {pairs}" if partly else f"{pairs}"
    cuts, lines = made.cuts, []
    if partly:
        lines.append(f"what limits and tokens do to the pairs is known of {among} alone, which were tokenised")
    if cuts.prompts:
        lines.append(
            f"{cuts.prompts} of the prompts of {among} pairs are longer than max_prompt_tokens "
            f"({spec.max_prompt_tokens}) and lose their beginning"
        )
    if cuts.responses:
        lines.append(
            f"{cuts.responses} of the {2 * pairs} answers of {among} pairs are longer than max_response_tokens "
            f"({spec.max_response_tokens}) and lose their end"
        )
    return lines
