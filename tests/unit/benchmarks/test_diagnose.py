"""The validation of diagnose, on stages so small that they mean nothing: that it runs, and pairs what it should."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.diagnose import COLUMNS, EXPECTED, cells, exact, examine, prepare, true_wins

from tiny import Tiny


@pytest.mark.slow
def test_every_set_is_made_and_diagnosed(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path)
    made = prepare(tiny.bench, tiny.store, 24)
    keep = tiny.bench.online(0).stage.keep
    assert list(made.sets) == [*EXPECTED, *(f"step {step}" for step in keep)]
    stream = made.sets["online stream"]
    assert len(set(stream.prompt_numbers.tolist())) == len(stream)
    assert exact(made, "SFT vs SFT", 12) == exact(made, "step 0", 12) == [0, 0]
    assert exact(made, "SFT vs early", 12)[0] == 0 < exact(made, "SFT vs early", 12)[1]
    assert min(exact(made, "final vs final", 12)) > 0
    assert exact(made, "D_golden", 12) == []
    for name in made.sets:
        found = list(examine(made, name, 12, 2))
        assert [one.regime.name for one in found] == ["undecided"] * 2  # too few prompts
        assert 0 <= true_wins(made, name, 12) <= 1


def test_a_row_shows_the_range_over_the_repeats() -> None:
    diagnoses = [{"regime": {"name": name}} for name in ("between", "far_better", "between")]
    numbers = [[0.5, 0.5, -1.0, 1.0, 0.6], [0.7, 0.5, 0.25, 0.98, 0.6], [0.6, 0.5, 0.1, 1.0, 0.6]]
    row = {"set": "D_golden", "kl": [], "true_win_rate": 0.58, "numbers": numbers}
    shown = cells(row | {"diagnoses": diagnoses})
    assert len(shown) == len(COLUMNS)
    assert shown[1:4] == ("on_policy", "`between`, `far_better`", "")
    assert shown[4:] == ("50% to 70%", "50%", "-1.0 to +0.2", "98% to 100%", "60%", "58%")
