"""w(k): the win rate of a run at a KL of k, by *first upward passage* (docs/statistics.md).

KL is far from monotone in training (2.5, 7.3, 5.1, 5.4, 7.0, 9.1 in a stored run). A policy of KL k is what training
gives when it passes k for the first time; later returns do not count. w is linear in sqrt(KL) between the checkpoint
before the first rise through k and the one after it. Where those two differ by more than a factor of 2 in KL there is a
*hole*, which counts as not reached, and nothing is extrapolated.

Which checkpoints a run keeps is decided while it trains, by a probe's KL: both sides of each passage
(`train.passages`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from aligngap.stats.budget import KL, Floats, Run
from aligngap.stats.seedvalue import SeedValue, prompt_mean, undefined

State = Literal["reached", "hole", "not reached"]
Which = Literal["first", "last"]
Ints = NDArray[np.int64]

KL_GRID: Floats = 2.0 ** (np.arange(-6, 9) / 2)
"""The powers of sqrt(2) within [.1, 16] nats, .125 to 16: contains .5, 1, 2, 4, 8."""
ROWS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""The k of `gap_at_kl`."""
BUDGETS = (1.0, 2.0, 4.0, 8.0)
"""The B of `within_budget`."""
HOLE = 2.0
"""Neighbouring checkpoints further apart than this factor of KL say nothing of what lies between."""
EVEN_AT_START = 3.0
"""Standard errors that w(0) may be away from one half."""


def tenths(steps: int) -> tuple[int, ...]:
    """The steps at which each tenth of `steps` has been trained, rounded up; fewer where steps are fewer than ten."""
    return tuple(sorted({-(-steps * tenth // 10) for tenth in range(1, 11)}))


def crossings(kl: Floats, k: float, which: Which = "first") -> tuple[Ints, Ints, Floats]:
    """Where paths rise through k: place of the checkpoint before, of the one after, and how far between, in sqrt(KL).

    kl: [..., K] nats in the order of training, NaN = no such checkpoint (the neighbours then are its neighbours).
    Returns three arrays [...]: before (-1 where none is below), after (-1 where k is never passed), share in (0, 1] of
    the way from before to after (NaN where either is -1). Vectorised over leading axes; the simulations use it too.
    """
    kl = np.asarray(kl)
    present = np.isfinite(kl)
    filled, place = np.where(present, kl, -np.inf), np.arange(kl.shape[-1])
    above = filled >= k
    if which == "last":
        latest = np.maximum.accumulate(np.where(present, place, -1), axis=-1)
        seen = np.take_along_axis(filled, latest.clip(0), -1) >= k  # the last checkpoint that is there, up to each
        above[..., 1:] &= ~seen[..., :-1]
        after = kl.shape[-1] - 1 - above[..., ::-1].argmax(axis=-1)
    else:
        after = above.argmax(axis=-1)
    after = np.where(above.any(axis=-1), after, -1)
    before = np.where(present & (place < after[..., None]), place, -1).max(axis=-1)
    low = np.sqrt(np.take_along_axis(filled, before.clip(0)[..., None], -1)[..., 0].clip(0))
    high = np.sqrt(np.take_along_axis(filled, after.clip(0)[..., None], -1)[..., 0].clip(0))
    known = (before >= 0) & (after >= 0)
    share = np.full(after.shape, np.nan)
    np.divide(np.sqrt(k) - low, high - low, out=share, where=known)
    return before, after, share


def is_hole(low: Floats, high: Floats) -> NDArray[np.bool_]:
    """Do the KLs around a passage leave a hole? Step 0 has a KL of 0: it is near to nothing."""
    return np.asarray(high > HOLE * low)


@dataclass(frozen=True, eq=False)
class Passage:
    """A run's passage of k. before, after: the checkpoints around it, places among the run's; -1 = none. share: how far
    the way from before to after, in sqrt(KL), NaN unless both are there. seed_value: w(k), NaN unless reached.
    """

    k: float
    state: State
    before: int
    after: int
    share: float
    seed_value: SeedValue

    @property
    def value(self) -> float:
        return self.seed_value.value

    @property
    def reached(self) -> bool:
        return self.state == "reached"


def usable(run: Run) -> tuple[Run, Ints]:
    """The checkpoints in the order of training that have a KL and an outcome, and their places in `run`."""
    order = np.argsort(run.steps, kind="stable")
    there = np.isfinite(mean_kl(run)) & np.isfinite(run.win).any(axis=1)
    places = order[there[order]]
    budgets = {name: values[places] for name, values in run.budgets.items()}
    return Run(run.arm, run.seed, run.steps[places], run.win[places], budgets, run.along), places


def mean_kl(run: Run, prompts: NDArray[np.bool_] | None = None) -> Floats:
    """Mean KL in nats of each checkpoint, [K], over those of `prompts` [N] that are present; NaN where none is."""
    amount = run.over(KL).amount
    if amount.ndim == 1:
        return amount
    if prompts is not None:
        amount = amount[:, prompts]
    count, means = np.isfinite(amount).sum(axis=1), np.full(len(amount), np.nan)
    np.divide(np.nansum(amount, axis=1), count, out=means, where=count > 0)
    return means


def passage(run: Run, k: float, which: Which = "first") -> Passage:
    """w(k) of one run.

    Checkpoints may have been asked different numbers of prompts (NaN = not asked): each mean is over its own. Where KL
    is known prompt by prompt, its noise is part of the value's influence, for k itself is then measured.

    which: "last" takes the last rise through k instead, a sensitivity.
    """
    run, places = usable(run)
    kl, nothing = mean_kl(run), undefined(run.n_prompts)
    if len(kl) == 0:
        return Passage(k, "not reached", -1, -1, np.nan, nothing)
    found = crossings(kl, k, which)
    before, after, share = int(found[0]), int(found[1]), float(found[2])
    if after < 0:
        return Passage(k, "not reached", -1, -1, np.nan, nothing)
    around = (int(places[before]) if before >= 0 else -1, int(places[after]))
    if before < 0 or is_hole(kl[before], kl[after]):
        return Passage(k, "hole", *around, share, nothing)
    return Passage(k, "reached", *around, share, between(run, before, after, k))


def between(run: Run, before: int, after: int, k: float) -> SeedValue:
    """Win rate at KL k on the line, in sqrt(KL), through two checkpoints of a run."""
    ends = [_root_kl(run, before), _root_kl(run, after)]
    low, high = prompt_mean(run.win[before]), prompt_mean(run.win[after])
    width = ends[1].value - ends[0].value
    share = (float(np.sqrt(k)) - ends[0].value) / width
    slope = (high.value - low.value) / width
    # Were the checkpoints' KL larger than they seem, k would lie nearer to the first: the line moves against them.
    place = (1 - share) * ends[0].influence + share * ends[1].influence
    along = (1 - share) * low + share * high
    return SeedValue(along.value, along.influence - slope * place)


def _root_kl(run: Run, checkpoint: int) -> SeedValue:
    """sqrt of a checkpoint's mean KL, with the prompts' influence on it where they are known."""
    amount = run.over(KL).amount
    if amount.ndim == 1:
        return SeedValue(float(np.sqrt(amount[checkpoint])), np.zeros(run.n_prompts))
    mean = prompt_mean(amount[checkpoint])
    root = float(np.sqrt(mean.value))
    return SeedValue(root, mean.influence / (2 * root) if root > 0 else np.zeros(run.n_prompts))


def per_prompt(run: Run, found: Passage) -> Floats:
    """w(k) of each prompt, [N], from the checkpoints around a passage; NaN for prompts that either was not asked, or
    where k is not reached. For pairing by hand: `Passage.seed_value` is what intervals rest on.
    """
    if not found.reached:
        return np.full(run.n_prompts, np.nan)
    low, high = run.win[found.before], run.win[found.after]
    return np.asarray(low + found.share * (high - low))


def mean_over(
    run: Run, low: float, high: float, measure: Callable[[Floats], Floats] = np.sqrt, pieces: int = 1
) -> SeedValue:
    """Mean of w(k) over k in [low, high], weighted by d measure(k): the exact integral for d sqrt(k).

    w(k) is linear in sqrt(k) between the places where the path reaches a new height. For another measure each such
    piece is cut into `pieces`. Undefined where any k of the range is in a hole or is not reached.
    """
    run, _ = usable(run)
    kl = mean_kl(run)
    heights = np.unique(np.maximum.accumulate(kl)) if len(kl) else kl
    knots = np.sqrt(np.concatenate(([low], heights[(heights > low) & (heights < high)], [high])))
    knots = np.interp(np.arange((len(knots) - 1) * pieces + 1) / pieces, np.arange(len(knots)), knots)
    weights = np.diff(measure(knots**2))
    total = undefined(run.n_prompts)
    for number, (weight, middle) in enumerate(zip(weights, (knots[1:] + knots[:-1]) / 2, strict=True)):
        at = passage(run, float(middle**2)).seed_value
        part = float(weight / weights.sum()) * at
        total = part if number == 0 else total + part
    return total


def even_at_start(run: Run) -> tuple[SeedValue, bool]:
    """w(0), the win rate of step 0, and whether it lies within three standard errors of one half, as it must: a policy
    that equals its opponent wins half of the time. Undefined, and not even, where step 0 was not evaluated.
    """
    rows = run.win[run.steps == 0]
    value = prompt_mean(rows[0]) if len(rows) else undefined(run.n_prompts)
    return value, bool(abs(value.value - 0.5) <= EVEN_AT_START * value.prompt_se)


def evaluation_prompts(
    kl: Floats, registered: Sequence[float], *, around: int = 1024, candidates: int = 512, rest: int = 256
) -> Ints:
    """How many prompts each kept checkpoint is evaluated on, [K], from the probe's KL [K] in the order of training:
    `around` at the two around each registered k, `candidates` at those that `within_budget` at 4 may choose (KL <= 4),
    `rest` elsewhere. Always the first so many of one list.
    """
    count = np.where(np.nan_to_num(kl, nan=np.inf) <= 4.0, candidates, rest)
    for k in registered:
        for place in (one.item() for one in crossings(kl, k)[:2]):
            if place >= 0:
                count[place] = max(count[place], around)
    return count.astype(np.int64)
