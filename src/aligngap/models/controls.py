"""Control tokens that a text spells out: `<|im_end|>` in what a user wrote is text, and no end of a turn.

A tokenizer cannot tell who wrote what. So such spellings are broken by a guard, a character that no text holds, before
a chat template is given the text; and what the template has written is read by a twin of the tokenizer. The twin knows
the control tokens by other names, which stand where the template wrote them, and reads all else, once the guards are
out, as text. Everything but the names is the tokenizer's own: normaliser, spaces beside tokens, rows of ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from aligngap.models.tokenizer import control_tokens, end_tokens

# Noncharacters: valid in every encoding, and meant for no text.
_GUARD, _OPEN, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile(f"[{_GUARD}{_OPEN}{_CLOSE}]")
_TRIES = 4
"""Breaking one spelling may bring about another, hardly ever a third."""


class Guarded(NamedTuple):
    """A text in which no control token is spelled any more, and those that were, in order, each once."""

    text: str
    spelled: tuple[str, ...] = ()


class Controls:
    """What a tokenizer takes for control tokens, and how a text that spells one is read as text.

    Those are the tokens that stand for no text, those that end a response, and those that the chat template writes
    around a turn (`control_tokens`). Other added tokens, as `<think>` may be one, are part of what is said.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._names = {token: added[token].content for token in sorted(control_tokens(tokenizer)) if token in added}
        self._ends = end_tokens(tokenizer)
        self._exact = _any_of(self._names.values())
        self._any = _any_of(self._names.values(), re.IGNORECASE)

    def spelled(self, text: str) -> tuple[str, ...]:
        """The control tokens that the tokenizer reads in a text, each once."""
        return tuple(dict.fromkeys(self._names[token] for token, _, _ in self._found(text)))

    def opened(self, prompt: str) -> str:
        """A prompt without the beginning-of-sequence token at its head, which is where it belongs."""
        return prompt.removeprefix(self._tokenizer.bos_token or "")

    def body(self, answer: str) -> str:
        """An answer without the end tokens that close it, which are no part of what it says."""
        ends = tuple(self._names[token] for token in self._ends if token in self._names)
        rest = answer.rstrip()
        closed = rest.endswith(ends)
        while rest.endswith(ends):
            rest = next(rest.removesuffix(end) for end in ends if rest.endswith(end)).rstrip()
        return rest if closed else answer

    def ends_within(self, text: str) -> bool:
        """Whether the tokenizer reads an end token in a text."""
        return any(token in self._ends for token, _, _ in self._found(text))

    def guard(self, text: str) -> Guarded | None:
        """The text with guards in its spellings; None where the tokenizer reads them as control tokens all the same."""
        spelled = self.spelled(text)
        if not spelled:
            return Guarded(text)
        if self._twin is None or _MARKS.search(text):
            return None
        for _ in range(_TRIES):
            places = []
            for _, start, end in self._found(text):
                name = self._any.search(text, start, end)
                if name is None or len(name[0]) < 2:
                    return None
                places.append(name.start() + 1)
            if not places:
                return None if self._names.keys() & self._as_text(text) else Guarded(text, spelled)
            for place in reversed(places):
                text = text[:place] + _GUARD + text[place:]
        return None

    def ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """Token ids of texts, of guarded ones as they are meant. special: with what the tokenizer adds to a text."""
        if not texts:
            return []
        # verbose: the tokenizer would warn of every text beyond the model's context, which is cut and counted.
        rows: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
        for index, text in enumerate(texts):
            if _GUARD in text:
                rows[index] = self._added(self._as_text(text)) if special else self._as_text(text)
        return rows

    @staticmethod
    def plain(text: str) -> str:
        """The text without guards."""
        return text.replace(_GUARD, "")

    def decoded(self, ids: Sequence[int]) -> str:
        """The text of ids, with guards where text spells a control token that is none among the ids."""
        whole = str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
        if not self._any.search(whole) or len(self._exact.findall(whole)) == sum(id in self._names for id in ids):
            return whole
        parts, run = list[str](), list[int]()
        for token in [*ids, None]:
            if token is not None and token not in self._names:
                run.append(token)
                continue
            text = str(self._tokenizer.decode(run, clean_up_tokenization_spaces=False)) if run else ""
            guarded = self.guard(text)
            parts += [guarded.text if guarded else text, self._names[token] if token is not None else ""]
            run = []
        return "".join(parts)

    def _found(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Each control token that the tokenizer reads in a text, with the place of its first and behind its last
        character; of the whole text where it does not tell places.
        """
        if not self._any.search(text):
            return
        tells = bool(self._tokenizer.is_fast)
        read = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=tells, verbose=False)
        places = read["offset_mapping"] if tells else [(0, len(text))] * len(read["input_ids"])
        for token, (start, end) in zip(read["input_ids"], places, strict=True):
            if token in self._names:
                yield token, start, end

    def _as_text(self, text: str) -> list[int]:
        assert self._twin is not None
        twin, ids = self._twin
        named = self._exact.sub(lambda found: f"{_OPEN}{found[0]}{_CLOSE}", text)
        return [ids.get(token, token) for token in twin.encode(self.plain(named), add_special_tokens=False).ids]

    def _added(self, ids: list[int]) -> list[int]:
        """The ids with what the tokenizer puts before and behind any text."""
        whole, alone = (self._tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
        start = next((at for at in range(len(whole)) if whole[at : at + len(alone)] == alone), len(whole))
        return [*whole[:start], *ids, *whole[start + len(alone) :]]

    @cached_property
    def _twin(self) -> tuple[Tokenizer, dict[int, int]] | None:
        """A tokenizer that knows control tokens between marks only, and of its ids those that are the tokenizer's under
        another number. None where there is none.
        """
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        form = json.loads(backend.to_str())
        form |= {"post_processor": None, "truncation": None, "padding": None}
        names = {}
        for token in form["added_tokens"]:
            if token["id"] in self._names:
                token |= {"content": f"{_OPEN}{token['content']}{_CLOSE}", "normalized": False}
            names[token["content"]] = token["id"]
        twin = Tokenizer.from_str(json.dumps(form))
        known = twin.get_vocab(with_added_tokens=True)
        ids = {known[name]: token for name, token in names.items()}
        text = {token for name, token in twin.get_vocab(with_added_tokens=False).items() if name not in names}
        return None if text & ids.keys() else (twin, ids)


def _any_of(names: Any, flags: int = 0) -> re.Pattern[str]:
    """What matches the longest of some texts; nothing where there are none."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)", flags)
