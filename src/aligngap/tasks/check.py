"""What a preference data set holds, before any training: `aligngap check`.

One pass. What is kept of a pair is its lengths and digests of its texts: memory grows by some hundred bytes a pair,
however long they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import polars as pl
from transformers import PreTrainedTokenizerBase

from aligngap.errors import UserError
from aligngap.seeds import digest
from aligngap.tasks.datasets import DatasetSpec, Tally, read
from aligngap.tasks.encode import Encoded, encode, prompt_key
from aligngap.tasks.formats import TextPair

QUANTILES = {"min": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "max": 1.0}
_SIDES = ("prompt", "chosen", "rejected")


class Leak(NamedTuple):
    """A split beside the train split. rows, prompts: whose prompt is in train too; pairs: rows that are whole."""

    split: str
    rows: int
    prompts: int
    pairs: int


@dataclass(frozen=True)
class Contents:
    """What `check` found. Shares are of the pairs counted beside them, and None where that count is 0.

    dropped: reason -> count and the first rows. lengths: prompt, chosen, rejected -> quantiles, in `unit`; responses
    in tokens count the end token. over_limit: prompts and responses that the limits of the specification would cut.
    repeated_prompts: pairs whose prompt came before; repeated_pairs: likewise for the whole pair, in either order of
    the answers. conflicting_pairs: the same pair with the opposite preference as well. repeat_the_prompt: answers that
    begin with the text of their prompt. unknown_tokens: share of prompt and answer tokens that the tokenizer does not
    know. decided: pairs that are no tie; mean_difference: of chosen over rejected, in `unit`.
    """

    source: str
    format: str
    about: str
    read: int
    kept: int
    dropped: Mapping[str, Mapping[str, Any]]
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
        return {**asdict(self), "leaks": [leak._asdict() for leak in self.leaks]}

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        """The same for people: heading and lines."""
        yield "schema", [f"{self.format}: {self.about}"]
        rows = [f"{self.read} read, {self.kept} kept, {self.read - self.kept} dropped"]
        for reason, found in self.dropped.items():
            more = ["..."] if found["count"] > len(found["rows"]) else []
            rows.append(f"dropped: {reason}: {found['count']} ({', '.join([*found['rows'], *more])})")
        if self.splits:
            rows.append("kept by split: " + ", ".join(f"{name} {count}" for name, count in self.splits.items()))
        yield "rows", rows
        lines = [f"{'':<10}" + "".join(f"{name:>9}" for name in (*QUANTILES, "mean"))]
        for side in _SIDES:
            lines.append(f"{side:<10}" + "".join(f"{value:>9.5g}" for value in self.lengths[side].values()))
        if self.over_limit is not None:
            lines += [f"over the limit of {name}: {count}" for name, count in self.over_limit.items()]
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
                f"too, {leak.pairs} of them the whole pair"
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


def describe(spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase | None = None, split: str | None = None) -> Contents:
    """Read a set, or one split of it, and describe it. Lengths are in words, or in tokens with a tokenizer.

    Raises UserError where the data cannot be read or leave no pair.
    """
    reading, refused = read(spec, split), Tally()
    if tokenizer is None:
        measured = [_in_words(pair) for pair in reading]
    else:
        found = encode(reading, tokenizer, refused)
        measured = [_in_tokens(item, tokenizer) for item in found if item is not None]
    tally = reading.tally
    tally.add(refused)
    if not measured:
        raise UserError("no pair is left", where=spec.source, hint="; ".join(tally.reasons()))
    frame = pl.DataFrame(measured, schema=list(_Measured._fields), orient="row", infer_schema_length=None)
    schema = reading.schema
    assert schema is not None  # a reading that gave pairs knows its format
    lengths: dict[str, dict[str, float | None]] = {
        side: {name: frame[side].quantile(q, "nearest") for name, q in QUANTILES.items()} | {"mean": _mean(frame[side])}
        for side in _SIDES
    }
    over = unknown = None
    if tokenizer is not None:
        prompt, response = spec.max_prompt_tokens, spec.max_response_tokens
        over = {
            f"{prompt} prompt tokens": len(frame.filter(pl.col("prompt") > prompt)),
            f"{response} response tokens": sum(
                len(frame.filter(pl.col(side) > response)) for side in ("chosen", "rejected")
            ),
        }
        if _unknown_token(tokenizer) is not None:
            unknown = frame["unknown"].sum() / frame.select(pl.sum_horizontal(_SIDES)).sum().item()
    splits = {name: count for name, count in frame["split"].value_counts(sort=True).rows() if name is not None}
    train = next((name for name in ("train", *sorted(splits)) if name in splits), None) if len(splits) > 1 else None
    decided, positioned = frame.filter(pl.col("preference") != 0.5), frame.filter(pl.col("positioned"))
    both_ways = frame.group_by("pair_key").agg(pl.len(), pl.col("chosen_key").n_unique().alias("ways"))
    return Contents(
        source=spec.source,
        format=schema.name,
        about=schema.about,
        read=tally.read,
        kept=len(frame),
        dropped={
            reason: {"count": count, "rows": tally.rows.get(reason, [])}
            for reason, count in tally.dropped.most_common()
        },
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
    return Leak(name, len(rows), rows["prompt_key"].n_unique(), len(pairs))


class _Measured(NamedTuple):
    """What is kept of a pair. prompt, chosen, rejected: lengths; the keys stand for texts."""

    split: str | None
    prompt: int
    chosen: int
    rejected: int
    unknown: int
    repeats: int
    preference: float
    positioned: bool
    prompt_key: str
    pair_key: str
    chosen_key: str


def _measured(pair: TextPair, lengths: tuple[int, int, int], unknown: int = 0) -> _Measured:
    prompt = prompt_key(pair.prompt)
    keys = (
        prompt,
        digest(prompt, *sorted((pair.first, pair.second))),
        digest(pair.chosen, int(pair.preference == 0.5)),
    )
    text = pair.prompt if isinstance(pair.prompt, str) else pair.prompt[-1].content
    repeats = sum(answer.strip().startswith(text.strip()) for answer in (pair.first, pair.second))
    hexadecimal = (f"{key:032x}" for key in keys)
    return _Measured(pair.split, *lengths, unknown, repeats, pair.preference, pair.positioned, *hexadecimal)


def _in_words(pair: TextPair) -> _Measured:
    prompt = pair.prompt if isinstance(pair.prompt, str) else " ".join(message.content for message in pair.prompt)
    return _measured(pair, (len(prompt.split()), len(pair.chosen.split()), len(pair.rejected.split())))


def _in_tokens(item: Encoded, tokenizer: PreTrainedTokenizerBase) -> _Measured:
    first, second = len(item.first), len(item.second)
    sides = (first, second) if item.pair.preference >= 0.5 else (second, first)
    unknown = _unknown_token(tokenizer)
    count = 0 if unknown is None else sum(ids.count(unknown) for ids in (item.prompt, item.first, item.second))
    return _measured(item.pair, (len(item.prompt), *sides), count)


def _unknown_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Its id. Byte-level tokenizers know every text, and some name their end token here."""
    unknown = tokenizer.unk_token_id
    return None if unknown is None or unknown == tokenizer.eos_token_id else int(unknown)
