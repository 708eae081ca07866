"""How well a simple rule tells two kinds of things apart: a classifier two-sample test on pairs that share a context.

After Lopez-Paz and Oquab 2017 (1610.06545), with things compared within a context (a prompt) only, so that contexts may
differ among themselves as they like. The rule is fitted on some contexts and tried on others, once. Cross-fitting would
try it on all, but rules that share their data err together: where there is nothing to find, the mean over folds varies
more than its contexts show, and an interval over contexts is too narrow (89% instead of 95%, docs/lab-log.md).
"""

from __future__ import annotations

import numpy as np

from aligngap.stats.budget import Floats

RIDGE = 0.01
"""Penalty on the rule's squared weights, of standardised features, beside the mean log-loss."""


def separating_rule(ours: Floats, others: Floats) -> Floats:
    """Weights [f] of a linear score that is the higher, the more a thing is like `others`.

    ours: features [n, a, f] of a things in each of n contexts; others: [n, b, f]. Fitted by logistic regression on the
    differences between every one of `others` and every one of `ours` in the same context, and so without an intercept.
    Scores are `features @ weights`; only those within a context can be compared. If both kinds come from the same
    distribution in every context, neither kind's scores tend to be higher in contexts that the rule has not seen.

    Raises:
        ValueError: no context, or shapes that do not fit.
    """
    if ours.ndim != 3 or others.ndim != 3 or others.shape[::2] != ours.shape[::2] or not len(ours):
        raise ValueError(f"shapes do not fit: {ours.shape}, {others.shape}")
    features = ours.shape[2]
    scale = np.concatenate([ours.reshape(-1, features), others.reshape(-1, features)]).std(axis=0)
    usable = scale > 1e-9
    difference = (others[:, :, None] - ours[:, None, :]).reshape(-1, features)
    x = np.divide(difference, scale, out=np.zeros_like(difference), where=usable)

    def loss(weights: Floats) -> tuple[float, Floats]:
        margin = x @ weights
        value = np.logaddexp(0, -margin).mean() + RIDGE / 2 * weights @ weights
        wrong = np.exp(-np.logaddexp(0, margin))
        return float(value), RIDGE * weights - wrong @ x / len(x)

    from scipy.optimize import minimize

    weights: Floats = minimize(loss, np.zeros(features), jac=True, method="L-BFGS-B").x
    result: Floats = np.divide(weights, scale, out=np.zeros(features), where=usable)
    return result


def higher(a: Floats, b: Floats) -> Floats:
    """1 where a is higher than b, 0 where b is, 0.5 where they are equal; in the shape of both."""
    return np.asarray((np.sign(a - b) + 1) / 2)
