"""Better or worse writers than a world's own, by how much better or worse their responses are.

Demonstrations by people, or a stronger model's answers, are better than what a policy says that learned from others.
Here the same writers, habits and all, make each slip with other odds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from aligngap.errors import UserError
from aligngap.seeds import numpy_stream
from aligngap.tasks.worlds.base import Dials, World, Writer

_PROMPTS = 1000
_WORST, _BEST = -4.0, 12.0
"""Care beyond which hardly anything changes: nearly every slip, and hardly any."""


class _Measured(NamedTuple):
    """Mean utility of responses, and the distance from their 10th to their 90th percentile."""

    mean: float
    spread: float


def authors_at(place: World, advantage: float) -> list[Writer]:
    """Writers whose responses have a mean utility `advantage` times the spread (90th less 10th percentile) above that
    of the world's own: its writers with the odds of every slip multiplied by one number. At 0 they are its own.

    Raises UserError for an advantage that no number reaches.
    """
    authors = place.authors()
    if not advantage:
        return authors
    try:
        care = _care(place.name, type(place), place.dials, advantage)
    except ValueError as error:
        raise UserError(
            f"writers of the world '{place.name}' cannot be so good or bad: {error}",
            where=f"advantage: {advantage:g}",
            hint="Choose one between these: what is left to be gained ends where no writer slips.",
        ) from error
    return [careful(author, care) for author in authors]


def careful(writer: Writer, care: float) -> Writer:
    """The writer with the odds of every slip divided by exp(care)."""

    def rate(slip: float) -> float:
        return slip if slip <= 0 or slip >= 1 else 1 / (1 + (1 - slip) / slip * float(np.exp(care)))

    return replace(writer, slips={name: rate(slip) for name, slip in writer.slips.items()})


@lru_cache(maxsize=64)
def _care(name: str, kind: type[World], dials: Dials, advantage: float) -> float:
    """The care that gives an advantage, by bisection, prompts and noise fixed. Raises ValueError beyond reach."""
    place = kind().at(dials)
    authors = place.authors()
    rng = numpy_stream("task", name, "advantage")
    prompts = [place.prompt(rng) for _ in range(_PROMPTS)]
    own = _measured(place, authors, prompts)

    def gained(care: float) -> float:
        return (_measured(place, [careful(one, care) for one in authors], prompts).mean - own.mean) / own.spread

    low, high = (_WORST, 0.0) if advantage < 0 else (0.0, _BEST)
    if not gained(_WORST) < advantage < gained(_BEST):
        raise ValueError(f"{gained(_WORST):+.2f} to {gained(_BEST):+.2f} is what there is")
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if gained(middle) < advantage else (low, middle)
    return (low + high) / 2


def _measured(place: World, authors: Sequence[Writer], prompts: Sequence[str]) -> _Measured:
    utilities = []
    for number, prompt in enumerate(prompts):
        draw = np.random.default_rng(number)
        author = authors[int(draw.integers(len(authors)))]
        utilities.append(place.utility(prompt, place.write(draw, prompt, author)))
    low, high = np.quantile(utilities, (0.1, 0.9))
    return _Measured(float(np.mean(utilities)), float(high - low))
