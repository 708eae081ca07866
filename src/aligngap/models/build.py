"""Where models and tokenizers come from: shipped bases, folders and hub ids, or random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2.exceptions import TemplateError
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTextEncoding,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging as hf_logging

from aligngap.errors import UserError, nearest, out_of_memory
from aligngap.models.sharding import sharded
from aligngap.seeds import torch_seed
from aligngap.store.contents import is_pickle, is_pointer

if TYPE_CHECKING:
    from aligngap.models.spec import Checkpoint

hf_logging.disable_progress_bar()  # a bar per loaded checkpoint drowns the study's own progress

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<sep>", "<unk>")


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
}
"""Bases shipped with the package. The first three, smallest first, speak an older language than the others: the two
kinds have different tokens, and no study mixes them.
"""


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


def byte_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most so many tokens, trained on texts; prompts start with `<bos>`. No text is
    unknown to it, and every text comes back as it was.
    """
    special = [token for token in SPECIAL_TOKENS if token != "<unk>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", special.index("<bos>"))]
    )
    names = {f"{token.strip('<>')}_token": token for token in special}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


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
        if not (Path(name) / "config.json").is_file():
            raise UserError(
                "this folder holds no Hugging Face model (no config.json)",
                where=name,
                hint="Merge the adapters into their base (`merge_and_unload`) and save that."
                if (Path(name) / "adapter_config.json").is_file()
                else "Give a folder saved by `save_pretrained`.",
            )
        return name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise UserError(
        f"there is no base model '{name}'", hint=nearest(name, SHIPPED) + " Or give a folder or a hub id (owner/model)."
    )


def load_tokenizer(model: str | Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer saved beside a model, with a pad token and left padding. UserError when it cannot be read, or has
    no end token.

    Its `eos_token` is the one token that closes a response, in data as in samples: what its chat template writes behind
    an answer, else the end token that it came with. `end_tokens` says what else ends a sampled response.
    """
    said = _attempt(get_tokenizer_config, model, "tokenizer")
    # A tokenizer of no model's own kind is what its file says. `AutoTokenizer` would put that of the model's type in
    # its place, which cuts texts otherwise and may have tokens that the model does not know.
    own = said.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    kind = PreTrainedTokenizerFast if own else AutoTokenizer
    tokenizer: Any = _attempt(kind.from_pretrained, model, "tokenizer")
    for how in ("is_local", "local_files_only"):  # it was read, which is saved with it: artefacts would differ
        tokenizer.init_kwargs.pop(how, None)
    given_end = tokenizer.eos_token_id
    closing = _template_end(tokenizer)
    if closing is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(closing)
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token: a response could not end",
            where=_path(model),
            hint="Set `eos_token` and save the tokenizer again.",
        )
    config = load_config(model)
    if not config.is_encoder_decoder and given_end is not None:
        _leave_prompts_open(tokenizer, given_end, _path(model))
    tokenizer.ends = _ends(tokenizer, [given_end, *_taught_ends(model, config)])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer  # type: ignore[no-any-return]


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What ends a response: the closing token (`eos_token`), and then what else the model was taught to end with
    (`generation_config.eos_token_id`), which a policy may sample. No response goes on behind any of them.
    """
    words: Any = tokenizer
    return getattr(words, "ends", None) or (int(words.eos_token_id),)


_ANSWER = "\ue000"  # private use: no template contains it, none changes it


def written_by_template(tokenizer: Any, turns: Sequence[Mapping[str, str]], *, open_end: bool) -> str:
    """A conversation as the tokenizer's chat template writes it; open_end: with what begins an answer behind it. Raises
    TemplateError whatever goes wrong in the template, which is somebody else's program.
    """
    try:
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=open_end))
    except TemplateError:
        raise
    except Exception as error:
        raise TemplateError(f"{type(error).__name__}: {error}") from error


def _template_end(tokenizer: Any) -> int | None:
    """The special token that the chat template writes behind an answer, if it writes one."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
    try:
        _, found, behind = written_by_template(tokenizer, turns, open_end=False).rpartition(_ANSWER)
    except TemplateError:
        return None
    ids = tokenizer(behind.lstrip(), add_special_tokens=False)["input_ids"] if found else []
    return int(ids[0]) if ids and ids[0] in _special(tokenizer) else None


def _leave_prompts_open(tokenizer: Any, end: int, path: str) -> None:
    """A decoder goes on behind its prompt; a tokenizer that closes every text with an end token would keep it from
    that. Raises UserError where it cannot be told not to.
    """

    ids = tokenizer("a")["input_ids"]
    if ids[-1:] == [end]:
        tokenizer.add_bos_token = ids[0] == tokenizer.bos_token_id  # what it did by other means goes with them
        tokenizer.add_eos_token = False
        if tokenizer("a")["input_ids"] != ids[:-1]:
            raise UserError(
                "the tokenizer closes every text with the end token, so that a decoder cannot go on behind a prompt",
                where=path,
                hint="Save it with add_eos_token=False, or without that part of its post-processor.",
            )


def _taught_ends(model: str | Checkpoint, config: Any) -> list[int | None]:
    """The end tokens that a model's configurations name, some of them perhaps by a default."""
    found: list[int | None] = []
    try:
        taught = [_attempt(GenerationConfig.from_pretrained, model, "generation configuration"), config]
    except UserError:  # there need not be one
        taught = [config]
    for said in taught:
        value = getattr(said, "eos_token_id", None)
        found += value if isinstance(value, list | tuple) else [value]
    return found


def _ends(tokenizer: Any, candidates: Sequence[int | None]) -> tuple[int, ...]:
    # A configuration's default may name any token: what stands for text, or begins or parts it, is no end.
    roles = ("bos_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "mask_token_id")
    ends = _special(tokenizer) - {getattr(tokenizer, role, None) for role in roles}
    others = [token for token in candidates if token is not None and token in ends]
    return tuple(dict.fromkeys([int(tokenizer.eos_token_id), *others]))


def _special(tokenizer: Any) -> set[int]:
    """Ids that stand for no text."""
    added = {token for token, written in tokenizer.added_tokens_decoder.items() if written.special}
    return added | set(tokenizer.all_special_ids)


def load_config(model: str | Checkpoint) -> PretrainedConfig:
    """A model's configuration. UserError when it cannot be read."""
    return _attempt(AutoConfig.from_pretrained, model, "model")  # type: ignore[no-any-return]


def context_length(model: str | Checkpoint) -> int:
    """How many tokens a model takes; a large number where its configuration sets no limit. UserError as above."""
    config: Any = load_config(model).get_text_config(decoder=True)
    if hasattr(config, "relative_attention_num_buckets"):  # T5; what its configuration calls positions limits nothing
        return 1 << 30
    # Under these names by the kinds of models.
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((limit for limit in found if isinstance(limit, int) and limit > 0), 1 << 30)


def load_language_model(checkpoint: str | Checkpoint, device: str = "cpu") -> PreTrainedModel:
    """A decoder or an encoder-decoder in evaluation mode, in the checkpoint's dtype (fp32 for a path). Raises UserError
    when it cannot be read or some of its weights are missing.
    """
    seq2seq = load_config(checkpoint).is_encoder_decoder
    return _load(AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM, checkpoint, device)


def load_backbone(checkpoint: str | Checkpoint, device: str = "cpu") -> PreTrainedModel:
    """A model without its head: all of a decoder, the encoder of an encoder-decoder. Else as `load_language_model`."""
    config = load_config(checkpoint)
    # The encoder alone, once it is saved, no longer says that it was part of an encoder-decoder.
    alone = type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if not config.is_encoder_decoder and not alone:
        return _load(AutoModel, checkpoint, device)
    if type(config) not in MODEL_FOR_TEXT_ENCODING_MAPPING:
        raise UserError(
            f"an encoder-decoder of type '{config.model_type}' is not read by its encoder alone",
            where=_path(checkpoint),
            hint="Take a decoder, or a model of the T5 family, as preference model.",
        )
    return _load(AutoModelForTextEncoding, checkpoint, device)


def _load(kind: Any, checkpoint: str | Checkpoint, device: str) -> PreTrainedModel:
    dtype = torch.float32 if isinstance(checkpoint, str) else getattr(torch, checkpoint.dtype)
    model = whole_model(_attempt(kind.from_pretrained, checkpoint, "model", **WHOLE, dtype=dtype), _path(checkpoint))
    if not isinstance(checkpoint, str) and checkpoint.gradient_checkpointing:
        _checkpoint_gradients(model)
    # Divided before it is moved: no device need hold all of it.
    return sharded(model).to(device).eval()  # type: ignore[no-any-return,arg-type]


WHOLE: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
"""Options of `from_pretrained` for `whole_model`: no weights are unpickled, and what does not fit is told by name."""


def whole_model(loaded: tuple[PreTrainedModel, dict[str, Any]], where: str) -> PreTrainedModel:
    """A model that was loaded with the options `WHOLE`. Raises UserError when the checkpoint has not all of its
    weights, or has weights of other shapes or that are no numbers.
    """
    model, found = loaded
    if found["mismatched_keys"]:
        name, there, said = min(found["mismatched_keys"])
        raise UserError(
            f"weights are of another shape than config.json says: {name} is {list(there)}, not {list(said)}",
            where=where,
            hint="Save model and configuration together again.",
        )
    if found["missing_keys"]:
        raise UserError(
            f"weights are missing from the checkpoint: {', '.join(sorted(found['missing_keys'])[:4])}",
            where=where,
            hint="Save the whole model again, with its head; what is missing would have been random.",
        )
    if broken := [name for name, weight in model.named_parameters() if not weight.isfinite().all()]:
        raise UserError(
            f"weights are infinite or no numbers: {', '.join(broken[:4])}",
            where=where,
            hint="Take an earlier checkpoint; a model that was saved in half precision may have overflowed.",
        )
    return model


def _attempt(load: Callable[..., Any], model: str | Checkpoint, what: str, **options: Any) -> Any:
    """What one of the loaders of `transformers` gives, with the checkpoint's options; UserError when it fails."""
    if isinstance(model, str):
        return attempt(load, model, what, **options)
    options |= {"trust_remote_code": model.trust_remote_code, "revision": model.revision}
    return attempt(load, model.location, what, model.path, **options)


def attempt(load: Callable[..., Any], place: str, what: str, where: str | None = None, **options: Any) -> Any:
    """What one of the loaders of `transformers` gives. what: is to be read, for people; where: what they call it, if
    that is not its place. Raises UserError, on whatever broken files make of the libraries that read them.
    """
    where = where or place
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # what it reports of unused weights is as meant; what matters is an error here
    try:
        # Never None, which would ask the person at the terminal.
        return load(place, **{"trust_remote_code": False} | options)
    except Exception as error:
        if out_of_memory(error):
            raise
        if "trust_remote_code" in str(error):
            raise UserError(
                "the checkpoint brings Python code of its own, which is not run unless you say so",
                where=where,
                hint="Read the code; if you trust it, write {path: ..., trust_remote_code: true} in place of the path.",
            ) from error
        raise _unreadable(error, what, Path(place), where) from error
    finally:
        hf_logging.set_verbosity(level)


def _unreadable(error: Exception, what: str, place: Path, where: str) -> UserError:
    """What the libraries say, on one line, and what is likely to help."""
    words = " ".join(str(error).split())[:400]
    if isinstance(error, LookupError | ArithmeticError | TypeError | AttributeError) or not words:
        words = f"{type(error).__name__}: {words}".rstrip(": ")
    hint = "Check the hub id, and the network."
    if place.is_dir():
        files = [path for path in sorted(place.iterdir()) if path.is_file()]
        hint = "Save it again with `save_pretrained`, or get all of its files again."
        if pointers := [path.name for path in files if is_pointer(path)]:
            words, hint = f"{pointers[0]} is a pointer of Git LFS, and not the file", "git lfs pull"
        elif "no file named model.safetensors" in words and (found := [f.name for f in files if is_pickle(f.name)]):
            hint = f"{found[0]} is a pickle, which may hold code and is not read: save it as safetensors."
    return UserError(f"the {what} cannot be read: {words}", where=where, hint=hint)


def _path(model: str | Checkpoint) -> str:
    return model if isinstance(model, str) else model.path


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
