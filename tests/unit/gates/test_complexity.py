"""The gate of complexity, on made-up measures: what is complexity, and what is noise or a hash."""

from __future__ import annotations

import pytest

from aligngap.experiments.gating import dial_gates
from aligngap.experiments.study import load_study
from aligngap.gates.complexity import ComplexityGate, Level, complexity_scores
from aligngap.pipeline.stages import Preference


def levels(small: list[float], large: list[float], raters: list[float], close: list[float]) -> list[Level]:
    return [Level(a, 0.007, b, c, d, 4000) for a, b, c, d in zip(small, large, raters, close, strict=True)]


FALLING = [0.83, 0.79, 0.74, 0.68]
SURE = [0.87, 0.872, 0.868, 0.87]
CLOSE = [0.25, 0.252, 0.249, 0.255]


@pytest.mark.parametrize(
    ("name", "small", "large", "raters", "close", "passes"),
    [
        ("complexity", FALLING, [0.865, 0.86, 0.855, 0.85], SURE, CLOSE, True),
        ("noise: raters are less sure", FALLING, [0.865, 0.82, 0.77, 0.72], [0.87, 0.83, 0.78, 0.73], CLOSE, False),
        ("a hash: nothing learns it", [0.83, 0.5, 0.5, 0.5], [0.865, 0.5, 0.5, 0.5], SURE, CLOSE, False),
        ("nothing falls", [0.83, 0.829, 0.83, 0.828], [0.865] * 4, SURE, CLOSE, False),
        ("more pairs are close", FALLING, [0.865, 0.86, 0.855, 0.85], SURE, [0.25, 0.28, 0.3, 0.33], False),
    ],
)
def test_what_passes_for_complexity(
    name: str, small: list[float], large: list[float], raters: list[float], close: list[float], passes: bool
) -> None:
    scores = complexity_scores(levels(small, large, raters, close))
    assert all(score.passed for score in scores) == passes, name


def test_a_fall_within_its_error_is_none() -> None:
    """.0099 is the error of a difference of two accuracies whose own is .007."""
    for fall, passes in ((0.009, False), (0.011, True)):
        made = levels([0.83, 0.83 - fall], [0.865, 0.86], SURE[:2], CLOSE[:2])
        (score,) = (score for score in complexity_scores(made) if score.name == "fall from 0 to 1")
        assert score.passed == passes


def test_each_step_has_its_own_judges_and_the_same_prompts() -> None:
    study = load_study("gates", ["tasks=[summarisation]"])
    (gate,) = dial_gates(study, "summarisation")
    assert isinstance(gate, ComplexityGate)
    assert len({stage.identity for stage in (*gate.small, *gate.large, *gate.prompts)}) == 12
    for level, (prompts, small, large) in enumerate(zip(gate.prompts, gate.small, gate.large, strict=True)):
        assert isinstance(small, Preference)
        assert isinstance(large, Preference)
        assert [stage.task.dials.complexity for stage in (prompts, small.pairs, large.pairs)] == [level] * 3  # type: ignore[attr-defined]
        assert (small.pairs.task.train_pairs, large.pairs.task.train_pairs) == (8000, 80000)  # type: ignore[attr-defined]
        assert large.pairs.task.part == "golden"  # type: ignore[attr-defined]
