"""What every loss must do."""

from __future__ import annotations

from collections.abc import Callable

import torch

from aligngap.losses import LogProbs, PairLoss
from aligngap.testing.contract import must, run

_ROWS = 8
_BETAS = (0.03, 0.3, 1.0)


def check_loss(loss: PairLoss) -> None:
    """Raises Broken, which says how, for a loss that the trainer cannot use as it uses ours."""
    run(LOSS_CHECKS, loss)


def gives_one_finite_number_a_pair(loss: PairLoss) -> None:
    """[n], in floating point; also for ties, which ask both ways round, and far from the reference."""
    for scale in (0.0, 1.0, 200.0):
        for winner, loser in _both_ways(*_sides(scale)):
            for beta in _BETAS:
                values: object = loss(winner, loser, beta)
                must(isinstance(values, torch.Tensor), f"it gives {type(values).__name__}, not a tensor")
                assert isinstance(values, torch.Tensor)
                shape = list(values.shape)
                must(shape == [_ROWS], f"it gives {shape} for {_ROWS} pairs, not one number a pair, [{_ROWS}]")
                must(values.is_floating_point(), f"it gives {values.dtype}, not floating point")
                must(bool(values.isfinite().all()), f"it is not finite at log-ratios of size {scale:g}, beta {beta:g}")


def knows_a_pair_by_itself(loss: PairLoss) -> None:
    """Batches mix pairs whose first and whose second response won, and the loss is asked both ways round about all of
    them: a number that depends on the rest of the batch would mix up winners and losers.
    """
    winner, loser = _sides(1.0)
    whole = loss(winner, loser, 0.3)
    for row in range(_ROWS):
        one, other = (LogProbs(*(part[row : row + 1] for part in side)) for side in (winner, loser))
        alone = loss(one, other, 0.3)
        must(bool(torch.isclose(alone[0], whole[row])), "a pair's loss depends on what else is in its batch")


def is_a_function(loss: PairLoss) -> None:
    """The same inputs give the same loss, and stay as they are."""
    winner, loser = _sides(1.0)
    before = [part.clone() for side in (winner, loser) for part in side]
    one, two = loss(winner, loser, 0.3), loss(winner, loser, 0.3)
    must(torch.equal(one, two), "it gives something else when asked again")
    after = [part for side in (winner, loser) for part in side]
    must(all(map(torch.equal, before, after)), "it changes what it is given")


def prefers_the_winner(loss: PairLoss) -> None:
    """At the reference, where training starts, a step against the gradient lifts the winner over the loser."""
    (winner, loser) = _sides(0.0)
    for beta in _BETAS:
        live = [side.policy.clone().requires_grad_() for side in (winner, loser)]
        sides = [LogProbs(a, side.reference, side.lengths) for a, side in zip(live, (winner, loser), strict=True)]
        values = loss(sides[0], sides[1], beta)
        must(values.requires_grad, "no gradient reaches the policy's log-probabilities")
        up, down = torch.autograd.grad(values.sum(), live, allow_unused=True, materialize_grads=True)
        must(bool(up.isfinite().all() and down.isfinite().all()), f"its gradient is not finite, at beta {beta:g}")
        must(bool((up < down).all()), "its gradient lifts the loser over the winner, or neither")


def _sides(scale: float) -> tuple[LogProbs, LogProbs]:
    """Winners and losers of different lengths; scale: of their log-ratios, in nats."""
    generator = torch.Generator().manual_seed(0)

    def side() -> LogProbs:
        lengths = torch.randint(1, 12, (_ROWS,), generator=generator)
        reference = -2.0 * lengths * torch.rand(_ROWS, generator=generator) - 0.1
        moved = reference + scale * torch.randn(_ROWS, generator=generator)
        return LogProbs(moved.clamp(max=-1e-3) if scale else reference.clone(), reference, lengths)

    return side(), side()


def _both_ways(a: LogProbs, b: LogProbs) -> list[tuple[LogProbs, LogProbs]]:
    return [(a, b), (b, a)]


LOSS_CHECKS: tuple[Callable[[PairLoss], None], ...] = (
    gives_one_finite_number_a_pair,
    knows_a_pair_by_itself,
    is_a_function,
    prefers_the_winner,
)
