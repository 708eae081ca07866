"""What every judge must do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from aligngap.judges.base import Judge
from aligngap.judges.spec import JudgeIngredients, JudgeSpec
from aligngap.models.tokenizer import word_tokenizer
from aligngap.store.identity import canonical
from aligngap.tasks.spec import TaskSpec, make_pairs
from aligngap.tasks.worlds import world
from aligngap.testing.contract import must, run
from aligngap.types import PairBatch, Tokens, concatenate

_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Judged:
    """A judge, and at least six pairs that it can read."""

    judge: Judge
    pairs: PairBatch

    def margin(self, pairs: PairBatch | None = None) -> torch.Tensor:
        """Of some pairs, or of all."""
        return self.judge.margin(*sides(self.pairs if pairs is None else pairs))


def check_judge(
    judge: Judge | JudgeSpec,
    *,
    pairs: PairBatch | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    task: str = "summarisation",
    search: Path | None = None,
) -> None:
    """Raises Broken, which says how, for a judge that a study cannot use as it uses ours.

    pairs, tokenizer: what it is to read; from the built-in world `task` where they are not given. search: folder in
    which its spec's files are looked for first.
    """
    read = tokenizer or word_tokenizer(world(task).words())
    some = pairs if pairs is not None else world_pairs(task, read)
    if isinstance(judge, JudgeSpec):
        has_an_identity(judge, search)
        given = JudgeIngredients(tokenizer=read, search=search, world=task if tokenizer is None else None)
        judge = judge.build(given)
    run(JUDGE_CHECKS, Judged(judge, some))


def world_pairs(task: str, tokenizer: PreTrainedTokenizerBase, count: int = 12) -> PairBatch:
    """The first pairs of a built-in world."""
    return make_pairs(TaskSpec(world=task, train_pairs=count, held_out_pairs=1, seed=0), tokenizer).train


def sides(pairs: PairBatch) -> tuple[Tokens, Tokens, Tokens]:
    """Prompts, first and second responses."""
    return pairs.prompts, pairs.first, pairs.second


def has_an_identity(spec: JudgeSpec, search: Path | None = None) -> None:
    """All that decides the answers, as plain JSON values, and no path of this machine."""
    identity = spec.identity(search)
    must(identity.get("kind") == spec.kind, "its identity does not say its kind")
    must(canonical(identity) == canonical(spec.identity(search)), "its identity is another one when asked again")
    if search is not None:
        must(str(search) not in canonical(identity), "its identity holds a path, which differs from machine to machine")


def says_one_margin_a_pair(given: Judged) -> None:
    """[n], finite; its sign is the decision."""
    margin, n = given.margin(), len(given.pairs)
    must(list(margin.shape) == [n], f"it gives margins of shape {list(margin.shape)} for {n} pairs, not [{n}]")
    must(bool(margin.isfinite().all()), "a margin is not finite")
    decided = given.judge.prefer(*sides(given.pairs))
    must(decided.dtype == torch.float32, f"its decisions are {decided.dtype}, not float32")
    must(bool((decided == 0.5 + margin.sign().float() / 2).all()), "its decisions are not the signs of its margins")


def turns_its_sign_with_the_order(given: Judged) -> None:
    """Which response comes first must not matter."""
    x, a, b = sides(given.pairs)
    _close(given.judge.margin(x, b, a), -given.margin(), "with the responses swapped, the margin does not change sign")


def reads_both_orders_as_it_decides(given: Judged) -> None:
    """Where both reading orders prefer the same response, so does the judge; swapped sides are swapped orders."""
    judge, (x, a, b) = given.judge, sides(given.pairs)
    before = judge.calls
    orders = judge.orders(x, a, b)
    if orders is None:
        must(judge.calls == before, "it counts calls for orders that it does not read")
        return
    must(judge.calls == before + len(given.pairs), "it does not count what it was asked in both orders")
    forward, backward = orders
    must({*forward.tolist(), *backward.tolist()} <= {0.0, 0.5, 1.0}, "what it prefers in an order is not 0, 0.5 or 1")
    agreed = forward == backward
    must(bool((judge.prefer(x, a, b)[agreed] == forward[agreed]).all()), "its decision is not what both orders say")
    swapped = judge.orders(x, b, a)
    assert swapped is not None
    turned = torch.equal(swapped[0], 1 - backward) and torch.equal(swapped[1], 1 - forward)
    must(turned, "with the responses swapped, its orders are not swapped")


def calls_the_same_response_a_tie(given: Judged) -> None:
    """By definition: no judge may break it by rounding."""
    x, a, _ = sides(given.pairs)
    must(not given.judge.margin(x, a, a).any(), "it prefers one of two responses that are the same")
    must(bool((given.judge.probability(x, a, a) == 0.5).all()), "the same response twice is not as likely as not")


def has_probabilities_like_its_decisions(given: Judged) -> None:
    """From 0 to 1, and on the decision's side of one half."""
    probability, decided = given.judge.probability(*sides(given.pairs)), given.judge.prefer(*sides(given.pairs))
    must(probability.dtype == torch.float32, f"its probabilities are {probability.dtype}, not float32")
    must(bool(((probability >= 0) & (probability <= 1)).all()), "a probability is not from 0 to 1")
    must(bool(((probability - 0.5).sign() == (decided - 0.5).sign()).all()), "a probability contradicts the decision")


def judges_a_pair_alike_in_any_company(given: Judged) -> None:
    """However pairs are cut into batches, and however many there are."""
    whole, n = given.margin(), len(given.pairs)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    parts = torch.cat([given.margin(given.pairs.take(part)) for part in order.split(5)])
    _close(parts, whole[order], "a pair's margin depends on the batch that it is in")
    many = given.margin(concatenate([given.pairs] * 6))
    _close(many, whole.repeat(6), "in a large batch, a pair has another margin")


def reads_no_padding(given: Judged) -> None:
    """What lies beyond a row's length says nothing."""
    wide = [Tokens(torch.nn.functional.pad(part.ids, (0, 7), value=5), part.lengths) for part in sides(given.pairs)]
    _close(given.judge.margin(wide[0], wide[1], wide[2]), given.margin(), "what lies beyond a response's end matters")


def counts_its_calls(given: Judged) -> None:
    """A call a pair, however it is asked; what else it costs, as plain numbers."""
    before = given.judge.calls
    given.judge.prefer(*sides(given.pairs))
    given.judge.probability(*sides(given.pairs.take(torch.arange(5))))
    must(given.judge.calls == before + len(given.pairs) + 5, "it does not count the pairs that it is asked about")
    spent = json.loads(json.dumps(given.judge.spent))
    must(all(isinstance(value, float) for value in spent.values()), "what it has spent is not plain numbers")


def _close(value: torch.Tensor, wanted: torch.Tensor, otherwise: str) -> None:
    same = value.shape == wanted.shape and torch.allclose(
        value.double(), wanted.double(), rtol=_TOLERANCE, atol=_TOLERANCE
    )
    must(same, otherwise)


JUDGE_CHECKS: tuple[Callable[[Judged], None], ...] = (
    says_one_margin_a_pair,
    turns_its_sign_with_the_order,
    reads_both_orders_as_it_decides,
    calls_the_same_response_a_tie,
    has_probabilities_like_its_decisions,
    judges_a_pair_alike_in_any_company,
    reads_no_padding,
    counts_its_calls,
)
