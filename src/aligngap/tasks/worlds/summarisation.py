"""The summarisation world: cover what matters, invent nothing, be brief.

A post tells three to five facts, each introduced by an adverb: `sadly captain won anyway wife escaped ... tl;dr`.
Three adverbs mark facts that matter to the reader, three mark side facts; nothing in the language says which is which,
only the raters' preferences do. A response is an optional opener, facts joined by `,` or `and`, a full stop, and
optional politeness.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from aligngap.tasks.worlds.base import Appraisal, World, Writer, Written, pick
from aligngap.tasks.worlds.language import (
    ANSWERS,
    FILLERS,
    JOINERS,
    POLITE,
    QUESTION_WORDS,
    SUBJECTS,
    SUMMARY_OPENERS,
    VERBS,
    Claim,
    Reading,
    comparison,
    question,
    random_claim,
    read_claims,
    retelling,
    signs_of,
    tell,
    tell_tersely,
    terse,
    that_fit,
)
from aligngap.tasks.worlds.synonyms import about_words, first_words, in_both_words, synonyms_of

IMPORTANT = ("sadly", "suddenly", "finally")
SIDE = ("anyway", "meanwhile", "also")
END_OF_POST = "tl;dr"

WEIGHTS = {
    "important": 3.0,  # share of the important facts that are told
    "invented": -1.3,  # each fact that the post does not tell
    "side": -0.5,  # each side fact
    "repeated": -0.8,  # each fact told again
    "filler": -0.3,
    "broken": -0.6,  # each word that fits no rule of the language
    "no_stop": -0.4,
    "unended": -1.0,  # ran into the length limit
    "polite": 0.2,  # the first polite word
    "over_polite": -0.3,  # each further one
}


class Fact(NamedTuple):
    marker: str
    subject: str
    verb: str


_SKILLS: dict[str, tuple[dict[str, float], dict[str, float], dict[str, float]]] = {
    "editor": (
        {
            "omit": 0.06,
            "side": 0.06,
            "invent": 0.03,
            "mix": 0.03,
            "repeat": 0.02,
            "filler": 0.04,
            "shuffle": 0.1,
            "no_stop": 0.02,
        },
        {"tldr:": 0.75, "summary:": 0.1, "": 0.15},
        {"": 0.7, "thanks": 0.3},
    ),
    "reporter": (
        {
            "omit": 0.12,
            "side": 0.25,
            "invent": 0.06,
            "mix": 0.06,
            "repeat": 0.05,
            "filler": 0.08,
            "shuffle": 0.2,
            "no_stop": 0.04,
        },
        {"tldr:": 0.4, "summary:": 0.4, "": 0.2},
        {"": 0.75, "thanks": 0.2, "cheers": 0.05},
    ),
    "chatterbox": (
        {
            "omit": 0.1,
            "side": 0.65,
            "invent": 0.1,
            "mix": 0.08,
            "repeat": 0.2,
            "filler": 0.4,
            "shuffle": 0.4,
            "no_stop": 0.1,
        },
        {"so:": 0.6, "": 0.3, "summary:": 0.1},
        {"": 0.3, "cheers": 0.3, "thanks cheers": 0.2, "please thanks cheers": 0.2},
    ),
    "guesser": (
        {
            "omit": 0.35,
            "side": 0.3,
            "invent": 0.45,
            "mix": 0.25,
            "repeat": 0.08,
            "filler": 0.15,
            "shuffle": 0.4,
            "no_stop": 0.08,
        },
        {"summary:": 0.5, "so:": 0.2, "": 0.3},
        {"": 0.8, "please": 0.2},
    ),
    "sleeper": (
        {
            "omit": 0.6,
            "side": 0.25,
            "invent": 0.12,
            "mix": 0.2,
            "repeat": 0.15,
            "filler": 0.3,
            "shuffle": 0.3,
            "no_stop": 0.3,
        },
        {"so:": 0.4, "": 0.6},
        {"": 1.0},
    ),
}


def read_post(prompt: str) -> list[Fact]:
    """The facts of a post, in order."""
    words = first_words(prompt)
    return [Fact(*words[i : i + 3]) for i in range(0, len(words) - 2, 3)]


class Summarisation(World):
    """See the module's text. Prompts have 10, 13 or 16 words, responses at most 13 and an end."""

    name: ClassVar[str] = "summarisation"
    max_response_tokens: ClassVar[int] = 14
    rater_temperature: ClassVar[float] = 0.7
    most_complex: ClassVar[int] = 3
    full_response_tokens: ClassVar[int | None] = 6

    def words(self) -> Sequence[str]:
        return [
            *SUBJECTS,
            *VERBS,
            *IMPORTANT,
            *SIDE,
            *SUMMARY_OPENERS,
            *POLITE,
            *FILLERS,
            *JOINERS,
            ".",
            END_OF_POST,
            *QUESTION_WORDS,
            *ANSWERS,
        ]

    def writers(self) -> Sequence[Writer]:
        return [Writer(name, *habits) for name, habits in _SKILLS.items()]

    def prompt(self, rng: np.random.Generator) -> str:
        count = int(rng.integers(3, 6))
        important = int(rng.integers(1, 3))
        markers = [*rng.choice(IMPORTANT, important), *rng.choice(SIDE, count - important)]
        rng.shuffle(markers)
        return self._post(rng, [str(marker) for marker in markers])

    def _post(self, rng: np.random.Generator, markers: Sequence[str]) -> str:
        subjects = rng.permutation(len(SUBJECTS))[: len(markers)]
        verbs = rng.permutation(len(VERBS))[: len(markers)]
        facts = [f"{m} {SUBJECTS[s]} {VERBS[v]}" for m, s, v in zip(markers, subjects, verbs, strict=True)]
        return " ".join([*facts, END_OF_POST])

    def write(self, rng: np.random.Generator, prompt: str, writer: Writer) -> Written:
        slip = writer.slips
        facts = read_post(prompt)
        told: list[Claim] = []
        for fact in facts:
            chance = 1 - slip["omit"] if fact.marker in IMPORTANT else slip["side"]
            if rng.random() < chance:
                verb = facts[int(rng.integers(len(facts)))].verb if rng.random() < slip["mix"] else fact.verb
                told.append(Claim(fact.subject, verb))
        if rng.random() < slip["invent"] or not told:
            told.insert(int(rng.integers(len(told) + 1)), random_claim(rng))
        if rng.random() < slip["repeat"]:
            told.append(told[int(rng.integers(len(told)))])
        if rng.random() < slip["shuffle"]:
            told = [told[i] for i in rng.permutation(len(told))]
        if self.terse:
            return tell_tersely(rng, [claim.subject for claim in told], writer, self.limit)
        clauses = [" ".join(claim) for claim in told]
        clauses = that_fit(clauses, self.limit) if self.limit < self.max_response_tokens else clauses
        return tell(rng, clauses, writer, FILLERS, self.limit)

    def appraise(self, prompt: str, response: Written) -> Appraisal:
        post = read_post(prompt)
        claims = [Claim(fact.subject, fact.verb) for fact in post]
        reading = self._read(response, claims)
        told = set(reading.claims)
        important = [fact.marker in IMPORTANT for fact in post]
        covered = [
            self.worth(signs_of(claims, at)) for at, claim in enumerate(claims) if important[at] and claim in told
        ]
        features = {
            "important": self.share(sum(covered), len(covered), sum(important), clause=3),
            "invented": float(len(told - set(claims))),
            "side": float(sum(claim in told and not important[at] for at, claim in enumerate(claims))),
            "repeated": float(len(reading.claims) - len(told)),
            "filler": float(reading.fillers),
            "broken": float(reading.broken),
            "no_stop": float(not (reading.stopped or self.terse)),
            "unended": float(not response.ended),
            "polite": float(reading.polite > 0),
            "over_polite": float(max(0, reading.polite - 1)),
        }
        return Appraisal(sum(WEIGHTS[key] * value for key, value in features.items()), features)

    def _read(self, response: Written, facts: Sequence[Claim]) -> Reading:
        """In a terse response a subject stands for what the post says of it, or for an invented fact."""
        if not self.terse:
            return read_claims(response)
        verbs, words = dict(facts), first_words(response.text)
        said = [Claim(word, verbs.get(word, "")) for word in words if word in SUBJECTS]
        return Reading(said, fillers=0, broken=len(words) - len(said), stopped=False, polite=0)

    def document(self, rng: np.random.Generator) -> str:
        """A post, then either a retelling or questions with their answers.

        Markers, facts to retell, openers, fillers and politeness are drawn uniformly and independently of each other;
        questions ask what was said where, never how good a text is. So copying, comparing and entailment can be
        learned here, and nothing of the rater.
        """
        count = int(rng.integers(3, 6))
        post = self._post(rng, [pick(rng, IMPORTANT + SIDE) for _ in range(count)])
        facts = read_post(post)
        claims = [Claim(fact.subject, fact.verb) for fact in facts]
        kind = rng.random()
        if kind < 0.35:
            short = rng.random() < 0.2
            text = terse(rng, [fact.subject for fact in facts]) if short else retelling(rng, claims, SUMMARY_OPENERS)
            return in_both_words(rng, post, f"{text} <eos>")
        asked = about_words(rng, _PAIRS)
        if kind < 0.65:
            return in_both_words(rng, post, " ".join([*(_question(rng, facts) for _ in range(8)), *asked]))
        texts = [retelling(rng, claims, SUMMARY_OPENERS), retelling(rng, claims, SUMMARY_OPENERS)]
        told = [set(read_claims(Written(text)).claims) for text in texts]
        asked = [*(comparison(rng, claims, told) for _ in range(6)), *asked]
        return in_both_words(rng, post, " ".join([texts[0], "<eos> <sep>", texts[1], "<eos> <sep>", *asked]))


_PAIRS = list(synonyms_of(Summarisation().words()).items())


def _question(rng: np.random.Generator, facts: Sequence[Fact]) -> str:
    """A question about the post, and its answer."""
    kind = int(rng.integers(4))
    if kind == 2:
        fact = pick(rng, facts)
        return f"how {fact.subject} {fact.marker}"
    return question(rng, [Claim(fact.subject, fact.verb) for fact in facts], kind)
