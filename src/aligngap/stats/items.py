"""Intervals for means of items that belong to one seed each, such as the pairs of an online run's own stream.

Items are *nested* in seeds, unlike evaluation prompts, which all seeds share (`stats.intervals` is for those). The
spread of the seeds' means then already holds the items' noise, so with several seeds the interval is the t interval of
their mean. With one seed it is a bootstrap over the items, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aligngap.stats.budget import Floats
from aligngap.stats.intervals import Estimate, Resampler, few_seeds

ONE_SEED = "1 seed: interval covers items only"


def apart(a: Floats, b: Floats) -> Floats:
    """Values whose mean is mean(a) - mean(b), for the `item_estimate` of a difference that is not paired; NaN is
    missing. Empty where either has no value.

    A deviation counts by how few the items of its side are: resampling all of them together then spreads the mean just
    as resampling either side by itself would.
    """
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    if not (len(a) and len(b)):
        return np.empty(0)
    scale = len(a) + len(b)
    deviations = np.concatenate([(a - a.mean()) * scale / len(a), (b.mean() - b) * scale / len(b)])
    return np.asarray(a.mean() - b.mean() + deviations)


def item_estimate(
    values: Mapping[int, Floats], rng: np.random.Generator, *, replicates: int = 1000, level: float = 0.95
) -> Estimate:
    """Mean over items, then over seeds, with an interval. `values`: by seed, one value an item [N]; NaN is missing.

    For a paired difference pass the items' differences. `n_prompts` of the answer counts items. Seeds without a value
    are left out and counted in the note; without any seed all is NaN.

    Raises:
        ValueError: a bad `replicates` or `level`.
    """
    Resampler(rng, replicates, level)  # refuses bad settings
    kept = {seed: result[np.isfinite(result)] for seed, result in values.items()}
    present = [result for result in kept.values() if len(result)]
    notes = [f"{len(kept) - len(present)} seed(s) without data left out"] if len(present) < len(kept) else []
    if not present:
        return Estimate(np.nan, np.nan, np.nan, 0, 0, 0, "; ".join(["no data", *notes]))
    means, count = np.array([result.mean() for result in present]), sum(map(len, present))
    n_seeds, tail = len(present), (1 - level) / 2
    if n_seeds == 1:
        weights = rng.multinomial(count, np.full(count, 1 / count), size=replicates)
        draws = weights @ present[0] / count
        low, high = np.quantile(draws, [tail, 1 - tail]).tolist()
    else:
        from scipy import stats

        error = means.std(ddof=1) / np.sqrt(n_seeds)
        quantiles = stats.t.ppf((rng.permutation(replicates) + 0.5) / replicates, n_seeds - 1)
        draws = means.mean() + error * quantiles
        low, high = (float(means.mean() + side * error * stats.t.ppf(1 - tail, n_seeds - 1)) for side in (-1, 1))
    notes = [*few_seeds(n_seeds, one=ONE_SEED), *notes]
    return Estimate(
        float(means.mean()), low, high, n_seeds, count, replicates, "; ".join(notes), np.asarray(draws), means
    )
