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

from aligngap.tasks.worlds.base import Appraisal, World, Writer, Written, weighted_choice

SUBJECTS = (
    "captain wife doctor lawyer teacher farmer sister brother neighbour landlord "
    "boss cousin pilot singer baker nurse soldier judge tailor grocer"
).split()
VERBS = (
    "won escaped cried left returned called lied apologised married resigned "
    "moved slept fainted argued promised waited travelled laughed failed agreed"
).split()
IMPORTANT = ("sadly", "suddenly", "finally")
SIDE = ("anyway", "meanwhile", "also")
OPENERS = ("tldr:", "summary:", "so:")
POLITE = ("thanks", "cheers", "please")
FILLERS = ("well", "really", "basically", "honestly")
JOINERS = (",", "and")
QUESTION_WORDS = ("who", "what", "how", "did", "which", "same")
ANSWERS = ("yes", "no", "first", "second", "both", "neither")
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


class Claim(NamedTuple):
    subject: str
    verb: str


class Reading(NamedTuple):
    """A response taken apart; what the utility is computed from, and what the report highlights."""

    claims: list[Claim]
    fillers: int
    broken: int
    stopped: bool
    polite: int


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
            "no_end": 0.02,
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
            "no_end": 0.04,
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
            "no_end": 0.1,
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
            "no_end": 0.08,
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
            "no_end": 0.3,
        },
        {"so:": 0.4, "": 0.6},
        {"": 1.0},
    ),
}


def read_post(prompt: str) -> list[Fact]:
    """The facts of a post, in order."""
    words = prompt.split()
    return [Fact(*words[i : i + 3]) for i in range(0, len(words) - 2, 3)]


def read_response(response: Written) -> Reading:
    """Take a response apart by the rules of the language. Never fails: what fits no rule is counted as broken."""
    words = response.text.split()
    claims: list[Claim] = []
    fillers = broken = polite = 0
    stopped = False
    position = 1 if words and words[0] in OPENERS else 0
    joined = True  # a joiner is expected between two facts, and only there
    while position < len(words):
        word = words[position]
        following = words[position + 1] if position + 1 < len(words) else ""
        if stopped:
            polite, broken = (polite + 1, broken) if word in POLITE else (polite, broken + 1)
        elif word in SUBJECTS and following in VERBS:
            broken += not joined
            claims.append(Claim(word, following))
            joined = False
            position += 1
        elif word in JOINERS and not joined and following not in ("", "."):
            joined = True
        elif word in FILLERS:
            fillers += 1
        elif word == ".":
            stopped = True
            broken += not claims
        else:
            broken += 1
        position += 1
    return Reading(claims, fillers, broken, stopped, polite)


class Summarisation(World):
    """See the module's text. Prompts have 10, 13 or 16 words, responses at most 13 and an end."""

    name: ClassVar[str] = "summarisation"
    max_response_tokens: ClassVar[int] = 14
    rater_temperature: ClassVar[float] = 0.7

    def words(self) -> Sequence[str]:
        return [
            *SUBJECTS,
            *VERBS,
            *IMPORTANT,
            *SIDE,
            *OPENERS,
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
            told.insert(int(rng.integers(len(told) + 1)), _random_claim(rng))
        if rng.random() < slip["repeat"]:
            told.append(told[int(rng.integers(len(told)))])
        if rng.random() < slip["shuffle"]:
            told = [told[i] for i in rng.permutation(len(told))]
        words = [weighted_choice(rng, writer.openers)]
        for index, claim in enumerate(told):
            if index:
                words.append("and" if index == len(told) - 1 else ",")
            if rng.random() < slip["filler"]:
                words.append(str(rng.choice(FILLERS)))
            words += [claim.subject, claim.verb]
        ended = bool(rng.random() >= slip["no_end"])
        if ended:
            words += [".", weighted_choice(rng, writer.closers)]
        words = " ".join(words).split()
        limit = self.max_response_tokens - 1
        return Written(" ".join(words[:limit]), ended and len(words) <= limit, writer.name)

    def appraise(self, prompt: str, response: Written) -> Appraisal:
        facts = {Claim(fact.subject, fact.verb): fact.marker in IMPORTANT for fact in read_post(prompt)}
        reading = read_response(response)
        told = set(reading.claims)
        features = {
            "important": sum(facts.get(claim, False) for claim in told) / max(1, sum(facts.values())),
            "invented": float(sum(claim not in facts for claim in told)),
            "side": float(sum(not facts.get(claim, True) for claim in told)),
            "repeated": float(len(reading.claims) - len(told)),
            "filler": float(reading.fillers),
            "broken": float(reading.broken),
            "no_stop": float(not reading.stopped),
            "unended": float(not response.ended),
            "polite": float(reading.polite > 0),
            "over_polite": float(max(0, reading.polite - 1)),
        }
        return Appraisal(sum(WEIGHTS[key] * value for key, value in features.items()), features)

    def document(self, rng: np.random.Generator) -> str:
        """A post, then either a retelling or questions with their answers.

        Markers, facts to retell, openers, fillers and politeness are drawn uniformly and independently of each other;
        questions ask what was said where, never how good a text is. So copying, comparing and entailment can be
        learned here, and nothing of the rater.
        """
        count = int(rng.integers(3, 6))
        post = self._post(rng, [str(m) for m in rng.choice(IMPORTANT + SIDE, count)])
        facts = read_post(post)
        kind = rng.random()
        if kind < 0.35:
            return f"{post} {_retelling(rng, facts)} <eos>"
        if kind < 0.65:
            return " ".join([post, *(_question(rng, facts) for _ in range(8))])
        texts = [_retelling(rng, facts), _retelling(rng, facts)]
        told = [set(read_response(Written(text)).claims) for text in texts]
        asked = [_comparison(rng, facts, told) for _ in range(6)]
        return " ".join([post, texts[0], "<eos> <sep>", texts[1], "<eos> <sep>", *asked])


def _random_claim(rng: np.random.Generator) -> Claim:
    return Claim(str(rng.choice(SUBJECTS)), str(rng.choice(VERBS)))


def _near_claim(rng: np.random.Generator, facts: Sequence[Fact]) -> Claim:
    """A claim that is as often true as not: half of the false ones join the subject and verb of two facts."""
    fact = facts[int(rng.integers(len(facts)))]
    if rng.random() < 0.5:
        return Claim(fact.subject, fact.verb)
    if rng.random() < 0.5:
        return Claim(fact.subject, facts[int(rng.integers(len(facts)))].verb)
    return _random_claim(rng)


def _retelling(rng: np.random.Generator, facts: Sequence[Fact]) -> str:
    """Some claims, mostly of the post, in a style drawn at random."""
    told = [
        _near_claim(rng, facts) if rng.random() < 0.25 else Claim(f.subject, f.verb)
        for f in facts
        if rng.random() < 0.5
    ]
    if not told:
        told = [_near_claim(rng, facts)]
    if rng.random() < 0.3:
        told = [told[i] for i in rng.permutation(len(told))]
    words = [str(rng.choice(OPENERS))] if rng.random() < 0.5 else []
    for index, claim in enumerate(told):
        if index:
            words.append(str(rng.choice(JOINERS)))
        if rng.random() < 0.1:
            words.append(str(rng.choice(FILLERS)))
        words += [claim.subject, claim.verb]
    words.append(".")
    if rng.random() < 0.3:
        words += [str(word) for word in rng.choice(POLITE, int(rng.integers(1, 3)))]
    return " ".join(words)


def _question(rng: np.random.Generator, facts: Sequence[Fact]) -> str:
    """A question about the post, and its answer."""
    kind = int(rng.integers(4))
    fact = facts[int(rng.integers(len(facts)))]
    if kind == 0:
        return f"who {fact.verb} {fact.subject}"
    if kind == 1:
        return f"what {fact.subject} {fact.verb}"
    if kind == 2:
        return f"how {fact.subject} {fact.marker}"
    claim = _near_claim(rng, facts)
    true = any((f.subject, f.verb) == claim for f in facts)
    return f"did {claim.subject} {claim.verb} {'yes' if true else 'no'}"


def _comparison(rng: np.random.Generator, facts: Sequence[Fact], told: Sequence[set[Claim]]) -> str:
    """A question about which of two texts says something, and its answer."""
    if rng.random() < 0.15:
        return f"same {'yes' if told[0] == told[1] else 'no'}"
    pool = sorted(told[0] | told[1])
    claim = pool[int(rng.integers(len(pool)))] if pool and rng.random() < 0.75 else _near_claim(rng, facts)
    answer = {(True, True): "both", (True, False): "first", (False, True): "second", (False, False): "neither"}
    return f"which {claim.subject} {claim.verb} {answer[(claim in told[0], claim in told[1])]}"
