"""Preference pairs on disk (Parquet, one row a pair, readable by any tool) and as plain tensors (step checkpoints)."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import torch

from aligngap.types import PairBatch, Tokens

_SIDES = ("prompt", "first", "second")


def write_pairs(pairs: PairBatch, path: Path) -> None:
    """Columns: prompt_number, prompt_ids, first_ids, second_ids (token ids), preference, provenance."""
    columns = {f"{side}_ids": token_column(_side(pairs, side)) for side in _SIDES}
    frame = pl.DataFrame(
        {
            "prompt_number": pairs.prompt_numbers.numpy(),
            **columns,
            "preference": pairs.preference.numpy(),
            "provenance": list(pairs.provenance),
        }
    )
    frame.write_parquet(path)


def token_column(tokens: Tokens) -> pl.Series:
    """A row's token ids as a list of 32-bit integers."""
    padded = pl.Series("ids", tokens.ids.to(torch.int32).cpu().numpy())
    frame = pl.DataFrame({"ids": padded, "length": tokens.lengths.cpu().numpy()})
    return frame.select(pl.col("ids").arr.to_list().list.head("length")).to_series()


def read_pairs(path: Path) -> PairBatch:
    """What `write_pairs` wrote, token for token."""
    frame = pl.read_parquet(path)
    prompt, first, second = (Tokens.collate(frame[f"{side}_ids"].to_list()) for side in _SIDES)
    return PairBatch(
        torch.tensor(frame["prompt_number"].to_list(), dtype=torch.int64),
        prompt,
        first,
        second,
        torch.tensor(frame["preference"].to_list(), dtype=torch.float32),
        tuple(frame["provenance"].to_list()),
    )


def pack_pairs(pairs: PairBatch) -> dict[str, torch.Tensor]:
    """As named tensors, for a checkpoint without pickle."""
    names = sorted(set(pairs.provenance))
    code = {name: index for index, name in enumerate(names)}
    packed = {
        "numbers": pairs.prompt_numbers,
        "preference": pairs.preference,
        "provenance": torch.tensor([code[name] for name in pairs.provenance]),
        "names": torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8),
    }
    for side in _SIDES:
        tokens = _side(pairs, side)
        packed |= {f"{side}.ids": tokens.ids.contiguous(), f"{side}.lengths": tokens.lengths}
    return packed


def unpack_pairs(packed: dict[str, torch.Tensor]) -> PairBatch:
    """What `pack_pairs` packed."""
    names = bytes(packed["names"].tolist()).decode().split("\n")
    prompt, first, second = (Tokens(packed[f"{side}.ids"], packed[f"{side}.lengths"]) for side in _SIDES)
    provenance = tuple(names[code] for code in packed["provenance"].tolist())
    return PairBatch(packed["numbers"], prompt, first, second, packed["preference"], provenance)


def _side(pairs: PairBatch, side: str) -> Tokens:
    return {"prompt": pairs.prompts, "first": pairs.first, "second": pairs.second}[side]
