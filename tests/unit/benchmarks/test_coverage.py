"""The simulation of the rule: it does at once what the package does run by run, and finds out a wrong rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks import coverage, simulated
from benchmarks.simulated import CANDIDATES, SCENARIOS, Studies, places
from numpy.typing import NDArray

from aligngap.stats.budget import Run
from aligngap.stats.gaps import BEYOND, all_seeds, choose, delta_eq, frontier
from aligngap.stats.selection import within_budget
from aligngap.stats.words import MARGIN

HOLES = next(one for one in SCENARIOS if one.name == "holes")
ENDS = next(one for one in SCENARIOS if one.name == "seeds that do not reach k")
SIDES = ("online", "offline")


def sweep(kl: NDArray[np.float64], win: NDArray[np.float64], side: int) -> dict[str, list[Run]]:
    """One simulated study's method, as the package has it. kl [2, C, S, K], win [..., N prompts]."""
    steps = np.arange(kl.shape[-1])
    return {
        str(c): [
            Run(str(c), s, steps, win[side, c, s], {"kl": kl[side, c, s].astype(float)}) for s in range(kl.shape[2])
        ]
        for c in range(kl.shape[1])
    }


def study(scenario: simulated.Scenario, seed: int, n: int = 6, seeds: int = 4) -> Studies:
    made = simulated.studies(np.random.default_rng(seed), scenario, 0.025, n, seeds).with_gap(scenario, MARGIN)
    return Studies(made.kl, made.win.clip(0.01, 0.99), made.noise, made.golden)


@pytest.mark.parametrize("scenario", [HOLES, ENDS], ids=lambda one: one.name)
def test_claim_a_is_the_packages(scenario: simulated.Scenario) -> None:
    made, pilots = study(scenario, 1), study(scenario, 2)
    seen, pilot_seen = made.seen.clip(0, 1), pilots.seen.clip(0, 1)
    at, beyond = ([places(pilots.kl, f * k) for k in CANDIDATES] for f in (1, BEYOND))
    registered = simulated.piloted(pilot_seen, at, beyond)
    values = [simulated.line(seen, places(made.kl, k)) for k in CANDIDATES]
    fixed, others = simulated.by_registered(values, registered)[0], simulated.by_others(values, registered)
    found = 0
    for r in range(len(made.kl)):
        choices = [choose(sweep(pilots.kl[r], pilot_seen[r][..., None], side), CANDIDATES) for side in (0, 1)]
        ks = [k for k in CANDIDATES if all(k in choice for choice in choices)]
        assert [k for k, on in zip(CANDIDATES, registered.ks[r], strict=True) if on] == ks
        if not ks:
            continue
        methods = [sweep(made.kl[r], seen[r][..., None], side) for side in (0, 1)]
        result = delta_eq(*methods, ks, (choices[0], choices[1]))
        expected = result.contrast.values if result.reached else np.nan
        np.testing.assert_allclose(np.where(np.isfinite(fixed[r]).all(), fixed[r], np.nan), expected, rtol=1e-4)
        seeds = all_seeds(*methods)
        on, off = ([frontier(method, ks[0], seeds).seeds for method in methods][i] for i in (0, 1))
        if len(ks) == 1:
            np.testing.assert_allclose(others[r], [a.value - b.value for a, b in zip(on, off, strict=True)], rtol=1e-4)
        found += 1
    assert found


class Still(np.random.Generator):
    """Draws zeros."""

    def standard_normal(self, size=None, dtype=np.float64, out=None):  # type: ignore[no-untyped-def, override]
        return np.zeros(size, dtype)


def test_claim_b_is_the_packages() -> None:
    made = study(HOLES, 3)
    seen, true = simulated.claim_b(Still(np.random.PCG64(0)), made)
    half = np.array([True, False])  # a prompt stands for each half
    truth = np.moveaxis(made.win + made.noise, 0, -1).clip(0, 1)
    golden = np.moveaxis(made.golden, 0, -1) / 2  # what is liked best stays so
    for r in range(len(made.kl)):
        by_judge = [
            {"truth": sweep(made.kl[r], truth[r], side), "golden": sweep(made.kl[r], golden[r], side)}
            for side in (0, 1)
        ]
        found = within_budget(*by_judge, 4.0, half)
        np.testing.assert_allclose(found.contrasts["truth"].values, seen[r], atol=1e-5)
    assert not np.allclose(seen, true)


def test_the_rule_keeps_five_percent_and_the_one_before_it_does_not() -> None:
    rows = list(coverage.report(5, 600, SCENARIOS[:1]))
    worlds = [row for row in rows if row["world_sd"] != "mean" and row["seeds"] in (8, 10)]
    error = (0.05 * 0.95 / 600) ** 0.5
    now, then = (np.array([float(str(row[name])) for row in worlds]) for name in ("rule_false", "first_false"))
    assert (now <= 0.05 + 3 * error).all()
    assert then.max() > 0.05 + 3 * error
    assert now.mean() < 0.05


def test_rows_are_the_same_for_the_same_seed_and_are_written(tmp_path: Path) -> None:
    first, second = (list(coverage.report(3, 20, SCENARIOS[4:5])) for _ in range(2))
    assert first == second
    assert first != list(coverage.report(4, 20, SCENARIOS[4:5]))
    assert len(first) == 2 * 4 * 5
    coverage.write(tmp_path / "rows.csv", first)
    assert len((tmp_path / "rows.csv").read_text("utf-8").splitlines()) == 41


def test_words_that_the_truth_denies() -> None:
    word = np.array([0, 0, 1, 1, 2, 2, 4])
    true = np.array([0.0, 0.01, 0.0, -0.01, 0.04, 0.03, 0.09])
    small = np.zeros(7, dtype=bool)
    denied = coverage.denied(word, small, true, np.array(1e-9))
    np.testing.assert_array_equal(denied, [True, False, True, False, True, False, False])
    assert coverage.denied(np.array([0]), np.array([True]), np.array([0.05]), np.array(1e-9)).all()


def test_bands_hold_about_as_often_as_they_say() -> None:
    rows = list(coverage.bands(1, 12))
    assert len(rows) == 16
    assert np.mean([float(str(row["held"])) for row in rows]) > 0.9
    assert all(1 < float(str(row["wider"])) < 3 for row in rows)
