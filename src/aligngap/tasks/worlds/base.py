"""What a built-in world must offer.

A world is a small language with a purpose: prompts, writers of different skill who answer them, and a hidden utility
that its raters feel. Models see tokens only. The language (`document`) may be used for pretraining; the utility and
the rater never are.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from aligngap.errors import UserError
from aligngap.tasks.worlds.synonyms import MEANS, synonyms_of

T = TypeVar("T")


@dataclass(frozen=True)
class Writer:
    """Someone who writes responses: how often each slip happens, and habits that say who is writing.

    Rates are probabilities per fact or per response. Habits (opener, closer) carry no utility of their own: they are
    the spurious cue that a preference model can latch on to, as far as `Dials.style` lets them.
    """

    name: str
    slips: Mapping[str, float]
    openers: Mapping[str, float]
    closers: Mapping[str, float]


@dataclass(frozen=True)
class Written:
    """A response as text, and whether its writer ended it (an end-of-sequence token follows)."""

    text: str
    ended: bool = True
    writer: str = ""


@dataclass(frozen=True)
class Appraisal:
    """The hidden rater's view of one response: utility = sum over features of weight times value."""

    utility: float
    features: Mapping[str, float] = field(default_factory=dict)


class Dials(BaseModel):
    """What may be set of a world, and what each setting leaves as it is.

    style: 0 to 1, how far openers and closers tell of a writer's skill: at 0 all writers share one distribution, at 1
    each has habits of their own. What responses claim stays the same.
    complexity: how many more properties of the prompt decide what a part of a response is worth. Prompts and responses
    stay the same.
    length: tokens that a response may have, the end included; None for the world's own limit. Prompts stay the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    style: float = Field(0.0, ge=0, le=1)
    complexity: int = Field(0, ge=0)
    length: int | None = Field(None, ge=2)


class World(ABC):
    """A built-in task. All text is words separated by single spaces."""

    name: ClassVar[str]
    max_response_tokens: ClassVar[int]
    """Longest response, end-of-sequence included."""
    rater_temperature: ClassVar[float]
    """Bradley-Terry temperature of the raters, in units of utility."""
    most_complex: ClassVar[int] = 0
    """The highest complexity that the utility knows."""
    fit: ClassVar[float] = 2.0
    """At complexity above 0 a part of a response is worth so much more than usual if its signs fit, and so much less if
    they do not. Chosen so that raters agree with the true sign as often as at complexity 0, and as many pairs lie
    within their temperature."""
    full_response_tokens: ClassVar[int | None] = None
    """So many tokens hold an opener, a clause, a full stop, a closer and the end; with fewer, responses are single
    words. None for a world of one length."""
    dials: Dials = Dials()

    def at(self, dials: Dials) -> Self:
        """This world with its dials set. Raises UserError for a setting that it does not have."""
        if dials.complexity > self.most_complex:
            raise UserError(
                f"the world '{self.name}' has no complexity {dials.complexity}",
                where="complexity",
                hint=f"It has 0 to {self.most_complex}.",
            )
        longest = self.max_response_tokens
        if dials.length is not None and (self.full_response_tokens is None or not 2 <= dials.length <= longest):
            raise UserError(
                f"the world '{self.name}' has no responses of {dials.length} tokens",
                where="length",
                hint=f"It has 2 to {longest}." if self.full_response_tokens else f"Its length is {longest}.",
            )
        world = copy.copy(self)
        world.dials = dials
        return world

    @property
    def limit(self) -> int:
        """Tokens that a response may have, the end included."""
        return self.dials.length or self.max_response_tokens

    @property
    def terse(self) -> bool:
        """Whether responses are single words, for want of room for a sentence."""
        return self.limit < (self.full_response_tokens or 0)

    def worth(self, signs: Sequence[int]) -> float:
        """What a part of a response is worth, as a multiple of the usual. signs: what it and its place in the prompt
        are like, 1 or -1 each. They decide together: knowing all but one of those that count says nothing.
        """
        counted = signs[: self.dials.complexity]
        return 1.0 + self.fit * float(np.prod(counted)) if counted else 1.0

    def share(self, worth: float, told: int, there: int, clause: int) -> float:
        """What was told of the parts of a response that count, as a share of those that there are and that there is
        room for; 1 at most at complexity 0. clause: words of a part, its joiner included; one in a terse response.
        """
        room = self.limit - 1 if self.terse else (self.limit - 3) // clause
        return worth / max(1, told, min(there, room))

    def authors(self) -> list[Writer]:
        """The writers, with openers and closers between those of all (style 0) and their own (style 1)."""
        writers, style = list(self.writers()), self.dials.style

        def habits(own: Mapping[str, float], everyones: Sequence[Mapping[str, float]]) -> dict[str, float]:
            names = dict.fromkeys(name for one in everyones for name in one)
            shared = {name: sum(_share(one, name) for one in everyones) / len(everyones) for name in names}
            return {name: (1 - style) * shared[name] + style * _share(own, name) for name in names}

        openers, closers = [one.openers for one in writers], [one.closers for one in writers]
        return [
            replace(one, openers=habits(one.openers, openers), closers=habits(one.closers, closers)) for one in writers
        ]

    @abstractmethod
    def words(self) -> Sequence[str]:
        """Every word that prompts, responses and questions use, in a fixed order; not the second words of pairs."""

    @abstractmethod
    def writers(self) -> Sequence[Writer]:
        """Who writes the responses of the first preference pairs."""

    @abstractmethod
    def prompt(self, rng: np.random.Generator) -> str:
        """A random prompt."""

    @abstractmethod
    def write(self, rng: np.random.Generator, prompt: str, writer: Writer) -> Written:
        """What this writer answers."""

    @abstractmethod
    def appraise(self, prompt: str, response: Written) -> Appraisal:
        """The hidden true utility of a response. Defined for any text, however broken."""

    @abstractmethod
    def document(self, rng: np.random.Generator) -> str:
        """A piece of the world's language for pretraining.

        Must not depend on the rater, the utility's weights or the writers: a base that was taught what the rater
        values hands the preference models their answer.
        """

    def vocabulary(self) -> list[str]:
        """What a base has to know: the world's words, and the second word of each pair of synonyms among them."""
        synonyms = synonyms_of(self.words())
        return [*self.words(), *([MEANS, *synonyms.values()] if synonyms else [])]

    def utility(self, prompt: str, response: Written) -> float:
        """The hidden true utility, in units of the rater's Bradley-Terry logit times temperature."""
        return self.appraise(prompt, response).utility

    def rate(self, rng: np.random.Generator, prompt: str, first: Written, second: Written) -> float:
        """One rater's preference, 1.0 for the first and 0.0 for the second response (Bradley-Terry)."""
        difference = self.utility(prompt, first) - self.utility(prompt, second)
        return float(rng.random() < 1.0 / (1.0 + np.exp(-difference / self.rater_temperature)))


def _share(weights: Mapping[str, float], name: str) -> float:
    return weights.get(name, 0.0) / (sum(weights.values()) or 1.0)  # a world of one's own may have no habits


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of these, each as likely. A tenth of the time of `rng.choice`, which makes an array of them first."""
    return options[int(rng.random() * len(options))]


def weighted_choice(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    """A key of `weights`, with probability in proportion to its weight."""
    p = np.array(list(weights.values()))
    # As `rng.choice` draws, to the bit, without the checks that make most of its time.
    cumulative = (p / p.sum()).cumsum()
    place = (cumulative / cumulative[-1]).searchsorted(rng.random(), side="right")
    return list(weights)[int(place)]
