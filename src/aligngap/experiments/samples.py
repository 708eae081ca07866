"""The sample table: prompts and responses as text, for the report's reader."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import polars as pl
import torch

from aligngap.experiments.bench import Bench
from aligngap.judges.text import PromptReader
from aligngap.models.tokenizer import end_tokens, load_tokenizer
from aligngap.results import SAMPLES, SPLITS
from aligngap.store.store import Store
from aligngap.tasks.pairs import read_pairs


def samples(bench: Bench, task: str, store: Store, arms: Sequence[pl.DataFrame]) -> list[pl.DataFrame]:
    """A frame an arm, of its rows of per_prompt.parquet with response_ids, and then a frame a seed, opponent and split:
    the first prompts of each split, which on the train split are each seed's own. Nothing where no arm is finished.
    """
    finished = {int(frame["seed"][0]) for frame in arms if len(frame)}
    if not finished:
        return []
    texts = {seed: _Texts(bench.of(seed), store) for seed in sorted(finished)}
    frames = [
        texts[int(frame["seed"][0])].shown(frame.with_columns(pl.lit("policy").alias("who")))
        for frame in arms
        if len(frame)
    ]
    for seed, split in product(texts, SPLITS):
        for stage in bench.of(seed).opponents:
            part = pl.read_parquet(store.get(stage.identity).file(f"{split}.parquet"))
            labels = {"task": task, "split": split, "who": stage.who, "arm": None, "seed": seed, "step": None}
            labels |= {"margin_golden": None, "margin_proxy": None, "win_golden_policy_golden": None}
            frames.append(
                texts[seed].shown(part.with_columns(pl.lit(value).alias(name) for name, value in labels.items()))
            )
    return frames


class _Texts:
    """Token ids as text, for the prompts that are shown: the first `shown` of each split."""

    def __init__(self, bench: Bench, store: Store, shown: int = 32) -> None:
        self._tokenizer = load_tokenizer(bench.policy_base.checkpoint)
        read = PromptReader(self._tokenizer)
        self._prompts: dict[int, str] = {}
        for split in SPLITS:
            pairs = read_pairs(store.get(bench.pairs.identity).file(f"{split}.parquet"))
            pairs = pairs.take(torch.arange(min(shown, len(pairs))))
            for number, ids in zip(pairs.prompt_numbers.tolist(), pairs.prompts.rows(), strict=True):
                self._prompts[number] = read(ids)

    def shown(self, part: pl.DataFrame) -> pl.DataFrame:
        """The table's columns of what is shown, with prompt and response as text."""
        part = part.filter(pl.col("prompt_number").is_in(list(self._prompts)))
        ends = end_tokens(self._tokenizer)
        ids = part["response_ids"].to_list()
        ended = [bool(row) and row[-1] in ends for row in ids]
        text = [str(self._tokenizer.decode(row[:-1] if stop else row)) for row, stop in zip(ids, ended, strict=True)]
        prompts = [self._prompts[number] for number in part["prompt_number"].to_list()]
        frame = part.with_columns(
            pl.Series("prompt", prompts, dtype=pl.String),
            pl.Series("response", text, dtype=pl.String),
            pl.Series("ended", ended, dtype=pl.Boolean),
        )
        return frame.select(pl.col(name).cast(kind) for name, kind in SAMPLES.items())
