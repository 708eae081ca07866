"""Supervised training: the SFT policy on both responses, and preference models by maximum likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from aligngap import ranks
from aligngap.models.policy import Policy
from aligngap.models.preference import PreferenceModel
from aligngap.models.sharding import Whole
from aligngap.seeds import numpy_stream
from aligngap.sources.base import PairSource
from aligngap.train.checkpoint import Checkpointer, Stateful, advance
from aligngap.train.step import Optimiser, OptimSpec
from aligngap.types import PairBatch, Tokens

Report = Callable[[int, int, Mapping[str, float]], None]


def fit(
    module: torch.nn.Module,
    loss: Callable[[PairBatch, int], torch.Tensor],
    source: PairSource,
    optim: OptimSpec,
    report: Report,
    checkpointer: Checkpointer | None = None,
) -> None:
    """Minimise `loss(batch, step)` over what the source supplies; goes on from the checkpointer's last save. Of several
    ranks each gives its part of the loss; they add up to it.

    Raises Diverged when the loss stops being finite.
    """
    optimiser = Optimiser(module.parameters(), optim)
    parts: dict[str, Stateful] = {"module": Whole(module), "optimiser": optimiser, "source": source}
    if checkpointer:
        checkpointer.restore(**parts)
    device = next(module.parameters()).device
    for step in range(optimiser.step_count, optim.steps):
        batch = source.next_batch(optim.batch).to(device)
        value = loss(batch, step)
        advance(optimiser, value, batch, module, checkpointer)
        if checkpointer:
            checkpointer.maybe_save(**parts)
        report(step + 1, optim.steps, {"loss": float(ranks.total(value.detach()))})


def sft_loss(policy: Policy, batch: PairBatch) -> torch.Tensor:
    """Mean negative log-likelihood per token of both responses (Tang et al. 2024, section 4), in nats."""
    share = ranks.share(len(batch))
    ours, counted = share.of(batch), float(share.part > 0)
    total = sum(log_prob.sum() for log_prob in policy.log_probs(ours.prompts, [ours.first, ours.second]))
    return -torch.as_tensor(total) * counted / sum(int(side.lengths.sum()) for side in (batch.first, batch.second))


def preference_loss(model: PreferenceModel, batch: PairBatch, step: int, seed: int) -> torch.Tensor:
    """Binary cross-entropy, the order of the two responses drawn for each pair and step (appendix A)."""
    share = ranks.share(len(batch))
    flips = torch.from_numpy(numpy_stream("order", seed, step).random(len(batch)) < 0.5)
    flip, batch = share.of(flips).to(batch.preference.device), share.of(batch)
    responses, row = Tokens.stack([batch.first, batch.second]), torch.arange(len(batch), device=flip.device)
    first, second = (responses.take(row + len(batch) * moved) for moved in (flip, ~flip))
    target = torch.where(flip, 1 - batch.preference, batch.preference)
    logits = model.logit(batch.prompts, first, second)
    return functional.binary_cross_entropy_with_logits(logits, target) * share.part
