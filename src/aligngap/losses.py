"""Preference losses: pure functions of log-probabilities. They know nothing of where pairs come from.

All contrastive losses are E[f(beta * Delta)] with a convex f of the log-ratio margin Delta = [log pi/pi_sft](y_w) -
[log pi/pi_sft](y_l) (Tang et al. 2024, section 2). The reduction over response tokens is explicit and the same for
every arm: `sum` by default. (Averaging over tokens in one trainer and summing in another compares two losses.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch.nn import functional

from aligngap.errors import UserError
from aligngap.plugins import Registry, function

Reduction = Literal["sum", "mean"]


class LogProbs(NamedTuple):
    """Log-probabilities of one side's responses.

    policy, reference: [n], summed over response tokens; lengths: [n], number of response tokens.
    """

    policy: torch.Tensor
    reference: torch.Tensor
    lengths: torch.Tensor

    def reduced(self, reduction: Reduction) -> LogProbs:
        """Summed, or averaged over each response's tokens."""
        if reduction == "sum":
            return self
        return LogProbs(self.policy / self.lengths, self.reference / self.lengths, self.lengths)

    @property
    def ratio(self) -> torch.Tensor:
        """log pi/pi_sft, [n]."""
        return self.policy - self.reference


PairLoss = Callable[[LogProbs, LogProbs, float], torch.Tensor]
"""(winner, loser, beta) -> loss [n]."""


def margin(winner: LogProbs, loser: LogProbs) -> torch.Tensor:
    """The log-ratio margin Delta, [n], in nats."""
    return winner.ratio - loser.ratio


def preference_metrics(
    first: LogProbs, second: LogProbs, preference: torch.Tensor, beta: float, reduction: Reduction = "sum"
) -> dict[str, torch.Tensor]:
    """What one watches while a preference loss trains: means over a batch of pairs, scalars without a gradient, named
    as in TRL.

    A response's implicit reward is beta * log pi/pi_sft (Rafailov et al. 2023, equation 5 without its constant), in
    units of beta * nats, with the log-ratio summed or averaged over tokens as the loss has it.

    rewards/chosen, rewards/rejected: rewards of the preferred and of the other response. rewards/margins: chosen less
    rejected, beta * Delta. rewards/accuracies: share of pairs, 0 to 1, whose chosen response has the higher reward;
    equal rewards, as all are at step 0, count one half (TRL counts 0).

    preference: [n], probability that `first` is preferred; each orientation counts by its probability, as in
    `pair_loss`. All four depend on log-probabilities only, so they are defined for every loss: also for `best_of_2`,
    which neither reads the loser nor uses beta, and for `rloo`, whose margin is its KL penalty.
    """
    a, b = (beta * side.reduced(reduction).ratio.detach() for side in (first, second))
    chosen = (preference * a + (1 - preference) * b).mean()
    rejected = (a + b).mean() - chosen
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": 0.5 + ((preference - 0.5) * (a - b).sign()).mean(),
    }


def ipo(winner: LogProbs, loser: LogProbs, beta: float) -> torch.Tensor:
    """f(z) = (z - 1/2)^2 (Azar et al. 2023; Tang et al. 2024, section 2)."""
    return (beta * margin(winner, loser) - 0.5) ** 2


def dpo(winner: LogProbs, loser: LogProbs, beta: float) -> torch.Tensor:
    """f(z) = log(1 + exp(-z)) (Rafailov et al. 2023)."""
    return functional.softplus(-beta * margin(winner, loser))


def hinge(winner: LogProbs, loser: LogProbs, beta: float) -> torch.Tensor:
    """f(z) = max(0, 1 - z) (SLiC, Zhao et al. 2023)."""
    return functional.relu(1 - beta * margin(winner, loser))


def best_of_2(winner: LogProbs, loser: LogProbs, beta: float) -> torch.Tensor:
    """-log pi(y_w): supervised fine-tuning on the winner; not contrastive, `beta` unused (Tang et al. 2024, section
    5.4).
    """
    return -winner.policy


def dpo_positive(winner: LogProbs, loser: LogProbs, beta: float) -> torch.Tensor:
    """DPO whose margin is charged for every nat that the winner's log-probability has fallen below the reference's
    (DPO-positive: Pal et al. 2024, equation 3, with lambda `POSITIVE`).
    """
    return functional.softplus(-beta * (margin(winner, loser) - POSITIVE * functional.relu(-winner.ratio)))


def rloo(winner: LogProbs, loser: LogProbs, beta: float) -> torch.Tensor:
    """REINFORCE, leaving one out of two samples (Ahmadian et al. 2024), as a loss whose gradient is the estimator.

    The reward of a response is its win against the other one, less beta times its log-ratio, the sampled KL penalty;
    each response's baseline is the other's reward. Unbiased only on on-policy pairs. With hard labels the gradient is
    IPO's at beta / 2, up to a factor: on-policy, IPO *is* a policy gradient.
    """
    advantage = 1 - beta * margin(winner, loser).detach()
    return -0.5 * advantage * (winner.policy - loser.policy)


POSITIVE = 5.0
"""Weight of the winner's fall in `dpo_positive`; of 5, 50 and 500 in the source, the least."""

LOSSES: Registry[PairLoss] = Registry(
    "loss",
    {
        "ipo": ipo,
        "dpo": dpo,
        "hinge": hinge,
        "best_of_2": best_of_2,
        "dpo_positive": dpo_positive,
        "rloo": rloo,
    },
    function,
)
"""A user's own module adds its by one line: `LOSSES["mine"] = mine`."""


def pair_loss(
    name: str,
    first: LogProbs,
    second: LogProbs,
    preference: torch.Tensor,
    beta: float,
    reduction: Reduction = "sum",
    sft: float = 0.0,
) -> torch.Tensor:
    """Mean loss of a batch; a scalar.

    preference: [n], probability that `first` is preferred. A hard label picks one orientation; a tie (0.5) averages
    both. sft: weight of an added -log pi(y_w), averaged over the winner's tokens (as in RPO: Liu et al. 2024).
    Raises KeyError for an unknown loss name (specs are checked before they come here), UserError for a loss that does
    not give one number a pair, which broadcasting would hide.
    """
    loss, a, b = LOSSES[name], first.reduced(reduction), second.reduced(reduction)
    forward, backward = loss(a, b, beta), loss(b, a, beta)
    both: tuple[object, object] = (forward, backward)
    for values in both:
        if not isinstance(values, torch.Tensor) or values.shape != preference.shape:
            shape = list(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise UserError(
                f"the loss '{name}' gives {shape} for {len(preference)} pairs",
                where=LOSSES.place(name),
                hint="A loss gives one number a pair, [n], and no mean: the trainer averages.",
            )
    if sft:
        forward = forward - sft * first.policy / first.lengths
        backward = backward - sft * second.policy / second.lengths
    return (preference * forward + (1 - preference) * backward).mean()
