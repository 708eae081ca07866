"""That draws of two runs, made apart from streams of one name, belong together: their differences cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aligngap.compare.differences import _joint
from aligngap.seeds import numpy_stream
from aligngap.stats.budget import Run
from aligngap.stats.estimands import average_gap, gap_estimates
from aligngap.stats.intervals import Estimate, intervals

PATH = np.geomspace(0.1, 8.0, 5)
LEVELS = {("first", "online"): 0.5, ("first", "offline"): 0.45, ("second", "online"): 0.55, ("second", "offline"): 0.47}
TRUTH = (0.55 - 0.47) - (0.5 - 0.45)


def _runs(rng: np.random.Generator, seeds: int, prompts: int) -> dict[tuple[str, str], list[Run]]:
    """Seeds shift an arm, in part in both runs alike; prompts are easy or hard for all; outcomes are Bernoulli."""
    easy = rng.uniform(-0.3, 0.3, prompts)
    common = {arm: rng.normal(0, 0.02, seeds) for arm in ("online", "offline")}
    found: dict[tuple[str, str], list[Run]] = {}
    for (run, arm), level in LEVELS.items():
        shift = common[arm] + rng.normal(0, 0.02, seeds)
        for seed in range(seeds):
            chance = np.clip(level + shift[seed] + easy, 0, 1)
            win = (rng.random((len(PATH), prompts)) < chance).astype(float)
            kl = PATH[:, None] * rng.gamma(4, 0.25, (len(PATH), prompts))
            found.setdefault((run, arm), []).append(Run(arm, seed, np.arange(1, len(PATH) + 1), win, {"kl": kl}))
    return found


def _gap(runs: dict[tuple[str, str], list[Run]], which: str, name: int, replicates: int) -> Estimate:
    rng = numpy_stream("made up", name)
    return gap_estimates(runs[which, "online"], runs[which, "offline"], rng, replicates=replicates)["average_gap"]


def _made(name: int, seeds: int, replicates: int, prompts: int = 150) -> tuple[tuple[float, float, float], Estimate]:
    """The difference of two gaps from their joint draws, and from one bootstrap of all four arms together."""
    runs = _runs(np.random.default_rng(name), seeds, prompts)
    joint = _joint(*(_gap(runs, which, name, replicates) for which in ("first", "second")), replicates)
    assert joint is not None
    together = intervals(
        {f"{run} {arm}": found for (run, arm), found in runs.items()},
        lambda seed: (
            average_gap(seed["second online"][0], seed["second offline"][0])
            - average_gap(seed["first online"][0], seed["first offline"][0])
        ),
        rng=numpy_stream("together", name),
        replicates=replicates,
    )[""]
    return joint, together


@pytest.mark.parametrize("seeds", [1, 4])
def test_they_agree_with_one_bootstrap_of_all_arms_together(seeds: int) -> None:
    ratios = []
    for name in range(3):
        (value, low, high), together = _made(name, seeds, 400)
        assert value == pytest.approx(together.value)
        ratios.append((high - low) / (together.high - together.low))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_a_known_difference(seeds: int) -> None:
    held, repetitions = 0, 150
    for name in range(repetitions):
        (_, low, high), _ = _made(name + 100, seeds, 150, prompts=100)
        held += low <= TRUTH <= high
    # 95% less three standard errors of the simulation.
    assert held / repetitions >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / repetitions)


def test_draws_that_do_not_belong_together_are_not_put_together() -> None:
    runs = _runs(np.random.default_rng(0), 3, 100)
    one, other = (_gap(runs, which, 0, 100) for which in ("first", "second"))
    assert _joint(one, other, 100) is not None
    assert _joint(one, other, 1000) is None  # some were undefined
    fewer = _gap({key: found[:2] for key, found in runs.items()}, "second", 0, 100)
    assert _joint(one, fewer, 100) is None
