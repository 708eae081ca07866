"""How many tokens a model takes, by its architecture: one rule for policies, preference models and reward models."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModel

from aligngap.errors import out_of_memory
from aligngap.models.folder import load_config

if TYPE_CHECKING:
    from aligngap.models.spec import Checkpoint

NO_LIMIT = 1 << 30
"""More tokens than anything has."""


class Context(NamedTuple):
    """Tokens that a model takes: of a prompt, of what follows it, and of both in one row."""

    prompt: int
    response: int
    together: int

    def fits(self, prompt: int, response: int) -> bool:
        """Whether a prompt and what follows it can be read."""
        return prompt <= self.prompt and response <= self.response and prompt + response <= self.together

    @property
    def room(self) -> int:
        """Tokens that prompt and response may share out between them."""
        return min(self.together, self.prompt + self.response)


def context_of(checkpoint: str | Checkpoint, *, backbone: bool = False) -> Context:
    """What a checkpoint takes. backbone: read by its hidden states (`load_backbone`), prompt and responses in one row.

    An encoder-decoder reads the prompt with its encoder and the response with its decoder: they do not add up. Only the
    configuration is read, no weight. Raises UserError where it cannot be.
    """
    config: Any = load_config(checkpoint)
    model = _outline(config, trust_remote_code=not isinstance(checkpoint, str) and checkpoint.trust_remote_code)
    if not config.is_encoder_decoder or backbone:
        limit = positions(_part(model, "encoder") if config.is_encoder_decoder else model, config, "encoder")
        return Context(limit, limit, limit)
    prompt, response = (positions(_part(model, part), config, part) for part in ("encoder", "decoder"))
    return Context(prompt, response, NO_LIMIT)


class SlowPath(NamedTuple):
    """Why a model is slow here, and about how many times as slow as a packed one of its size."""

    why: str
    times: float


def slow_path(checkpoint: str | Checkpoint) -> SlowPath | None:
    """What of an architecture keeps it from the fast ways of reading, as far as it can be known without its weights.

    Times are measured on one core, for two layers of 64 numbers: training and sampling of 32 tokens against a model of
    Llama's type (docs/models.md). Raises UserError where the configuration cannot be read.
    """
    config: Any = load_config(checkpoint)
    model = _outline(config, trust_remote_code=not isinstance(checkpoint, str) and checkpoint.trust_remote_code)
    if model is None or config.is_encoder_decoder:
        return None
    if getattr(model, "_is_stateful", False):
        return SlowPath("a state-space model: each token is worked out from the state behind the one before", 20.0)
    tables = list(_position_tables(model))
    counted = any(getattr(table, "padding_idx", None) is not None for table in tables)
    if tables and (counted or "position_ids" not in inspect.signature(model.forward).parameters):
        return SlowPath("it is sampled without a cache: each token from the whole sequence, read anew", 10.0)
    return None


def _position_tables(model: nn.Module | None) -> Iterator[Any]:
    for name, table in model.named_modules() if model is not None else ():
        last = name.rpartition(".")[2]
        if "relative" not in last and (last == "wpe" or "position" in last):
            yield table


def positions(model: nn.Module | None, config: Any, part: str = "decoder") -> int:
    """Tokens in a row that a model, or a part of one, has positions for.

    A table of positions says it itself, less what an architecture does not use of it: RoBERTa's kin count from behind
    their padding's number, OPT and BART from an offset. Sinusoids that are worked out as they are needed limit nothing.
    For all else (rotary embeddings) it is what the configuration says; large where it says nothing.

    part: encoder or decoder, where the configuration says it of both. model: None where there is only that.
    """
    limits = []
    for table in _position_tables(model):
        if hasattr(table, "make_weights"):
            return NO_LIMIT
        if isinstance(table, nn.Embedding):
            unused = 0 if table.padding_idx is None else table.padding_idx + 1
            limits.append(table.num_embeddings - int(getattr(table, "offset", unused)))
    return min(limits) if limits else _configured(config, part)


def _configured(config: Any, part: str) -> int:
    config = config.get_text_config(decoder=part == "decoder")
    if hasattr(config, "relative_attention_num_buckets"):  # T5; what its configuration calls positions limits nothing
        return NO_LIMIT
    # Under these names by the kinds of models.
    names = (f"max_{part}_position_embeddings", "max_position_embeddings", "n_positions", "max_seq_len")
    limits = (getattr(config, name, None) for name in names)
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), NO_LIMIT)


def _outline(config: Any, *, trust_remote_code: bool) -> Any:
    """The model without its weights, or None where nothing more is known of it than its configuration."""
    try:
        with torch.device("meta"):
            return AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # an architecture fails in its own way
        if out_of_memory(error):
            raise
        return None


def _part(model: Any, name: str) -> nn.Module | None:
    return getattr(model, f"get_{name}")() if model is not None else None
