"""The gate of data: nothing is in it that no policy can say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from aligngap.gates.record import Gate, Score
from aligngap.models.tokenizer import end_tokens, load_tokenizer
from aligngap.pipeline.graph import Context
from aligngap.pipeline.stages import SPLITS, Pairs
from aligngap.types import Tokens


class DataGate(Gate):
    """Every response of a task's pairs can be said by a policy: it ends, or it has exactly as many tokens as a policy
    may say. One that lacks its end elsewhere is told from a policy's by that alone (21% of the first laboratory's).
    """

    kind: ClassVar[str] = "data_gate"

    pairs: Pairs

    @property
    def subject(self) -> str:
        return self.pairs.label

    @property
    def work(self) -> float:
        return 1e-4 * self.pairs.count + 0.2

    def examine(self, context: Context) -> Sequence[Score]:
        ends = end_tokens(load_tokenizer(self.pairs.base.checkpoint))
        limit = self.pairs.max_new_tokens(context)
        parts = [self.pairs.read(context, split) for split in SPLITS]
        sides = [side for part in parts for side in (part.first, part.second)]
        count = sum(int(unsayable(side, ends, limit).sum()) for side in sides)
        return [Score(name="responses that no policy can say", value=count, n=sum(map(_rows, sides)), at_most=0)]


def unsayable(responses: Tokens, ends: Sequence[int], limit: int) -> torch.Tensor:
    """True where no policy says the like: without a token, over the limit, going on after its end, or stopping before
    the limit without one; bool [n].
    """
    mask = responses.mask()
    is_end = torch.isin(responses.ids, torch.tensor(list(ends), device=responses.ids.device)) & mask
    last = (responses.lengths - 1).clamp(min=0)[:, None]
    ended = is_end.gather(1, last).squeeze(1)
    early = (is_end.sum(1) - ended.long()) > 0
    empty, long = responses.lengths == 0, responses.lengths > limit
    return empty | long | early | (~ended & (responses.lengths != limit))


def _rows(tokens: Tokens) -> int:
    return len(tokens.lengths)
