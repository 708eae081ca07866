"""Step checkpoints of all training: what a kill may cost is bounded by a time, and a damaged one is never used."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from aligngap import ranks
from aligngap.errors import UserError
from aligngap.models.sharding import save_weights
from aligngap.store.disk import read_json, sync, write_json
from aligngap.store.identity import file_digest
from aligngap.train.step import Diverged, Optimiser
from aligngap.types import PairBatch

_POINTER = "checkpoint.json"
_STATES = ("state-0.safetensors", "state-1.safetensors")
_DIVERGED = "diverged"


class Stateful(Protocol):
    """What a checkpoint holds: a module, an optimiser, a source."""

    def state_dict(self) -> dict[str, Any]:
        """Named tensors."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Continue bit for bit."""
        ...


class Checkpointer:
    """Saves named parts in a folder, at most every `every` seconds. Of several ranks the first writes, and all read.

    checkpoint.json, replaced atomically, names the state's file and gives the sha256 of it and of every other file that
    lay in the folder by then (kept weights, say). What it names is on the disk before it; what it no longer names is
    removed after it. So a kill at any moment leaves a whole checkpoint, the last or the one before.
    """

    def __init__(self, folder: Path, every: float) -> None:
        self._folder, self._every, self._last = folder, every, time.monotonic()
        self._current = ""
        self._beside: dict[str, str] = {}

    def maybe_save(self, **parts: Stateful) -> None:
        """Save if the last save is longer ago than `every` seconds."""
        due = time.monotonic() - self._last >= self._every
        # Each has a clock of its own, and the parts of what is sharded must be asked for by all.
        if ranks.broadcast(due) if ranks.sharded() else due:
            self.save(**parts)

    def save(self, **parts: Stateful) -> None:
        """Save now."""
        self._last = time.monotonic()
        if ranks.first() or ranks.sharded():
            state = _flat(parts)
        if ranks.first():
            self._write(state)
            self._last = time.monotonic()

    def _write(self, tensors: dict[str, torch.Tensor]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = next(state for state in _STATES if state != self._current)
        path = self._folder / name
        try:
            save_file(tensors, str(path))
            sync(path)
        except BaseException:
            path.unlink(missing_ok=True)  # half a file; on a full disk it takes room that others need
            raise
        for file in self._others():
            if file not in self._beside:
                sync(self._folder / file)
                self._beside[file] = file_digest(self._folder / file)
        write_json(self._folder / _POINTER, {"state": name, "sha256": file_digest(path), "beside": self._beside})
        if self._current:
            (self._folder / self._current).unlink(missing_ok=True)
        self._current = name

    def restore(self, **parts: Stateful) -> bool:
        """Continue from the last save, if there is one that is whole; one that is not is set aside. Other files in the
        folder that it does not name were written after it, and are removed.

        Raises UserError when it is whole but of another shape (another version of the package wrote it).
        """
        state = ""
        if ranks.first():
            state = self._whole()
            for file in self._others():
                if file not in self._beside:
                    (self._folder / file).unlink()
        state = ranks.broadcast(state)
        if not state:
            return False
        states: dict[str, dict[str, torch.Tensor]] = {part: {} for part in parts}
        try:
            for key, value in load_file(str(self._folder / state)).items():
                part, name = key.split("/", 1)
                states[part][name] = value
            for part, stateful in parts.items():
                stateful.load_state_dict(states[part])
        except (KeyError, ValueError, RuntimeError) as error:
            if ranks.first():
                self._set_aside(f"it is of another version: {error}")
            raise UserError(
                "the step checkpoint does not fit this version of the package",
                where=str(self._folder),
                hint="Run the same command again: it has been set aside, and the stage starts over.",
            ) from error
        self._current = state
        return True

    def _whole(self) -> str:
        """The state's file, when all that the pointer names is as it was written; else nothing."""
        if not (self._folder / _POINTER).is_file():
            return ""
        try:
            pointer = read_json(self._folder / _POINTER)
            state, beside = str(pointer["state"]), dict(pointer["beside"])
            if state not in _STATES:
                raise ValueError(f"it names '{state}'")
            for name, digest in {state: pointer["sha256"], **beside}.items():
                if file_digest(self._folder / name) != digest:
                    raise ValueError(f"{name} is altered")
        except (OSError, UserError, ValueError, KeyError, TypeError) as error:
            self._set_aside(str(error))
            return ""
        self._beside = beside
        return state

    def keep_weights(self, module: torch.nn.Module, step: int) -> str:
        """Keep a module's weights beside the checkpoint. Once they are there: where, from the store's root on."""
        path = self._folder / _DIVERGED / f"{step:06d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(module, path)
        return ranks.broadcast("/".join(path.parts[-4:]))

    def _others(self) -> list[str]:
        files = (path.relative_to(self._folder) for path in sorted(self._folder.rglob("*")) if path.is_file())
        own = (*_STATES, _POINTER, _DIVERGED)
        return [file.as_posix() for file in files if file.parts[0] not in own and not file.name.startswith(".")]

    def _set_aside(self, why: str) -> None:
        print(f"The step checkpoint is damaged ({why}): set aside, the work starts over.", file=sys.stderr)
        for name in (_POINTER, *_STATES):
            path = self._folder / name
            if path.exists():
                path.replace(path.with_name(f".damaged-{name}"))


def advance(
    optimiser: Optimiser,
    loss: torch.Tensor,
    batch: PairBatch,
    module: torch.nn.Module,
    checkpointer: Checkpointer | None,
) -> float:
    """One step on a batch's loss; returns the gradient's norm before clipping.

    Raises Diverged, with the batch's identity and where the weights before it are kept.
    """
    try:
        return optimiser.step(loss)
    except Diverged as error:
        numbers = ", ".join(map(str, batch.prompt_numbers.tolist()))
        message = f"{error} of {optimiser.spec.steps}, on the batch {batch.digest()} (prompts {numbers})"
        if checkpointer:
            where = checkpointer.keep_weights(module, optimiser.step_count)
            message += f"; the weights before it are kept in the store: {where}"
        raise Diverged(message) from None


def _flat(parts: dict[str, Stateful]) -> dict[str, torch.Tensor]:
    """PART/NAME -> tensor. Tied weights are one storage under two names, which safetensors refuses: the second name
    gets a copy.
    """
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for part, stateful in parts.items():
        for name, value in stateful.state_dict().items():
            tensor = value.detach().contiguous()
            storage = tensor.untyped_storage()
            whole = storage.nbytes() == tensor.numel() * tensor.element_size()
            # A part of a larger storage would be refused as well.
            tensors[f"{part}/{name}"] = tensor if whole and storage.data_ptr() not in seen else tensor.clone()
            seen.add(storage.data_ptr())
    return tensors
