"""Where models come from: shipped bases, folders and hub ids, or random weights; and whether they are read as saved."""

from __future__ import annotations

from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from pydantic import BaseModel, ConfigDict, Field
from transformers import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTextEncoding,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from aligngap import ranks
from aligngap.errors import UserError, nearest
from aligngap.models.folder import ModelFolder, attempt, check_weights, load_config, path_of, source_of
from aligngap.models.sharding import sharded, state_of
from aligngap.models.tokenizer import token_count
from aligngap.seeds import torch_seed

if TYPE_CHECKING:
    from aligngap.models.spec import Checkpoint


class Architecture(BaseModel):
    """Shape of a base trained from scratch: a Llama-type decoder with tied embeddings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hidden: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    context: int = Field(128, gt=0)


SHAPES: dict[str, Architecture] = {
    "small": Architecture(hidden=64, layers=2, heads=4, intermediate=128),
    "medium": Architecture(hidden=96, layers=3, heads=6, intermediate=192),
    "x4": Architecture(hidden=168, layers=4, heads=7, intermediate=336),
    "large": Architecture(hidden=192, layers=4, heads=6, intermediate=384),
}
"""Shapes that bases are trained in, smallest first."""

SHIPPED: dict[str, Architecture] = {
    "small": SHAPES["small"],
    "medium": SHAPES["medium"],
    "large": SHAPES["large"],
    "91k": SHAPES["small"],
    "x1": SHAPES["medium"],
    "x1-second": SHAPES["medium"],
}
"""Bases shipped with the package. The first three, smallest first, speak an older language than the others: the two
kinds have different tokens, and no study mixes them.
"""


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
                hint="Reinstall the package; it ships with its bases.",
            )
        return str(folder)
    if Path(name).is_dir():
        ModelFolder.of(Path(name)).check_config()
        return name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise UserError(
        f"there is no base model '{name}'", hint=nearest(name, SHIPPED) + " Or give a folder or a hub id (owner/model)."
    )


def load_language_model(
    checkpoint: str | Checkpoint, device: str = "cpu", tokenizer: PreTrainedTokenizerBase | None = None
) -> PreTrainedModel:
    """A decoder or an encoder-decoder in evaluation mode, in the checkpoint's dtype (fp32 for a path).

    tokenizer: whose tokens alone the model is to predict. Rows of its embedding beyond them, which pad it to a round
    size, are taken off: so they are in no sample, and in no sum over the vocabulary, here and in whatever is saved.

    Raises UserError when it cannot be read, holds other weights than its architecture has, or is quantised.
    """
    model = _read(_language_model(checkpoint), checkpoint)
    if tokenizer is not None:
        _take_off_padding(model, tokenizer, path_of(checkpoint))
    return _ready(model, checkpoint, device)


def load_backbone(checkpoint: str | Checkpoint, device: str = "cpu") -> PreTrainedModel:
    """A model without its head: all of a decoder, the encoder of an encoder-decoder. Raises as the other."""
    return _ready(_read(_backbone(checkpoint), checkpoint), checkpoint, device)


def check_read_back(model: PreTrainedModel, saved: Checkpoint, *, backbone: bool = False) -> None:
    """Raises UserError unless a folder, read as later stages read it, gives a model's weights bit for bit. Of several
    ranks the first looks, and all must ask.
    """
    state = state_of(model)
    if not ranks.first():
        return
    written = {name: weight.detach().cpu() for name, weight in state.items()}
    again = _read((_backbone if backbone else _language_model)(saved), saved).state_dict()
    wrong = [name for name, weight in written.items() if name not in again or not torch.equal(again[name], weight)]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(state)} weights are not read back as they were saved: {', '.join(wrong[:4])}",
            where=saved.path,
            hint=f"`transformers` {transformers.__version__} does not keep this architecture; take another model.",
        )


def _language_model(checkpoint: str | Checkpoint) -> Any:
    return AutoModelForSeq2SeqLM if load_config(checkpoint).is_encoder_decoder else AutoModelForCausalLM


def _backbone(checkpoint: str | Checkpoint) -> Any:
    config = load_config(checkpoint)
    # The encoder alone, once it is saved, no longer says that it was part of an encoder-decoder.
    alone = type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if not config.is_encoder_decoder and not alone:
        return AutoModel
    if type(config) not in MODEL_FOR_TEXT_ENCODING_MAPPING:
        raise UserError(
            f"an encoder-decoder of type '{config.model_type}' is not read by its encoder alone",
            where=path_of(checkpoint),
            hint="Take a decoder, or a model of the T5 family, as preference model.",
        )
    return AutoModelForTextEncoding


def _read(kind: Any, checkpoint: str | Checkpoint) -> PreTrainedModel:
    dtype = torch.float32 if isinstance(checkpoint, str) else getattr(torch, checkpoint.dtype)
    place = checkpoint if isinstance(checkpoint, str) else checkpoint.location
    source = source_of(checkpoint)
    return read_model(kind, place, load_config(checkpoint), dtype, where=path_of(checkpoint), **source)


def _ready(model: PreTrainedModel, checkpoint: str | Checkpoint, device: str) -> PreTrainedModel:
    """The model, ready to compute on a device."""
    if not isinstance(checkpoint, str) and checkpoint.gradient_checkpointing:
        _checkpoint_gradients(model)
    # Divided before it is moved: no device need hold all of it.
    return sharded(model).to(device).eval()  # type: ignore[no-any-return,arg-type]


def read_model(
    kind: Any, place: str, config: Any, dtype: torch.dtype, *, what: str = "model", where: str = "", **source: Any
) -> PreTrainedModel:
    """The whole model that a folder or hub id holds, on the CPU: policies, preference and reward models alike.

    kind: the loader of `transformers`; config: the model's; what, where: as for `attempt`; source: revision and the
    like. Raises UserError when it cannot be read, when it is not clear which weights are meant, and when they are
    not all of the model's, others than the model's, of other shapes, quantised, or no numbers.
    """
    where = where or place
    check_weights(place, config, where, **source)
    model, loading = attempt(
        kind.from_pretrained,
        place,
        what,
        where,
        use_safetensors=True,  # no weights are unpickled
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are named below
        dtype=dtype,
        **source,
    )
    _check_loaded(model, loading, where)
    return model  # type: ignore[no-any-return]


def _check_loaded(model: PreTrainedModel, loading: dict[str, Any], where: str) -> None:
    if loading["mismatched_keys"]:
        name, stored, expected = min(loading["mismatched_keys"])
        raise UserError(
            f"weights are of another shape than config.json says: {name} is {list(stored)}, not {list(expected)}",
            where=where,
            hint="Save model and configuration together again.",
        )
    if loading["missing_keys"]:
        raise UserError(
            f"weights are missing from the checkpoint: {', '.join(sorted(loading['missing_keys'])[:4])}",
            where=where,
            hint="Save the whole model again, with its head; what is missing would have been random.",
        )
    if unexpected := _unexpected(model, loading["unexpected_keys"]):
        raise UserError(
            f"{len(unexpected)} weights in the checkpoint are no part of a {model.config.model_type} model: "
            f"{', '.join(unexpected[:4])}",
            where=where,
            hint="They would be left out: save the model again in its own architecture, merged and unquantised.",
        )
    if broken := [name for name, weight in model.named_parameters() if not weight.isfinite().all()]:
        raise UserError(
            f"weights are infinite or no numbers: {', '.join(broken[:4])}",
            where=where,
            hint="Take an earlier checkpoint; a model that was saved in half precision may have overflowed.",
        )


_COMPUTED = ("rotary_emb.inv_freq", "position_ids", "attn.masked_bias", "attention.masked_bias")
"""Ends of names that earlier releases saved of what a model works out by itself."""


def _unexpected(model: PreTrainedModel, names: Collection[str]) -> list[str]:
    """Names of weights, of those that loading left out, that neither the model nor its head has a use for."""
    if not names:
        return []
    known = {name for name, _ in model.named_buffers()}
    for architecture in model.config.architectures or ():
        if (kind := getattr(transformers, architecture, None)) is not None:
            with torch.device("meta"):
                known |= kind(model.config).state_dict().keys()
    return sorted(name for name in names if name not in known and not name.endswith(_COMPUTED))


def _take_off_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Leave a model one row of its embedding, and of its head, for each of a tokenizer's tokens, in place: rows that
    were shared stay shared, and those that were not stay apart. Raises UserError where it has fewer, or its decoder
    starts with another token.
    """
    tokens = token_count(tokenizer)
    tables: list[Any] = [part.get_input_embeddings() for part in model.modules() if isinstance(part, PreTrainedModel)]
    tables.append(model.get_output_embeddings())
    rows = [len(table.weight) for table in tables if table is not None]
    check_rows(tokens, min(rows), where)
    if max(rows) == tokens:
        return
    start = getattr(model.config, "decoder_start_token_id", None)
    if isinstance(start, int) and start >= tokens:
        raise UserError(
            f"the decoder starts with token {start}, which the tokenizer does not have",
            where=where,
            hint="Save the tokenizer that belongs to the model.",
        )
    biases = [value for name, value in model.named_buffers() if name.endswith("final_logits_bias")]  # BART's kin
    for value in biases:
        value.data = value.data[:, :tokens].clone()
    for table in tables:
        for part in (getattr(table, "weight", None), getattr(table, "bias", None)):
            if part is not None and len(part) > tokens:
                part.data = part.data[:tokens].clone()
        for name in ("num_embeddings", "out_features"):
            if hasattr(table, name):
                setattr(table, name, tokens)
    for config in (model.config, model.config.get_text_config(), model.config.get_text_config(decoder=True)):
        config.vocab_size = tokens
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if isinstance(token := getattr(config, name, None), int) and token >= tokens:
                setattr(config, name, getattr(tokenizer, name))


def check_rows(tokens: int, rows: int | None, where: str) -> None:
    """Raises UserError where a tokenizer has tokens that a model's embedding, of so many rows, has not."""
    if rows is not None and tokens > rows:
        raise UserError(
            f"the tokenizer has {tokens} tokens, but the model's embedding has {rows} rows",
            where=where,
            hint="Save the tokenizer that belongs to the model, or resize the model's embedding and train it.",
        )


def _checkpoint_gradients(model: PreTrainedModel) -> None:
    """Compute activations again in the backward pass. Layers do so in training mode only, and in it they would drop
    out, and drop the cache while sampling: so they are in it while gradients are taken, and their dropout is zero.
    """
    # The second name is that of earlier releases.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})

    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            for name, value in vars(layer).items():
                if "drop" in name and isinstance(value, float):
                    setattr(layer, name, 0.0)
    model.register_forward_pre_hook(with_gradients)


def with_gradients(module: torch.nn.Module, *_: Any) -> None:
    """The hook that puts layers into training mode while gradients are taken, for their sake."""
    for layer in module.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = torch.is_grad_enabled()


def parameter_count(model: torch.nn.Module) -> int:
    """Number of weights, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
