"""The gates of a data set of one's own, which need no truth: its judge, its SFT policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from aligngap.gates.record import Gate, Score
from aligngap.judges.base import Judge
from aligngap.models.tokenizer import load_tokenizer
from aligngap.pipeline.graph import Context
from aligngap.pipeline.stages import JudgeStage, Pairs, Sft, load_judge, load_policy, sample_in_chunks
from aligngap.seeds import uniforms
from aligngap.types import PairBatch, Tokens

_MOST_EDITS = 0.10
_LEAST_CONSISTENT = 0.80
_ASKED = 1000
"""Held-out pairs that are looked at, at most."""


class JudgeGate(Gate):
    """A judge agrees with held-out raters more than chance does, mostly decides alike in both orders, and does not
    change its mind for a word of style; what it says of SFT's samples against the data's answers is reported.

    style_words: what to put before an answer, each in its turn.
    """

    kind: ClassVar[str] = "judge_gate"

    golden: JudgeStage
    sft: Sft
    pairs: Pairs
    style_words: tuple[str, ...] = ()
    seed: int = 0

    @property
    def subject(self) -> str:
        return f"{self.golden.label} on {self.pairs.name}"

    @property
    def work(self) -> float:
        return (5 + len(self.style_words)) * self.golden.seconds * _ASKED + 1

    def examine(self, context: Context) -> Sequence[Score]:
        judge, pairs = load_judge(self.golden, context), self.pairs.read(context, "held_out")
        pairs = pairs.take(torch.arange(min(_ASKED, len(pairs))))
        tokenizer = load_tokenizer(self.pairs.base.checkpoint)
        edits = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in self.style_words}
        policy = load_policy(context, self.sft, self.pairs)
        noise = uniforms(pairs.prompt_numbers, 1, policy.max_new_tokens, "gate", "sft", self.seed)
        said = sample_in_chunks(policy, pairs.prompts, noise)
        wins = torch.cat([judge.prefer(pairs.prompts, said, side) for side in (pairs.first, pairs.second)])
        return [
            agreement(judge, pairs),
            *consistency(judge, pairs),
            *(word_of_style(judge, pairs, word, ids, policy.max_new_tokens) for word, ids in edits.items()),
            _share("SFT's samples preferred to the data's answers", wins),
        ]


def agreement(judge: Judge, pairs: PairBatch) -> Score:
    """With the raters, on pairs that they decided; more than chance by two standard errors."""
    part = pairs.take(torch.nonzero(pairs.preference != 0.5).squeeze(1))
    right = 1 - (judge.prefer(part.prompts, part.first, part.second) - part.preference).abs()
    score = _share("agreement with held-out raters", right)
    return score.model_copy(update={"at_least": 0.5 + 2 * (score.se or 0.0)})


def consistency(judge: Judge, pairs: PairBatch) -> list[Score]:
    """The share of pairs on which the judge says the same, whichever answer it reads first; and how often it is for the
    one that it reads first. Nothing for a judge that reads each answer by itself.
    """
    orders = judge.orders(pairs.prompts, pairs.first, pairs.second)
    if orders is None:
        return []
    one, other = orders
    same = _share("both orders say the same", (one == other).float())
    return [
        same.model_copy(update={"at_least": _LEAST_CONSISTENT}),
        _share("the answer that is read first is preferred", torch.cat([one, 1 - other])),
    ]


def word_of_style(judge: Judge, pairs: PairBatch, word: str, ids: Sequence[int], limit: int) -> Score:
    """The share of pairs on which a word before one answer changes the judge's mind: the first one in every other
    pair, the second one in the rest. Those that have no room for it are left out and counted.
    """
    rows = [list(side) for side in zip(pairs.first.rows(), pairs.second.rows(), strict=True)]
    kept, edited = [], []
    for at, sides in enumerate(rows):
        sides[at % 2] = [*ids, *sides[at % 2]]
        if len(sides[at % 2]) <= limit:
            kept.append(at)
            edited.append(sides)
    name = f"'{word}' before an answer changes the judge's mind"
    note = f"{len(rows) - len(kept)} pairs have no room for it" if len(kept) < len(rows) else ""
    if not kept:
        return Score(name=name, value=None, at_most=_MOST_EDITS, note=note)
    part = pairs.take(torch.tensor(kept))
    before = judge.prefer(part.prompts, part.first, part.second)
    after = judge.prefer(part.prompts, *(Tokens.collate(list(side)) for side in zip(*edited, strict=True)))
    return _share(name, (before != after).float()).model_copy(update={"at_most": _MOST_EDITS, "note": note})


def _share(name: str, outcomes: torch.Tensor) -> Score:
    values = outcomes.double()
    error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else None
    value = round(float(values.mean()), 4) if len(values) else None
    return Score(name=name, value=value, se=None if error is None else round(error, 4), n=len(values))
