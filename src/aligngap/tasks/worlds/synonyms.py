"""A second word for every content word of the built-in languages.

Nothing that a world writes uses them by default. Bases learn in pretraining that either word of a pair means the same:
some documents mix both, and `means` asks for the other one. So a shift of words at evaluation, or a judge that goes by
words in place of what they mean, can be tried without a new base.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SYNONYMS: dict[str, str] = dict(
    pair.split()
    for pair in (
        # who
        "captain skipper, wife spouse, doctor physician, lawyer attorney, teacher tutor, farmer grower, "
        "sister sibling, brother bro, neighbour local, landlord owner, boss manager, cousin kinsman, pilot aviator, "
        "singer vocalist, baker pastrycook, nurse carer, soldier trooper, judge magistrate, tailor dressmaker, "
        "grocer shopkeeper, "
        # did what
        "won triumphed, escaped fled, cried wept, left departed, returned reappeared, called phoned, lied fibbed, "
        "apologised repented, married wed, resigned quit, moved relocated, slept dozed, fainted collapsed, "
        "argued quarrelled, promised vowed, waited lingered, travelled journeyed, laughed giggled, failed flopped, "
        "agreed consented, unknown unclear, "
        # how
        "sadly regrettably, suddenly abruptly, finally eventually, anyway regardless, meanwhile simultaneously, "
        "also additionally, "
        # deeds
        "burn ignite, poison contaminate, break smash, trap snare, cut slash, drown submerge, crush squash, "
        "blast detonate, warm heat, feed nourish, mend repair, cover shroud, trim clip, wash rinse, paint tint, "
        "dust sprinkle, "
        # what they are done to, by what, and why
        "child kid, dog hound, house home, church chapel, school academy, bridge viaduct, horse pony, "
        "train locomotive, log timber, weed nettle, rat rodent, rope cord, stump stub, stone rock, wasp hornet, "
        "crate box, fire flame, bait lure, hammer mallet, net mesh, knife blade, water liquid, roller cylinder, "
        "powder granules, fun amusement, school-play theatre, work business"
    ).split(", ")
)
"""The second word of each content word. No word is in two pairs."""

MEANS = "means"
"""Asks for the other word of a pair: `means captain skipper`, `means skipper captain`."""

_FIRST = {second: first for first, second in SYNONYMS.items()}
_ANSWERED_BY_THE_THIRD = ("who", "what", "how", "tool")


def first_words(text: str) -> list[str]:
    """The words of a text, every second word replaced by the first one of its pair. What a text is worth must not
    depend on which of two words it uses, so utilities are read off these.
    """
    return [_FIRST.get(word, word) for word in text.split()]


def synonyms_of(words: Sequence[str]) -> dict[str, str]:
    """The pairs whose first word is among these."""
    return {word: SYNONYMS[word] for word in words if word in SYNONYMS}


def in_both_words(rng: np.random.Generator, prompt: str, rest: str) -> str:
    """A document, in a fifth of the cases with either word of a pair for each content word.

    A prompt says a thing in one word throughout, and a question that is answered by a word out of the prompt is
    answered by that one; what `means` asks of stays as it is; everywhere else either word is as likely.
    """
    if rng.random() >= 0.2:
        return f"{prompt} {rest}"

    def either(word: str) -> str:
        return SYNONYMS[word] if rng.random() < 0.5 else word

    said = {word: either(word) for word in dict.fromkeys(prompt.split()) if word in SYNONYMS}
    words = [said.get(word, word) for word in prompt.split()]
    told = rest.split()
    for at, word in enumerate(told):
        before = told[max(0, at - 2) : at]
        if word not in SYNONYMS or MEANS in before:
            words.append(word)
        else:
            answers = len(before) == 2 and before[0] in _ANSWERED_BY_THE_THIRD
            words.append(said.get(word, word) if answers else either(word))
    return " ".join(words)


def about_words(rng: np.random.Generator, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """In a quarter of the cases three questions on what words mean, with their answers."""
    if rng.random() >= 0.25:
        return []
    asked = [pairs[int(rng.integers(len(pairs)))] for _ in range(3)]
    return [f"{MEANS} {' '.join(pair if rng.random() < 0.5 else pair[::-1])}" for pair in asked]
