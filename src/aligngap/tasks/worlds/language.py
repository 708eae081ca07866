"""The part of the language that several worlds share: who did what, told in sentences, and questions about it.

Nothing here knows what any rater values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aligngap.tasks.worlds.base import Writer, Written, pick, weighted_choice
from aligngap.tasks.worlds.synonyms import first_words

SUBJECTS = (
    "captain wife doctor lawyer teacher farmer sister brother neighbour landlord "
    "boss cousin pilot singer baker nurse soldier judge tailor grocer"
).split()
VERBS = (
    "won escaped cried left returned called lied apologised married resigned "
    "moved slept fainted argued promised waited travelled laughed failed agreed"
).split()
SUMMARY_OPENERS = ("tldr:", "summary:", "so:")
ANSWER_OPENERS = ("sure", "certainly")
OPENERS = (*SUMMARY_OPENERS, *ANSWER_OPENERS)
POLITE = ("thanks", "cheers", "please")
FILLERS = ("well", "really", "basically", "honestly")
JOINERS = (",", "and")
QUESTION_WORDS = ("who", "what", "how", "did", "which", "same")
ANSWERS = ("yes", "no", "first", "second", "both", "neither")


GLAD = frozenset("won escaped returned apologised married moved promised travelled laughed agreed".split())
"""Half of the verbs: good news. The language says nothing of it."""
NEAR = frozenset("wife farmer sister brother neighbour cousin singer baker nurse grocer".split())
"""Half of the subjects: people one knows. The language says nothing of it."""


class Claim(NamedTuple):
    """Someone did something. `verb` may also be a word a world adds, such as `unknown`."""

    subject: str
    verb: str


class Reading(NamedTuple):
    """A response taken apart; what a utility is computed from."""

    claims: list[Claim]
    fillers: int
    broken: int
    stopped: bool
    polite: int


def read_claims(response: Written, verbs: Sequence[str] = VERBS, fillers: Sequence[str] = FILLERS) -> Reading:
    """Take a response apart by the rules of the language: an optional opener, claims joined by `,` or `and`, a full
    stop, politeness. Never fails: what fits no rule is counted as broken.
    """
    words = first_words(response.text)
    claims: list[Claim] = []
    filled = broken = polite = 0
    stopped = False
    position = 1 if words and words[0] in OPENERS else 0
    joined = True  # a joiner is expected between two claims, and only there
    while position < len(words):
        word = words[position]
        following = words[position + 1] if position + 1 < len(words) else ""
        if stopped:
            polite, broken = (polite + 1, broken) if word in POLITE else (polite, broken + 1)
        elif word in SUBJECTS and following in verbs:
            broken += not joined
            claims.append(Claim(word, following))
            joined = False
            position += 1
        elif word in JOINERS and not joined and following not in ("", "."):
            joined = True
        elif word in fillers:
            filled += 1
        elif word == ".":
            stopped = True
            broken += not claims
        else:
            broken += 1
        position += 1
    return Reading(claims, filled, broken, stopped, polite)


def tell(
    rng: np.random.Generator, claims: Sequence[str], writer: Writer, fillers: Sequence[str], limit: int
) -> Written:
    """A writer's response of these clauses, in the writer's style. One that is longer than `limit` tokens is cut off
    there, without an end; so is what a policy says, and no other response lacks its end.
    """
    slip = writer.slips
    words = [weighted_choice(rng, writer.openers)]
    for index, claim in enumerate(claims):
        if index:
            words.append("and" if index == len(claims) - 1 else ",")
        if rng.random() < slip["filler"]:
            words.append(str(rng.choice(fillers)))
        words.append(claim)
    if rng.random() >= slip["no_stop"]:
        words += [".", weighted_choice(rng, writer.closers)]
    words = " ".join(words).split()
    return Written(" ".join(words[:limit]), len(words) < limit, writer.name)


def tell_tersely(rng: np.random.Generator, terms: Sequence[str], writer: Writer, limit: int) -> Written:
    """A writer's response of single words, as many as fit before the end; or over the limit, without one."""
    words = terms if rng.random() < writer.slips["no_stop"] else terms[: limit - 1]
    return Written(" ".join(words[:limit]), len(words) < limit, writer.name)


def that_fit(clauses: Sequence[str], limit: int) -> list[str]:
    """The first clauses that make a sentence of at most `limit` tokens, the end included; at least one."""
    count, size = 0, 4  # an opener, the full stop, a closer and the end
    for clause in clauses:
        size += len(clause.split()) + (count > 0)
        count += size <= limit
    return list(clauses[: max(1, count)])


def signs_of(facts: Sequence[Claim], at: int) -> tuple[int, int, int]:
    """What the fact at this place is like: good news or bad, of somebody near or far, behind good news or bad (the
    first is behind the last).
    """
    fact, before = facts[at], facts[at - 1]
    return sign(fact.verb in GLAD), sign(fact.subject in NEAR), sign(before.verb in GLAD)


def sign(holds: bool) -> int:
    """1 if something holds, else -1."""
    return 1 if holds else -1


def random_claim(rng: np.random.Generator) -> Claim:
    """Anyone, doing anything."""
    return Claim(pick(rng, SUBJECTS), pick(rng, VERBS))


def near_claim(rng: np.random.Generator, facts: Sequence[Claim]) -> Claim:
    """A claim that is as often true as not: half of the false ones join the subject and verb of two facts."""
    fact = pick(rng, facts)
    if rng.random() < 0.5:
        return fact
    if rng.random() < 0.5:
        return Claim(fact.subject, pick(rng, facts).verb)
    return random_claim(rng)


def retelling(rng: np.random.Generator, facts: Sequence[Claim], openers: Sequence[str]) -> str:
    """Some claims, mostly of the facts, in a style drawn at random."""
    told = [near_claim(rng, facts) if rng.random() < 0.25 else fact for fact in facts if rng.random() < 0.5]
    if not told:
        told = [near_claim(rng, facts)]
    if rng.random() < 0.3:
        told = [told[i] for i in rng.permutation(len(told))]
    return styled(rng, [" ".join(claim) for claim in told], openers, FILLERS)


def styled(rng: np.random.Generator, clauses: Sequence[str], openers: Sequence[str], fillers: Sequence[str]) -> str:
    """Clauses as one sentence, in a style drawn at random and independent of them."""
    words = [pick(rng, openers)] if rng.random() < 0.5 else []
    for index, clause in enumerate(clauses):
        if index:
            words.append(pick(rng, JOINERS))
        if rng.random() < 0.1:
            words.append(pick(rng, fillers))
        words.append(clause)
    words.append(".")
    if rng.random() < 0.3:
        words += [pick(rng, POLITE) for _ in range(int(rng.integers(1, 3)))]
    return " ".join(words)


def terse(rng: np.random.Generator, words: Sequence[str]) -> str:
    """One to three of these words, drawn alike, in their order or another one: as short as a response can be."""
    chosen = rng.permutation(len(words))[: int(rng.integers(1, 4))]
    return " ".join(words[i] for i in (chosen if rng.random() < 0.3 else sorted(chosen)))


def question(rng: np.random.Generator, facts: Sequence[Claim], kind: int) -> str:
    """A question about facts and its answer. Kind 0: who did it; 1: what did they do; any other: is this so."""
    fact = pick(rng, facts)
    if kind == 0:
        return f"who {fact.verb} {fact.subject}"
    if kind == 1:
        return f"what {fact.subject} {fact.verb}"
    claim = near_claim(rng, facts)
    return f"did {claim.subject} {claim.verb} {'yes' if claim in facts else 'no'}"


def comparison(rng: np.random.Generator, facts: Sequence[Claim], told: Sequence[set[Claim]]) -> str:
    """A question about which of two texts says something, and its answer."""
    if rng.random() < 0.15:
        return f"same {'yes' if told[0] == told[1] else 'no'}"
    pool = sorted(told[0] | told[1])
    claim = pick(rng, pool) if pool and rng.random() < 0.75 else near_claim(rng, facts)
    return f"which {claim.subject} {claim.verb} {which(claim in told[0], claim in told[1])}"


def which(in_first: bool, in_second: bool) -> str:
    """Which of two texts it is true of, as an answer."""
    answer = {(True, True): "both", (True, False): "first", (False, True): "second", (False, False): "neither"}
    return answer[in_first, in_second]
