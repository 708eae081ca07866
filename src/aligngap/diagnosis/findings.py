"""What is measured of a subject: every number with its interval over prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from aligngap.diagnosis.numbers import UNKNOWN, Measurement, Ratio, numbers
from aligngap.diagnosis.regime import Signs
from aligngap.diagnosis.subject import Subject
from aligngap.judges.base import Judge, decision
from aligngap.measure.similarity import bigrams, edit_similarity, share_within
from aligngap.measure.typicality import Typicality, typicality
from aligngap.models.policy import Policy
from aligngap.seeds import numpy_stream, uniforms
from aligngap.stats.budget import Floats
from aligngap.stats.separation import higher, separating_rule
from aligngap.types import PairBatch, TokenIds, Tokens

OWN = 4
"""Responses of the policy's own to each prompt: one pair to compare the data's pair with, and another to measure by."""

BULK = (0.01, 0.99)
"""Quantiles of the policy's own responses between which a response is typical."""

FITTED = 3
"""Every third prompt serves to fit the rule that tells the data from the policy's own; it is tried on the others."""

Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it, and of how much."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


T = TypeVar("T", covariant=True)


class Row(NamedTuple, Generic[T]):
    """A quantity, in one or more columns of its section: numbers, or before there are intervals the values per prompt,
    [n], or ratios of them. unit: `%` for a share, or a word.
    """

    key: str
    label: str
    unit: str
    numbers: Mapping[str, T]


@dataclass(frozen=True)
class Section(Generic[T]):
    """Quantities with the same columns. columns: key -> title; notes: what they mean and do not."""

    key: str
    title: str
    columns: Mapping[str, str]
    rows: Sequence[Row[T]]
    notes: tuple[str, ...] = ()


Draft = Section[Floats | Ratio]
"""A section before its intervals."""


@dataclass(frozen=True)
class Findings:
    """All that was measured. z: the standardised excess of every response, for a picture, by column of the first
    section.
    """

    sections: tuple[Section[Measurement], ...]
    counts: Mapping[str, Any]
    z: Mapping[str, Floats] = field(default_factory=dict)

    def number(self, section: str, row: str, column: str) -> Measurement:
        """One number; unknown where it was not measured."""
        rows = next((result.rows for result in self.sections if result.key == section), ())
        return next((result.numbers[column] for result in rows if result.key == row), UNKNOWN)

    def signs(self) -> Signs:
        """What the regime is read from."""
        pairs = {name: self.number("contrast", name, "data") for name in ("nearer", "farther", "lead")}
        return Signs(
            prompts=int(self.counts["prompts"]),
            **pairs,
            quality=self.number("quality", "win_rate", "either"),
            covered=self.number("coverage", "bigrams_relative", "policy_by_data"),
            unlikely=self.number("on_policy", "too_unlikely", "either"),
            likely=self.number("on_policy", "too_likely", "either"),
        )


@dataclass(frozen=True)
class Looked:
    """The responses to each of n prompts: chosen, rejected, then the policy's own, [n] each; and what is known of them.
    Arrays are [n, 2 + OWN], likenesses [n, 2 + OWN, 2 + OWN]. decided: where chosen and rejected are no tie, [n].
    """

    prompts: Tokens
    responses: tuple[Tokens, ...]
    decided: Floats
    log_prob: Floats
    excess: Floats
    z: Floats
    first: Floats
    last: Floats
    tokens: Floats
    ended: Floats
    likeness: Floats


SIDES = {"chosen": "chosen", "rejected": "rejected", "either": "either", "own": "policy's own"}


def look(subject: Subject, seed: int, progress: Progress) -> Looked:
    """Samples the policy, scores all responses and compares them token by token."""
    pairs, policy = subject.pairs, subject.policy
    own = _sampled(policy, pairs, seed, progress)
    first_chosen = pairs.preference >= 0.5
    sides = [_picked(pairs, first_chosen), _picked(pairs, ~first_chosen)]
    responses = (*sides, *own)
    result: list[Typicality] = []
    for done, response in enumerate(responses):
        progress("scoring", done * len(pairs), len(responses) * len(pairs))
        result.append(typicality(policy, pairs.prompts, response))
    rows = [part.rows() for part in responses]
    ended = [[float(bool(ids) and ids[-1] in policy.ends) for ids in part] for part in rows]

    def stacked(name: str) -> Floats:
        return np.stack([getattr(part, name).numpy() for part in result], axis=1)

    return Looked(
        prompts=pairs.prompts,
        responses=responses,
        decided=np.asarray(pairs.preference.numpy() != 0.5),
        **{name: stacked(name) for name in ("log_prob", "excess", "z", "first", "last", "tokens")},
        ended=np.array(ended).T,
        likeness=_likeness(rows, progress),
    )


def _picked(pairs: PairBatch, first: torch.Tensor) -> Tokens:
    a, b = pairs.first.rows(), pairs.second.rows()
    return Tokens.collate([x if take else y for x, y, take in zip(a, b, first.tolist(), strict=True)])


def _sampled(policy: Policy, pairs: PairBatch, seed: int, progress: Progress, chunk: int = 16) -> list[Tokens]:
    """OWN responses to each prompt, on the CPU."""
    noise = uniforms(pairs.prompt_numbers, OWN, policy.max_new_tokens, "diagnose", seed)
    rows: list[list[int]] = []
    for index in torch.arange(len(pairs)).split(chunk):
        progress("sampling", int(index[0]), len(pairs))
        part = noise[OWN * int(index[0]) : OWN * (int(index[-1]) + 1)]
        rows += policy.sample(pairs.prompts.take(index).to(policy.device), OWN, part).to("cpu").rows()
    return [Tokens.collate(rows[number::OWN]) for number in range(OWN)]


def _likeness(rows: Sequence[Sequence[TokenIds]], progress: Progress) -> Floats:
    count, n = len(rows), len(rows[0])
    result = np.ones((n, count, count))
    for prompt in range(n):
        if prompt % 64 == 0:
            progress("comparing", prompt, n)
        for a, b in combinations(range(count), 2):
            result[prompt, a, b] = result[prompt, b, a] = edit_similarity(rows[a][prompt], rows[b][prompt])
    return result


def measure(
    subject: Subject,
    judge: Judge | None = None,
    *,
    seed: int = 0,
    replicates: int = 1000,
    progress: Progress = silent,
) -> Findings:
    """Everything. Raises UserError when the judge fails."""
    seen = look(subject, seed, progress)
    opinions = _asked(judge, seen, subject.pairs.preference, progress) if judge is not None else None
    apart, more = _apart(seen)
    parts = [
        _on_policy(seen),
        _contrast(seen, apart, opinions),
        _tells(more),
        _quality(opinions),
        _coverage(seen),
        _judge(opinions),
    ]
    drafts = [part for part in parts if part is not None]
    values = {
        f"{draft.key}.{row.key}.{column}": value
        for draft in drafts
        for row in draft.rows
        for column, value in row.numbers.items()
    }
    result = numbers(values, numpy_stream("diagnose", "bootstrap", seed), replicates)

    def measured(draft: Draft) -> Section[Measurement]:
        rows = [
            Row(row.key, row.label, row.unit, {name: result[f"{draft.key}.{row.key}.{name}"] for name in row.numbers})
            for row in draft.rows
        ]
        return Section(draft.key, draft.title, draft.columns, rows, draft.notes)

    counts: dict[str, Any] = {
        "prompts": len(subject.pairs),
        "own_responses": OWN * len(subject.pairs),
        "ties": int((~seen.decided.astype(bool)).sum()),
    }
    if judge is not None:
        counts |= {"judge_calls": judge.calls, "judge_spent": dict(judge.spent)}
    z = {"chosen": seen.z[:, 0], "rejected": seen.z[:, 1], "own": seen.z[:, 2:].ravel()}
    return Findings(tuple(map(measured, drafts)), counts, z)


def _by_side(values: Floats) -> dict[str, Floats]:
    """Of [n, 2 + OWN]: chosen, rejected, the mean of both, the mean of the policy's own."""
    return {
        "chosen": values[:, 0],
        "rejected": values[:, 1],
        "either": values[:, :2].mean(1),
        "own": values[:, 2:].mean(1),
    }


def _marked(where: NDArray[np.bool_]) -> Floats:
    return where.astype(np.float64)


def _a_token(values: Floats, tokens: Floats) -> dict[str, Floats | Ratio]:
    top, bottom = _by_side(values), _by_side(tokens)
    return {side: Ratio(top[side], bottom[side]) for side in top}


def _on_policy(seen: Looked) -> Draft:
    low, high = np.quantile(seen.z[:, 2:], BULK) if len(seen.z) else (0.0, 0.0)
    # Equal values that were computed in batches of other shapes differ by rounding.
    likely, unlikely = seen.z < low - 1e-6, seen.z > high + 1e-6
    lines = [
        Row("log_prob_per_token", "log-probability a token", "nats", _a_token(seen.log_prob, seen.tokens)),
        Row("excess_per_token", "excess a token (KL proxy)", "nats", _a_token(seen.excess, seen.tokens)),
        Row("excess", "excess a response", "nats", _by_side(seen.excess)),
        Row("excess_first", "of it, at the first token", "nats", _by_side(seen.first)),
        Row("excess_last", "of it, at the last token", "nats", _by_side(seen.last)),
        Row("in_bulk", "within the bulk of the policy's own", "%", _by_side(_marked(~(likely | unlikely)))),
        Row("too_unlikely", "less likely than the bulk", "%", _by_side(_marked(unlikely))),
        Row("too_likely", "more likely than the bulk", "%", _by_side(_marked(likely))),
        Row("tokens", "length", "tokens", _by_side(seen.tokens)),
        Row("ended", "ends within the limit", "%", _by_side(seen.ended)),
    ]
    notes = (
        "excess: -log pi(y) minus the policy's entropy on the way; 0 on average for its own responses. For data it is "
        "KL(data || policy) plus the data's entropy minus the policy's: too low if the data are less random than the "
        "policy.",
        f"bulk: the excess, in standard deviations that the policy expects at this prompt, lies between the "
        f"{BULK[0]:.0%} and {BULK[1]:.0%} quantiles of the policy's own.",
        "at the last token it is below 0 for the policy's own, too: responses end where ending is likely. Much of it "
        "at the first token: look at the format (a leading space, the chat template) before the rest.",
    )
    return Draft("on_policy", "how on-policy the data are", SIDES, lines, notes)


def _roles() -> Iterator[tuple[list[int], list[int]]]:
    """Which of the policy's own responses are compared with the data's pair, and which serve to measure by; and the
    other way round.
    """
    yield [2, 3], [4, 5]
    yield [4, 5], [2, 3]


FEATURES = {
    "z": "how unlikely, in standard deviations",
    "z_distance": "how untypical, either way",
    "excess_per_token": "excess a token",
    "log_prob_per_token": "log-probability a token",
    "log_prob": "log-probability",
    "first": "excess at the first token",
    "tokens": "length",
    "log_tokens": "logarithm of the length",
    "ended": "ends within the limit",
    "distinct": "share of tokens that are different",
    "of_prompt": "share of tokens that the prompt has",
    "bigrams": "pairs of tokens that two own responses have",
    "mean_likeness": "likeness to two own responses, mean",
    "max_likeness": "likeness to two own responses, nearer",
}
"""What the rule sees of a response, in order."""


def _features(seen: Looked, items: Sequence[int], beside: Sequence[int]) -> Floats:
    """`FEATURES` of the responses `items`, [n, items, features]. `beside`: responses of the policy's own, none of
    `items`.
    """
    rows = {number: seen.responses[number].rows() for number in {*items, *beside}}
    own = [{gram for other in beside for gram in bigrams(rows[other][at])} for at in range(len(seen.z))]
    asked = [set(ids) for ids in seen.prompts.rows()]
    columns = []
    for item in items:
        texts, tokens = rows[item], seen.tokens[:, item]
        alike = seen.likeness[:, item, list(beside)]
        result = {
            "z": seen.z[:, item],
            "z_distance": np.abs(seen.z[:, item]),
            "excess_per_token": seen.excess[:, item] / tokens,
            "log_prob_per_token": seen.log_prob[:, item] / tokens,
            "log_prob": seen.log_prob[:, item],
            "first": seen.first[:, item],
            "tokens": tokens,
            "log_tokens": np.log(tokens),
            "ended": seen.ended[:, item],
            "distinct": [len(set(ids)) / len(ids) for ids in texts],
            "of_prompt": [np.mean([token in there for token in ids]) for ids, there in zip(texts, asked, strict=True)],
            "bigrams": np.nan_to_num(
                [share_within(bigrams(ids), there) for ids, there in zip(texts, own, strict=True)]
            ),
            "mean_likeness": alike.mean(1),
            "max_likeness": alike.max(1),
        }
        columns.append([result[name] for name in FEATURES])
    features: Floats = np.array(columns, dtype=np.float64).transpose(2, 0, 1)
    return features


def _apart(seen: Looked) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Per prompt, how often a rule that never saw it ranks the data's answers as less like the policy's than its own:
    chosen, rejected, and the nearer and the farther of both; [n] each, NaN for the prompts that the rule was fitted on.
    And how often the data's answers have more of each feature than the policy's own, which takes no rule; [n] each.
    """
    parts: dict[str, list[Floats]] = {name: [] for name in ("chosen", "rejected", "nearer", "farther")}
    more: list[Floats] = []
    fitted = np.arange(len(seen.z)) % FITTED == 0
    for own, beside in _roles():
        features = _features(seen, [0, 1, *own], beside)
        more.append(higher(features[:, :2, None], features[:, None, 2:]).mean((1, 2)))
        scores = features @ separating_rule(features[fitted, 2:], features[fitted, :2])
        scores[fitted] = np.nan
        data, ours = scores[:, :2], scores[:, 2:]
        for side, name in enumerate(("chosen", "rejected")):
            parts[name].append(higher(data[:, side, None], ours).mean(1))
        parts["nearer"].append(higher(data.min(1), ours.min(1)))
        parts["farther"].append(higher(data.max(1), ours.max(1)))
    result = {name: np.asarray(np.mean(part, axis=0)) for name, part in parts.items()}
    return result, dict(zip(FEATURES, np.mean(more, axis=0).T, strict=True))


def _tells(more: Mapping[str, Floats]) -> Draft:
    lines = [Row(name, label, "%", {"data": more[name]}) for name, label in FEATURES.items()]
    notes = ("50%: no more often than the policy's own. What is far from 50% is what tells them apart.",)
    columns = {"data": "the data's has more"}
    return Draft(
        "tells", "by what they are told apart: the data's answer against the policy's own", columns, lines, notes
    )


def _contrast(seen: Looked, apart: Mapping[str, Floats], opinions: _Opinions | None) -> Draft:
    labelled = np.where(seen.decided, 1.0, np.nan)
    margin = seen.log_prob[:, 0] - seen.log_prob[:, 1]
    longer = seen.tokens[:, 0] - seen.tokens[:, 1]
    own = [(2, 3), (4, 5)]

    def of_own(values: Floats) -> Floats:
        return np.asarray(np.mean([np.abs(values[:, a] - values[:, b]) for a, b in own], axis=0))

    alike = {"data": seen.likeness[:, 0, 1], "own": np.mean([seen.likeness[:, a, b] for a, b in own], axis=0)}
    same = {"data": 1.0 * (alike["data"] == 1), "own": np.mean([seen.likeness[:, a, b] == 1 for a, b in own], axis=0)}
    lines = [
        Row("told_apart_chosen", "chosen told apart from the policy's own", "%", {"data": apart["chosen"]}),
        Row("told_apart_rejected", "rejected told apart from the policy's own", "%", {"data": apart["rejected"]}),
        Row("nearer", "the nearer answer, against the nearer of two own", "%", {"data": apart["nearer"]}),
        Row("farther", "the farther answer, against the farther of two", "%", {"data": apart["farther"]}),
        Row("lead", "the farther's minus the nearer's", "%", {"data": apart["farther"] - apart["nearer"]}),
        Row(
            "log_prob_margin",
            "log-probability between the two, absolute",
            "nats",
            {"data": np.abs(margin), "own": of_own(seen.log_prob)},
        ),
        Row("policy_agrees", "the policy gives chosen more", "%", {"data": higher(margin, 0 * margin) * labelled}),
        Row(
            "length_difference",
            "length between the two, absolute",
            "tokens",
            {"data": np.abs(longer), "own": of_own(seen.tokens)},
        ),
        Row("chosen_longer_by", "chosen minus rejected in length", "tokens", {"data": longer * labelled}),
        Row("similarity", "token edit similarity of the two", "%", alike),
        Row("identical", "identical answers", "%", same),
    ]
    if opinions is not None:
        lines += [
            Row(
                "judge_sure", "how sure the judge is, |2p - 1|", "%", {"data": opinions.sure, "own": opinions.own_sure}
            ),
            Row("judge_ties", "ties of the judge", "%", {"data": opinions.tie, "own": opinions.own_tie}),
        ]
    notes = (
        "told apart: a rule that never saw the prompt ranks the data's answer as less like the policy's own (50%: it "
        "cannot). It sees likelihood, length, repetition, overlap with the prompt and with other own responses.",
        "nearer, farther: 50% if both answers are the policy's own; up to 67% for the nearer if one of them is.",
    )
    columns = {"data": "the data's pair", "own": "two of the policy's own"}
    return Draft("contrast", "the two answers of a pair", columns, lines, notes)


def _coverage(seen: Looked) -> Draft:
    """How much of what the policy says the data hold, and the other way round, beside how much of it as many further
    responses of its own hold.
    """
    near: dict[str, list[Floats]] = {"policy_by_data": [], "data_by_policy": [], "policy_by_policy": []}
    grams: dict[str, list[tuple[Floats, Floats]]] = {name: [] for name in near}
    rows = [part.rows() for part in seen.responses]
    data = [0, 1]
    for own, beside in _roles():
        for name, of, by in (
            ("policy_by_data", own, data),
            ("data_by_policy", data, beside),
            ("policy_by_policy", own, beside),
        ):
            near[name].append(seen.likeness[:, of][:, :, by].max(2).mean(1))
            known = {gram for other in by for ids in rows[other] for gram in bigrams(ids)}
            asked = [[gram for item in of for gram in bigrams(rows[item][prompt])] for prompt in range(len(seen.z))]
            inside = np.array([sum(gram in known for gram in part) for part in asked], dtype=np.float64)
            grams[name].append((inside, np.array([len(part) for part in asked], dtype=np.float64)))
    nearest = {name: np.mean(result, axis=0) for name, result in near.items()}
    shares = {
        name: Ratio(np.sum([top for top, _ in result], axis=0), np.sum([bottom for _, bottom in result], axis=0))
        for name, result in grams.items()
    }
    base = nearest["policy_by_policy"]
    lines = [
        Row("bigrams", "pairs of neighbouring tokens that occur there, all prompts", "%", shares),
        Row(
            "bigrams_relative",
            "relative to the policy by itself",
            "%",
            {"policy_by_data": Ratio(shares["policy_by_data"].top, shares["policy_by_policy"].top)},
        ),
        Row("nearest", "likeness: edit similarity with the nearest of two, same prompt", "%", nearest),
        Row(
            "nearest_relative",
            "relative to the policy by itself",
            "%",
            {name: Ratio(nearest[name], base) for name in ("policy_by_data", "data_by_policy")},
        ),
    ]
    notes = (
        "both sides always of equal size: two responses a prompt. The whole data set holds more than the share that "
        "was looked at. Intervals take what the other side holds as given.",
        "likeness is no coverage: answers that keep to what is most usual lie nearer to the policy's than its own do, "
        "above 100%, and leave out the rest.",
    )
    columns = {
        "policy_by_data": "policy's, by the data",
        "data_by_policy": "data's, by the policy",
        "policy_by_policy": "policy's, by itself",
    }
    return Draft("coverage", "what covers what", columns, lines, notes)


class _Opinions(NamedTuple):
    """A judge's answers, [n] each. wins: chosen and rejected against a response of the policy's own, [n, 2]. agrees: 1,
    0, or 0.5 for the judge's tie; NaN for the data's. read_first: how often the answer read first is preferred;
    turned: whether the order decides; both NaN for a judge that reads no order.
    """

    wins: Floats
    sure: Floats
    own_sure: Floats
    tie: Floats
    own_tie: Floats
    agrees: Floats
    read_first: Floats
    turned: Floats


def _asked(judge: Judge, seen: Looked, preference: torch.Tensor, progress: Progress) -> _Opinions:
    chosen, rejected, own, other = seen.responses[:4]
    questions = [(chosen, rejected), (own, other), (chosen, own), (rejected, own)]
    margins = []
    for done, (a, b) in enumerate(questions):
        progress("judging", done * len(seen.z), (len(questions) + 1) * len(seen.z))
        margins.append(judge.margin(seen.prompts, a, b))
    progress("judging", len(questions) * len(seen.z), (len(questions) + 1) * len(seen.z))
    decided = [decision(margin).double().numpy() for margin in margins]
    sure = [(2 * judge.likelihood(margin).double() - 1).abs().numpy() for margin in margins[:2]]
    read_first, turned = (np.full(len(seen.z), np.nan) for _ in range(2))
    differ = torch.from_numpy(seen.likeness[:, 0, 1] < 1).nonzero()[:, 0]
    orders = judge.orders(*(part.take(differ) for part in (seen.prompts, chosen, rejected))) if len(differ) else None
    if orders is not None:
        forward, backward = (part.double().numpy() for part in orders)
        read_first[differ] = (forward + 1 - backward) / 2
        turned[differ] = np.sign(forward - 0.5) != np.sign(backward - 0.5)
    return _Opinions(
        wins=np.stack(decided[2:], axis=1),
        sure=sure[0],
        own_sure=sure[1],
        tie=1.0 * (decided[0] == 0.5),
        own_tie=1.0 * (decided[1] == 0.5),
        agrees=np.where(seen.decided, decided[0], np.nan),
        read_first=read_first,
        turned=turned,
    )


def _quality(opinions: _Opinions | None) -> Draft | None:
    if opinions is None:
        return None

    def by_side(values: Floats) -> dict[str, Floats]:
        return {"chosen": values[:, 0], "rejected": values[:, 1], "either": values.mean(1)}

    lines = [
        Row("win_rate", "win rate against the policy's own, by the judge", "%", by_side(opinions.wins)),
        Row("ties", "of them ties, which count one half", "%", by_side(1.0 * (opinions.wins == 0.5))),
    ]
    columns = {side: SIDES[side] for side in ("chosen", "rejected", "either")}
    return Draft("quality", "absolute quality", columns, lines, ("as good as the judge is.",))


def _judge(opinions: _Opinions | None) -> Draft | None:
    if opinions is None:
        return None
    either = np.where(opinions.agrees == 0.5, np.nan, opinions.agrees)
    lines = [
        Row("agreement", "agrees with the data's labels (a tie counts one half)", "%", {"data": opinions.agrees}),
        Row("agreement_decided", "where it calls no tie", "%", {"data": either}),
        Row("read_first", "prefers the answer that it reads first", "%", {"data": opinions.read_first}),
        Row("turned", "pairs that it decides otherwise in the other order", "%", {"data": opinions.turned}),
    ]
    return Draft("judge", "judge", {"data": "the data's pairs"}, lines)
