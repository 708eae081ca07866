"""Losses against arithmetic written out by hand."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

import aligngap.losses
import aligngap.train.loop
import aligngap.train.step
import aligngap.train.supervised
from aligngap.errors import UserError
from aligngap.losses import LOSSES, POSITIVE, LogProbs, PairLoss, Reduction, margin, pair_loss, preference_metrics
from aligngap.testing.losses import LOSS_CHECKS
from aligngap.train.loop import LossSpec

# Two responses, summed log-probabilities: winner 6 tokens, loser 3 tokens.
W, L = (-7.5, -9.0, 6.0), (-4.0, -3.1, 3.0)
BETA = 0.2
# Log-ratios 1.5 and -0.9, so Delta = 2.4; averaged over tokens 0.25 and -0.3, so 0.55.


def side(*rows: tuple[float, float, float]) -> LogProbs:
    return LogProbs(*(torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)))


def by_hand(name: str, winner: tuple[float, float, float], loser: tuple[float, float, float]) -> float:
    gained, lost = (policy - reference for policy, reference, _ in (winner, loser))
    z = BETA * (gained - lost)
    return {
        "ipo": z * z - z + 0.25,
        "dpo": math.log(1 + math.exp(-z)),
        "hinge": 1 - z if z < 1 else 0.0,
        "best_of_2": -winner[0],
        "dpo_positive": math.log(1 + math.exp(-(z + 5 * BETA * gained if gained < 0 else z))),
        "rloo": -(1 - z) / 2 * winner[0] + (1 - z) / 2 * loser[0],
    }[name]


def averaged(row: tuple[float, float, float]) -> tuple[float, float, float]:
    return row[0] / row[2], row[1] / row[2], row[2]


def test_every_loss_is_checked_here() -> None:
    assert set(LOSSES) == {"ipo", "dpo", "hinge", "best_of_2", "dpo_positive", "rloo"}
    for name in LOSSES:
        assert LossSpec(name=name).name == name


@pytest.mark.parametrize("check", LOSS_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", LOSSES)
def test_contract(name: str, check: Callable[[PairLoss], None]) -> None:
    check(LOSSES[name])


def test_margin() -> None:
    assert margin(side(W), side(L)).item() == pytest.approx(2.4)


@pytest.mark.parametrize("name", LOSSES)
def test_winner_and_loser(name: str) -> None:
    expected = by_hand(name, W, L)
    assert pair_loss(name, side(W), side(L), torch.tensor([1.0]), BETA).item() == pytest.approx(expected)
    assert pair_loss(name, side(L), side(W), torch.tensor([0.0]), BETA).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_wrong_way_round(name: str) -> None:
    expected = by_hand(name, L, W)
    assert pair_loss(name, side(W), side(L), torch.tensor([0.0]), BETA).item() == pytest.approx(expected)
    assert expected != pytest.approx(by_hand(name, W, L))


def test_values_to_the_digit() -> None:
    one = torch.tensor([1.0])
    assert pair_loss("ipo", side(W), side(L), one, BETA).item() == pytest.approx(0.0004)  # (0.48 - 0.5)^2
    assert pair_loss("dpo", side(W), side(L), one, BETA).item() == pytest.approx(0.48167, abs=1e-5)  # log(1 + 0.61878)
    assert pair_loss("hinge", side(W), side(L), one, BETA).item() == pytest.approx(0.52)
    assert pair_loss("hinge", side(W), side(L), one, 1.0).item() == 0.0
    # The winner has risen: as DPO. The other way round it has fallen by 0.9: z = -0.48 - 5 * 0.2 * 0.9 = -1.38.
    assert pair_loss("dpo_positive", side(W), side(L), one, BETA).item() == pytest.approx(0.48167, abs=1e-5)
    assert pair_loss("dpo_positive", side(L), side(W), one, BETA).item() == pytest.approx(1.60441, abs=1e-5)
    assert pair_loss("rloo", side(W), side(L), one, BETA).item() == pytest.approx(0.91)  # -(1 - 0.48) / 2 * (-7.5 + 4)
    assert POSITIVE == 5


@pytest.mark.parametrize("name", LOSSES)
def test_reduction(name: str) -> None:
    one = torch.tensor([1.0])
    found = pair_loss(name, side(W), side(L), one, BETA, "mean").item()
    assert found == pytest.approx(by_hand(name, averaged(W), averaged(L)))
    assert found != pytest.approx(pair_loss(name, side(W), side(L), one, BETA, "sum").item())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_tie_averages_both_orientations(name: str, reduction: str) -> None:
    both = [pair_loss(name, side(W), side(L), torch.tensor([p]), BETA, reduction).item() for p in (1.0, 0.0, 0.5)]  # type: ignore[arg-type]
    assert both[2] == pytest.approx((both[0] + both[1]) / 2)


@pytest.mark.parametrize("name", LOSSES)
def test_batch_is_the_mean(name: str) -> None:
    rows = [(W, L, 1.0), (L, W, 1.0), (L, L, 0.5), (W, L, 0.0), (W, L, 0.3)]
    alone = [pair_loss(name, side(a), side(b), torch.tensor([p]), BETA).item() for a, b, p in rows]
    first, second, preference = zip(*rows, strict=True)
    together = pair_loss(name, side(*first), side(*second), torch.tensor(preference, dtype=torch.float64), BETA).item()
    assert together == pytest.approx(sum(alone) / 5, rel=1e-6)


def test_metrics_by_hand() -> None:
    """Three pairs at beta 0.2, log-ratios in nats (first, second): (1.5, -0.9) first preferred, (0.5, 1.0) first
    preferred, (2.0, -1.0) second preferred.
    """
    policy, reference = ([-4.0, -3.0, -5.0], [-7.5, -2.0, -6.0]), ([-5.5, -3.5, -7.0], [-6.6, -3.0, -5.0])
    lengths = torch.tensor([2.0, 4.0, 5.0])
    first, second = (
        LogProbs(torch.tensor(a, requires_grad=True), torch.tensor(b), lengths)
        for a, b in zip(policy, reference, strict=True)
    )
    metrics = preference_metrics(first, second, torch.tensor([1.0, 1.0, 0.0]), 0.2)
    assert {name: value.item() for name, value in metrics.items()} == {
        "rewards/chosen": pytest.approx(0.2 * (1.5 + 0.5 - 1.0) / 3),
        "rewards/rejected": pytest.approx(0.2 * (-0.9 + 1.0 + 2.0) / 3),
        "rewards/margins": pytest.approx(0.2 * (2.4 - 0.5 - 3.0) / 3),
        "rewards/accuracies": pytest.approx(1 / 3),
    }
    assert not any(value.requires_grad for value in metrics.values())
    averaged = preference_metrics(first, second, torch.tensor([1.0, 1.0, 0.0]), 0.2, "mean")
    assert averaged["rewards/chosen"].item() == pytest.approx(0.2 * (1.5 / 2 + 0.5 / 4 - 1.0 / 5) / 3)


def test_metrics_weigh_labels_and_halve_ties() -> None:
    """Log-ratios 1.5 and -0.9 at beta 0.2: rewards 0.3 and -0.18."""

    def metrics(first: LogProbs, second: LogProbs, label: float) -> list[float]:
        found = preference_metrics(first, second, torch.tensor([label]), BETA)
        return [found[f"rewards/{name}"].item() for name in ("chosen", "rejected", "margins", "accuracies")]

    assert metrics(side(W), side(L), 1.0) == pytest.approx([0.3, -0.18, 0.48, 1.0])
    assert metrics(side(L), side(W), 0.0) == pytest.approx([0.3, -0.18, 0.48, 1.0])
    assert metrics(side(W), side(L), 0.0) == pytest.approx([-0.18, 0.3, -0.48, 0.0])
    assert metrics(side(W), side(L), 0.75) == pytest.approx([0.18, -0.06, 0.24, 0.75])
    assert metrics(side(W), side(L), 0.5) == pytest.approx([0.06, 0.06, 0.0, 0.5])
    assert metrics(side(W), side(W), 1.0) == pytest.approx([0.3, 0.3, 0.0, 0.5])


def gradients(name: str, winner: float, loser: float) -> tuple[float, float]:
    a, b = (torch.tensor([value], requires_grad=True) for value in (winner, loser))
    zero, length = torch.tensor([0.0]), torch.tensor([1.0])
    pair_loss(name, LogProbs(a, zero, length), LogProbs(b, zero, length), torch.tensor([1.0]), 1.0).backward()
    return tuple(0.0 if value.grad is None else value.grad.item() for value in (a, b))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "winner", "loser"),
    [("ipo", -2.0, -2.0), ("dpo", -2.0, -2.0), ("hinge", -2.0, -2.0), ("ipo", -4.0, -1.0), ("dpo", -1.0, -4.0)],
)
def test_gradient_lifts_the_winner_and_sinks_the_loser(name: str, winner: float, loser: float) -> None:
    up, down = gradients(name, winner, loser)
    assert up < 0 < down
    assert up == pytest.approx(-down)


def test_gradients_beyond_the_target() -> None:
    assert gradients("ipo", -1.0, -2.0) == (pytest.approx(1.0), pytest.approx(-1.0))  # 2(z - 1/2) at z = 1: pulled back
    assert gradients("hinge", -1.0, -3.0) == (0.0, 0.0)
    assert gradients("best_of_2", -1.0, -3.0) == (pytest.approx(-1.0), 0.0)
    assert gradients("dpo", 0.0, 0.0) == (pytest.approx(-0.5), pytest.approx(0.5))


def test_dpo_positive_holds_a_fallen_winner_up() -> None:
    """A winner below the reference is pulled up six times as hard as the loser is pushed down; above it, alike."""
    up, down = gradients("dpo_positive", -2.0, -2.0)
    assert up == pytest.approx(-6 * down)
    up, down = gradients("dpo_positive", 2.0, 1.0)
    assert up == pytest.approx(-down)
    assert up == pytest.approx(gradients("dpo", 2.0, 1.0)[0])


ROWS = [(W, L, 1.0), (L, W, 1.0), (W, L, 0.0), (L, L, 0.5), (W, L, 0.5), (W, L, 0.3), (L, W, 0.85)]


def policy_gradients(
    name: str, beta: float, reduction: Reduction = "sum", rows: list[tuple[Any, Any, float]] = ROWS, sft: float = 0.0
) -> torch.Tensor:
    """d loss / d log pi of the first and the second responses, [2, n]."""
    first, second, preference = zip(*rows, strict=True)
    sides = [side(*first), side(*second)]
    live = [part.policy.clone().requires_grad_() for part in sides]
    a, b = (LogProbs(policy, part.reference, part.lengths) for policy, part in zip(live, sides, strict=True))
    label = torch.tensor(preference, dtype=torch.float64)
    return torch.stack(torch.autograd.grad(pair_loss(name, a, b, label, beta, reduction, sft), live))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("beta", [0.05, 0.2, 1.0])
def test_rloo_has_the_gradient_of_ipo_at_half_its_beta_up_to_a_factor(beta: float, reduction: Reduction) -> None:
    """RLOO at beta is IPO at beta / 2, divided by beta; hard labels, ties and probabilities alike."""
    ipo = policy_gradients("ipo", beta / 2, reduction)
    assert ipo.abs().max() > 0
    torch.testing.assert_close(policy_gradients("rloo", beta, reduction), ipo / beta)


def test_rloo_of_ipos_own_beta_is_another_gradient() -> None:
    rloo, ipo = (policy_gradients(name, BETA)[0] for name in ("rloo", "ipo"))
    assert (rloo / ipo)[[0, 1]].std() > 0.1


@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_rloo_is_the_leave_one_out_estimator(beta: float) -> None:
    """Ahmadian et al. 2024, equation 8, k = 2, written as it stands: ascent on the mean over samples of (reward minus
    the other's reward) times grad log pi, with reward = win - beta log-ratio; by autograd, on a policy's logits.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(5, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    drawn = torch.randint(0, 7, (5, 2), generator=generator)
    won = torch.tensor([1.0, 0.0, 0.5, 0.9, 0.2], dtype=torch.float64)

    log_pi = logits.log_softmax(-1).gather(1, drawn)
    ratio = (log_pi - reference.gather(1, drawn)).detach()
    objective = torch.zeros((), dtype=torch.float64)
    for row in range(5):
        rewards = [float(won[row]) - beta * float(ratio[row, 0]), 1 - float(won[row]) - beta * float(ratio[row, 1])]
        for k in (0, 1):
            objective = objective + (rewards[k] - rewards[1 - k]) * log_pi[row, k] / 2 / 5
    (expected,) = torch.autograd.grad(-objective, logits, retain_graph=True)

    sides = [LogProbs(log_pi[:, k], reference.gather(1, drawn)[:, k], torch.ones(5)) for k in (0, 1)]
    (found,) = torch.autograd.grad(pair_loss("rloo", *sides, won, beta), logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_sft_term_by_hand(name: str, reduction: Reduction) -> None:
    """Weight times the winner's negative log-likelihood a token, whatever the loss's own reduction."""

    def added(first: Any, second: Any, preference: float) -> float:
        label = torch.tensor([preference], dtype=torch.float64)
        with_it, without = (
            pair_loss(name, side(first), side(second), label, BETA, reduction, sft).item() for sft in (0.3, 0.0)
        )
        return with_it - without

    assert added(W, L, 1.0) == pytest.approx(0.3 * 7.5 / 6)
    assert added(L, W, 0.0) == pytest.approx(0.3 * 7.5 / 6)
    assert added(W, L, 0.0) == pytest.approx(0.3 * 4.0 / 3)
    assert added(W, L, 0.5) == pytest.approx(0.3 * (7.5 / 6 + 4.0 / 3) / 2)


def test_sft_term_lifts_the_winner_alone() -> None:
    plain, lifted = (policy_gradients("ipo", BETA, rows=[(W, L, 1.0)], sft=sft) for sft in (0.0, 0.3))
    assert (lifted - plain).flatten().tolist() == pytest.approx([-0.3 / 6, 0.0])


def test_unknown_loss() -> None:
    with pytest.raises(KeyError):
        pair_loss("ppo", side(W), side(L), torch.tensor([1.0]), BETA)


@pytest.mark.parametrize("module", [aligngap.losses, aligngap.train.loop, aligngap.train.step])
def test_never_reads_provenance(module: ModuleType) -> None:
    """A loss or a trainer that knows where its pairs come from breaks the comparison."""
    words = {
        getattr(node, key, None)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        for key in ("attr", "id", "arg", "value", "name")
    }
    assert "provenance" not in {word for word in words if isinstance(word, str)}


@pytest.mark.parametrize("given", [lambda *sides: sides[0].ratio.mean(), lambda *sides: 1.0])
def test_a_loss_that_is_no_number_a_pair_is_refused(given: Any) -> None:
    """Broadcasting would take it, and train on something else."""
    LOSSES["tried"] = given
    try:
        with pytest.raises(UserError, match=r"'tried' gives .* for 2 pairs") as caught:
            pair_loss("tried", side(W, L), side(L, W), torch.ones(2), BETA)
    finally:
        del LOSSES["tried"]
    assert "test_losses.py, line" in str(caught.value.where)


def test_losses_import_nothing_of_the_project_but_what_registers_them() -> None:
    nodes = ast.walk(ast.parse(inspect.getsource(aligngap.losses)))
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
    ours = {name for name in names if name.startswith(("aligngap", "."))}
    assert ours == {"aligngap.plugins", "aligngap.errors"}
