"""From pairs as text to pairs as token ids, and to the train and held-out data of a task.

Rules. A conversation is written by the tokenizer's chat template where it has one, else as `Human:` and `Assistant:`
turns (`chat.py`); a text prompt is taken as it stands. A response's tokens are those that follow the prompt's when both
are tokenised as one text; where that would join the two, they are tokenised apart, and counted. The end token closes
the response. Control tokens that the text of a conversation spells out are text (`models/controls.py`), but for those
that close an answer; a text prompt and its answers may have been written by a template before, and are taken as they
stand, counted. A prompt that is too long loses its beginning (a leading beginning-of-sequence token stays); a response
that is too long loses its end, and then has no end token. What must hold of a pair is checked on the token rows that
training sees, after both: `unusable`.
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from aligngap.errors import UserError
from aligngap.models.controls import Controls
from aligngap.models.tokenizer import end_tokens
from aligngap.seeds import digest
from aligngap.tasks.chat import WrittenPair, write
from aligngap.tasks.datasets import DatasetSpec, Reading, Tally, open_parts, select, splits_of, training_split
from aligngap.tasks.formats import TextPair
from aligngap.tasks.messages import Dropped, Message, PromptText, plain
from aligngap.tasks.spec import TaskData
from aligngap.types import PairBatch, Tokens

_CHUNK = 512
_FEWEST_PAIRS = 2
"""Training pairs, as few as can differ."""

TOGETHER = "where prompt and answer meet, the tokenizer would join them: the two are tokenised apart"
READ_AS_TEXT = "a turn or answer spells the control token {!r}: it is read as text, and no turn begins or ends there"
READ_AS_CONTROL = "the text of a prompt or answer holds {!r}: it is read as that control token, not as text"
LEFT_BEHIND_END = "the text of an answer holds an end token before its end: what follows is left out"
TWO_BEGINNINGS = "the prompt's text begins with the beginning-of-sequence token already: it is there once"


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
    """A data set as a task's data, with what became of its rows. `tally` counts the rows of both splits;
    `ends`: the tokens that end a response, the one that closes it first.
    """

    data: TaskData
    format: str
    tally: Tally
    cuts: Cuts
    ends: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """What was read, kept, dropped and cut, as JSON values."""
        return {
            "format": self.format,
            "train_pairs": len(self.data.train),
            "held_out_pairs": len(self.data.held_out),
            "rows_read": self.tally.read,
            "rows_dropped": dict(self.tally.dropped.most_common()),
            "rows": self.tally.as_json(),
            "warnings": self.tally.warnings(),
            "cut_prompts": self.cuts.prompts,
            "cut_responses": self.cuts.responses,
            "end_tokens": list(self.ends),
            "end_tokens_in_responses": self.cuts.end_tokens,
        }


def prompt_key(prompt: PromptText) -> int:
    """A 128-bit number that is the same for equal prompts only."""
    if isinstance(prompt, str):
        return digest("prompt", prompt)
    parts = [(*message[:2], *(["keys", message.keys] if message.keys else [])) for message in prompt]
    return digest("conversation", *itertools.chain(*parts))


def loose_key(prompt: PromptText) -> int:
    """The same for prompts that differ in case, white space or the mark at their end only."""
    return digest("loose", plain(prompt if isinstance(prompt, str) else prompt[-1].content))


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
    pairs, controls = iter(pairs), Controls(tokenizer)
    while chunk := list(itertools.islice(pairs, _CHUNK)):
        yield from _encode_chunk(chunk, tokenizer, controls, tally)


def _encode_chunk(chunk: list[TextPair], tokenizer: Any, controls: Controls, tally: Tally) -> Iterator[Encoded | None]:
    by_template = tokenizer if getattr(tokenizer, "chat_template", None) is not None else None
    written: dict[int, WrittenPair] = {}
    for index, pair in enumerate(chunk):
        try:
            written[index] = _written(pair, by_template, controls)
        except Dropped as reason:
            tally.drop(str(reason), pair.where)
    prompts: dict[int, list[int]] = {}
    for templated in (False, True):
        # A template writes the special tokens itself; other prompts get those that the tokenizer adds.
        of_kind = [
            index
            for index in written
            if templated is (by_template is not None and not isinstance(chunk[index].prompt, str))
        ]
        texts = [written[index].prompt for index in of_kind]
        prompts |= zip(of_kind, controls.ids(texts, special=not templated), strict=True)
    answers = dict(zip(written, _answers(tokenizer, controls, list(written.values())), strict=True))
    for index, pair in enumerate(chunk):
        if index not in written:
            yield None
            continue
        ids, notes = prompts[index], list(written[index].notes)
        *sides, joined = answers[index]
        if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
            ids = ids[1:]
            notes.append(TWO_BEGINNINGS)
        if not ids:
            tally.drop("the prompt has no tokens", pair.where)
            yield None
            continue
        if joined:
            notes.append(TOGETHER)
        for note in notes:
            tally.note(note, pair.where)
        yield _closed(pair, ids, sides, end_tokens(tokenizer))


def _closed(pair: TextPair, prompt: list[int], answers: Sequence[list[int]], ends: Sequence[int]) -> Encoded:
    written = sum(not set(ends).isdisjoint(side) for side in answers)
    first, second = (_ended(side, ends) for side in answers)
    return Encoded(pair, prompt, first, second, written)


def _written(pair: TextPair, by_template: Any, controls: Controls) -> WrittenPair:
    """A pair as text with guards, and notes on the control tokens that it spells. Raises Dropped as `write` does, and
    where the tokenizer cannot read such a spelling as text.
    """
    if isinstance(pair.prompt, str):
        bodies = [controls.body(answer) for answer in (pair.first, pair.second)]
        spelled = dict.fromkeys(
            name for text in (controls.opened(pair.prompt), *bodies) for name in controls.spelled(text)
        )
        notes = [READ_AS_CONTROL.format(name) for name in spelled]
        notes += [LEFT_BEHIND_END] if any(map(controls.ends_within, bodies)) else []
    else:
        pair, spelled = _guarded(pair, controls)
        notes = [READ_AS_TEXT.format(name) for name in spelled]
    result = write(pair, by_template)
    return result._replace(notes=(*result.notes, *notes))


def _guarded(pair: TextPair, controls: Controls) -> tuple[TextPair, dict[str, None]]:
    """A conversation without a control token in its texts, and those that were spelled there."""
    assert not isinstance(pair.prompt, str)
    spelled: dict[str, None] = {}

    def guard(text: str) -> str:
        guarded = controls.guard(text)
        if guarded is None:
            names = ", ".join(map(repr, controls.spelled(text)))
            raise Dropped(f"it spells {names}, which the tokenizer cannot read as text")
        spelled.update(dict.fromkeys(guarded.spelled))
        return guarded.text

    def answer(text: str) -> str:
        body = controls.body(text)
        return guard(body) + text[len(body) :]

    prompt = tuple(Message(guard(turn.role), guard(turn.content), guard(turn.keys)) for turn in pair.prompt)
    first, second, tools = answer(pair.first), answer(pair.second), guard(pair.tools)
    keys = guard(pair.first_keys), guard(pair.second_keys)
    guarded = replace(
        pair, prompt=prompt, first=first, second=second, tools=tools, first_keys=keys[0], second_keys=keys[1]
    )
    return guarded, spelled


def _answers(
    tokenizer: Any, controls: Controls, pairs: Sequence[WrittenPair]
) -> Iterator[tuple[list[int], list[int], bool]]:
    """Token ids of both answers of each pair, and whether one of them had to be tokenised apart from its prompt."""
    alone = controls.ids([pair.prompt for pair in pairs], special=False)
    sides = controls.ids([side for pair in pairs for side in pair[1:3]], special=False)
    wholes = controls.ids([pair.prompt + side for pair in pairs for side in pair[1:3]], special=False)
    for index, prompt in enumerate(alone):
        both = (2 * index, 2 * index + 1)
        # Behind a token that stands for any text, the prefix being the same says nothing.
        known = not prompt or prompt[-1] != tokenizer.unk_token_id
        follows = [known and wholes[at][: len(prompt)] == prompt for at in both]
        first, second = (
            wholes[at][len(prompt) :] if fits else sides[at] for at, fits in zip(both, follows, strict=True)
        )
        yield first, second, not all(follows)


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
    train, chosen = _chosen(groups, spec)
    cuts, tally = Cuts(), Tally()
    wanted = sorted(itertools.chain(*chosen))
    leaked = set(range(len(groups[0]))).difference(train) if spec.held_out_split is not None else set()
    stream = _taken(itertools.chain(*readings), set(wanted), leaked, tally)
    rows: dict[int, _Row] = {}
    for index, item in zip(wanted, encode(stream, tokenizer, tally), strict=True):
        row = _row(item, spec, tokenizer, cuts, tally) if item is not None else None
        if row is not None:
            rows[index] = row
    for reading in readings:
        tally.add(reading.tally)
    _drop_leaks(rows, chosen, tally)
    batches, number = [], 0
    for split, order in zip(("train", "held-out"), chosen, strict=True):
        kept = [rows[index] for index in order if index in rows]
        if not kept or (split == "train" and len(kept) < _FEWEST_PAIRS):
            what = f"{len(kept)} pairs are left to train on" if kept else f"no pair is left for the {split} split"
            raise UserError(what, where=spec.source, hint="; ".join(tally.reasons()) or "Give more data.")
        batches.append(_batch(kept, number))
        number += len(kept)
    data = TaskData(batches[0], batches[1], spec.max_response_tokens)
    words: Any = tokenizer
    ends = tuple(str(words.convert_ids_to_tokens(token)) for token in end_tokens(tokenizer))
    return PreparedData(data, readings[0].schema.name if readings[0].schema else "", tally, cuts, ends)


def _drop_leaks(rows: dict[int, _Row], chosen: tuple[list[int], list[int]], tally: Tally) -> None:
    """Training rows whose prompt is held out, as the tokens that training sees; those that nearly are, are counted."""
    held = [rows[index] for index in chosen[1] if index in rows]
    prompts, loose = {row.prompt.tobytes() for row in held}, {row.loose for row in held}
    for index in chosen[0]:
        if index not in rows:
            continue
        if rows[index].prompt.tobytes() in prompts:
            tally.drop("the prompt is held out as well, once it is cut", rows.pop(index).where)
        elif rows[index].loose in loose:
            tally.note("a prompt is held out that differs in case, white space or a last mark only", rows[index].where)


class Sizes(NamedTuple):
    """Pairs that are trained on and held out, and prompts of the latter, before tokens are looked at: what a limit or a
    tokenizer makes the same is dropped later, and counted.
    """

    train: int
    held_out: int
    held_out_prompts: int


def sizes(spec: DatasetSpec) -> Sizes:
    """How many pairs `make_dataset_pairs` begins with. Reads the data once, as text. Raises UserError as that does."""
    groups = [[prompt_key(pair.prompt) for pair in reading] for reading in _readings(spec)]
    keys = list(itertools.chain(*groups))
    _, (train, held) = _chosen(groups, spec)
    return Sizes(len(train), len(held), len({keys[index] for index in held}))


def _chosen(groups: Sequence[Sequence[int]], spec: DatasetSpec) -> tuple[list[int], tuple[list[int], list[int]]]:
    """The pairs that may be trained on, and of those and the held-out ones those that are used, in their order."""
    keys = list(itertools.chain(*groups))
    train, held = _parted(groups, spec)
    most = spec.held_out_limit if spec.held_out_pairs is None else spec.held_out_pairs
    most = min(most, spec.held_out_limit) if most and spec.held_out_limit else most
    return train, (
        _ordered(train, keys, spec.seed)[: spec.train_pairs],
        _ordered(held, keys, spec.seed)[:most],
    )


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
    split = training_split(splits_of(spec, parts), spec.split, spec.source)
    wanted = [split] if spec.held_out_split is None else [split, spec.held_out_split]
    return [Reading(spec, *select(parts, name, spec.source)) for name in wanted]


def _held_out(keys: Sequence[int], spec: DatasetSpec) -> set[int]:
    """Prompts to hold out: in a random order, each that still fits into the number of pairs wanted."""
    wanted = spec.held_out_pairs or max(1, round(spec.held_out_share * len(keys)))
    if len(keys) - wanted < _FEWEST_PAIRS:
        raise UserError(
            f"{len(keys)} pairs cannot be split into train and held-out: with {wanted} held out, {len(keys) - wanted} "
            "would be left to train on",
            where=spec.source,
            hint="Lower held_out_pairs, or give more data.",
        )
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
    loose: int


def unusable(item: Encoded, longest: int) -> str:
    """Why a pair cannot be trained on, seen on its answers' tokens of which the first `longest` are kept; empty where
    it can.
    """
    if min(len(item.first), len(item.second)) < 2:  # the end token alone
        return "an answer has no tokens"
    if item.first[:longest] == item.second[:longest]:
        how = "once the tokenizer has read them" if item.first == item.second else f"once cut to {longest} tokens"
        return f"the two answers are the same {how}"
    return ""


def _row(item: Encoded, spec: DatasetSpec, tokenizer: Any, cuts: Cuts, tally: Tally) -> _Row | None:
    pair = item.pair
    if reason := unusable(item, spec.max_response_tokens):
        tally.drop(reason, pair.where)
        return None
    prompt = cut_prompt(item.prompt, spec.max_prompt_tokens, tokenizer.bos_token_id)
    first, second = (ids[: spec.max_response_tokens] for ids in (item.first, item.second))
    cuts.prompts += len(prompt) < len(item.prompt)
    cuts.responses += (len(first) < len(item.first)) + (len(second) < len(item.second))
    cuts.end_tokens += item.ends
    origin = f"{spec.name}{f' {pair.split}' if pair.split else ''} row {pair.row}"
    turned = not pair.positioned and digest("data", "position", spec.seed, prompt_key(pair.prompt), origin) % 2 == 1
    sides = (second, first, 1 - pair.preference) if turned else (first, second, pair.preference)
    a, b, c = (array("i", side) for side in (prompt, sides[0], sides[1]))
    return _Row(a, b, c, sides[2], origin, pair.where, loose_key(pair.prompt))


def _batch(rows: Sequence[_Row], start: int) -> PairBatch:
    return PairBatch(
        torch.arange(start, start + len(rows)),
        Tokens.collate([row.prompt for row in rows]),
        Tokens.collate([row.first for row in rows]),
        Tokens.collate([row.second for row in rows]),
        torch.tensor([row.preference for row in rows], dtype=torch.float32),
        tuple(row.provenance for row in rows),
    )
