"""Edits of style alone."""

from __future__ import annotations

import numpy as np
import pytest

from aligngap.gates.restyling import restyled
from aligngap.tasks.worlds import WORLDS, world
from aligngap.tasks.worlds.base import Dials


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("style", [0.0, 1.0])
def test_an_edit_is_of_style_alone(name: str, style: float) -> None:
    """Another text, of the same worth, that a policy could say as well."""
    place = world(name).at(Dials(style=style))
    rng, edited = np.random.default_rng(0), 0
    for _ in range(60):
        prompt = place.prompt(rng)
        for author in place.authors():
            response = place.write(rng, prompt, author)
            other = restyled(place, rng, prompt, response)
            if other is None:
                continue
            edited += 1
            assert other.text != response.text
            assert place.utility(prompt, other) == place.utility(prompt, response)
            size = len(other.text.split()) + other.ended
            assert size <= place.limit
            assert other.ended or size == place.limit
            # What differs is a word or two at an end.
            assert len(set(response.text.split()) ^ set(other.text.split())) <= 5
    assert edited > 100
