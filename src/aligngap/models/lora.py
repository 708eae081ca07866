"""Low-rank adapters (LoRA, Hu et al. 2021, 2106.09685) by `peft`, put into a model in place.

The model stays the object it was: with its adapters off it is the model as loaded, so one copy of its weights serves
the policy, its reference and its stale copies.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file

from aligngap import ranks
from aligngap.errors import UserError
from aligngap.models.sharding import load_state, state_of
from aligngap.seeds import torch_seed

_ADAPTER = "default"
"""What `peft` calls an adapter that nobody named."""

ModelT = TypeVar("ModelT", bound=torch.nn.Module)


class Lora(BaseModel):
    """Adapters of rank `r`, scaled by alpha / r, on the linear layers named in `targets` (null: on all but the
    model's head).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    r: int = Field(8, gt=0)
    alpha: float = Field(16.0, gt=0)
    targets: tuple[str, ...] | None = None


def add_adapters(model: torch.nn.Module, lora: Lora, seed: int) -> None:
    """Put fresh adapters, in fp32, into a model in place; they alone take a gradient from then on. The model computes
    what it computed before, until they are trained. Their first weights are a function of `seed` alone.

    Raises UserError where `peft` is missing, no layer has a name among the targets, or adapters of one of them could
    not be merged: because other layers share its weight in a way that cannot be undone, or because the model reads its
    weight without calling the layer (Mamba's `dt_proj`; by default such layers get none).
    """
    peft, bypassed = _peft(), _bypassed(model)
    if lora.targets is not None and (wrong := sorted(bypassed & set(lora.targets))):
        raise UserError(
            f"the model reads weights of {', '.join(wrong)} past the layer: adapters would do nothing until merged",
            where="lora.targets",
            hint="Leave them out of the targets.",
        )
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules="all-linear" if lora.targets is None else list(lora.targets),
        exclude_modules=sorted(bypassed) or None if lora.targets is None else None,
    )
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed("adapters", seed))  # drawn on the CPU, then moved
        try:
            peft.inject_adapter_in_model(config, model, _ADAPTER)
        except ValueError as error:
            linear = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if _is_linear(part)}
            raise UserError(
                f"the model takes no such adapters: {error}",
                where="lora.targets",
                hint=f"Its linear layers: {', '.join(sorted(linear))}.",
            ) from error
    _check_tied(model)
    for adapter in adapters(model).values():
        adapter.data = adapter.data.float()


def adapters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The adapters' weights by name; none in a model without."""
    return {name: weight for name, weight in model.named_parameters() if ".lora_" in name}


def merge_adapters(model: Any) -> None:
    """Add the adapters to the weights beneath and take them out, in place: an ordinary model that computes the same up
    to rounding. A weight that an adapted layer shares with another (embedding and head) is first made its own.
    """
    tied = _tied_layers(model)
    for name, layer in list(_layers(model)):
        base = layer.get_base_layer()
        if name in tied:
            base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, base)
    if tied:
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
        model.all_tied_weights_keys = {}
    if hasattr(model, "peft_config"):
        del model.peft_config  # else `save_pretrained` would look for adapters


def save_adapters(model: Any, folder: Path) -> None:
    """The adapters alone, as `peft` saves and loads them."""
    config = model.peft_config[_ADAPTER]
    config.save_pretrained(folder)
    named = {}
    for name, weight in adapters(model).items():
        without = ".".join(part for part in name.split(".") if part != _ADAPTER)
        named[f"base_model.model.{without}"] = weight.detach().contiguous()
    save_file(named, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


@contextmanager
def adapters_off(model: torch.nn.Module) -> Iterator[None]:
    """Within it the model computes what it computes without its adapters."""
    layers = [layer for _, layer in _layers(model)]
    trained = [weight for weight in adapters(model).values() if weight.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        # `peft` lets go of the gradients, and then has every adapter take one.
        for weight in adapters(model).values():
            weight.requires_grad_(False)
        for weight in trained:
            weight.requires_grad_(True)


def copied(model: ModelT) -> ModelT:
    """A copy of a model; one with adapters shares the weights beneath with its copy."""
    own = adapters(model)
    shared = [*model.parameters(), *model.buffers()] if own else []
    kept = {id(weight) for weight in own.values()}
    return copy.deepcopy(model, {id(weight): weight for weight in shared if id(weight) not in kept})


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that tell a policy from the model it started from: the adapters, or all where there are none."""
    own = adapters(model)
    return {name: weight.detach() for name, weight in own.items()} if own else state_of(model)


def load_trained_state(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Take over what `trained_state` gave of a model of the same shape. Raises ValueError for another's."""
    own = adapters(model)
    if not own:
        load_state(model, state)
        return
    if own.keys() != state.keys():
        raise ValueError("these are not the weights of this model's adapters")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(state[name])


def _layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers that hold adapters. Known by what they have, so that models without need no `peft`."""
    for name, part in model.named_modules():
        if hasattr(part, "lora_A") and hasattr(part, "enable_adapters"):
            yield name, part


def _tied_layers(model: torch.nn.Module) -> set[str]:
    """Names of the layers with adapters whose weight other layers have as well."""
    names = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    return {name for name, layer in _layers(model) if names[id(layer.get_base_layer().weight)] > 1}


def _check_tied(model: Any) -> None:
    tied = _tied_layers(model)
    if tied and (model.config.is_encoder_decoder or ranks.sharded()):
        raise UserError(
            f"other layers have the weights of {', '.join(sorted(tied))} as well, and adapters of theirs could not be "
            f"merged in {'a divided model' if ranks.sharded() else 'an encoder-decoder'}",
            where="lora.targets",
            hint="Leave them out of the targets.",
        )


@torch.no_grad()
def _bypassed(model: Any) -> set[str]:
    """Last names of linear layers that no forward pass calls under that name, found by one over two tokens. (Of experts
    with one name, some are called.)
    """
    names = {part: name.rpartition(".")[2] for name, part in model.named_modules() if _is_linear(part)}
    called: set[str] = set()
    hooks = [part.register_forward_pre_hook(lambda layer, _: called.add(names[layer])) for part in names]
    ids = torch.zeros((1, 2), dtype=torch.int64, device=model.device)
    training = model.training
    try:
        model.eval()
        if model.config.is_encoder_decoder and hasattr(model, "get_decoder"):
            model(input_ids=ids, decoder_input_ids=ids)
        else:
            model(input_ids=ids)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return set(names.values()) - called


def _is_linear(part: torch.nn.Module) -> bool:
    return isinstance(part, torch.nn.Linear)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError(
            "adapters need the package `peft`, which is not installed",
            where="lora",
            hint="Install it: pip install 'aligngap[lora]'.",
        ) from error
    return peft
