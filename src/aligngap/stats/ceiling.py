"""How much of what a judge could give at a KL a policy has: the ceiling and efficiency (docs/statistics.md).

The best answer to "beat a fresh SFT sample" with a KL of k tilts SFT's distribution by how often a response wins. Where
no two responses tie, how often a response wins is uniform on [0, 1], and the best possible win rate is w*(k), whatever
the judge. With ties a judge's own ceiling lies lower.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aligngap.stats.budget import Floats, Run
from aligngap.stats.passages import mean_over, passage
from aligngap.stats.seedvalue import SeedValue, constant

UP_TO = 4.0
"""KL up to which 256 samples a prompt say what a judge's ceiling is."""
Ceiling = Callable[[float], float]


def w_star(k: float) -> float:
    """Highest win rate over SFT that any judge can give a policy of KL k nats: .5 at 0, 1 in the limit.

    E[u] under the density proportional to exp(l u) on [0, 1], with the l >= 0 at which its KL from the uniform,
    l E[u] - ln((e^l - 1) / l), is k.

    Raises:
        ValueError: k below 0 or not finite.
    """
    _check(k)
    if k == 0:
        return 0.5
    from scipy.optimize import brentq

    return _uniform_mean(brentq(lambda tilt: _uniform_kl(tilt) - k, 1e-9, 2 * np.exp(k + 1) + 10, xtol=1e-12))


def _check(k: float) -> None:
    if not 0 <= k < np.inf:
        raise ValueError(f"a KL is at least 0 and finite, got {k}")


def _uniform_mean(tilt: float) -> float:
    return 0.5 + tilt / 12 if tilt < 1e-4 else float(-1 / np.expm1(-tilt) - 1 / tilt) + 0.0


def _uniform_kl(tilt: float) -> float:
    if tilt < 1e-3:
        return tilt**2 / 24
    return tilt * _uniform_mean(tilt) - (tilt + float(np.log(-np.expm1(-tilt) / tilt)))


def mid_ranks(scores: Floats) -> Floats:
    """How often each of M samples of a prompt beats another draw from them, ties one half. [P, M] -> [P, M]."""
    from scipy.stats import rankdata

    return np.asarray((rankdata(scores, axis=1) - 0.5) / scores.shape[1])


def ceiling(scores: Floats, k: float) -> float:
    """A judge's own ceiling at KL k: the win rate over SFT of SFT's samples tilted by one l over all prompts.

    scores: [P, M], what the judge gives M samples of SFT on each of P prompts (256 on 128). The KL of so many samples
    cannot exceed ln M, and is trusted up to `UP_TO`, NaN beyond. Where ties let no tilt reach k, it is what the best
    samples alone win: more KL buys no more.

    Raises:
        ValueError: k below 0 or not finite, scores not [P, M] or not finite.
    """
    _check(k)
    if scores.ndim != 2 or scores.size == 0 or not np.isfinite(scores).all():
        raise ValueError(f"expected finite scores [P, M], got {scores.shape}")
    if k > UP_TO:
        return np.nan
    ranks = mid_ranks(scores)
    most = 700.0  # beyond which exp overflows; samples this far tilted are the best ones alone
    if k == 0:
        return 0.5
    if _tilted(ranks, most)[0] <= k:
        return float(ranks.max(axis=1).mean())
    from scipy.optimize import brentq

    return _tilted(ranks, brentq(lambda tilt: _tilted(ranks, tilt)[0] - k, 0.0, most, xtol=1e-10))[1]


def _tilted(ranks: Floats, tilt: float) -> tuple[float, float]:
    """Mean over prompts of KL from the samples as they are, and win rate, of samples weighted by exp(tilt x rank)."""
    weights = np.exp(tilt * (ranks - ranks.max(axis=1, keepdims=True)))
    weights = weights / weights.sum(axis=1, keepdims=True)
    logs = np.log(weights * ranks.shape[1], out=np.zeros_like(weights), where=weights > 0)
    return float((weights * logs).sum(axis=1).mean()), float((weights * ranks).sum(axis=1).mean())


def efficiency(run: Run, k: float, top: Ceiling = w_star) -> SeedValue:
    """(w(k) - 1/2) / (ceiling(k) - 1/2): the share of what the judge could give at KL k. Undefined where k is not
    reached or the ceiling is not known.
    """
    return _above_half(passage(run, k).seed_value) / constant(top(k) - 0.5, run.n_prompts)


def efficiency_over(run: Run, low: float, high: float, top: Ceiling = w_star, nodes: int = 64) -> SeedValue:
    """Efficiency over a range of KL: a ratio of integrals over d sqrt(k), not a mean of ratios, which where little can
    be won would be noise.
    """
    ends = np.linspace(np.sqrt(low), np.sqrt(high), nodes + 1)
    middles = (ends[1:] + ends[:-1]) / 2
    possible = float(np.mean([top(float(middle**2)) - 0.5 for middle in middles]))
    return _above_half(mean_over(run, low, high)) / constant(possible, run.n_prompts)


def _above_half(win: SeedValue) -> SeedValue:
    return SeedValue(win.value - 0.5, win.influence)
