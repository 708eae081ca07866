"""What a built-in world must offer.

A world is a small language with a purpose: prompts, writers of different skill who answer them, and a hidden utility
that its raters feel. Models see tokens only. The language (`document`) may be used for pretraining; the utility and
the rater never are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import numpy as np

from aligngap.tasks.worlds.synonyms import MEANS, synonyms_of


T = TypeVar("T")


@dataclass(frozen=True)
class Writer:
    """Someone who writes responses: how often each slip happens, and habits that say who is writing.

    Rates are probabilities per fact or per response. Habits (opener, closer) carry no utility of their own: they are
    the spurious cue that a preference model can latch on to.
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


class World(ABC):
    """A built-in task. All text is words separated by single spaces."""

    name: ClassVar[str]
    max_response_tokens: ClassVar[int]
    """Longest response, end-of-sequence included."""
    rater_temperature: ClassVar[float]
    """Bradley-Terry temperature of the raters, in units of utility."""

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
