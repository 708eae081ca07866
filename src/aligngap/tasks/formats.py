"""Formats of preference data: from a record, as files and hub sets hold it, to a prompt with two answers.

Pure: nothing is read or written here. A record that cannot be used raises `Dropped` with the reason, which the reader
counts; a whole set that fits no format, or several, is the user's to fix.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from aligngap.errors import UserError, nearest
from aligngap.tasks.messages import (
    Dropped,
    Message,
    PromptText,
    canonical,
    joined,
    keys_of,
    kind_of,
    last_turn,
    messages_of,
    rows_of,
    text_of,
)

Record = Mapping[str, Any]
"""One row: column -> value, as JSON or Arrow gives it."""


@dataclass(frozen=True)
class TextPair:
    """A prompt, two answers and a preference, as text.

    first, second: the answers, in the order in which the rater saw them where the data say so (`positioned`), else
    the chosen one first. preference: probability that the first is preferred: 1, 0, or 0.5 for a tie. row: its number
    in file or split, from 1; where: the same for people. first_keys, second_keys: what the data say of an answer beside
    its text; tools: the tools that were offered; both as JSON, empty for nothing. notes: what reading changed, in
    sentences under which it is counted.
    """

    prompt: PromptText
    first: str
    second: str
    preference: float = 1.0
    positioned: bool = False
    row: int = 0
    split: str | None = None
    where: str = ""
    first_keys: str = ""
    second_keys: str = ""
    tools: str = ""
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> str:
        """The preferred answer; of a tie, the first."""
        return self.first if self.preference >= 0.5 else self.second

    @property
    def rejected(self) -> str:
        """The other one."""
        return self.second if self.preference >= 0.5 else self.first

    @property
    def keys(self) -> tuple[str, ...]:
        """What the data say of each turn and either answer beside the text, as JSON."""
        turns = () if isinstance(self.prompt, str) else self.prompt
        return (*(message.keys for message in turns), self.first_keys, self.second_keys)

    def without(self, key: str) -> TextPair:
        """The same pair, as if the data did not say this of any turn or answer (or had no such column)."""
        if key == "tools":
            return replace(self, tools="")

        def rest(keys: str) -> str:
            left = {name: value for name, value in keys_of(keys).items() if name != key}
            return canonical(left) if left else ""

        prompt = self.prompt
        if not isinstance(prompt, str):
            prompt = tuple(message._replace(keys=rest(message.keys)) for message in prompt)
        return replace(self, prompt=prompt, first_keys=rest(self.first_keys), second_keys=rest(self.second_keys))


@dataclass(frozen=True)
class Schema:
    """A known format. columns: what it needs; optional: what it reads where it is there; fits: whether a record looks
    like it; convert raises `Dropped`.
    """

    name: str
    about: str
    columns: tuple[str, ...]
    fits: Callable[[Record], bool]
    convert: Callable[[Record], TextPair]
    optional: tuple[str, ...] = ()

    def unused(self, record: Record) -> list[str]:
        """Columns that hold something and that this format does not read, whatever they mean."""
        used = {*self.columns, *self.optional, *_ALWAYS_READ, *(name for names in _SCORES for name in names)}
        return [name for name, value in record.items() if name not in used and value not in (None, "", [], {})]


def shape(record: Record) -> str | None:
    """What a record looks like, whatever its values; None when a part is missing. Rows of one set have one shape."""
    if _holds(record, "info", "summaries"):
        return "two summaries"
    if _holds(record, "conversation_a", "conversation_b"):
        return "two conversations"
    if _holds(record, "completions"):
        return "rated completions"
    kind = kind_of(record.get("chosen"))
    if kind is None or kind_of(record.get("rejected")) != kind:
        return None
    if "prompt" not in record:
        return f"{kind} without a prompt"
    prompt = kind_of(record["prompt"])
    return prompt and f"{kind} with a prompt of {prompt}"


def detect(records: Sequence[Record], where: str) -> Schema:
    """The format of a set, from its first records. Raises UserError when none fits them."""
    fitting = (next((schema for schema in SCHEMAS if schema.fits(record)), None) for record in records)
    counts = Counter(schema for schema in fitting if schema is not None)
    if not counts:
        raise _unknown(records, where)
    return counts.most_common(1)[0][0]


def schema_named(name: str) -> Schema:
    """A format by name. Raises UserError for an unknown one."""
    for schema in SCHEMAS:
        if schema.name == name:
            return schema
    raise UserError(
        f"unknown data format '{name}'", where="format", hint=nearest(name, (schema.name for schema in SCHEMAS))
    )


def convert(schema: Schema, record: Record) -> TextPair:
    """The pair that a record holds. Raises Dropped, with the reason, when it holds none.

    Scores are held against the order wherever a row has them, not only in a set where most rows do.
    """
    for name in _MEDIA:
        if record.get(name):
            raise Dropped(f"it holds {name}, and models here read text alone")
    scores = _scores(record)
    rated = scores is not None and all(record[name] is not None for name in scores)
    pair = _scored(record) if schema in _PLAIN and rated else schema.convert(record)
    if (pair.first, pair.first_keys) == (pair.second, pair.second_keys):
        raise Dropped("the two answers are the same")
    return _with_columns(pair, record)


def _with_columns(pair: TextPair, record: Record) -> TextPair:
    """With the tools and the system message that a row holds in columns of their own."""
    tools, system = record.get("tools"), record.get("system")
    if tools:
        pair = replace(pair, tools=tools if isinstance(tools, str) else canonical(tools))
    if isinstance(system, str) and system.strip():
        if isinstance(pair.prompt, str):
            return replace(pair, notes=(*pair.notes, "the column `system` is not used: the prompt is text"))
        first: Message = pair.prompt[0]
        if first.role != "system":
            pair = replace(pair, prompt=(Message("system", system), *pair.prompt))
        elif first.content.strip() != system.strip():
            raise Dropped("its column `system` and its prompt's system message differ")
    return pair


_ALWAYS_READ = ("split", "tools", "system", "images", "videos", "audio", "audios")
_MEDIA = ("images", "videos", "audio", "audios")


def _unknown(records: Sequence[Record], where: str) -> UserError:
    present = list(dict.fromkeys(column for record in records for column in record))
    if (alone := _ANSWERS_ALONE & set(present)) and not {"chosen", "rejected", "completions"} & set(present):
        label = next((name for name in _LABELS if name in present), None)
        what = f"each row holds one answer ({_quoted(sorted(alone))})"
        what += f" with a label ('{label}', as for KTO)" if label else ""
        return UserError(
            f"{what} and no comparison: there is {_quoted(present)}",
            where=where,
            hint="A pair is two answers to one prompt, of which one is preferred. "
            + (
                f"Where a prompt has rows of either '{label}', make one of prompt, chosen and rejected of two of them."
                if label
                else "These are data for supervised fine-tuning: give a set of preferences."
            ),
        )
    schema = max(SCHEMAS, key=lambda s: sum(1 if column in present else -1 for column in s.columns))
    missing = [column for column in schema.columns if column not in present]
    if len(missing) == len(schema.columns):
        formats = "; ".join(f"{s.name} ({', '.join(s.columns)})" for s in SCHEMAS)
        what = f"no known preference format has these columns: {', '.join(present)}"
        known = {column for s in SCHEMAS for column in s.columns}
        return UserError(what, where=where, hint=f"{_hints(sorted(known), present)}Known formats: {formats}.")
    if missing:
        what = f"column {_quoted(missing)} is missing: there is {_quoted(present)}"
        hint = f"{_hints(missing, present)}The format nearest to this data is '{schema.name}': {schema.about}."
        return UserError(what, where=where, hint=hint)
    try:
        convert(schema, records[0])
        reason = "chosen and rejected are not of one kind"
    except Dropped as dropped:
        reason = str(dropped)
    return UserError(
        f"no row among the first {len(records)} can be read as '{schema.name}' ({reason})",
        where=where,
        hint=f"'{schema.name}' is {schema.about}.",
    )


_ANSWERS_ALONE = {"completion", "response", "output", "answer", "messages", "conversations"}
_LABELS = ("label", "labels", "score", "rating", "reward")


def _hints(missing: Sequence[str], present: Sequence[str]) -> str:
    """Which columns may be meant for one that is missing."""
    known = {column for schema in SCHEMAS for column in schema.columns}
    others = [column for column in present if column not in known]
    close = ((get_close_matches(column.lower(), missing, n=1, cutoff=0.6), column) for column in others)
    return "".join(
        f"'{column}' may be meant for '{name[0]}' (--column {name[0]}={column}). " for name, column in close if name
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _holds(record: Record, *columns: str) -> bool:
    return all(record.get(column) is not None for column in columns)


def _number(value: object, name: str) -> float:
    if value is None:
        raise Dropped(f"{name} is missing")
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise Dropped(f"{name} is not a number")
    if math.isinf(number):
        raise Dropped(f"{name} is infinite, or larger than any number that can be compared")
    return number


def _preference(record: Record) -> TextPair:
    prompt, chosen, rejected = (text_of(record.get(name), name) for name in ("prompt", "chosen", "rejected"))
    return TextPair(prompt, chosen, rejected)


def _implicit(record: Record) -> TextPair:
    chosen, rejected = (text_of(record.get(name), name) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise Dropped("the two answers are the same")
    # Back to the last gap between words, and the gap goes with the answers: a cut inside a word, or behind the gap,
    # gives tokens that no model writes.
    shared = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 - by character is what is meant
    *_, word = re.split(r"\s", shared)
    cut = len(shared.removesuffix(word).rstrip())
    if not chosen[:cut].strip():
        raise Dropped("chosen and rejected begin differently: there is no prompt")
    return TextPair(chosen[:cut], text_of(chosen[cut:], "chosen"), text_of(rejected[cut:], "rejected"))


_TURN = "\n\nAssistant:"


def _transcripts(record: Record) -> TextPair:
    """Each side is cut at its own last turn: a common prefix would move what the two answers share into the prompt."""
    prompts, answers = [], []
    for name in ("chosen", "rejected"):
        head, turn, answer = text_of(record.get(name), name).rpartition(_TURN)
        if not turn:
            raise Dropped(f"{name} has no turn of the assistant")
        prompts.append(head + turn)
        answers.append(answer)
    if prompts[0] != prompts[1]:
        raise Dropped("the prompts differ")
    chosen, rejected = (
        text_of(a, f"the answer in {name}") for a, name in zip(answers, ("chosen", "rejected"), strict=True)
    )
    text_of(prompts[0].removesuffix(_TURN), "prompt")
    return TextPair(prompts[0], chosen, rejected)


def _conversational(record: Record) -> TextPair:
    (context, chosen), (other, rejected) = (last_turn(record.get(name), name) for name in ("chosen", "rejected"))
    if context != other:
        raise Dropped("the prompts differ")
    prompt: tuple[Message, ...] = ()
    if "prompt" in record:
        given = record["prompt"]
        prompt = (
            (Message("user", text_of(given, "prompt")),) if isinstance(given, str) else messages_of(given, "prompt")
        )
    whole, note = joined(prompt, context)
    if not any(message.content.strip() for message in whole):
        raise Dropped("prompt is empty" if whole else "prompt is missing")
    pair = TextPair(whole, chosen.content, rejected.content, notes=(note,) if note else ())
    return replace(pair, first_keys=chosen.keys, second_keys=rejected.keys)


_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)


def _scores(record: Record) -> tuple[str, str] | None:
    return next((names for names in _SCORES if all(name in record for name in names)), None)


def _scored(record: Record) -> TextPair:
    chosen, rejected = (_number(record.get(name), name) for name in _scores(record) or _SCORES[0])
    pair = next((schema for schema in _PLAIN if schema.fits(record)), _PLAIN[0]).convert(record)
    if not chosen >= rejected:
        raise Dropped("the scores contradict the order")
    return pair if chosen > rejected else replace(pair, preference=0.5)


def _completions(record: Record) -> TextPair:
    name = "instruction" if "instruction" in record else "prompt"
    prompt, rows = text_of(record.get(name), name), rows_of(record.get("completions"))
    if not rows or len(rows) < 2:
        raise Dropped("fewer than two completions")
    rated = [
        (_number(row.get("overall_score", row.get("score")), "a completion's score"), row.get("response"))
        for row in rows
    ]
    best, worst = (pick(rated, key=lambda item: item[0]) for pick in (max, min))
    chosen, rejected = (text_of(answer, "a completion") for _, answer in (best, worst))
    return TextPair((Message("user", prompt),), chosen, rejected, 1.0 if best[0] > worst[0] else 0.5)


def _summaries(record: Record) -> TextPair:
    info, rows = record.get("info"), rows_of(record.get("summaries"))
    if not isinstance(info, Mapping):
        raise Dropped("info is missing")
    if not rows or len(rows) != 2:
        raise Dropped("there are not two summaries")
    choice = _number(record.get("choice"), "choice")
    if choice not in (0, 1):
        raise Dropped("choice is neither 0 nor 1")
    if info.get("post"):
        head = {"SUBREDDIT: r/": "subreddit", "TITLE: ": "title", "POST: ": "post"}
        prompt = "".join(f"{label}{text_of(info[key], key)}\n\n" for label, key in head.items() if info.get(key))
    else:  # a story of CNN or Daily Mail
        prompt = f"Article:\n{text_of(info.get('article'), 'post or article')}\n\n"
    first, second = (text_of(row.get("text"), "a summary") for row in rows)
    return TextPair(f"{prompt}TL;DR:", first, second, 1.0 - choice, positioned=True)


_WINNERS = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}


def _arena(record: Record) -> TextPair:
    (context, first), (other, second) = (
        last_turn(record.get(name), name) for name in ("conversation_a", "conversation_b")
    )
    turns = record.get("turn")
    if turns is None:
        turns = sum(message.role == "user" for message in context)
    if _number(turns, "turn") != 1:
        raise Dropped("more than one turn")
    if context != other:
        raise Dropped("the prompts differ")
    winner = record.get("winner")
    if winner is None:
        raise Dropped("winner is missing")
    if not isinstance(winner, str) or winner not in _WINNERS:
        raise Dropped(f"winner is none of {', '.join(_WINNERS)}")
    if not any(message.content.strip() for message in context):
        raise Dropped("prompt is empty")
    pair = TextPair(context, first.content, second.content, _WINNERS[winner], positioned=True)
    return replace(pair, first_keys=first.keys, second_keys=second.keys)


def _is_transcript(record: Record) -> bool:
    return shape(record) == "text without a prompt" and any(_TURN in record[name] for name in ("chosen", "rejected"))


_PLAIN = (
    Schema(
        "preference",
        "a text prompt with a chosen and a rejected answer (TRL, standard; tldr-preference, CarperAI's summaries)",
        ("prompt", "chosen", "rejected"),
        lambda record: shape(record) == "text with a prompt of text",
        _preference,
    ),
    Schema(
        "conversational",
        "lists of messages, with a prompt of its own or within chosen and rejected (TRL, conversational)",
        ("chosen", "rejected"),
        lambda record: "messages" in (shape(record) or ""),
        _conversational,
        ("prompt",),
    ),
    Schema(
        "hh",
        "two whole transcripts of 'Human:' and 'Assistant:' turns that differ in the last answer (Anthropic/hh-rlhf)",
        ("chosen", "rejected"),
        _is_transcript,
        _transcripts,
    ),
    Schema(
        "implicit",
        "two texts that begin alike; what they share, up to a gap between words, is the prompt (TRL, implicit prompt)",
        ("chosen", "rejected"),
        lambda record: shape(record) == "text without a prompt",
        _implicit,
    ),
)

SCHEMAS = (
    Schema(
        "summarize_from_feedback",
        "OpenAI's comparisons of summaries: info with post or article, two summaries, choice",
        ("info", "summaries", "choice"),
        lambda record: shape(record) == "two summaries",
        _summaries,
    ),
    Schema(
        "arena",
        "Chatbot Arena's conversations side by side; those of one turn are kept",
        ("conversation_a", "conversation_b", "winner"),
        lambda record: shape(record) == "two conversations",
        _arena,
        ("turn",),
    ),
    Schema(
        "completions",
        "rated completions of an instruction (UltraFeedback); the best and the worst make a pair",
        ("instruction", "completions"),
        lambda record: shape(record) == "rated completions",
        _completions,
        ("prompt",),
    ),
    Schema(
        "scored",
        "chosen and rejected in any of the plain formats, each with a score; equal scores are a tie",
        ("chosen", "rejected", "score_chosen", "score_rejected"),
        lambda record: _scores(record) is not None and shape(record) is not None,
        _scored,
        ("prompt",),
    ),
    *_PLAIN,
)
"""The known formats; the first that fits a record names it."""
