"""The one loop that trains every arm: next batch, loss, step, observe. It does not know where pairs come from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import ClassVar

import torch
from pydantic import (
    ConfigDict,
    Field,
    field_validator,
)

from aligngap import ranks
from aligngap.losses import LOSSES, LogProbs, Reduction, pair_loss, preference_metrics
from aligngap.models.policy import Policy
from aligngap.plugins import Pluggable, Registered
from aligngap.sources.base import PairSource
from aligngap.train.checkpoint import Checkpointer, Stateful, advance
from aligngap.train.passages import Passages
from aligngap.train.step import Optimiser, OptimSpec
from aligngap.types import PairBatch


class LossSpec(Pluggable):
    """Which loss, at which strength; the reduction over response tokens is explicit and one for all arms. sft: weight
    of an added negative log-likelihood of the winner.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    registered: ClassVar[Registered] = {"name": LOSSES}

    name: str = "ipo"
    beta: float = Field(0.1, gt=0)
    reduction: Reduction = "sum"
    sft: float = Field(0.0, ge=0)

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        return LOSSES.known(value)


def batch_loss(policy: Policy, reference: Policy | None, batch: PairBatch, spec: LossSpec) -> torch.Tensor:
    """Loss of a batch of pairs: `loss_and_metrics` without the metrics."""
    return loss_and_metrics(policy, reference, batch, spec)[0]


def loss_and_metrics(
    policy: Policy, reference: Policy | None, batch: PairBatch, spec: LossSpec
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of a batch of pairs, both responses packed behind their prompt, a scalar with a gradient; and its
    `preference_metrics`. Reads ids, preference and what the reference gives them, nothing else.

    reference: asked about pairs that do not bring its log-probabilities. Raises ValueError where there is none.
    """
    responses = [batch.first, batch.second]
    fixed = reference_log_probs(reference, batch) if batch.reference is None else batch.reference
    live = policy.log_probs(batch.prompts, responses)
    first, second = (
        LogProbs(a, b, tokens.lengths) for a, b, tokens in zip(live, fixed.unbind(1), responses, strict=True)
    )
    loss = pair_loss(spec.name, first, second, batch.preference, spec.beta, spec.reduction, spec.sft)
    return loss, preference_metrics(first, second, batch.preference, spec.beta, spec.reduction)


@torch.no_grad()
def reference_log_probs(reference: Policy | None, batch: PairBatch) -> torch.Tensor:
    """What the reference gives both responses of each pair, [n, 2]: `PairBatch.reference` of pairs that lack it."""
    if reference is None:
        raise ValueError("these pairs do not bring their reference log-probabilities, and there is no reference to ask")
    return torch.stack(reference.log_probs(batch.prompts, [batch.first, batch.second]), 1)


def train(
    policy: Policy,
    reference: Policy | None,
    source: PairSource,
    loss: LossSpec,
    optim: OptimSpec,
    *,
    keep: Collection[int],
    save_policy: Callable[[int, Policy], None],
    passages: Passages | None = None,
    checkpointer: Checkpointer | None = None,
    progress: Callable[[int, int, Mapping[str, float]], None] = lambda done, total, metrics: None,
) -> None:
    """Train `policy` in place on what `source` supplies.

    reference: may be None where the source's pairs all bring its log-probabilities. keep: steps (0 = before training)
    at which `save_policy` is called; passages: asks for further ones by KL. progress: called after each step with steps
    done, steps in all, and what is known of the batch: loss, `preference_metrics` (both under the weights before the
    step) and grad_norm.

    Raises Diverged when the loss stops being finite; what was saved before stays, and the checkpointer keeps the last
    good weights.
    """
    optimiser = Optimiser(policy.model.parameters(), optim)
    parts: dict[str, Stateful] = {"policy": policy, "optimiser": optimiser, "source": source}
    if passages:
        parts["passages"] = passages
    source.observe(0, policy)
    if not (checkpointer and checkpointer.restore(**parts)) and 0 in keep:
        save_policy(0, policy)
    while optimiser.step_count < optim.steps:
        batch = source.next_batch(optim.batch).to(policy.device)
        share = ranks.share(len(batch))
        value, metrics = loss_and_metrics(policy, reference, share.of(batch), loss)
        value = value * share.part
        norm = advance(optimiser, value, batch, policy.model, checkpointer)
        step = optimiser.step_count
        source.observe(step, policy)
        if (passages and passages.asks(step, policy)) or step in keep:
            save_policy(step, policy)
        if checkpointer:
            checkpointer.maybe_save(**parts)
        # The loss has its share in it already; one sum over the ranks, and one wait for the device, for all of them.
        shares = torch.stack([value.detach(), *(share.part * metric for metric in metrics.values())])
        means = dict(zip(("loss", *metrics), ranks.total(shares).tolist(), strict=True))
        progress(step, optim.steps, {**means, "grad_norm": norm})
