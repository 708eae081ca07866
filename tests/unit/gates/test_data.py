"""What no policy can say."""

from __future__ import annotations

import torch

from aligngap.gates.data import unsayable
from aligngap.types import Tokens

END = 9


def test_a_response_ends_or_is_exactly_as_long_as_may_be() -> None:
    rows = {
        "ends": ([1, 2, END], False),
        "ends at once": ([END], False),
        "unended at the limit": ([1, 2, 3, 4], False),
        "ends at the limit": ([1, 2, 3, END], False),
        "unended before it": ([1, 2, 3], True),
        "over the limit": ([1, 2, 3, 4, END], True),
        "over the limit, unended": ([1, 2, 3, 4, 5], True),
        "goes on after its end": ([1, END, 2, END], True),
        "two ends": ([1, END, END], True),
    }
    tokens = Tokens.collate([ids for ids, _ in rows.values()])
    assert dict(zip(rows, unsayable(tokens, [END], 4).tolist(), strict=True)) == {
        name: bad for name, (_, bad) in rows.items()
    }


def test_nothing_is_no_response() -> None:
    empty = Tokens(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([0]))
    assert unsayable(empty, [END], 4).tolist() == [True]


def test_padding_is_no_end() -> None:
    """A pad token may have the end token's id: it is not part of the response."""
    tokens = Tokens(torch.tensor([[1, 2, END, END], [1, 2, 3, END]]), torch.tensor([3, 3]))
    assert unsayable(tokens, [END], 4).tolist() == [False, True]
