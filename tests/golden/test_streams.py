"""Values that must not change unnoticed: every artefact in every store was made from them.

If one of these changes on purpose, raise the `version` of the stages that it changes (pipeline/stages/), then put the
new value here.
"""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from aligngap.models.build import Architecture, random_model
from aligngap.models.tokenizer import word_tokenizer
from aligngap.seeds import digest, uniforms
from aligngap.sources.order import prompt_schedule
from aligngap.tasks.spec import TaskSpec, make_pairs
from aligngap.tasks.worlds import WORLDS, world


def test_streams() -> None:
    assert digest("schedule", 0, 0) == DIGEST
    assert uniforms(torch.tensor([7]), 1, 3, "sampling", 0, 0)[0].tolist() == pytest.approx(UNIFORMS, abs=1e-15)
    assert prompt_schedule(0)(8, 0).tolist() == SCHEDULE


@pytest.mark.parametrize("name", WORLDS)
def test_pairs(name: str) -> None:
    place = world(name)
    tokenizer = word_tokenizer(place.words())
    data = make_pairs(TaskSpec(world=name, train_pairs=50, held_out_pairs=10), tokenizer)
    parts = [
        [p.prompts.rows(), p.first.rows(), p.second.rows(), p.preference.tolist(), p.provenance]
        for p in (data.train, data.held_out)
    ]
    assert hashlib.sha256(json.dumps([parts, list(place.words())]).encode()).hexdigest() == PAIRS[name]


def test_initial_weights() -> None:
    model = random_model(Architecture(hidden=8, layers=1, heads=2, intermediate=16), 10, 0)
    assert [round(value, 6) for value in model.lm_head.weight[3, :4].tolist()] == pytest.approx(WEIGHTS, abs=2e-6)


DIGEST = 189489056545895233029558973161925320403
UNIFORMS = [0.5449908989679988, 0.24055468762468313, 0.44114851446583736]
SCHEDULE = [0, 7, 2, 5, 1, 6, 4, 3]
PAIRS = {
    "summarisation": "965c5223a9191831567c9c5af1a08e431da445593fffc81363cd88c3f8050635",
    "helpfulness": "2f47e0f45874554153f8556d77bf6ccb61a378bfcd6c8ec310403b033cddc187",
    "harmlessness": "2b91a79961b99ffc302700be6e065512a1c55ac76cc19d0ecd6f7b9da85562af",
    "arena": "b06d8dac87e31f8f246abf1f2003db179e4076423b3d4b1a563700403317f3ae",
}
WEIGHTS = [0.038486, -0.012591, -0.001683, -0.001928]
