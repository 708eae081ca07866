"""A conversation as text: prompt and answers as the tokenizer's chat template writes the whole of it.

A template is somebody else's program, and any option given to it may have no effect. So nothing is believed of it: each
answer is written within its whole conversation, and prompt and answer are cut out of that. What the template leaves out
is found by writing the conversation without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError

from aligngap.models.tokenizer import TEMPLATE_DAY, end_tokens, written_by_template
from aligngap.tasks.formats import TextPair
from aligngap.tasks.messages import Dropped, Message, PromptText, keys_of

_ANSWER = "\ue000"  # private use: no template contains it, none changes it
_NAMES = {"user": "Human"}
_MATTERS = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "images", "audio", "tools")
"""Keys that carry what was said: where a template leaves them out, the conversation is another one."""
_SHOWN = 60

HEADER_IN_PROMPT = "the template begins an answer with {!r} behind its generation prompt: prompts end with that"
NO_PROMPT_FOR_GENERATION = (
    "the template knows no generation prompt: prompts end with the {!r} that it writes before an answer"
)
OTHER_OPENING = "the template opens an answer otherwise than it writes one: prompts end as in a written conversation"
CHANGED_ANSWER = "the template changes an answer: it is taken as the template writes it"
CHANGED_TURN = "the template changes a turn of the {}: it is taken as the template writes it"
PREFILL = "the prompt ends within the assistant's turn, and the answer goes on with it"


class WrittenPair(NamedTuple):
    """A pair as text that is tokenised as it stands. notes: what a reader would not expect, to be counted."""

    prompt: str
    first: str
    second: str
    notes: tuple[str, ...] = ()


def write(pair: TextPair, tokenizer: Any = None) -> WrittenPair:
    """A pair's prompt and answers as text, without the end behind an answer; a conversation by the tokenizer's chat
    template, or as turns without one.

    Raises Dropped where the template refuses the conversation, or leaves out what matters.
    """
    if isinstance(pair.prompt, str):
        return WrittenPair(pair.prompt, pair.first, pair.second)
    if tokenizer is None:
        if held := _held(pair):
            raise Dropped(f"it has {held[0]}, and there is no chat template to write that")
        return _as_transcript(pair)
    written = _Template(pair, tokenizer).written()
    _check_keys(pair, tokenizer, written)
    changed = _changed_turns(pair, written)
    return written._replace(notes=(*written.notes, *changed))


def prompt_text(prompt: PromptText) -> str:
    """A prompt without a chat template: text as it stands, a conversation as turns."""
    if isinstance(prompt, str):
        return prompt
    *turns, last = prompt
    open_turn = last if last.role == "assistant" else Message("assistant", "")
    told = turns if last.role == "assistant" else prompt
    parts = [f"\n\n{_NAMES.get(message.role, message.role.capitalize())}: {message.content}" for message in told]
    return "".join(parts) + f"\n\nAssistant: {open_turn.content}".rstrip()


def _as_transcript(pair: TextPair) -> WrittenPair:
    prompt = prompt_text(pair.prompt)
    prefilled = pair.prompt[-1].role == "assistant"  # type: ignore[union-attr]
    gap = "" if prefilled else " "
    return WrittenPair(prompt, gap + pair.first, gap + pair.second, (PREFILL,) if prefilled else ())


class _Template:
    """A pair's conversation as the template writes it."""

    def __init__(self, pair: TextPair, tokenizer: Any) -> None:
        assert not isinstance(pair.prompt, str)
        self._pair, self._tokenizer = pair, tokenizer
        self._prefill = pair.prompt[-1].content if pair.prompt[-1].role == "assistant" else None
        turns = pair.prompt if self._prefill is None else pair.prompt[:-1]
        self._turns = [message.turn() for message in turns]
        self._tools = json.loads(pair.tools) if pair.tools else None

    def written(self) -> WrittenPair:
        head, mark, tail = self._whole(_ANSWER, "").partition(_ANSWER)
        if not mark or _ANSWER in tail:
            raise Dropped("the chat template does not write an answer once")
        prompt, gap, notes = self._opening(head)
        answers = []
        for text, keys in ((self._pair.first, self._pair.first_keys), (self._pair.second, self._pair.second_keys)):
            whole = self._whole(text, keys)
            if not (whole.startswith(head) and whole.endswith(tail) and len(whole) >= len(head) + len(tail)):
                raise Dropped("the chat template writes an answer apart from where it writes others")
            body = whole[len(head) : len(whole) - len(tail)]
            if not body.strip():
                raise Dropped("the chat template leaves nothing of an answer")
            if not keys and body.strip() != text.strip():
                notes.append(CHANGED_ANSWER)
            answers.append(gap + body + self._gap_before_end(tail))
        return WrittenPair(prompt, answers[0], answers[1], tuple(dict.fromkeys(notes)))

    def _opening(self, head: str) -> tuple[str, str, list[str]]:
        """The prompt, what stands between it and an answer, and notes. head: all before an answer, as written."""
        if self._prefill is not None:
            return head, "", [PREFILL]
        opened = self._write(self._turns, open_end=True)
        if not head.startswith(opened):
            return head, "", [OTHER_OPENING]
        between = head[len(opened) :]
        if not between.strip():
            return opened, between, []
        told = NO_PROMPT_FOR_GENERATION if opened == self._write(self._turns, open_end=False) else HEADER_IN_PROMPT
        return head, "", [told.format(between[:_SHOWN])]

    def _gap_before_end(self, tail: str) -> str:
        """The white space that the template writes between an answer and the token that ends it."""
        rest = tail.lstrip()
        ends = tuple(str(self._tokenizer.convert_ids_to_tokens(token)) for token in end_tokens(self._tokenizer))
        return tail[: len(tail) - len(rest)] if rest.startswith(ends) else ""

    def _whole(self, answer: str, keys: str) -> str:
        turn = {"role": "assistant", "content": (self._prefill or "") + answer, **keys_of(keys)}
        return self._write([*self._turns, turn], open_end=False)

    def _write(self, turns: Sequence[dict[str, Any]], *, open_end: bool) -> str:
        try:
            return written_by_template(self._tokenizer, turns, open_end=open_end, tools=self._tools)
        except TemplateError as error:  # some take no system message, or no two turns of one role
            raise Dropped(f"the chat template refuses the prompt: {error}") from None


def _check_keys(pair: TextPair, tokenizer: Any, written: WrittenPair) -> None:
    """Raises Dropped where the template writes the same without something that matters."""
    for key in _held(pair):
        try:
            without = _Template(pair.without(key), tokenizer).written()
        except Dropped:  # without it, it is no conversation: so it matters to the template, too
            continue
        if without[:3] == written[:3]:
            raise Dropped(f"the chat template leaves out {key}")


def _held(pair: TextPair) -> list[str]:
    """What the data say beside texts, as far as it matters."""
    keys = {key for one in pair.keys for key in keys_of(one)}
    return [key for key in _MATTERS if key in keys or (key == "tools" and pair.tools)]


def _changed_turns(pair: TextPair, written: WrittenPair) -> dict[str, None]:
    """Notes on the prompt's turns that the template wrote otherwise. Raises Dropped where a turn, or its end, which
    says what is asked, is not in what the template wrote.
    """
    assert not isinstance(pair.prompt, str)
    notes: dict[str, None] = {}
    loose = ""
    for message in pair.prompt:
        # Templates may leave out what an earlier answer thought.
        text = message.content.rsplit("</think>", 1)[-1].strip()
        if message.role not in ("system", "user", "assistant") or text in written.prompt:
            continue
        loose = loose or _loosely(written.prompt)
        if text[-_SHOWN:] not in written.prompt and _loosely(text)[-_SHOWN:] not in loose:
            what = "the end of a turn" if _loosely(text)[:_SHOWN] in loose else "a turn"
            raise Dropped(f"the chat template leaves out {what} of the {message.role}")
        notes[CHANGED_TURN.format(message.role)] = None
    return notes


def _loosely(text: str) -> str:
    return " ".join(text.split()).casefold()


def template_facts(tokenizer: Any, ends: Sequence[int]) -> Iterator[str]:
    """What tokenizer and chat template do to any conversation, in sentences, found by writing a made-up one. ends: the
    tokens that end a response, the one that closes it first.
    """
    closing, *others = (repr(tokenizer.convert_ids_to_tokens(token)) for token in ends)
    yield f"a response is closed by {closing}" + (f", and ends with {', '.join(others)} as well" if others else "")
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        yield "there is no chat template: conversations are written as turns of Human: and Assistant:"
        return
    if "strftime_now" in str(template):
        yield f"the chat template writes today's date: it is told {TEMPLATE_DAY:%Y-%m-%d}, on every day"
    user, system = Message("user", "\ue001"), Message("system", "\ue002")
    for turns, about in (((user,), "a conversation"), ((system, user), "a system message")):
        try:
            written = write(TextPair(turns, "\ue003", "\ue004"), tokenizer)
        except Dropped as reason:
            yield f"{about} is refused: {reason}"
            continue
        if len(turns) == 1:
            yield f"an answer follows {written.prompt.partition(user.content)[2]!r}"
            yield from written.notes
