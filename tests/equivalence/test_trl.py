"""TRL's own DPO trainer, run on the same pairs and model, gives the same losses.

Its loss code is called, not rewritten; only the accelerator around it is a stand-in. For IPO it averages the log-ratio
over each response's tokens, where this package sums by default: its value is that of `reduction="mean"`, and of
(D - 1/(2 beta))^2 = f(beta D) / beta^2.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aligngap.losses import Reduction
from aligngap.models.policy import Policy
from aligngap.train.loop import LossSpec, batch_loss
from aligngap.types import PairBatch
from fakes import random_pairs, tiny_policy

trainer = pytest.importorskip("trl.trainer.dpo_trainer")

BETA, VOCABULARY = 0.3, 8
DRAWN = random_pairs(3, 12, VOCABULARY)
PAIRS = PairBatch(DRAWN.prompt_numbers, DRAWN.prompts, DRAWN.first, DRAWN.second, torch.ones(12), DRAWN.provenance)


def rows_in_their_format(pairs: PairBatch) -> dict[str, torch.Tensor]:
    """Chosen rows, then rejected rows: prompt and completion, right-padded, with a mask of the completion."""
    rows = [
        (p, r) for side in (pairs.first, pairs.second) for p, r in zip(pairs.prompts.rows(), side.rows(), strict=True)
    ]
    width = max(len(p) + len(r) for p, r in rows)

    def padded(values: list[list[int]]) -> torch.Tensor:
        return torch.tensor([value + [0] * (width - len(value)) for value in values])

    return {
        "input_ids": padded([p + r for p, r in rows]),
        "attention_mask": padded([[1] * len(p + r) for p, r in rows]),
        "completion_mask": padded([[0] * len(p) + [1] * len(r) for p, r in rows]),
    }


class FusedHead:
    """A model as their fused head leaves it: gives log-probabilities of the labels, 0 where ignored."""

    def __init__(self, policy: Policy) -> None:
        self.model = policy.model

    def __call__(self, *, labels: torch.Tensor, fused_lm_head: bool = True, **inputs: Any) -> SimpleNamespace:
        logits = self.model(**inputs).logits[:, :-1]
        target = labels[:, 1:]
        chosen = logits.log_softmax(-1).gather(-1, target.clamp(min=0)[..., None]).squeeze(-1) * (target != -100)
        nothing = torch.zeros_like(chosen)
        return SimpleNamespace(
            log_probs=chosen, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool(), log_sum_sq_probs=nothing
        )


def their_loss(kind: str, policy: Policy, reference: Policy, pairs: PairBatch) -> torch.Tensor:
    inputs = rows_in_their_format(pairs)
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    with torch.no_grad():
        fixed = FusedHead(reference)(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels
        ).log_probs.sum(1)
    chosen, rejected = fixed.chunk(2)
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    around = SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=accelerator, beta=BETA, loss_types=[kind],
        loss_weights=[1.0], f_divergence_type="reverse_kl", precompute_ref_logps=True, label_smoothing=0.0,
        use_weighting=False, aux_loss_enabled=False, ld_alpha=None,
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    loss: torch.Tensor = trainer.DPOTrainer._compute_loss(around, FusedHead(policy), inputs, return_outputs=False)
    return loss


@pytest.fixture(scope="module")
def models() -> tuple[Policy, Policy]:
    return tiny_policy(VOCABULARY, 0), tiny_policy(VOCABULARY, 1)


CASES: list[tuple[str, str, Reduction, float]] = [
    ("dpo", "sigmoid", "sum", 1.0),
    ("hinge", "hinge", "sum", 1.0),
    ("ipo", "ipo", "mean", BETA**2),
    ("dpo", "sigmoid_norm", "mean", 1.0),
]


@pytest.mark.parametrize(("ours", "theirs", "reduction", "scale"), CASES)
def test_same_value_and_gradient(
    models: tuple[Policy, Policy], ours: str, theirs: str, reduction: Reduction, scale: float
) -> None:
    policy, reference = models
    gradients, values = [], []
    for loss in (
        batch_loss(policy, reference, PAIRS, LossSpec(name=ours, beta=BETA, reduction=reduction)),
        their_loss(theirs, policy, reference, PAIRS) * scale,
    ):
        policy.model.zero_grad()
        loss.backward()
        values.append(loss.item())
        gradients.append(
            torch.cat([weight.grad.flatten() for weight in policy.model.parameters() if weight.grad is not None])
        )
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4 * float(gradients[1].abs().max()), rtol=1e-3)
    assert gradients[0].abs().max() > 1e-3


@torch.no_grad()
def test_the_two_reductions_of_ipo_are_two_losses(models: tuple[Policy, Policy]) -> None:
    """The trap that the explicit reduction avoids."""
    summed = batch_loss(*models, PAIRS, LossSpec(name="ipo", beta=BETA))
    theirs = their_loss("ipo", *models, PAIRS) * BETA**2
    assert abs(summed.item() - theirs.item()) > 0.1 * theirs.item()
