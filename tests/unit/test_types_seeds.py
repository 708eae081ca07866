"""Batches keep their tokens however they are cut and joined; streams are functions of their names."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from aligngap.seeds import digest, numpy_stream, torch_seed, uniforms
from aligngap.types import Tokens, concatenate
from fakes import random_pairs, same_pairs

rows = st.lists(st.lists(st.integers(0, 99), max_size=7), min_size=1, max_size=9)


@given(rows)
def test_collated_rows_come_back(given_rows: list[list[int]]) -> None:
    tokens = Tokens.collate(given_rows)
    assert tokens.rows() == given_rows
    assert tokens.ids.shape[1] == max(1, *map(len, given_rows))
    assert int(tokens.mask().sum()) == sum(map(len, given_rows))
    assert (tokens.ids[~tokens.mask()] == 0).all()


@given(rows, st.data())
def test_take_is_indexing(given_rows: list[list[int]], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(given_rows) - 1), max_size=12))
    taken = Tokens.collate(given_rows).take(torch.tensor(index, dtype=torch.int64))
    assert taken.rows() == [given_rows[k] for k in index]
    assert taken.ids.shape[1] == max([1, *(len(given_rows[k]) for k in index)])


@given(st.integers(0, 5), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_concatenated_parts_are_the_whole(seed: int, sizes: list[int]) -> None:
    whole = random_pairs(seed, sum(sizes))
    parts = [whole.take(index) for index in torch.arange(sum(sizes)).split(sizes)]
    assert [len(part) for part in parts] == sizes
    assert same_pairs(concatenate(parts), whole)


def test_streams_are_functions_of_their_names() -> None:
    names = [
        ("a",),
        ("b",),
        ("a", 0),
        ("a", "0"),
        ("a", 0, 1),
        ("a", 1, 0),
        ("a0",),
        ("a", "b"),
        ("a\x1fstr:b",),
        (0, "a"),
    ]
    draws = [tuple(numpy_stream(*name).random(3)) for name in names]
    # A name with the separator inside is the one way to collide; no name in the project holds a control character.
    assert len({draw for name, draw in zip(names, draws, strict=True) if name != ("a\x1fstr:b",)}) == len(names) - 1
    assert draws == [tuple(numpy_stream(*name).random(3)) for name in names]
    assert 0 <= torch_seed("a", 3) < 2**63


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2**40)), max_size=6), st.integers(1, 3), st.integers(1, 7))
def test_each_prompt_has_the_numbers_of_its_own_stream(names: list[tuple[int, int]], samples: int, length: int) -> None:
    given_names = torch.tensor(names, dtype=torch.int64).view(-1, 2)
    found = uniforms(given_names, samples, length, "test", 3).view(-1, samples, length)
    for drawn, name in zip(found, names, strict=True):
        assert drawn.tolist() == numpy_stream("test", 3, *name).random((samples, length)).tolist()


def test_the_global_generators_are_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist())  # type: ignore[index]  # noqa: NPY002
    first = uniforms(torch.tensor([3, 4]), 2, 5, "test", 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]  # noqa: NPY002
    torch.manual_seed(1)
    assert torch.equal(first, uniforms(torch.tensor([3, 4]), 2, 5, "test", 0))


def test_digest_is_the_same_in_another_process() -> None:
    code = "from aligngap.seeds import digest; print(digest('sampling', 3, 'x'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "1"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(digest("sampling", 3, "x"))


def test_uniforms_are_one_stream_a_prompt() -> None:
    both = uniforms(torch.tensor([7, 9]), 3, 4, "p", 1)
    assert both.shape == (6, 4)
    assert both.dtype == torch.float64
    assert ((both >= 0) & (both < 1)).all()
    assert len(set(both.flatten().tolist())) == 24
    assert torch.equal(both[3:], uniforms(torch.tensor([9]), 3, 4, "p", 1))
    assert torch.equal(both[[3, 4, 5, 0, 1, 2]], uniforms(torch.tensor([9, 7]), 3, 4, "p", 1))
    assert not torch.equal(both, uniforms(torch.tensor([7, 9]), 3, 4, "p", 2))
    assert uniforms(torch.empty(0, dtype=torch.int64), 3, 4, "p").shape == (0, 4)
