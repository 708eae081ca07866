"""The validation of diagnose, on stages so small that they mean nothing: that it runs, and pairs what it should."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.diagnose import EXPECTED, exact, examine, prepare, sensitivity, true_wins

from tiny import Tiny


@pytest.mark.slow
def test_every_set_is_made_and_diagnosed(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path)
    made = prepare(tiny.bench, tiny.store, 24)
    assert set(made.sets) | {"D_golden, no SFT"} == set(EXPECTED)
    stream = made.sets["online stream"]
    assert len(set(stream.prompt_numbers.tolist())) == len(stream)
    kl = exact(made, 12)
    assert kl["SFT"] == 0
    assert kl["final"] > 0
    found = list(examine(made, 12, 2))
    assert [(name, repeat) for name, repeat, *_ in found] == [(name, repeat) for name in EXPECTED for repeat in (0, 1)]
    assert all(diagnosis.regime.name == "undecided" for *_, diagnosis, _ in found)  # too few prompts
    assert all(0 <= true_wins(made, name, 12) <= 1 for name in EXPECTED)
    steps = list(sensitivity(made, 12))
    assert [name for name, *_ in steps] == [f"step {step}" for step in tiny.bench.online(0).stage.keep]
    assert steps[0][1] == 0
