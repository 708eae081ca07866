"""From pairs as text to pairs as token ids, and to the train and held-out data of a task.

Rules. A conversation is written by the tokenizer's chat template where it has one, else as `Human:` and `Assistant:`
turns; a text prompt is taken as it stands. Prompt and response are tokenised apart, as sampling leaves them, and the
end token closes the response. A prompt that is too long loses its beginning (a leading beginning-of-sequence token
stays); a response that is too long loses its end, and then has no end token.
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from aligngap.errors import UserError
from aligngap.models.build import end_tokens, written_by_template
from aligngap.seeds import digest
from aligngap.tasks.datasets import DatasetSpec, Reading, Tally, open_parts, select
from aligngap.tasks.formats import Dropped, PromptText, TextPair
from aligngap.tasks.spec import TaskData
from aligngap.types import PairBatch, Tokens

_CHUNK = 512
_NAMES = {"user": "Human"}


class Encoded(NamedTuple):
    """A pair's token ids, not yet cut to their limits. ends: in how many responses the data themselves wrote an end
    token, behind which nothing is taken.
    """

    pair: TextPair
    prompt: list[int]
    first: list[int]
    second: list[int]
    ends: int


@dataclass
class Cuts:
    """How many prompts and responses were cut to their limits, and responses to an end token that the data wrote."""

    prompts: int = 0
    responses: int = 0
    end_tokens: int = 0


@dataclass(frozen=True)
class PreparedData:
    """A data set as a task's data, with what became of its rows. `tally` counts the rows of both splits."""

    data: TaskData
    format: str
    tally: Tally
    cuts: Cuts

    def as_json(self) -> dict[str, object]:
        """What was read, kept, dropped and cut, as JSON values."""
        return {
            "format": self.format,
            "train_pairs": len(self.data.train),
            "held_out_pairs": len(self.data.held_out),
            "rows_read": self.tally.read,
            "rows_dropped": dict(self.tally.dropped.most_common()),
            "cut_prompts": self.cuts.prompts,
            "cut_responses": self.cuts.responses,
            "end_tokens_in_responses": self.cuts.end_tokens,
        }


def prompt_key(prompt: PromptText) -> int:
    """A 128-bit number that is the same for equal prompts only."""
    if isinstance(prompt, str):
        return digest("prompt", prompt)
    return digest("conversation", *(part for message in prompt for part in message))


def encode(pairs: Iterable[TextPair], tokenizer: PreTrainedTokenizerBase, tally: Tally) -> Iterator[Encoded | None]:
    """Token ids of pairs, one item a pair, in order, a chunk of pairs in memory at a time.

    A pair that the chat template refuses, or whose prompt has no token, comes out as None and is counted as dropped.
    Raises UserError for a tokenizer without an end token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token: a response could not end",
            where=str(tokenizer.name_or_path) or "tokenizer",
            hint="Set `eos_token` and save the tokenizer again.",
        )
    pairs = iter(pairs)
    while chunk := list(itertools.islice(pairs, _CHUNK)):
        yield from _encode_chunk(chunk, tokenizer, tally)


def _encode_chunk(chunk: list[TextPair], tokenizer: Any, tally: Tally) -> Iterator[Encoded | None]:
    template = getattr(tokenizer, "chat_template", None) is not None
    prompts: dict[int, list[int]] = {}
    for conversation in (False, True):
        texts: dict[int, str] = {}
        for index, pair in enumerate(chunk):
            if isinstance(pair.prompt, str) is not conversation:
                try:
                    texts[index] = prompt_text(pair.prompt, tokenizer if template else None)
                except Dropped as reason:
                    tally.drop(str(reason), pair.where)
        # A template writes the special tokens itself; other prompts get those that the tokenizer adds.
        prompts |= zip(texts, _ids(tokenizer, list(texts.values()), not (conversation and template)), strict=True)
    gaps = ["" if template or isinstance(pair.prompt, str) else " " for pair in chunk]
    answers = [gap + side for gap, pair in zip(gaps, chunk, strict=True) for side in (pair.first, pair.second)]
    sides = _ids(tokenizer, answers, False)
    ending = end_tokens(tokenizer)
    for index, pair in enumerate(chunk):
        if prompts.get(index):
            a, b = sides[2 * index : 2 * index + 2]
            written = sum(not set(ending).isdisjoint(side) for side in (a, b))
            yield Encoded(pair, prompts[index], _ended(a, ending), _ended(b, ending), written)
        else:
            if index in prompts:
                tally.drop("the prompt has no tokens", pair.where)
            yield None


def prompt_text(prompt: PromptText, tokenizer: Any = None) -> str:
    """A prompt as it is written: a conversation by the tokenizer's chat template, or as turns without one. Raises
    Dropped where the template refuses it.
    """
    if isinstance(prompt, str):
        return prompt
    if tokenizer is None:
        turns = (f"\n\n{_NAMES.get(role, role.capitalize())}: {content}" for role, content in prompt)
        return "".join(turns) + "\n\nAssistant:"
    try:
        return written_by_template(tokenizer, [message._asdict() for message in prompt], open_end=True)
    except TemplateError as error:  # some take no system message, or no two turns of one role
        raise Dropped(f"the chat template refuses the prompt: {error}") from None


def _ids(tokenizer: Any, texts: list[str], special: bool) -> list[list[int]]:
    # verbose: the tokenizer would warn of every text beyond the model's context, which is cut and counted here.
    return tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"] if texts else []


def _ended(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Closed by the first of `ends`. Nothing follows an end token: a sampled response never goes on behind one."""
    first = next((at for at, token in enumerate(ids) if token in ends), len(ids))
    return [*ids[:first], ends[0]]


def cut_prompt(ids: list[int], limit: int, begin: int | None) -> list[int]:
    """The last `limit` tokens; a leading beginning-of-sequence token stays at the head."""
    if len(ids) <= limit:
        return ids
    return [begin, *ids[1 - limit :]] if begin is not None and ids[0] == begin and limit > 1 else ids[-limit:]


def make_dataset_pairs(spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    """`D_initial` of a real data set: what `make_pairs` is to a built-in world.

    No prompt is in both splits. Pairs are in a random order set by `spec.seed`, one pair of every prompt before the
    second of any, so that the first n hold as many different prompts as can be; numbers count them from 0, held-out
    after train. The data are read twice: to split, then to keep the token ids of the pairs chosen. Where the data do
    not say which answer was seen first, chance does. Raises UserError.
    """
    readings = _readings(spec)
    groups = [[prompt_key(pair.prompt) for pair in reading] for reading in readings]
    keys = list(itertools.chain(*groups))
    train, held = _parted(groups, spec)
    chosen = (
        _ordered(train, keys, spec.seed)[: spec.train_pairs],
        _ordered(held, keys, spec.seed)[: spec.held_out_pairs],
    )
    cuts, tally = Cuts(), Tally()
    wanted = sorted(itertools.chain(*chosen))
    leaked = set(range(len(groups[0]))).difference(train) if spec.held_out_split is not None else set()
    stream = _taken(itertools.chain(*readings), set(wanted), leaked, tally)
    rows = {
        index: _row(item, spec, tokenizer, cuts)
        for index, item in zip(wanted, encode(stream, tokenizer, tally), strict=True)
        if item is not None
    }
    for reading in readings:
        tally.add(reading.tally)
    held_prompts = {rows[index].prompt.tobytes() for index in chosen[1] if index in rows}
    for index in chosen[0]:
        if index in rows and rows[index].prompt.tobytes() in held_prompts:
            tally.drop("the prompt is held out as well, once it is cut", rows.pop(index).where)
    batches, number = [], 0
    for split, order in zip(("train", "held-out"), chosen, strict=True):
        found = [rows[index] for index in order if index in rows]
        if not found:
            what = f"no pair is left for the {split} split"
            raise UserError(what, where=spec.source, hint="; ".join(tally.reasons()) or "Give more data.")
        batches.append(_batch(found, number))
        number += len(found)
    data = TaskData(batches[0], batches[1], spec.max_response_tokens)
    return PreparedData(data, readings[0].schema.name if readings[0].schema else "", tally, cuts)


def train_pairs(spec: DatasetSpec) -> Iterator[TextPair]:
    """The train split's pairs as text, in the data's order: those that `make_dataset_pairs` chooses from. Reads the
    data twice. Raises UserError.
    """
    readings = _readings(spec)
    train = set(_parted([[prompt_key(pair.prompt) for pair in reading] for reading in readings], spec)[0])
    return (pair for index, pair in enumerate(readings[0]) if index in train)


def _parted(groups: Sequence[Sequence[int]], spec: DatasetSpec) -> tuple[list[int], list[int]]:
    """Which pairs, counted over all readings, are to train on and which are held out. groups: each reading's prompts'
    keys.
    """
    keys = list(itertools.chain(*groups))
    if spec.held_out_split is None:
        outside = _held_out(keys, spec)
        held = [index for index, key in enumerate(keys) if key in outside]
    else:
        outside = set(groups[1])
        held = list(range(len(groups[0]), len(keys)))
    return [index for index in range(len(groups[0])) if keys[index] not in outside], held


def _readings(spec: DatasetSpec) -> list[Reading]:
    parts = open_parts(spec)
    names = sorted({part.split for part in parts if part.split is not None})
    split = spec.split or ("train" if "train" in names else None)
    if split is None and len(names) > 1:
        raise UserError("there are several splits", where=spec.source, hint=f"Choose one: {', '.join(names)}.")
    wanted = [split] if spec.held_out_split is None else [split, spec.held_out_split]
    return [Reading(spec, *select(parts, name, spec.source)) for name in wanted]


def _held_out(keys: Sequence[int], spec: DatasetSpec) -> set[int]:
    """Prompts to hold out: in a random order, each that still fits into the number of pairs wanted."""
    wanted = spec.held_out_pairs or max(1, round(spec.held_out_share * len(keys)))
    counts = Counter(keys)
    prompts = sorted(counts, key=lambda key: digest("data", "held-out", spec.seed, key))
    held: set[int] = set()
    left = wanted
    for key in prompts[:-1]:
        if counts[key] <= left:
            held.add(key)
            left -= counts[key]
    if not held:
        raise UserError(
            f"{len(keys)} pairs of {len(prompts)} prompts cannot be split into train and held-out",
            where=spec.source,
            hint=f"Every prompt has more than {wanted} pairs, or there is one only: hold out more, or give more data.",
        )
    return held


def _ordered(indices: Iterable[int], keys: Sequence[int], seed: int) -> list[int]:
    """Shuffled by prompt; the second pairs of prompts after all first ones."""
    seen: Counter[int] = Counter()
    places = []
    for index in indices:
        seen[keys[index]] += 1
        places.append((seen[keys[index]], digest("data", "order", seed, keys[index]), index))
    return [index for *_, index in sorted(places)]


def _taken(pairs: Iterable[TextPair], wanted: set[int], leaked: set[int], tally: Tally) -> Iterator[TextPair]:
    """Those wanted, by place. Counts those that leak, and reads to the end, so that every row is counted."""
    for index, pair in enumerate(pairs):
        if index in wanted:
            yield pair
        elif index in leaked:
            tally.drop("the prompt is held out as well", pair.where)


class _Row(NamedTuple):
    prompt: array[int]
    first: array[int]
    second: array[int]
    preference: float
    provenance: str
    where: str


def _row(item: Encoded, spec: DatasetSpec, tokenizer: Any, cuts: Cuts) -> _Row:
    pair = item.pair
    prompt = cut_prompt(item.prompt, spec.max_prompt_tokens, tokenizer.bos_token_id)
    first, second = (ids[: spec.max_response_tokens] for ids in (item.first, item.second))
    cuts.prompts += len(prompt) < len(item.prompt)
    cuts.responses += (len(first) < len(item.first)) + (len(second) < len(item.second))
    cuts.end_tokens += item.ends
    origin = f"{spec.name}{f' {pair.split}' if pair.split else ''} row {pair.row}"
    turned = not pair.positioned and digest("data", "position", spec.seed, prompt_key(pair.prompt), origin) % 2 == 1
    sides = (second, first, 1 - pair.preference) if turned else (first, second, pair.preference)
    return _Row(array("i", prompt), array("i", sides[0]), array("i", sides[1]), sides[2], origin, pair.where)


def _batch(rows: Sequence[_Row], start: int) -> PairBatch:
    return PairBatch(
        torch.arange(start, start + len(rows)),
        Tokens.collate([row.prompt for row in rows]),
        Tokens.collate([row.first for row in rows]),
        Tokens.collate([row.second for row in rows]),
        torch.tensor([row.preference for row in rows], dtype=torch.float32),
        tuple(row.provenance for row in rows),
    )
