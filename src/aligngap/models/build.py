"""Where models and tokenizers come from: shipped bases, folders and hub ids, or random weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as hf_logging

from aligngap.errors import UserError, nearest
from aligngap.seeds import torch_seed

if TYPE_CHECKING:
    from aligngap.models.spec import Checkpoint

hf_logging.disable_progress_bar()  # a bar per loaded checkpoint drowns the study's own progress

SAFE: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
"""For everything that is loaded: code that lies beside weights is never run, and no weights are unpickled."""

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<sep>", "<unk>")


class Architecture(BaseModel):
    """Shape of a base trained from scratch: a Llama-type decoder with tied embeddings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    context: int = Field(128, gt=0)


SHIPPED: dict[str, Architecture] = {
    "small": Architecture(hidden=64, layers=2, heads=4, intermediate=128),
    "medium": Architecture(hidden=96, layers=3, heads=6, intermediate=192),
    "large": Architecture(hidden=192, layers=4, heads=6, intermediate=384),
}
"""Bases shipped with the package, smallest first."""


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer with one token a word; prompts start with `<bos>`."""
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys((*SPECIAL_TOKENS, *words)))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        sep_token="<sep>",
        unk_token="<unk>",
    )


def random_model(shape: Architecture, vocabulary: int, seed: int, purpose: str = "pretrain") -> LlamaForCausalLM:
    """A decoder with random weights, a function of `seed` alone."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(purpose, "weights", seed))
        return LlamaForCausalLM(config)


def base_path(name: str) -> str:
    """Folder or hub id of a base: a shipped size, an existing folder, or a hub id (`owner/model`).

    Raises UserError for a name that is none of these.
    """
    if name in SHIPPED:
        folder = resources.files("aligngap.bases") / name
        if not (folder / "model.safetensors").is_file():
            raise UserError(
                f"the shipped base '{name}' is missing from this installation",
                mend="Reinstall the package; it ships with its bases.",
            )
        return str(folder)
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise UserError(
                "this folder holds no Hugging Face model (no config.json)",
                where=name,
                mend="Give a folder saved by `save_pretrained`.",
            )
        return name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise UserError(
        f"there is no base model '{name}'", mend=nearest(name, SHIPPED) + " Or give a folder or a hub id (owner/model)."
    )


@contextmanager
def readable(what: str, path: str) -> Iterator[None]:
    """Turn what the library raises for a model that is not there, or not whole, into a UserError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"the {what} cannot be read: {error}", where=path, mend="Check the folder or hub id, and the network."
        ) from error


def _location(given: str | Checkpoint) -> str:
    return given if isinstance(given, str) else given.location


def load_tokenizer(model: str | Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer saved beside a model, with a pad token and left padding. UserError when it cannot be read."""
    path = _location(model)
    with readable("tokenizer", path):
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer  # type: ignore[no-any-return]


def context_length(model: str | Checkpoint) -> int:
    """How many tokens a model takes; a large number where its configuration sets no limit. UserError as above."""
    path = _location(model)
    with readable("model", path):
        config: Any = AutoConfig.from_pretrained(path, trust_remote_code=False)
    # Under these names by the kinds of models; relative positions (T5) have none.
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((limit for limit in found if isinstance(limit, int) and limit > 0), 1 << 30)


def load_causal_model(checkpoint: str | Checkpoint, device: str = "cpu") -> PreTrainedModel:
    """A decoder in evaluation mode, fp32, scaled-dot-product attention. Raises UserError when it cannot be read."""
    path = _location(checkpoint)
    with readable("model", path):
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa", **SAFE)
    return model.to(device).eval()  # type: ignore[no-any-return]


def parameter_count(model: torch.nn.Module) -> int:
    """Number of weights, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
