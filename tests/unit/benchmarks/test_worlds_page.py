"""docs/worlds.md shows what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.worlds import ADVANTAGES, Pairs, examples

from aligngap.tasks.worlds import WORLDS, world

PAGE = (Path(__file__).parents[3] / "docs" / "worlds.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", WORLDS)
def test_the_examples_are_the_codes(name: str) -> None:
    assert "\n".join(examples(world(name))) in PAGE


@pytest.mark.parametrize("name", WORLDS)
def test_the_pairs_are_a_tasks(name: str) -> None:
    """So the tables speak of what a study of seed 0 trains on."""
    from aligngap.judges.true_utility import TrueUtilityJudge
    from aligngap.models.tokenizer import word_tokenizer
    from aligngap.tasks.spec import TaskSpec, make_pairs

    place = world(name)
    tokenizer = word_tokenizer(place.words())
    data = make_pairs(TaskSpec(world=name, train_pairs=40, held_out_pairs=8), tokenizer).train
    mine = Pairs.of(place, 40)
    worth = TrueUtilityJudge(place, tokenizer).utilities(data.prompts, data.first)
    assert mine.utilities[:, 0].tolist() == pytest.approx(worth.tolist())
    assert mine.preferred.tolist() == data.preference.tolist()
    assert 0 not in ADVANTAGES
