"""Messages and texts of a record: what a turn is, and how it is read whatever way it was written.

Pure. What cannot be read raises `Dropped` with the reason, under which the reader counts it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any, NamedTuple


class Message(NamedTuple):
    """One turn of a conversation. keys: what else the data say of it (tool calls, reasoning, a name), as a JSON object
    in canonical order; empty for nothing.
    """

    role: str
    content: str
    keys: str = ""

    def turn(self) -> dict[str, Any]:
        """As chat templates take it."""
        return {"role": self.role, "content": self.content, **keys_of(self.keys)}


PromptText = str | tuple[Message, ...]
"""Text that an answer follows as it stands, or a conversation that the assistant is to go on with."""


class Dropped(Exception):
    """A record that cannot be used. Its text is the reason, under which it is counted."""


def keys_of(text: str) -> dict[str, Any]:
    """What was kept of a turn beside role and content."""
    keys: dict[str, Any] = json.loads(text) if text else {}
    return keys


def canonical(value: object) -> str:
    """As JSON, the same for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def kind_of(value: object) -> str | None:
    if isinstance(value, str):
        return "text"
    rows = rows_of(value)
    return "messages" if rows and all("role" in row and "content" in row for row in rows) else None


def parsed_messages(value: object) -> object:
    """A text that is a list of messages, written as JSON or as Python writes it, as that list; all else as it is.

    Raises Dropped for a text that is meant as messages and cannot be read (NumPy writes arrays without commas).
    """
    if not isinstance(value, str) or not all(mark.search(value) for mark in _MARKS_OF_MESSAGES):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            content = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return content if kind_of(content) == "messages" else value
    raise Dropped("a text looks like a list of messages, and cannot be read as JSON nor as Python's own writing")


_MARKS_OF_MESSAGES = (
    re.compile(r"^\s*(?:array\()?[\[({]"),
    re.compile(r"""['"]role['"]\s*:"""),
    re.compile(r"""['"]content['"]\s*:"""),
)


def rows_of(value: object) -> list[Mapping[str, Any]] | None:
    """A list of structs; None when it is none. One struct is a list of one, and a struct of lists, which is how older
    versions of `datasets` hold a list of structs, is turned over.
    """
    if isinstance(value, Mapping):
        if not value or not all(isinstance(part, list) for part in value.values()):
            return [value]
        value = [dict(zip(value, parts, strict=False)) for parts in zip(*value.values(), strict=False)]
    return value if isinstance(value, list) and all(isinstance(row, Mapping) for row in value) else None


def text_of(value: object, name: str, *, blank: bool = False) -> str:
    if value is None:
        raise Dropped(f"{name} is missing")
    if not isinstance(value, str):
        raise Dropped(f"{name} is not text")
    if not blank and not value.strip():
        raise Dropped(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and no tokenizer can read
        raise Dropped(f"{name} is not valid Unicode") from None
    return value


def messages_of(value: object, name: str) -> tuple[Message, ...]:
    if value is None:
        raise Dropped(f"{name} is missing")
    rows = rows_of(value)
    if not rows or kind_of(value) is None:
        raise Dropped(f"{name} is empty" if value == [] else f"{name} is not a list of messages")
    return tuple(_message(row, name) for row in rows)


def _message(row: Mapping[str, Any], name: str) -> Message:
    keys = {key: value for key, value in row.items() if key not in ("role", "content") and value not in _NOTHING}
    content = row["content"]
    if content is None and keys:  # a turn may be a call alone
        content = ""
    return Message(text_of(row["role"], name), _content(content, name), canonical(keys) if keys else "")


_NOTHING: tuple[object, ...] = (None, "", [], {})


def _content(value: object, name: str) -> str:
    if isinstance(value, list):  # blocks, as in multimodal sets; only those of text can be used
        if not all(isinstance(block, Mapping) and isinstance(block.get("text"), str) for block in value):
            raise Dropped(f"{name} holds more than text")
        value = "".join(block["text"] for block in value)
    return text_of(value, name, blank=True)  # an empty system message is no fault


def joined(prompt: tuple[Message, ...], context: tuple[Message, ...]) -> tuple[tuple[Message, ...], str]:
    """The prompt and what the answers say before their last turn, as one conversation, and a note where they differ a
    little. Some sets say the prompt a second time at the head of either answer, a few with a system message before it.
    """
    if not prompt or prompt in (context[: len(prompt)], context[-len(prompt) :]):
        return (context or prompt), ""
    alike = [[(message.role, plain(message.content)) for message in turns] for turns in (prompt, context)]
    for same, note in (
        ((prompt, context), ""),
        (alike, "the prompt is said twice, with a small difference: it is taken once"),
    ):
        if same[0] in (same[1][: len(prompt)], same[1][-len(prompt) :]):
            return context, note
        for shared in range(min(len(prompt), len(context)), 0, -1):
            if same[0][-shared:] == same[1][:shared]:
                return prompt + context[shared:], note
    asked = [next((m.content for m in turns if m.role == "user"), "") for turns in (prompt[::-1], context)]
    if all(asked) and SequenceMatcher(None, asked[0], asked[1]).ratio() > _SAME_QUESTION:
        return prompt + context, "the prompt seems to be said twice: its last question comes again, in other words"
    return prompt + context, ""


_SAME_QUESTION = 0.8


def plain(text: str) -> str:
    """A text without what is easily changed by accident: case, white space, the mark at its end."""
    return " ".join(text.split()).rstrip(" .,:;!?…").casefold()


def last_turn(value: object, name: str) -> tuple[tuple[Message, ...], Message]:
    if isinstance(value, str):
        return (), Message("assistant", text_of(value, name))
    *context, last = messages_of(value, name)
    if last.role != "assistant":
        raise Dropped(f"{name} does not end with the assistant's turn")
    return tuple(context), last._replace(content=text_of(last.content, name, blank=bool(last.keys)))
