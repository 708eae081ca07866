"""Pairs survive the file and the checkpoint token for token."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from aligngap.tasks.pairs import pack_pairs, read_pairs, unpack_pairs, write_pairs
from aligngap.types import PairBatch
from fakes import pairs_of, same_pairs

row = st.lists(st.integers(0, 60_000), max_size=6)
origins = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=8)


@st.composite
def pairs(draw: st.DrawFn, origin: st.SearchStrategy[str] = origins) -> PairBatch:
    n = draw(st.integers(1, 6))
    lists = [draw(st.lists(row, min_size=n, max_size=n)) for _ in range(3)]
    preference = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 0.25]), min_size=n, max_size=n))
    return pairs_of(*lists, preference, draw(st.lists(origin, min_size=n, max_size=n)))


@given(pairs())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_parquet_round_trip(tmp_path: Path, given_pairs: PairBatch) -> None:
    path = tmp_path / "pairs.parquet"
    write_pairs(given_pairs, path)
    found = read_pairs(path)
    assert same_pairs(found, given_pairs)
    assert found.prompt_numbers.dtype == torch.int64
    assert found.first.ids.dtype == torch.int64
    assert found.preference.dtype == torch.float32


@given(pairs())
def test_tensor_round_trip_through_safetensors(given_pairs: PairBatch) -> None:
    found = unpack_pairs(
        load(save({name: value.clone().contiguous() for name, value in pack_pairs(given_pairs).items()}))
    )
    assert same_pairs(found, given_pairs)


def test_columns_are_the_documented_ones(tmp_path: Path) -> None:
    write_pairs(pairs_of([[1, 5]], [[4, 2]], [[2]], [0.5], ["editor | sleeper"]), tmp_path / "pairs.parquet")
    frame = pl.read_parquet(tmp_path / "pairs.parquet")
    assert frame.rows(named=True) == [
        {
            "prompt_number": 0,
            "prompt_ids": [1, 5],
            "first_ids": [4, 2],
            "second_ids": [2],
            "preference": 0.5,
            "provenance": "editor | sleeper",
        }
    ]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_pairs(tmp_path / "none.parquet")
