"""What a model's folder or hub id holds: found out before any weight is read, whatever extras are installed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PretrainedConfig
from transformers.utils import logging as hf_logging
from transformers.utils.peft_utils import find_adapter_config_file

from aligngap.errors import UserError, out_of_memory
from aligngap.store.contents import is_pickle, is_pointer

if TYPE_CHECKING:
    from aligngap.models.spec import Checkpoint

hf_logging.disable_progress_bar()  # a bar per loaded checkpoint drowns the study's own progress

CONFIG = "config.json"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
_LOW = re.compile(r"B?F\d")
_PACKED = re.compile(r"(^|\.)(q?weight\w*(\.\w+)*|\w*blocks|\w*scales|qzeros|g_idx|W_q|SCB|absmax|\w*quant\w*)$")
_SCALES = re.compile(
    r"(^|\.)(weight_scale\w*|weight\._\w+|input_scale\w*|\w*scale_inv|scales|qweight|qzeros|absmax|quant_map|SCB)$"
)
"""Names under which quantisation stores numbers packed into integers, and what turns them back: of no plain layer."""

_RAW_HINT = (
    "Take the checkpoint in its plain form (bf16 or fp16 safetensors), as it was before quantisation; or load it once "
    "with the quantiser's own package, dequantise it (`model.dequantize()` in transformers), and save that."
)


@dataclass(frozen=True)
class ModelFolder:
    """What lies in a folder. config: whether it describes a model; single: weights in one file; index: of weights in
    several; shards: those that the index names; adapter: files of an adapter (`peft`).
    """

    path: Path
    config: bool
    single: bool
    index: bool
    shards: tuple[str, ...]
    adapter: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> ModelFolder:
        """Looks at names, and into the index, if there is one. Raises UserError for an index that is none."""
        index = path / _INDEX
        return cls(
            path,
            (path / CONFIG).is_file(),
            (path / _SINGLE).is_file(),
            index.is_file(),
            _shards(index) if index.is_file() else (),
            tuple(name for name in (_ADAPTER_CONFIG, *_ADAPTER_WEIGHTS) if (path / name).is_file()),
        )

    @property
    def weights(self) -> tuple[str, ...]:
        """The files that hold the model's own weights."""
        return self.shards if self.index else (_SINGLE,) if self.single else ()

    def check_config(self) -> None:
        """Raises UserError for a folder that describes no model."""
        if not self.config:
            hint = "Give a folder saved by `save_pretrained`."
            if self.adapter:
                hint = "Merge the adapters into their base (`merge_and_unload`) and save that."
            raise UserError("this folder holds no Hugging Face model (no config.json)", where=str(self.path), hint=hint)

    def check(self) -> None:
        """Raises UserError unless it is clear which weights are meant, and they are plain numbers."""
        where = str(self.path)
        self.check_config()
        if self.adapter:
            raise UserError(
                f"this folder holds a model and an adapter beside it ({', '.join(self.adapter)}): whether the adapter "
                "is in the weights already, the folder does not say",
                where=where,
                hint="If it was merged, remove the adapter's files; if not, merge it (`merge_and_unload`) and save "
                "that in a new folder.",
            )
        if self.single and self.index:
            raise UserError(
                f"this folder holds weights twice: {_SINGLE}, and the {len(self.shards)} files of {_INDEX}",
                where=where,
                hint="Remove those that are left from an earlier save, with the index if it is the shards.",
            )
        for name in self.weights:
            if (self.path / name).is_file():
                _check_plain(self.path / name)


def _shards(index: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values())))
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"the index of the weights cannot be read: {type(error).__name__}: {error}",
            where=str(index),
            hint="Save the model again with `save_pretrained`, or get all of its files again.",
        ) from error


def _check_plain(file: Path) -> None:
    """Raises UserError for a file of weights that some quantisation has left, with a configuration or without."""
    for name, dtype in _header(file):
        packed = dtype not in _PLAIN and (_LOW.match(dtype) or _PACKED.search(name))
        if packed or _SCALES.search(name):
            raise UserError(
                f"these are quantised weights ({name} is {dtype}), of which config.json says nothing",
                where=str(file),
                hint=_RAW_HINT,
            )


def _header(file: Path) -> Iterator[tuple[str, str]]:
    """Name and type of each tensor in a file of safetensors; nothing of a file that is none, as its reader will say."""
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, about in header.items():
            if name != "__metadata__":
                yield name, str(about["dtype"])
    except (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError):
        return


def check_weights(place: str, config: Any, where: str, **source: Any) -> None:
    """Raises UserError where a model's weights are quantised, or where an adapter lies beside them.

    place: folder or hub id; config: its configuration; where: what people call it; source: revision and the like.
    """
    for part in (config, config.get_text_config()):
        about = getattr(part, "quantization_config", None) or getattr(part, "compression_config", None)
        if about is not None:
            method = _method(about)
            raise UserError(
                f"the checkpoint is quantised ({method}): it would not be saved as it is read",
                where=where,
                hint=_RAW_HINT,
            )
    if Path(place).is_dir():
        ModelFolder.of(Path(place)).check()
    elif find_adapter_config_file(place, revision=source.get("revision")) is not None:
        raise UserError(
            "there is an adapter beside the model: whether it is in the weights already, nothing says",
            where=where,
            hint="Download it, merge the adapter (`merge_and_unload`) or remove its files, and give the folder.",
        )


def _method(about: Any) -> str:
    settings = about if isinstance(about, dict) else vars(about)
    bits = any(settings.get(f"{mark}load_in_{size}bit") for mark in ("", "_") for size in (4, 8))
    method = settings.get("quant_method") or ("bitsandbytes" if bits else "by an unknown method")
    return str(getattr(method, "value", method))


def load_config(model: str | Checkpoint) -> PretrainedConfig:
    """A model's configuration. UserError when it cannot be read."""
    return attempt_checkpoint(AutoConfig.from_pretrained, model, "model")  # type: ignore[no-any-return]


def attempt_checkpoint(load: Callable[..., Any], model: str | Checkpoint, what: str, **options: Any) -> Any:
    """What one of the loaders of `transformers` gives, with the checkpoint's options; UserError when it fails."""
    if isinstance(model, str):
        return attempt(load, model, what, **options)
    return attempt(load, model.location, what, model.path, **options, **source_of(model))


def source_of(model: str | Checkpoint) -> dict[str, Any]:
    """Where a checkpoint's files come from, as options of the loaders of `transformers`."""
    if isinstance(model, str):
        return {}
    return {"trust_remote_code": model.trust_remote_code, "revision": model.revision}


def path_of(model: str | Checkpoint) -> str:
    """What people call a model in an error."""
    return model if isinstance(model, str) else model.path


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
        elif "no file named model.safetensors" in words and (pickles := [f.name for f in files if is_pickle(f.name)]):
            hint = f"{pickles[0]} is a pickle, which may hold code and is not read: save it as safetensors."
    return UserError(f"the {what} cannot be read: {words}", where=where, hint=hint)
