"""Which word may be printed of a claim: the whole decision rule, as pure functions (docs/statistics.md, "Words").

The first that holds: *supported* (*contradicted*): the difference is told from 0, and lies above (below) it; with "but
smaller than 4 points" where it is also shown to lie inside the margin. *Equivalent*: shown to lie inside the margin.
*Not reached*: a seed lacks what is compared. Else *undecided*, with what is excluded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aligngap.stats.budget import Floats
from aligngap.stats.contrast import POWER, Contrast

Word = Literal["supported", "contradicted", "equivalent", "not reached", "undecided", "described"]
Scope = Literal["world", "mean over worlds"]
Beside = Literal["the same", "the opposite", "cannot tell"]

ALPHA = 0.05
MARGIN = 0.04
"""Of win rate over SFT: the largest difference that counts as none, and the smallest effect worth finding."""
DESCRIBE_BELOW, WORLD_FROM, FAMILY_FROM = 3, 5, 8
"""Seeds: below 3 a report describes; with 3 and 4 words go to the mean over worlds; from 5 on to each world; a family
of KLs or budgets, which is judged by max-t, wants 8.
"""
WORDS: tuple[Word, ...] = ("supported", "contradicted", "equivalent", "not reached", "undecided")


@dataclass(frozen=True, eq=False)
class Claim:
    """What is to be judged. margin: in the contrast's unit; None: it cannot be equivalent. reached: False where the
    contrast is not what was registered (a registered k is missing). described: why no word may rest on it, whatever
    its seeds; "" = one may. scale, unit: how the contrast's
    numbers are printed.
    """

    name: str
    contrast: Contrast
    margin: float | None = MARGIN
    reached: bool = True
    described: str = ""
    scale: float = 100
    unit: str = "points"

    @property
    def testable(self) -> bool:
        return self.reached and not self.described and self.contrast.defined


@dataclass(frozen=True, eq=False)
class Said:
    """What may be said of a claim.

    small: "but smaller than the margin" holds besides. p: two-sided, unadjusted; adjusted: over the family of claims;
    both NaN of what is not tested, a description among it.
    level, interval: at which the word was decided, so that the interval leaves out 0 exactly where a difference is
    claimed; inner: the interval that was held against the margin, and its level.
    """

    claim: Claim
    word: Word
    small: bool
    text: str
    p: float
    adjusted: float
    level: float
    interval: tuple[float, float]
    inner_level: float
    inner: tuple[float, float]

    @property
    def p_flip(self) -> float:
        """Exact sign flips over seeds, unadjusted, beside p."""
        return self.claim.contrast.p_flip

    @property
    def half_width(self) -> float:
        """Of `interval`."""
        return self.claim.contrast.half_width(self.level)

    @property
    def detectable(self) -> float:
        """The smallest difference that had 80% power at the interval's level."""
        return self.claim.contrast.detectable(POWER, self.level)


def adjust(different: ArrayLike, inside: ArrayLike) -> tuple[Floats, Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Adjusted p-values of m claims' two null hypotheses each, "no difference" and "the margin or more", and by which
    number each was multiplied.

    Holm's procedure as refined by Shaffer (1986, JASA 81): from the smallest p on, each is multiplied by the largest
    number of hypotheses that can still be true at once. Of a claim's two one is always false, so that number is the
    number of claims that have not had all their hypotheses rejected: m at first, and one less only when of a claim both
    are gone (of one without a margin: its only one). Plain Holm for "no difference", and the margin at 5% whatever the
    number of claims, lets false words be said in more than 5% of studies (docs/statistics.md).

    different, inside: [..., m]; NaN = cannot be tested and still counts; an `inside` that is NaN beside a `different`
    that is not: a claim without a margin. Returns adjusted [..., m] twice and multipliers [..., m] twice.
    """
    different, inside = np.asarray(different, dtype=np.float64), np.asarray(inside, dtype=np.float64)
    m = different.shape[-1]
    p = np.concatenate((different, inside), axis=-1)
    order = np.argsort(p, axis=-1)  # NaN last, where it changes no other value
    left = np.where(np.isnan(inside) & ~np.isnan(different), 1, 2)
    adjusted, factor = np.empty_like(p), np.empty(p.shape, dtype=np.int64)
    highest = np.zeros((*p.shape[:-1], 1))
    for rank in range(2 * m):
        pick = order[..., rank : rank + 1]
        count = (left > 0).sum(axis=-1, keepdims=True)
        highest = np.fmax(highest, np.take_along_axis(p, pick, -1) * count)
        np.put_along_axis(adjusted, pick, np.minimum(highest, 1), -1)
        np.put_along_axis(factor, pick, count, -1)
        np.put_along_axis(left, pick % m, np.take_along_axis(left, pick % m, -1) - 1, -1)
    adjusted[np.isnan(p)] = np.nan
    return adjusted[..., :m], adjusted[..., m:], factor[..., :m], factor[..., m:]


def classify(value: ArrayLike, different: ArrayLike, inside: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Words, as places in `WORDS`, and whether "smaller than the margin" holds besides, from estimates and adjusted
    p-values; elementwise. A NaN p of "no difference" is not reached.
    """
    value, different, inside = np.broadcast_arrays(value, different, inside)
    told, small = different < ALPHA, inside < ALPHA
    word = np.select([told & (value > 0), told & (value < 0), small, np.isnan(different)], [0, 1, 2, 3], 4)
    return word, small & (word < 2)


def has_words(contrast: Contrast, scope: Scope) -> str:
    """ "" where such a contrast may get a word, else why it may not. From 5 seeds on words go to worlds and the mean
    over worlds has an interval only.
    """
    n, most = contrast.n_seeds, max(contrast.n_seeds, contrast.most_seeds)
    if n < DESCRIBE_BELOW:
        return f"{n} seed{'s' if n != 1 else ''}: described, no word (words need {DESCRIBE_BELOW})"
    if scope == "world" and n < WORLD_FROM:
        return f"{n} seeds: no word for one world (that needs {WORLD_FROM}); the mean over worlds has one"
    if scope == "mean over worlds" and most >= WORLD_FROM:
        return f"{most} seeds: words go to each world; the mean over worlds has an interval only"
    return ""


def decide(claims: Sequence[Claim], scope: Scope = "world") -> list[Said]:
    """What may be said of a family of claims: two in `goodhart`, one in any other experiment.

    A claim that is not reached, or only described, has no word and still counts in the family: losing data must not
    make the other easier. The seeds that a word needs are asked of each claim (`has_words`).
    """
    reasons = [claim.described or (has_words(claim.contrast, scope) if claim.testable else "") for claim in claims]
    tested = [claim.testable and not reason for claim, reason in zip(claims, reasons, strict=True)]
    different = np.array([c.contrast.p if test else np.nan for c, test in zip(claims, tested, strict=True)])
    inside = np.array([_inside(c) if test else np.nan for c, test in zip(claims, tested, strict=True)])
    adjusted = adjust(different, inside)
    values = np.array([claim.contrast.value for claim in claims])
    words, small = classify(values, adjusted[0], adjusted[1])
    factors = _decisive(adjusted)
    said = []
    for number, (claim, reason) in enumerate(zip(claims, reasons, strict=True)):
        word: Word = "described" if reason else WORDS[int(words[number])]
        level, inner_level = 1 - ALPHA / int(factors[0][number]), 1 - 2 * ALPHA / int(factors[1][number])
        if reason:  # nothing is decided: the usual intervals
            level, inner_level = 1 - ALPHA, 1 - 2 * ALPHA
        interval = claim.contrast.interval(level)
        said.append(
            Said(
                claim=claim,
                word=word,
                small=bool(small[number]),
                text=reason or _text(claim, word, bool(small[number]), interval),
                p=float(different[number]),
                adjusted=float(adjusted[0][number]),
                level=level,
                interval=interval,
                inner_level=inner_level,
                inner=claim.contrast.interval(inner_level),
            )
        )
    return said


def _inside(claim: Claim) -> float:
    return claim.contrast.p_inside(claim.margin) if claim.margin is not None else np.nan


def _decisive(
    adjusted: tuple[Floats, Floats, NDArray[np.int64], NDArray[np.int64]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each hypothesis the number that its level is divided by: its own where it was rejected, else the one at which
    the procedure stopped, so that intervals and words agree.
    """
    p, factor = np.concatenate(adjusted[:2]), np.concatenate(adjusted[2:])
    rejected = p < ALPHA
    stopped = int(factor[~rejected].max(initial=1))
    decisive = np.where(rejected, factor, stopped)
    return decisive[: len(adjusted[0])], decisive[len(adjusted[0]) :]


def _text(claim: Claim, word: Word, small: bool, interval: tuple[float, float]) -> str:
    if word == "not reached":
        n, of = claim.contrast.reached
        return (
            f"not reached ({claim.contrast.note or f'reached by {n} of {of}'})" if not claim.contrast.defined else word
        )
    if small and claim.margin is not None:
        return f"{word}, but smaller than {claim.margin * claim.scale:g} {claim.unit}"
    if word == "undecided":
        low, high = (end * claim.scale for end in interval)
        return f"undecided: {claim.unit} below {low:+.1f} and above {high:+.1f} are excluded"
    return word


def beside(truth: Said, golden: Said) -> Beside:
    """What golden says of a claim on which the truth has a word: "golden says the same", "the opposite" or "cannot
    tell". Golden is judged by the same rule on its own values and has no word of its own.

    the same: the same one of supported, contradicted, equivalent. the opposite: supported against contradicted. Else
    cannot tell: golden cannot decide, or there is no word of the truth's to repeat, or one sees a difference that the
    other says is inside the margin.
    """
    told = {"supported", "contradicted"}
    if truth.word == golden.word and truth.word in told | {"equivalent"}:
        return "the same"
    return "the opposite" if {truth.word, golden.word} == told else "cannot tell"
