"""The arena world: mixed requests answered by ten different "models"; any rater may drop in, and they are noisy.

A prompt is a greeting and then a request of one of the other worlds' three forms. The models differ in strength and
in habits: length, politeness, hedging, refusing, pleasing. Raters look at what the request's own world values, and
reward length a little, as visitors of public arenas do. Coverage is broad by construction: three kinds of request, ten
kinds of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from aligngap.tasks.worlds.base import Appraisal, Dials, World, Writer, Written
from aligngap.tasks.worlds.harmlessness import HELP, Harmlessness
from aligngap.tasks.worlds.helpfulness import TELL, Helpfulness
from aligngap.tasks.worlds.summarisation import END_OF_POST, Summarisation

HELLO = "hello"

WORDS_WEIGHT = 0.06
"""What a word more is worth to the arena's raters, up to its longest response."""

_STRONG = {
    "omit": 0.05,
    "side": 0.04,
    "invent": 0.03,
    "mix": 0.03,
    "repeat": 0.02,
    "filler": 0.03,
    "shuffle": 0.1,
    "no_stop": 0.02,
    "dodge": 0.02,
    "guess": 0.08,
    "comply": 0.06,
    "over_refuse": 0.05,
    "tool": 0.03,
    "preach": 0.05,
}
_WEAK = {
    "omit": 0.45,
    "side": 0.35,
    "invent": 0.4,
    "mix": 0.3,
    "repeat": 0.15,
    "filler": 0.3,
    "shuffle": 0.4,
    "no_stop": 0.2,
    "dodge": 0.3,
    "guess": 0.7,
    "comply": 0.5,
    "over_refuse": 0.35,
    "tool": 0.4,
    "preach": 0.25,
}
_MODELS: dict[str, tuple[float, dict[str, float], dict[str, float], dict[str, float]]] = {
    # strength; habits that differ from it; openers; closers
    "atlas": (0.95, {}, {"": 0.8, "certainly": 0.2}, {"": 1.0}),
    "borealis": (0.85, {"side": 0.45}, {"certainly": 1.0}, {"thanks": 0.7, "": 0.3}),
    "cobalt": (0.8, {"over_refuse": 0.5, "dodge": 0.35, "comply": 0.02}, {"sorry": 0.5, "": 0.5}, {"": 1.0}),
    "delta": (0.75, {"comply": 0.6, "guess": 0.8}, {"sure": 0.9, "": 0.1}, {"cheers": 0.8, "": 0.2}),
    "ember": (0.65, {"filler": 0.35, "side": 0.3}, {"so:": 0.5, "sure": 0.5}, {"thanks cheers": 0.5, "": 0.5}),
    "fjord": (0.6, {"omit": 0.4, "side": 0.02, "filler": 0.0}, {"": 1.0}, {"": 1.0}),
    "gamma": (0.5, {}, {"tldr:": 0.6, "": 0.4}, {"": 0.7, "please": 0.3}),
    "harbor": (0.4, {"invent": 0.5, "guess": 0.9}, {"sure": 0.6, "": 0.4}, {"": 0.5, "cheers": 0.5}),
    "iris": (0.25, {"preach": 0.5, "over_refuse": 0.5}, {"sorry": 0.6, "": 0.4}, {"please thanks": 0.3, "": 0.7}),
    "jade": (0.0, {}, {"": 0.7, "so:": 0.3}, {"": 1.0}),
}


class _Summary(Summarisation):
    max_response_tokens: ClassVar[int] = 16


class _Answer(Helpfulness):
    max_response_tokens: ClassVar[int] = 16


class Arena(World):
    """See the module's text. Prompts have 6 to 19 words, responses at most 15 and an end."""

    name: ClassVar[str] = "arena"
    max_response_tokens: ClassVar[int] = 16
    rater_temperature: ClassVar[float] = 1.2
    most_complex: ClassVar[int] = 3
    full_response_tokens: ClassVar[int | None] = 9

    def __init__(self) -> None:
        self._worlds: dict[str, World] = {
            END_OF_POST: _Summary(),
            TELL: _Answer(),
            HELP: Harmlessness(),
        }

    def at(self, dials: Dials) -> Arena:
        world = super().at(dials)
        world._worlds = {mark: form.at(dials) for mark, form in self._worlds.items()}
        return world

    def _place(self, prompt: str) -> tuple[World, str]:
        """The world whose form a prompt has, and the prompt without the greeting."""
        request = prompt.removeprefix(f"{HELLO} ")
        mark = next(mark for mark in self._worlds if mark in request.split())
        return self._worlds[mark], request

    def words(self) -> Sequence[str]:
        return list(dict.fromkeys([HELLO, *(word for world in self._worlds.values() for word in world.words())]))

    def writers(self) -> Sequence[Writer]:
        return [
            Writer(
                name,
                {slip: strength * _STRONG[slip] + (1 - strength) * _WEAK[slip] for slip in _STRONG} | habits,
                openers,
                closers,
            )
            for name, (strength, habits, openers, closers) in _MODELS.items()
        ]

    def _any(self, rng: np.random.Generator) -> World:
        return list(self._worlds.values())[int(rng.integers(len(self._worlds)))]

    def prompt(self, rng: np.random.Generator) -> str:
        return f"{HELLO} {self._any(rng).prompt(rng)}"

    def write(self, rng: np.random.Generator, prompt: str, writer: Writer) -> Written:
        place, request = self._place(prompt)
        return place.write(rng, request, writer)

    def appraise(self, prompt: str, response: Written) -> Appraisal:
        place, request = self._place(prompt)
        judged = place.appraise(request, response)
        words = float(min(len(response.text.split()), self.limit - 1))
        return Appraisal(judged.utility + WORDS_WEIGHT * words, {**judged.features, "words": words})

    def document(self, rng: np.random.Generator) -> str:
        """A greeting, then a document of one of the three forms."""
        return f"{HELLO} {self._any(rng).document(rng)}"
