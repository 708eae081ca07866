"""Verdicts from intervals, by rules fixed before the run (protocol, "What we add" and "Estimating the gap").

An interval that cannot decide, or is not there (NaN), gives "inconclusive". "No gap" is claimed by equivalence, never
from p > .05.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from aligngap.stats.budget import Floats
from aligngap.stats.intervals import Estimate

Verdict = Literal["supported", "contradicted", "inconclusive"]
MAX_SEEDS = 1000


def sign_verdict(est: Estimate, predicted: Literal[1, -1], margin: float) -> Verdict:
    """Does the interval bear out an effect on the `predicted` side of 0?

    supported: all of it on that side, however small the effect. contradicted: all of it on the other side, or all of it
    within +-`margin` (the statistic's unit), the largest effect that counts as none. The first rule that holds decides.

    Raises:
        ValueError: `predicted` is not +1 or -1, or `margin` is negative.
    """
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0, got {margin}")
    side = threshold_verdict(est, 0.0, predicted)
    if side == "inconclusive" and -margin < est.low and est.high < margin:
        return "contradicted"
    return side


def threshold_verdict(est: Estimate, threshold: float, predicted: Literal[1, -1]) -> Verdict:
    """Prediction "above `threshold`" (+1) or "below" (-1): supported or contradicted when the interval is all one side.

    Raises:
        ValueError: `predicted` is not +1 or -1.
    """
    if predicted not in (1, -1):
        raise ValueError(f"predicted side must be +1 or -1, got {predicted!r}")
    above, below = est.low > threshold, est.high < threshold  # both False on NaN
    if not (above or below):
        return "inconclusive"
    return "supported" if above == (predicted == 1) else "contradicted"


def equivalence_verdict(est: Estimate, margin: float) -> Verdict:
    """Prediction "no gap": supported if the interval lies within +-`margin`, contradicted if wholly beyond it.

    Two one-sided tests (Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15) at level alpha amount to
    the 1 - 2 alpha interval lying inside the margin. We ask it of the 95% interval, so alpha is 2.5%: conservative
    beside the customary 90% interval. An interval that excludes 0 but reaches into the margin is inconclusive: a gap,
    but perhaps a negligible one.

    Raises:
        ValueError: `margin` is not positive.
    """
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}")
    if -margin < est.low and est.high < margin:
        return "supported"
    return "contradicted" if est.low > margin or est.high < -margin else "inconclusive"


def gap_verdict(average: Estimate, peak: Estimate, margin: float) -> Verdict:
    """Are both halves of figure 1's finding there: ahead at equal KL on `average`, and with the higher `peak`?

    supported: both intervals wholly above 0. contradicted: either wholly below 0, or both wholly within +-`margin`.

    Raises:
        ValueError: `margin` is negative.
    """
    return joint_verdict((average, peak), margin)


def joint_verdict(parts: Sequence[Estimate], margin: float = 0.0) -> Verdict:
    """Prediction "every part is above 0", for a finding of several parts. As all must hold, each is tested at the full
    level (intersection-union test, Berger 1982, Technometrics 24).

    supported: all intervals wholly above 0. contradicted: any wholly below 0, or all wholly within +-`margin`. The
    first rule that holds decides.

    Raises:
        ValueError: `margin` is negative.
    """
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0, got {margin}")
    if all(part.low > 0 for part in parts):
        return "supported"
    none = all(-margin < part.low and part.high < margin for part in parts)
    return "contradicted" if none or any(part.high < 0 for part in parts) else "inconclusive"


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """For a finding of several halves, each judged by a rule of its own: supported if all are, contradicted if any is.

    Raises:
        ValueError: no verdicts.
    """
    if not verdicts:
        raise ValueError("a finding must have at least one part")
    if all(verdict == "supported" for verdict in verdicts):
        return "supported"
    return "contradicted" if "contradicted" in verdicts else "inconclusive"


def bootstrap_p(draws: Floats, null: float = 0.0) -> float:
    """Two-sided p-value of `null` from an `Estimate`'s draws [B]; NaN draws are dropped, none left gives NaN.

    Twice the smaller tail, (1 + draws beyond) / (1 + B): never 0, and it agrees with the percentile interval of the
    draws. B draws cannot show p below 2 / (B + 1); draw enough for the Holm correction.
    """
    draws = draws[np.isfinite(draws)]
    if len(draws) == 0:
        return np.nan
    tail = min(int((draws <= null).sum()), int((draws >= null).sum()))
    return min(1.0, 2 * (tail + 1) / (len(draws) + 1))


def holm(pvalues: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values [m], in the order given (Holm 1979, Scandinavian Journal of Statistics 6).

    They bound the chance of any false claim, however the tests depend on one another.

    A NaN (a hypothesis that could not be tested) stays NaN but still counts towards m: losing data must not make the
    other hypotheses easier.

    Raises:
        ValueError: not one-dimensional, or a value outside [0, 1].
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if p.ndim != 1 or np.any((p < 0) | (p > 1)):
        raise ValueError("p-values must be one-dimensional and lie in [0, 1]")
    order = np.argsort(p)  # NaN last, where it changes no other value
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def prompts_needed(
    gap: float, prompt_se: float, n_prompts: int, power: float = 0.8, *, level: float = 0.95
) -> int | None:
    """Number of prompts that would resolve `gap` with probability `power` if seeds added no noise: a lower bound.

    prompt_se: the standard error that `n_prompts` prompts give (`Estimate.prompt_se`), which falls with their root.
    None where an input is NaN.

    Raises:
        ValueError: gap 0, negative `prompt_se`, or `power` or `level` outside (0, 1).
    """
    if gap == 0 or prompt_se < 0 or not (0 < power < 1 and 0 < level < 1):
        raise ValueError("need gap != 0, prompt_se >= 0, and power and level in (0, 1)")
    if not np.isfinite([gap, prompt_se]).all():
        return None
    from scipy.special import ndtri  # the normal quantiles of `scipy.stats`, without a quarter of a second of imports

    errors_away = float(ndtri((1 + level) / 2) + ndtri(power))
    return max(1, int(np.ceil(n_prompts * (errors_away * prompt_se / gap) ** 2)))


def seeds_needed(
    gap: float,
    between_seed_sd: float,
    within_seed_se: float,
    power: float = 0.8,
    *,
    level: float = 0.95,
    shared: float = 0.0,
) -> int | None:
    """Smallest number of seeds (at least 2) whose t interval excludes 0 with probability `power` if the gap is `gap`.

    Per-seed gaps are taken as normal with variance between_seed_sd^2 + (1 - shared) within_seed_se^2, so power follows
    the non-central t with n - 1 degrees of freedom. `within_seed_se` is the standard error that the prompts give one
    seed (`Estimate.prompt_se` of one seed); `shared` is the part of that variance which the prompts have in common for
    all seeds. That part does not shrink with seeds: it is added as a normal error of fixed size. The default 0 makes
    the answer a lower bound. None if `MAX_SEEDS` seeds are not enough (get more prompts), or an input is NaN.

    Raises:
        ValueError: gap 0, negative spread, or `power`, `level`, `shared` outside their ranges.
    """
    if gap == 0 or between_seed_sd < 0 or within_seed_se < 0 or not (0 < power < 1 and 0 < level < 1):
        raise ValueError("need gap != 0, spreads >= 0, and power and level in (0, 1)")
    if not 0 <= shared <= 1:
        raise ValueError(f"shared must lie in [0, 1], got {shared}")
    if not np.isfinite([gap, between_seed_sd, within_seed_se]).all():
        return None
    from scipy import stats

    n = np.arange(2, MAX_SEEDS + 1)
    tail = (1 - level) / 2
    own = (between_seed_sd**2 + (1 - shared) * within_seed_se**2) / n
    common = shared * within_seed_se**2
    if common == 0:
        if own[0] == 0:
            return 2
        shift, critical = abs(gap) / np.sqrt(own), stats.t.ppf(1 - tail, n - 1)
        reached = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    else:
        # Half-width of the sum of a t and a normal part, in quadrature: the interval's own, to first order.
        half = np.sqrt(stats.t.ppf(1 - tail, n - 1) ** 2 * own + stats.norm.ppf(1 - tail) ** 2 * common)
        reached = stats.norm.sf((half - abs(gap)) / np.sqrt(own + common))
    enough = np.flatnonzero(reached >= power)
    return int(n[enough[0]]) if len(enough) else None
