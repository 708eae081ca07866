"""Losses against arithmetic written out by hand."""

from __future__ import annotations

import ast
import inspect
import math
from types import ModuleType

import pytest
import torch

import aligngap.losses
import aligngap.train.loop
import aligngap.train.step
import aligngap.train.supervised
from aligngap.losses import LOSSES, LogProbs, margin, pair_loss
from aligngap.train.loop import LossSpec

# Two responses, summed log-probabilities: winner 6 tokens, loser 3 tokens.
W, L = (-7.5, -9.0, 6.0), (-4.0, -3.1, 3.0)
BETA = 0.2
DELTA = (-7.5 + 9.0) - (-4.0 + 3.1)  # 1.5 + 0.9 = 2.4
MEAN_DELTA = (-7.5 + 9.0) / 6 - (-4.0 + 3.1) / 3  # 0.25 + 0.3 = 0.55


def side(*rows: tuple[float, float, float]) -> LogProbs:
    return LogProbs(*(torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)))


def by_hand(name: str, delta: float, winner: float) -> float:
    z = BETA * delta
    return {
        "ipo": z * z - z + 0.25,
        "dpo": math.log(1 + math.exp(-z)),
        "hinge": 1 - z if z < 1 else 0.0,
        "best_of_2": -winner,
    }[name]


def test_every_loss_is_checked_here() -> None:
    assert set(LOSSES) == {"ipo", "dpo", "hinge", "best_of_2"}
    for name in LOSSES:
        assert LossSpec(name=name).name == name


def test_margin() -> None:
    assert margin(side(W), side(L)).item() == pytest.approx(2.4)


@pytest.mark.parametrize("name", LOSSES)
def test_winner_and_loser(name: str) -> None:
    expected = by_hand(name, DELTA, W[0])
    assert pair_loss(name, side(W), side(L), torch.tensor([1.0]), BETA).item() == pytest.approx(expected)
    assert pair_loss(name, side(L), side(W), torch.tensor([0.0]), BETA).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_wrong_way_round(name: str) -> None:
    expected = by_hand(name, -DELTA, L[0])
    assert pair_loss(name, side(W), side(L), torch.tensor([0.0]), BETA).item() == pytest.approx(expected)
    assert expected != pytest.approx(by_hand(name, DELTA, W[0]))


def test_three_values_to_the_digit() -> None:
    one = torch.tensor([1.0])
    assert pair_loss("ipo", side(W), side(L), one, BETA).item() == pytest.approx(0.0004)  # (0.48 - 0.5)^2
    assert pair_loss("dpo", side(W), side(L), one, BETA).item() == pytest.approx(0.48167, abs=1e-5)  # log(1 + 0.61878)
    assert pair_loss("hinge", side(W), side(L), one, BETA).item() == pytest.approx(0.52)
    assert pair_loss("hinge", side(W), side(L), one, 1.0).item() == 0.0


@pytest.mark.parametrize("name", LOSSES)
def test_reduction(name: str) -> None:
    one = torch.tensor([1.0])
    averaged = pair_loss(name, side(W), side(L), one, BETA, "mean").item()
    assert averaged == pytest.approx(by_hand(name, MEAN_DELTA, W[0] / 6))
    assert averaged != pytest.approx(pair_loss(name, side(W), side(L), one, BETA, "sum").item())


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


def test_losses_import_nothing_of_the_project() -> None:
    imports = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(aligngap.losses)))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = [node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
    assert not [name for name in names if name.startswith(("aligngap", "."))]
