"""The decision rule: its words one by one, its adjustment against brute force and statsmodels, and made-up runs that
come out with each word at the smallest effect worth finding.
"""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from aligngap.stats.contrast import over_seeds, over_worlds
from aligngap.stats.gaps import delta_eq
from aligngap.stats.seedvalue import constant, undefined
from aligngap.stats.words import ALPHA, MARGIN, Claim, adjust, beside, classify, decide
from made_runs import PATH, study


def of(mean, sd, n=5):
    """A contrast whose seeds have exactly this mean and standard deviation."""
    shape = stats.zscore(np.arange(n), ddof=1)
    return over_seeds([constant(float(v), 2) for v in mean + sd * shape])


LACKING = over_seeds([constant(0.1, 2), undefined(2), *[constant(0.1, 2)] * 3])


@pytest.mark.parametrize(
    ("mean", "sd", "word", "small"),
    [
        (0.05, 0.02, "supported", False),
        (-0.05, 0.02, "contradicted", False),
        (0.02, 0.01, "supported", True),
        (-0.02, 0.01, "contradicted", True),
        (0.005, 0.02, "equivalent", False),
        (0.02, 0.03, "undecided", False),
    ],
)
def test_the_first_word_that_holds(mean, sd, word, small):
    said = decide([Claim("a", of(mean, sd))])[0]
    assert (said.word, said.small) == (word, small)
    assert said.p == pytest.approx(2 * stats.t.sf(abs(mean) / (sd / 5**0.5), 4))
    assert (said.level, said.inner_level) == (0.95, 0.9)
    assert (said.word in ("supported", "contradicted")) == (said.interval[0] > 0 or said.interval[1] < 0)


def test_texts():
    def text(contrast, **how):
        return decide([Claim("a", contrast, **how)])[0].text

    assert text(of(0.02, 0.01)) == "supported, but smaller than 4 points"
    assert text(of(-0.02, 0.01)) == "contradicted, but smaller than 4 points"
    assert text(of(0.005, 0.02)) == "equivalent"
    low, high = stats.t.interval(0.95, 4, 2, 3 / 5**0.5)
    assert text(of(0.02, 0.03)) == f"undecided: points below {low:+.1f} and above {high:+.1f} are excluded"
    assert text(LACKING) == "not reached (reached by 4 of 5)"
    assert text(of(0.02, 0.01), margin=0.5, scale=1, unit="nats") == "supported, but smaller than 0.5 nats"


def test_without_a_margin_nothing_is_equivalent_or_small():
    assert decide([Claim("a", of(0.0001, 0.0002), margin=None)])[0].word == "undecided"
    said = decide([Claim("a", of(0.02, 0.01), margin=None)])[0]
    assert (said.word, said.small) == ("supported", False)


def test_a_claim_that_is_not_reached_has_no_word_and_makes_the_other_no_easier():
    not_reached, other = decide([Claim("A", LACKING), Claim("B", of(0.03, 0.02))])
    assert not_reached.word == "not reached"
    assert np.isnan(not_reached.p)
    assert other.adjusted == pytest.approx(2 * other.p)
    assert other.level == 0.975
    some = decide([Claim("A", of(0.05, 0.01), reached=False)])[0]  # the mean over those k that all reach
    assert some.word == "not reached"


@pytest.mark.parametrize(
    ("n", "scope", "word"),
    [
        (1, "world", "described"),
        (2, "world", "described"),
        (2, "mean over worlds", "described"),
        (3, "world", "described"),
        (4, "world", "described"),
        (3, "mean over worlds", "supported"),
        (4, "mean over worlds", "supported"),
        (5, "world", "supported"),
        (5, "mean over worlds", "described"),
        (8, "mean over worlds", "described"),
    ],
)
def test_seeds_that_a_word_needs(n, scope, word):
    contrast = of(0.3, 0.001, n) if n > 1 else over_seeds([constant(0.3, 2)])
    if scope == "mean over worlds":
        contrast = over_worlds([contrast] * 4)
    said = decide([Claim("a", contrast)], scope)[0]
    assert said.word == word
    assert ("seed" in said.text) == (word == "described")
    assert np.isfinite(said.interval).all()  # a description has its interval


def test_what_is_only_described_gets_no_word_whatever_its_seeds():
    said = decide([Claim("a", of(0.3, 0.001), described="chosen on the same seeds"), Claim("b", of(0.03, 0.02))])
    assert (said[0].word, said[0].text) == ("described", "chosen on the same seeds")
    assert said[1].adjusted == pytest.approx(2 * said[1].p)


def closed(different, inside):
    """Which hypotheses closed testing with Bonferroni tests rejects: H is rejected if each set of hypotheses that may
    be true together and that holds H has its smallest p below .05 over its size. May be true together: at most one of
    each claim.
    """
    m = len(different)
    hypotheses = {(c, kind): p for kind, ps in (("d", different), ("i", inside)) for c, p in enumerate(ps)}
    possible = [
        [(c, kind) for c, kind in enumerate(kinds) if kind]
        for kinds in product(("d", "i", None), repeat=m)
        if any(kinds)
    ]
    return {
        h: all(min(hypotheses[g] for g in group) * len(group) < ALPHA for group in possible if h in group)
        for h in hypotheses
    }


@given(st.lists(st.tuples(st.floats(0.0005, 0.2), st.floats(0.0005, 0.2)), min_size=1, max_size=3))
def test_no_more_is_rejected_than_closed_testing_allows(pairs):
    """Closed testing (Marcus, Peritz and Gabriel 1976) keeps 5% whatever is true; the rule is a short cut to it."""
    different, inside = (np.array(column) for column in zip(*pairs, strict=True))
    adjusted = adjust(different, inside)
    allowed = closed(different, inside)
    for c in range(len(pairs)):
        assert not (adjusted[0][c] < ALPHA and not allowed[c, "d"])
        assert not (adjusted[1][c] < ALPHA and not allowed[c, "i"])


@pytest.mark.parametrize("m", [1, 2, 5])
def test_without_margins_it_is_holm(m):
    for p in np.random.default_rng(m).random((10, m)) ** 3:
        adjusted = adjust(p, np.full(m, np.nan))
        np.testing.assert_allclose(adjusted[0], multipletests(p, method="holm")[1])


def test_one_claim_is_not_adjusted():
    adjusted = adjust([0.03], [0.2])
    assert (adjusted[0][0], adjusted[1][0]) == (0.03, 0.2)
    assert decide([Claim("a", of(0.01, 0.02))])[0].inner_level == 0.9


@given(st.integers(0, 5000))
def test_studies_at_once_are_adjusted_as_each_alone(seed):
    rng = np.random.default_rng(seed)
    different, inside = rng.random((2, 6, 2)) ** 4
    different[rng.random((6, 2)) < 0.2] = np.nan
    inside[np.isnan(different)] = np.nan
    together = adjust(different, inside)
    for row in range(6):
        for number, one in enumerate(adjust(different[row], inside[row])):
            np.testing.assert_array_equal(together[number][row], one)


@settings(max_examples=40)
@given(st.floats(-0.08, 0.08), st.floats(-0.08, 0.08), st.floats(0.005, 0.05), st.floats(0.005, 0.05))
def test_interval_and_word_agree(a, b, sd_a, sd_b):
    for said in decide([Claim("A", of(a, sd_a)), Claim("B", of(b, sd_b))]):
        outside = said.interval[0] > 0 or said.interval[1] < 0
        assert outside == (said.word in ("supported", "contradicted"))
        within = said.inner[0] > -MARGIN and said.inner[1] < MARGIN
        assert within == (said.small or said.word == "equivalent")


def test_false_words_stay_below_five_percent_where_both_claims_are_at_the_margin():
    """Where the 90% interval, whatever the number of claims, says "equivalent" too often: simulated here."""
    rng = np.random.default_rng(0)
    n, studies = 8, 1500
    rule = plain = 0
    for _ in range(studies):
        a, b = MARGIN + rng.normal(0, 0.02, (2, n))
        said = decide(
            [Claim("A", over_seeds([constant(v, 2) for v in a])), Claim("B", over_seeds([constant(v, 2) for v in b]))]
        )
        rule += any(one.small or one.word == "equivalent" for one in said)
        plain += any(ttost_paired(x, np.zeros(n), -MARGIN, MARGIN)[0] < 0.05 for x in (a, b))
    error = (0.05 * 0.95 / studies) ** 0.5
    assert rule / studies <= 0.05 + 2 * error
    assert plain / studies > 0.05 + 4 * error


def test_what_golden_says_beside_the_truth():
    words = {
        "supported": of(0.05, 0.01),
        "contradicted": of(-0.05, 0.01),
        "equivalent": of(0.005, 0.01),
        "undecided": of(0.03, 0.06),
        "not reached": LACKING,
    }
    said = {word: decide([Claim("a", contrast)])[0] for word, contrast in words.items()}
    assert all(one.word == word for word, one in said.items())
    for truth, golden in product(said, said):
        expected = "cannot tell"
        if truth == golden and truth in ("supported", "contradicted", "equivalent"):
            expected = "the same"
        elif {truth, golden} == {"supported", "contradicted"}:
            expected = "the opposite"
        assert beside(said[truth], said[golden]) == expected


def test_classify_of_an_estimate_of_exactly_zero():
    word, small = classify(0.0, 1.0, 0.2)
    assert (word, small) == (4, False)


WORDS_AT_FOUR_POINTS = {
    "supported": {"gap": lambda k: 0.04},
    "contradicted": {"gap": lambda k: -0.04},
    "supported, but smaller than 4 points": {"gap": lambda k: 0.02, "sd": 0.008},
    "equivalent": {"gap": lambda k: 0.0},
    "undecided": {"gap": lambda k: 0.04, "sd": 0.045, "seeds": 5},
    "not reached": {"gap": lambda k: 0.04, "paths": {("offline", 2): PATH / 4}},
}


@pytest.mark.parametrize("word", WORDS_AT_FOUR_POINTS)
def test_made_up_runs_come_out_with_each_word_at_the_smallest_effect_worth_finding(word):
    """Runs at the level of prompts whose seeds differ by 1.5 points, as in the steadiest world; 8 seeds, 3 studies."""
    how = {"sd": 0.015, "seeds": 8, "n": 256} | WORDS_AT_FOUR_POINTS[word]
    texts = []
    for number in range(3):
        made = study(np.random.default_rng(100 + number), **how)
        found = delta_eq(made["online"], made["offline"], (1.0, 2.0, 4.0))
        texts.append(decide([Claim("delta_eq", found.contrast, reached=found.reached)])[0].text)
    assert sum(text.split(":")[0].split(" (")[0] == word for text in texts) >= 2, texts
