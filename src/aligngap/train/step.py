"""One optimiser step, shared by all training here: clipping, schedule, refusal of non-finite losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field

from aligngap import ranks
from aligngap.models.sharding import divided, fill, whole, written


class OptimSpec(BaseModel):
    """AdamW with linear warm-up, then constant or cosine. Everything counts optimiser steps, never data-set length."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lr: float = Field(gt=0)
    steps: int = Field(gt=0)
    batch: int = Field(32, gt=0)
    warmup_steps: int = Field(20, ge=0)
    schedule: str = Field("constant", pattern="^(constant|cosine)$")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)


_MASTER = "master"


class Diverged(RuntimeError):
    """The loss is no longer a finite number."""


class Optimiser:
    """AdamW over some parameters, with the schedule of its specification.

    Parameters of less precision than fp32 have fp32 masters here: a step changes the masters and rounds them. Steps
    smaller than a parameter's rounding would be lost otherwise.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], spec: OptimSpec) -> None:
        self.spec, self.step_count = spec, 0
        self._given = [p for p in parameters if p.requires_grad]
        # Others are their own masters.
        self._parameters = [p if torch.finfo(p.dtype).bits >= 32 else master(p) for p in self._given]
        self._adamw = torch.optim.AdamW(self._parameters, lr=spec.lr, weight_decay=spec.weight_decay, fused=True)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._adamw, self._factor)

    def _factor(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / (self.spec.warmup_steps + 1))
        if self.spec.schedule == "constant":
            return warmup
        return warmup * 0.5 * (1.0 + float(torch.cos(torch.tensor(torch.pi * step / self.spec.steps))))

    def step(self, loss: torch.Tensor) -> float:
        """Back-propagate and update; returns the gradient's norm before clipping. loss: of several ranks each gives its
        part, and they add up to it. Raises Diverged before touching the weights.
        """
        total = ranks.total(loss.detach())
        if not bool(torch.isfinite(total)):
            raise Diverged(f"the loss is {float(total)} at step {self.step_count + 1}")
        # Sharded models average their gradients over the ranks, whose losses are parts of a sum.
        (loss * ranks.size() if ranks.sharded() else loss).backward()
        self._with_masters(_take_gradient)
        ranks.sum_gradients(self._parameters)
        norm = whole(torch.nn.utils.clip_grad_norm_(self._parameters, self.spec.max_grad_norm))
        if not bool(torch.isfinite(norm)):
            raise Diverged(f"the gradient's norm is {float(norm)} at step {self.step_count + 1}")
        self._adamw.step()
        self._with_masters(_round_into)
        self._adamw.zero_grad(set_to_none=True)
        self._schedule.step()
        self.step_count += 1
        return float(norm)

    def _with_masters(self, do: Callable[[torch.nn.Parameter, torch.nn.Parameter], None]) -> None:
        for given, kept in zip(self._given, self._parameters, strict=True):
            if given is not kept:
                do(given, kept)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """As named tensors: steps done, and each parameter's moments in the order of the parameters; and masters."""
        masters = {
            f"{_MASTER}.{index}": written(kept.detach())
            for index, (given, kept) in enumerate(zip(self._given, self._parameters, strict=True))
            if given is not kept
        }
        return {"step": torch.tensor(self.step_count), **moments(self._adamw, self._parameters), **masters}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue bit for bit."""
        set_moments(self._adamw, self._parameters, state)
        for index, (given, kept) in enumerate(zip(self._given, self._parameters, strict=True)):
            if given is not kept:
                fill(kept.data, state[f"{_MASTER}.{index}"])
        self.step_count = int(state["step"])
        self._schedule.last_epoch = self.step_count
        self._adamw.param_groups[0]["lr"] = self.spec.lr * self._factor(self.step_count)


def moments(optimiser: torch.optim.Optimizer, parameters: Iterable[torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """What an optimiser remembers of each parameter, as tensors named by the parameter's place."""
    return {
        f"{index}.{name}": written(value)
        for index, parameter in enumerate(parameters)
        for name, value in optimiser.state[parameter].items()
    }


def set_moments(
    optimiser: torch.optim.Optimizer, parameters: Iterable[torch.nn.Parameter], state: Mapping[str, torch.Tensor]
) -> None:
    """What `moments` gave; names that it did not give are left alone."""
    for index, parameter in enumerate(parameters):
        prefix = f"{index}."
        optimiser.state[parameter] = {
            # The fused kernel wants its count of steps beside the moments; that is one number on every rank.
            name.removeprefix(prefix): divided(value, parameter)
            if value.ndim
            else value.to(parameter.device, copy=True)
            for name, value in state.items()
            if name.startswith(prefix)
        }


def master(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    """An fp32 copy of a parameter."""
    return torch.nn.Parameter(parameter.detach().float().clone())


def _take_gradient(given: torch.nn.Parameter, kept: torch.nn.Parameter) -> None:
    kept.grad = None if given.grad is None else given.grad.float()
    given.grad = None


def _round_into(given: torch.nn.Parameter, kept: torch.nn.Parameter) -> None:
    given.data.copy_(kept.data)
