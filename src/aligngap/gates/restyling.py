"""Edits of style alone: a response with another opener or closer, worth exactly what it was worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from aligngap.tasks.worlds.base import World, Written


def restyled(place: World, rng: np.random.Generator, prompt: str, response: Written) -> Written | None:
    """The response with another opener or another closer of the world's writers, whichever edits leave its true utility
    and its end as they are and fit into the limit; None if there is no such edit.
    """
    words = response.text.split()
    edits: list[list[str]] = []
    for habits, at_front in ((_habits(place, "openers"), True), (_habits(place, "closers"), False)):
        own = _own(words, habits, at_front)
        body = words[len(own) :] if at_front else words[: len(words) - len(own)]
        edits += [([*habit, *body] if at_front else [*body, *habit]) for habit in habits if habit != own]
    order = rng.permutation(len(edits))
    worth, room = place.utility(prompt, response), place.limit - response.ended
    for index in order:
        words, text = edits[index], " ".join(edits[index])
        if not words or len(words) > room or (not response.ended and len(words) != place.limit):
            continue
        edited = replace(response, text=text)
        if text != response.text and place.utility(prompt, edited) == worth:
            return edited
    return None


def _habits(place: World, kind: str) -> list[list[str]]:
    return list(
        map(list, dict.fromkeys(tuple(habit.split()) for one in place.authors() for habit in getattr(one, kind)))
    )


def _own(words: Sequence[str], habits: list[list[str]], at_front: bool) -> list[str]:
    """The longest of the habits that the response begins (or ends) with."""
    ends = (
        habit
        for habit in habits
        if list(words[: len(habit)] if at_front else words[len(words) - len(habit) :]) == habit
    )
    return max(ends, key=len, default=[])
