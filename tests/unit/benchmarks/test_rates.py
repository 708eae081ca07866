"""What stages took is read from the store and held against their estimates."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.rates import rows

from aligngap.experiments.plan import Plan
from aligngap.experiments.study import load_study
from aligngap.store import Store


def test_seconds_of_a_kind_are_summed_and_divided_by_their_estimates(tmp_path: Path) -> None:
    stages = [stage for stage in Plan(load_study("quick", [])).stages if stage.kind in ("sft", "arm")]
    store = Store(tmp_path)
    for stage in stages[1:]:  # one is not there
        with store.writing(stage.identity, record := stage.described):
            record["seconds"] = 3 * stage.work
    found = {kind: (made, took / estimate, ratio) for kind, made, estimate, took, ratio in _numbers(tmp_path)}
    made = {kind: sum(stage.kind == kind for stage in stages[1:]) for kind in ("sft", "arm")}
    assert {kind: count for kind, (count, *_) in found.items()} == {kind: n for kind, n in made.items() if n}
    assert all(ratio == 3 == pytest.approx(took, rel=0.1) for _, took, ratio in found.values())


def _numbers(store: Path) -> list[tuple[str, int, float, float, float]]:
    return [(kind, made, float(a), float(b), float(c)) for kind, made, a, b, c in rows("quick", store, [])]
