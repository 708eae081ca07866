"""Which data set of the original's section 6 (and of H1 and H2) a preference data set resembles.

The rule and its thresholds were fixed before any data set was measured (docs/diagnose.md says what came of it). It asks
about the answers of a pair, the nearer one to the policy and the farther one, not about chosen and rejected: which
answer is the policy's own seldom goes with the label.

The measure is how often a rule, fitted on other prompts, ranks an answer of the data as less like the policy's than the
policy's own in the same place (`stats.separation`): the nearer of the two answers against the nearer of two responses
of the policy's own, and the farther against the farther. If both come from the policy, both are 50%. If one does and
the other is wholly elsewhere, the nearer is a single draw against the lowest of two, which is farther in 2/3 of the
cases, and the farther tends to 100%. If neither does, both tend to 100%.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from aligngap.diagnosis.numbers import Measurement, words

MIN_PROMPTS = 100
"""Fewer decide nothing."""

NEAR = 0.60
"""Both answers count as the policy's own while the farther one is within this. Answers that follow normal distributions
whose means are off by 0.3 standard deviations (0.045 nats of KL; each is told apart in 58% of cases) are at 60%.
"""

ONE_NEAR = 0.72
"""One answer counts as near while the nearer one is within this: 2/3 is where one response of the policy's own can put
it, the rest is leave for noise.
"""

ONE_FAR = 0.65
"""The other answer then counts as far if the farther one is beyond this, where one answer at 0.75 standard deviations
puts it (0.28 nats; told apart in 70%).
"""

FAR = 0.75
"""Both answers count as far if the nearer one is beyond this, where two at 0.8 standard deviations put it (0.31 nats
each; told apart in 71%).
"""

CHANCE = 2 / 3
"""The nearer answer beyond this, and no answer of the pair need be near."""

COVERED = 0.95
"""The data cover the policy if they hold this much of what it says, relative to as many responses of its own."""

UNLIKELY = 0.10
"""The share of answers outside the bulk of the policy's own, on one side, from which it is worth saying (1% of the
policy's own are).
"""


class Signs(NamedTuple):
    """What the regime is read from.

    prompts: how many. nearer, farther: the shares above; lead: the farther's minus the nearer's. quality: win rate of
    the data's answers against the policy's own, NaN without a judge. covered: the share of the policy's pairs of
    neighbouring tokens that the data hold, relative to as many responses of its own. unlikely: the share of answers
    below the bulk of the policy's own log-probabilities; likely: above it.
    """

    prompts: int
    nearer: Measurement
    farther: Measurement
    lead: Measurement
    quality: Measurement
    covered: Measurement
    unlikely: Measurement
    likely: Measurement


@dataclass(frozen=True)
class Regime:
    """A verdict. name: for programs; title, resembles, meaning: for people; evidence for it, against it, and what is
    worth knowing beside it.
    """

    name: str
    title: str
    resembles: str
    meaning: str
    evidence: tuple[str, ...]
    against: tuple[str, ...]
    beside: tuple[str, ...]
    limits: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values, with the thresholds that led to it."""
        thresholds = {
            "min_prompts": MIN_PROMPTS,
            "near": NEAR,
            "one_near": ONE_NEAR,
            "one_far": ONE_FAR,
            "far": FAR,
            "between": CHANCE,
            "covered": COVERED,
            "unlikely": UNLIKELY,
        }
        return {**asdict(self), "thresholds": thresholds}


_PROXIMITY = (
    "The original finds that proximity to the SFT policy on at least one side is what makes offline data work. Our own "
    "study of the summarisation world contradicts it: there, offline training on SFT-vs-early pairs peaked below "
    "training on final-vs-final and on early-vs-final pairs (docs/findings.md; one seed)."
)

_ABOUT: dict[str, tuple[str, str, str]] = {
    "on_policy": (
        "both answers are such as the policy itself gives",
        "D_golden, where the SFT policy has learned its answers well; pairs sampled from SFT on both sides",
        "Offline training on such pairs is the original's plain offline arm: it learns from answers that the policy "
        "gives already, and the gap to online opens as the policy moves away from them. " + _PROXIMITY,
    ),
    "one_side_near": (
        "one answer of a pair is such as the policy gives, the other is not",
        "SFT against early online policy (section 6)",
        "The set that the original found best but for online sampling itself. " + _PROXIMITY,
    ),
    "far_better": (
        "both answers are away from the policy, and better than its own",
        "early against final and final against final online policy (section 6); the high-quality set of H2; the stream "
        "of an online run that soon left the policy (H1)",
        "The original found such sets of little use in spite of their quality. Our own study leans the other way: on "
        "the summarisation world offline training on final-vs-final pairs peaked highest of its four sets, by the "
        "golden judge (docs/findings.md; one seed; by the true utility the lead is gone). " + _PROXIMITY,
    ),
    "far_not_better": (
        "both answers are away from the policy, and no better than its own",
        "none of the original's sets",
        "Neither proximity nor quality speaks for it. That includes most answers of people or of other models, of "
        "which the excess a token says how far away they are; training an SFT policy on them first may bring them "
        "nearer. " + _PROXIMITY,
    ),
    "far_unjudged": (
        "both answers are away from the policy; whether they are better is unknown",
        "early against final or final against final (section 6) and H2 if they are better, none of the sets otherwise",
        "Give a judge (--judge) to know. " + _PROXIMITY,
    ),
    "between": (
        "both answers are somewhat away from the policy",
        "the stream of an online run, shuffled (H1); D_golden where the SFT policy has not learned its answers well",
        "Either all answers are somewhat off, as D_golden of the summarisation world is from our SFT policy, or some "
        "pairs are near and others far, as along an online run; this measure does not tell which. The original found "
        "that the online run's own pairs, shuffled, do little better than plain offline training, and ours is "
        "inconclusive (docs/findings.md). " + _PROXIMITY,
    ),
    "undecided": (
        "undecided",
        "none: the intervals allow for more than one",
        "More prompts (--prompts) narrow the intervals.",
    ),
}

_LIMITS = (
    "A resemblance, not a forecast: it says what the data are like, and the original's results are those of one "
    "model family, one seed and four tasks.",
    "Near means that no simple rule found a difference in length, likelihood, repetition and overlap. What such a rule "
    "does not see, it does not tell apart.",
    "The policy is taken to be the SFT policy that training would start from.",
)


def decide(signs: Signs) -> Regime:
    """The regime, with what speaks for it and against it."""
    name = _name(signs)
    title, resembles, meaning = _ABOUT[name]
    lines: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    if signs.prompts < MIN_PROMPTS:
        lines[True].append(f"{signs.prompts} prompts, and fewer than {MIN_PROMPTS} decide nothing")
    lines[True] += [
        f"the nearer answer of a pair is ranked farther than the nearer of two of the policy's own in "
        f"{words(signs.nearer)} of cases (50%: both the policy's own; up to 67%: one is)",
        f"the farther one likewise in {words(signs.farther)} (50%: both the policy's own)",
    ]
    for speaks, line in (*_likelihood(name, signs), *_coverage(name, signs), *_quality(name, signs)):
        lines[speaks].append(line)
    evidence, against, beside = (tuple(lines[speaks]) for speaks in (True, False, None))
    return Regime(name, title, resembles, meaning, evidence, against, beside, _LIMITS)


def _name(signs: Signs) -> str:
    nearer, farther = signs.nearer, signs.farther
    if signs.prompts < MIN_PROMPTS:
        return "undecided"
    if farther.high <= NEAR and nearer.high <= NEAR:
        return "on_policy"
    if nearer.low >= FAR:
        if not signs.quality.known:
            return "far_unjudged"
        return "far_better" if signs.quality.low > 0.5 else "far_not_better"
    if nearer.high <= ONE_NEAR and farther.low >= ONE_FAR and signs.lead.low > 0:
        return "one_side_near"
    return "between" if nearer.low > CHANCE else "undecided"


Lines = Iterator[tuple[bool | None, str]]
"""Whether a line speaks for the regime or against it, None for neither; and the line."""


def _likelihood(name: str, signs: Signs) -> Lines:
    far = name.startswith("far")
    if not signs.unlikely.known:
        return
    share = f"{words(signs.unlikely)} of the answers are less likely than all but 1% of the policy's own"
    if signs.unlikely.low > UNLIKELY:
        yield (True if far else False if name == "on_policy" else None), share
    elif far:
        yield None, f"{share}: they are within what it says, as answers of a policy trained from it are"
    else:
        yield (True if name == "on_policy" else None), share
    if signs.likely.low > UNLIKELY:
        narrow = f"{words(signs.likely)} are more likely than all but 1% of its own: a narrower choice among them"
        yield (False if name == "on_policy" else None), narrow


def _coverage(name: str, signs: Signs) -> Lines:
    if not signs.covered.known:
        return
    how = f"of its pairs of neighbouring tokens the data hold {words(signs.covered)} of what its own responses would"
    near = name in ("on_policy", "one_side_near", "between")
    if signs.covered.low >= COVERED:
        yield (near if name != "undecided" else None), f"{how}: the data cover them"
    elif signs.covered.high < COVERED:
        missed = f"{how}: they are narrower than the policy, or elsewhere"
        yield {"on_policy": False, "between": False}.get(name, True if name.startswith("far") else None), missed
    else:
        yield None, how


def _quality(name: str, signs: Signs) -> Lines:
    if not signs.quality.known:
        yield None, "without a judge nothing is known of quality"
        return
    better, worse = signs.quality.low > 0.5, signs.quality.high < 0.5
    fits = {"on_policy": not (better or worse), "far_better": better, "far_not_better": not better}
    won = f"by the judge the answers win {words(signs.quality)} against the policy's own (50%: as good)"
    yield fits.get(name), won
