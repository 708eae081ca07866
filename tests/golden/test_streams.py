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
    "summarisation": "8578d5686359371a93ccf4b11ed2657af759a1c1d373ee60ea0cf72e9535f50e",
    "helpfulness": "ef6d9584cff4d99304efeda07a3be42e03f7245bbda47d1170f4de18d0b8144a",
    "harmlessness": "688bd3f2d3a24cd8b6204182a01a68ccea2757fdcaa24a1cc7b76f3df3ba11ef",
    "arena": "6cad6623e0a1855d323c7d4128540cbd693f594edfefb5acf2696a04dde42fc8",
}
WEIGHTS = [0.038486, -0.012591, -0.001683, -0.001928]
