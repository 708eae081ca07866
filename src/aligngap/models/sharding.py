"""Models divided among ranks (FSDP2), and their weights as files see them: whole, under the names they have undivided.

A sharded model stays the object it was; each rank keeps its part of every weight, and a layer is whole only while it
computes. So all ranks must run the same passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, load_model, save_file, save_model

from aligngap import ranks
from aligngap.errors import UserError

ModelT = TypeVar("ModelT", bound=torch.nn.Module)


def check_divisible(config: object) -> None:
    """Raises UserError for an encoder-decoder's configuration: its parts run by themselves."""
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            "an encoder-decoder cannot be divided among processes",
            where="parallel.sharding",
            hint="Say `sharding: none`, or take a decoder.",
        )


def sharded(model: ModelT) -> ModelT:
    """The model, divided among the ranks in place where the run says so: layer by layer, what is left as one.

    Raises UserError as `check_divisible` does.
    """
    if not ranks.sharded():
        return model
    check_divisible(getattr(model, "config", None))
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device().type, (ranks.size(),))
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for part in list(model.modules()):
        if part is not model and type(part).__name__ in layers:
            fully_shard(part, mesh=mesh)
    # Given up behind every pass: weights are read, copied and written between passes, and then are parts everywhere.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    return model


def whole(weight: torch.Tensor) -> torch.Tensor:
    """A weight, or what an optimiser knows of one, from all its parts. All ranks must ask."""
    return weight.full_tensor() if ranks.sharded() and hasattr(weight, "full_tensor") else weight


def parts(model: torch.nn.Module) -> list[torch.Tensor]:
    """This rank's part of every parameter of a sharded model: the memory itself, without gradients."""
    weights: list[Any] = [parameter.detach() for parameter in model.parameters()]
    return [part.to_local() for part in weights]


def fill(weight: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a whole value into a weight, or into this rank's part of one."""
    weight.copy_(divided(value, weight))


def divided(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole value, divided as `like` is, on its device. All ranks must have the same."""
    copy = value.to(like.device, copy=True)
    if not hasattr(like, "full_tensor"):
        return copy
    from torch.distributed.tensor import distribute_tensor

    weight: Any = like
    return distribute_tensor(copy, weight.device_mesh, weight.placements)


def written(tensor: torch.Tensor) -> torch.Tensor:
    """As `whole`, for a file: on the first rank's CPU; the others, which write none, give their memory back."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    complete = whole(tensor)
    return complete.cpu() if ranks.first() else complete.new_empty(0)


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All weights and buffers by name; of a sharded model whole, on the first rank, tied ones under one name."""
    state = model.state_dict()
    if not ranks.sharded():
        return state
    return {name: written(state[name].detach()) for name, tied_to in _tied(model).items() if name == tied_to}


@torch.no_grad()
def load_state(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Take over what `state_of` gave. Raises RuntimeError or ValueError where names or shapes differ."""
    if not ranks.sharded():
        model.load_state_dict(dict(state))
        return
    own, tied = model.state_dict(), _tied(model)
    if not state.keys() <= own.keys() or {tied[name] for name in state} != set(tied.values()):
        raise ValueError("these are not the weights of this model")
    for name, value in state.items():
        fill(own[name], value)


class Whole:
    """A module as step checkpoints see it."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See `state_of`."""
        return state_of(self._module)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """See `load_state`."""
        load_state(self._module, state)


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """All weights as safetensors, written by the first rank."""
    if ranks.sharded():
        state = state_of(model)
        if ranks.first():
            save_file(state, str(path), metadata={"format": "pt"})
    elif ranks.first():
        save_model(model, str(path))


def load_weights(model: torch.nn.Module, path: Path, device: str) -> None:
    """What `save_weights` wrote."""
    if ranks.sharded():
        load_state(model, load_file(str(path)))
    else:
        load_model(model, str(path), device=device)


def save_folder(model: Any, folder: Path) -> None:
    """A model as `save_pretrained` saves it, written by the first rank."""
    state = state_of(model) if ranks.sharded() else None
    if ranks.first():
        model.save_pretrained(folder, state_dict=state)


def _tied(model: torch.nn.Module) -> dict[str, str]:
    """Of each name in the model's state the first name of the same tensor."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    tied_to = {name: first.setdefault(id(tensor), name) for name, tensor in named}
    return {name: tied_to[name] for name in model.state_dict()}
