"""From a prompt's token ids back to the conversation that a chat template made them from.

Sound or not at all: turns are only believed if the template, given them again, writes the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from aligngap.models.controls import Controls
from aligngap.models.tokenizer import written_by_template
from aligngap.types import TokenIds

Turn = dict[str, str]
"""`{"role": ..., "content": ...}`, as chat templates take it."""

# Private-use characters: no template contains them, none changes them.
_MARKS = ("\ue000", "\ue001", "\ue002", "\ue003")


class _Frame(NamedTuple):
    """What a template writes before, between and after the turns, the first of which may be the system's."""

    system: bool
    head: str
    after_system: str
    after_user: str
    after_assistant: str
    tail: str


class ConversationReader:
    """Reads prompts that a tokenizer's chat template wrote: an optional system turn, then user and assistant in turn,
    the user last.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        self._controls = Controls(tokenizer)
        self._frames = (
            [frame for system in (False, True) if (frame := self._frame(system)) is not None]
            if tokenizer.chat_template
            else []
        )

    def read(self, ids: TokenIds) -> list[Turn] | None:
        """The turns behind a prompt's ids; None if the template did not write them, or not all of them are there."""
        text = self._controls.decoded(ids) if self._frames else ""
        for frame in self._frames:
            turns = _split(text, frame)
            if turns and self._ids(turns) == list(ids):
                return [turn | {"content": self._controls.plain(turn["content"])} for turn in turns]
        return None

    def _ids(self, turns: Sequence[Turn]) -> list[int] | None:
        text = self._written(turns)
        return None if text is None else self._controls.ids([text], special=False)[0]

    def _written(self, turns: Sequence[Turn]) -> str | None:
        try:
            return written_by_template(self.tokenizer, turns, open_end=True)
        except TemplateError:  # some take no system turn
            return None

    def _frame(self, system: bool) -> _Frame | None:
        roles = ["user", "assistant", "user"]
        turns = [{"role": role, "content": mark} for role, mark in zip(roles, _MARKS[1:], strict=True)]
        text = self._written([{"role": "system", "content": _MARKS[0]}, *turns] if system else turns)
        parts, rest = list[str](), text
        for mark in _MARKS if system else _MARKS[1:]:
            if rest is None or rest.count(mark) != 1:
                return None
            part, _, rest = rest.partition(mark)
            parts.append(part)
        head, after_system, after_user, after_assistant = parts if system else (parts[0], "", *parts[1:])
        frame = _Frame(system, head, after_system, after_user, after_assistant, str(rest))
        return frame if after_user and after_assistant and (after_system or not system) and frame.tail else None


def _split(text: str, frame: _Frame) -> list[Turn] | None:
    if not (text.startswith(frame.head) and text.endswith(frame.tail)):
        return None
    rest = text[len(frame.head) : len(text) - len(frame.tail)]
    turns: list[Turn] = []
    if frame.system:
        content, separator, rest = rest.partition(frame.after_system)
        if not separator:
            return None
        turns.append({"role": "system", "content": content})
    while True:
        content, separator, later = rest.partition(frame.after_user)
        turns.append({"role": "user", "content": content})
        if not separator:
            return turns
        content, separator, rest = later.partition(frame.after_assistant)
        if not separator:
            return None
        turns.append({"role": "assistant", "content": content})
