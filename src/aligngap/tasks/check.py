"""What a preference data set holds, before any training: `aligngap check`.

One pass. What is kept of a pair is its lengths and digests of its texts: memory grows by some hundred bytes a pair,
however long they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import polars as pl
from transformers import PreTrainedTokenizerBase

from aligngap.errors import UserError
from aligngap.models.tokenizer import end_tokens
from aligngap.seeds import digest
from aligngap.tasks.chat import template_facts
from aligngap.tasks.datasets import DatasetSpec, Tally, open_parts, read, splits_of, training_split
from aligngap.tasks.encode import Encoded, encode, loose_key, prompt_key, unusable
from aligngap.tasks.formats import Schema, TextPair

QUANTILES = {"min": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "max": 1.0}
_SIDES = ("prompt", "chosen", "rejected")


class Leak(NamedTuple):
    """A split beside the train split. rows, prompts: whose prompt is in train too; pairs: rows that are whole; nearly:
    rows whose prompt differs from one in train in case, white space or the mark at its end only.
    """

    split: str
    rows: int
    prompts: int
    pairs: int
    nearly: int


@dataclass(frozen=True)
class Contents:
    """What `check` found. Shares are of the pairs counted beside them, and None where that count is 0.

    tally: what became of the rows; warnings: of that, what nobody should overlook.
    facts: what tokenizer and template do to any conversation; written_ends: answers in which the data wrote an end
    token. lengths: prompt, chosen, rejected -> quantiles, in `unit`; responses in tokens count the end token.
    over_limit: prompts and responses that the limits of the specification would cut, and pairs that would be dropped
    because their answers are the same once cut. repeated_prompts: pairs whose prompt came before; repeated_pairs:
    likewise for the whole pair, in either order of the answers. conflicting_pairs: the same pair with the opposite
    preference as well. repeat_the_prompt: answers that begin with the text of their prompt. unknown_tokens:
    share of prompt and answer tokens that the tokenizer does not know. decided: pairs that are no tie; mean_difference:
    of chosen over rejected, in `unit`.
    """

    source: str
    format: str
    about: str
    kept: int
    tally: Tally
    warnings: tuple[str, ...]
    facts: tuple[str, ...]
    written_ends: int | None
    splits: Mapping[str, int]
    unit: str
    lengths: Mapping[str, Mapping[str, float | None]]
    over_limit: Mapping[str, int] | None
    unknown_tokens: float | None
    prompts: int
    repeated_prompts: int
    repeated_pairs: int
    conflicting_pairs: int
    repeat_the_prompt: int
    leaks: tuple[Leak, ...]
    train_split: str | None
    positioned: int
    first_preferred: float | None
    ties: int
    decided: int
    chosen_longer: float | None
    same_length: float | None
    mean_difference: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain values, as `check --json` prints them."""
        own = {name: value for name, value in vars(self).items() if name != "tally"}
        return own | {"leaks": [leak._asdict() for leak in self.leaks]} | self.tally.as_json()

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        """The same for people: heading and lines."""
        if self.warnings:
            yield "WARNING", list(self.warnings)
        yield "schema", [f"{self.format}: {self.about}"]
        tally = self.tally
        rows = [f"{tally.read} read, {self.kept} kept, {tally.read - self.kept} dropped"]
        rows += [f"dropped: {line}" for line in tally.reasons()]
        rows += [f"kept, but: {line}" for line in tally.lines(tally.notes)]
        if tally.unused:
            names = ", ".join(f"{name} ({count} rows)" for name, count in tally.unused.most_common())
            rows.append(f"columns that are not used: {names}")
        if self.splits:
            rows.append("kept by split: " + ", ".join(f"{name} {count}" for name, count in self.splits.items()))
        if self.train_split is not None:
            rows.append(f"trained on: {self.train_split}")
        yield "rows", rows
        if self.facts:
            written = (
                f"answers in which the data wrote an end token, behind which nothing is taken: {self.written_ends}"
            )
            yield "tokenizer", [*self.facts, written]
        lines = [f"{'':<10}" + "".join(f"{name:>9}" for name in (*QUANTILES, "mean"))]
        for side in _SIDES:
            lines.append(f"{side:<10}" + "".join(f"{value:>9.5g}" for value in self.lengths[side].values()))
        if self.over_limit is not None:
            lines += [f"{name}: {count}" for name, count in self.over_limit.items()]
        if self.unknown_tokens is not None:
            lines.append(f"tokens that the tokenizer does not know: {_percent(self.unknown_tokens)}")
        yield f"length, in {self.unit}", lines
        yield (
            "duplicates",
            [
                f"{self.prompts} different prompts; {self.repeated_prompts} pairs repeat an earlier prompt",
                f"{self.repeated_pairs} pairs repeat an earlier pair; {self.conflicting_pairs} are also there with the "
                "opposite preference",
                f"{self.repeat_the_prompt} answers begin with the whole text of their prompt",
            ],
        )
        if self.train_split is not None:
            lines = [
                f"{leak.split}: {leak.rows} rows ({leak.prompts} prompts) have a prompt that is in {self.train_split} "
                f"too, {leak.pairs} of them the whole pair; {leak.nearly} more differ from one in case, "
                "white space or a last mark only"
                for leak in self.leaks
            ]
        else:
            lines = ["one split only: train and held-out are split by prompt, and share none"]
        yield "leakage", lines
        if self.positioned:
            balance = f"the first answer is preferred in {_percent(self.first_preferred)} of {self.positioned} pairs"
        else:
            balance = "the data do not say which answer was seen first: chance puts the chosen one first or second"
        yield "labels", [balance, f"{self.ties} ties"]
        if self.decided:
            difference = f"{self.mean_difference:+.2f} {self.unit} on average"
            longer = f"chosen is longer in {_percent(self.chosen_longer)}, as long in {_percent(self.same_length)}"
            yield "chosen against rejected", [f"{longer} of {self.decided} pairs; {difference}"]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


class Survey(NamedTuple):
    """One pass over a set. frame: a row of `_Measured` a pair; tally: what became of the rows."""

    frame: pl.DataFrame
    tally: Tally
    schema: Schema
    train_split: str | None
    written_ends: int


def survey(spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase | None = None, split: str | None = None) -> Survey:
    """Read a set, or one split of it. Lengths are in words, or in tokens with a tokenizer.

    Raises UserError where the data cannot be read or leave no pair.
    """
    own = splits_of(spec, open_parts(spec))
    reading, ends = read(spec, split), 0
    refused = Tally()
    measured = []
    if tokenizer is None:
        measured = [_in_words(pair) for pair in reading]
    else:
        for item in encode(reading, tokenizer, refused):
            if item is None:
                continue
            ends += item.ends
            if reason := unusable(item, max(len(item.first), len(item.second))):
                refused.drop(reason, item.pair.where)
            else:
                measured.append(_in_tokens(item, tokenizer))
    tally = reading.tally
    tally.add(refused)
    if not measured:
        raise UserError("no pair is left", where=spec.source, hint="; ".join(tally.reasons()))
    frame = pl.DataFrame(measured, schema=list(_Measured._fields), orient="row", infer_schema_length=None)
    assert reading.schema is not None  # a reading that gave pairs knows its format
    train = training_split(own, spec.split, spec.source) if split is None and len(own) > 1 else None
    return Survey(frame, tally, reading.schema, train, ends)


def limit_costs(frame: pl.DataFrame, prompt: int, response: int) -> dict[str, int]:
    """What limits of so many tokens do to the pairs of a survey: sentences, with how many they concern."""
    long = sum(len(frame.filter(pl.col(side) > response)) for side in ("chosen", "rejected"))
    return {
        f"prompts over {prompt} tokens, which lose their beginning": len(frame.filter(pl.col("prompt") > prompt)),
        f"answers over {response} tokens, which lose their end": long,
        f"pairs dropped because their answers are the same once cut to {response} tokens": len(
            frame.filter(pl.col("shared") >= response)
        ),
    }


def describe(spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase | None = None, split: str | None = None) -> Contents:
    """Read a set, or one split of it, and describe it, as `survey` reads it. Raises UserError as that does."""
    frame, tally, schema, train, ends = survey(spec, tokenizer, split)
    lengths: dict[str, dict[str, float | None]] = {
        side: {name: frame[side].quantile(q, "nearest") for name, q in QUANTILES.items()} | {"mean": _mean(frame[side])}
        for side in _SIDES
    }
    over = unknown = None
    warnings = tally.warnings()
    if tokenizer is not None:
        over = limit_costs(frame, spec.max_prompt_tokens, spec.max_response_tokens)
        if (same := [*over.values()][-1]) > len(frame) / 20:
            warnings.append(f"{same} of {len(frame)} pairs have answers that are the same once cut: raise the limit")
        if _unknown_token(tokenizer) is not None:
            unknown = frame["unknown"].sum() / frame.select(pl.sum_horizontal(_SIDES)).sum().item()
    splits = {name: count for name, count in frame["split"].value_counts(sort=True).rows() if name is not None}
    decided, positioned = frame.filter(pl.col("preference") != 0.5), frame.filter(pl.col("positioned"))
    both_ways = frame.group_by("pair_key").agg(pl.len(), pl.col("chosen_key").n_unique().alias("ways"))
    return Contents(
        source=spec.source,
        format=schema.name,
        about=schema.about,
        kept=len(frame),
        tally=tally,
        warnings=tuple(warnings),
        facts=tuple(template_facts(tokenizer, end_tokens(tokenizer))) if tokenizer is not None else (),
        written_ends=ends if tokenizer is not None else None,
        splits=splits,
        unit="words" if tokenizer is None else "tokens",
        lengths=lengths,
        over_limit=over,
        unknown_tokens=unknown,
        prompts=frame["prompt_key"].n_unique(),
        repeated_prompts=len(frame) - frame["prompt_key"].n_unique(),
        repeated_pairs=len(frame) - frame["pair_key"].n_unique(),
        conflicting_pairs=int(both_ways.filter(pl.col("ways") > 1)["len"].sum()),
        repeat_the_prompt=int(frame["repeats"].sum()),
        leaks=tuple(_leak(frame, train, name) for name in sorted(splits) if name != train) if train else (),
        train_split=train,
        positioned=len(positioned),
        first_preferred=_mean(positioned["preference"]),
        ties=len(frame) - len(decided),
        decided=len(decided),
        chosen_longer=_mean(decided["chosen"] > decided["rejected"]),
        same_length=_mean(decided["chosen"] == decided["rejected"]),
        mean_difference=_mean(decided["chosen"] - decided["rejected"]),
    )


def _mean(values: pl.Series) -> float | None:
    return float(values.cast(pl.Float64).mean()) if len(values) else None  # type: ignore[arg-type]


def _leak(frame: pl.DataFrame, train: str, name: str) -> Leak:
    inside, other = (frame.filter(pl.col("split") == split) for split in (train, name))
    rows = other.filter(pl.col("prompt_key").is_in(inside["prompt_key"].unique().implode()))
    pairs = rows.filter(pl.col("pair_key").is_in(inside["pair_key"].unique().implode()))
    loose = other.filter(pl.col("loose_key").is_in(inside["loose_key"].unique().implode()))
    return Leak(name, len(rows), rows["prompt_key"].n_unique(), len(pairs), len(loose) - len(rows))


class _Measured(NamedTuple):
    """What is kept of a pair. prompt, chosen, rejected: lengths; shared: tokens with which both answers begin; the keys
    stand for texts.
    """

    split: str | None
    prompt: int
    chosen: int
    rejected: int
    shared: int
    unknown: int
    repeats: int
    preference: float
    positioned: bool
    prompt_key: str
    loose_key: str
    pair_key: str
    chosen_key: str


def _measured(pair: TextPair, lengths: tuple[int, int, int], shared: int = 0, unknown: int = 0) -> _Measured:
    prompt = prompt_key(pair.prompt)
    keys = (
        prompt,
        loose_key(pair.prompt),
        digest(prompt, *sorted((pair.first, pair.second))),
        digest(pair.chosen, int(pair.preference == 0.5)),
    )
    text = pair.prompt if isinstance(pair.prompt, str) else pair.prompt[-1].content
    repeats = sum(answer.strip().startswith(text.strip()) for answer in (pair.first, pair.second))
    hexadecimal = (f"{key:032x}" for key in keys)
    return _Measured(pair.split, *lengths, shared, unknown, repeats, pair.preference, pair.positioned, *hexadecimal)


def _in_words(pair: TextPair) -> _Measured:
    prompt = pair.prompt if isinstance(pair.prompt, str) else " ".join(message.content for message in pair.prompt)
    return _measured(pair, (len(prompt.split()), len(pair.chosen.split()), len(pair.rejected.split())))


def _in_tokens(item: Encoded, tokenizer: PreTrainedTokenizerBase) -> _Measured:
    first, second = len(item.first), len(item.second)
    sides = (first, second) if item.pair.preference >= 0.5 else (second, first)
    unknown = _unknown_token(tokenizer)
    count = 0 if unknown is None else sum(ids.count(unknown) for ids in (item.prompt, item.first, item.second))
    different = (at for at, (a, b) in enumerate(zip(item.first, item.second, strict=False)) if a != b)
    shared = next(different, min(first, second))
    return _measured(item.pair, (len(item.prompt), *sides), shared, count)


def _unknown_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Its id. Byte-level tokenizers know every text, and some name their end token here."""
    unknown = tokenizer.unk_token_id
    return None if unknown is None or unknown == tokenizer.eos_token_id else int(unknown)
