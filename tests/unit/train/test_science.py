"""On a policy that is a table, training must end where theory says.

IPO's population loss with labels from p is, for pairs drawn independently from mu and g = log pi/pi_sft,

    E[p (beta D - 1/2)^2 + (1 - p) (-beta D - 1/2)^2] = E[(beta D)^2] - E[(2p - 1) beta D] + 1/4,   D = g(y) - g(y').

By symmetry E[D^2] = 2 Var_mu(g) and E[(2p(y > y') - 1) D] = 2 E_mu[(2 p(y > mu) - 1) g(y)], so at the minimum, for
every y in mu's support, g(y) - E_mu[g] = (2 p(y > mu) - 1) / (2 beta): pi* is proportional to
pi_sft exp(p(y > mu) / beta) (Azar et al. 2023; Tang et al. 2024, appendix H). Online, mu is pi itself: the fixed point
is pi proportional to pi_sft exp(p(y > pi) / beta).
"""

from __future__ import annotations

import itertools

import pytest
import torch

from aligngap.sources.base import Ingredients
from aligngap.sources.order import uniform
from aligngap.sources.recorded import Recorded
from aligngap.sources.sampled import SampledSpec
from aligngap.train.loop import LossSpec, batch_loss, train
from aligngap.train.step import OptimSpec
from aligngap.types import PairBatch
from fakes import END, ScriptedJudge, TablePolicy, pairs_of, prompts_of

PROMPT = [1, 5]
RESPONSES = [[3, END], [4, END], [3, 4, END], [4, 4, END]]
SFT = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
MU = torch.tensor([0.1, 0.2, 0.6, 0.1], dtype=torch.float64)
BETA = 0.4
# P[i, j]: probability that response i is preferred to j. No utility gives it (0 beats 1 beats 2 beats 0), so the answer
# hangs on mu.
P = torch.tensor(
    [[0.5, 0.95, 0.05, 0.6], [0.05, 0.5, 0.95, 0.3], [0.95, 0.05, 0.5, 0.7], [0.4, 0.7, 0.3, 0.5]], dtype=torch.float64
)


def table(probabilities: torch.Tensor = SFT) -> TablePolicy:
    return TablePolicy([PROMPT], RESPONSES, probabilities.log()[None])


def now(policy: TablePolicy) -> torch.Tensor:
    return policy.table.detach()[0].exp()


def closed_form(mu: torch.Tensor, beta: float = BETA) -> torch.Tensor:
    return (SFT.log() + P @ mu / beta).softmax(0)


def fixed_point(beta: float = BETA) -> torch.Tensor:
    pi = SFT
    for _ in range(2000):
        pi = (0.9 * pi.log() + 0.1 * closed_form(pi, beta).log()).softmax(0)
    torch.testing.assert_close(pi, closed_form(pi, beta))
    return pi


def pair(i: int, j: int, preference: float) -> PairBatch:
    return pairs_of([PROMPT], [RESPONSES[i]], [RESPONSES[j]], [preference])


PAIRS = [(i, j, pair(i, j, P[i, j].item())) for i, j in itertools.combinations(range(4), 2)]


def expected_loss(policy: TablePolicy, reference: TablePolicy, mu: torch.Tensor, spec: LossSpec) -> torch.Tensor:
    """Exact expectation over both responses from mu, by the trainer's `batch_loss`; equal ones add a constant only."""
    losses = [2 * mu[i] * mu[j] * batch_loss(policy, reference, batch, spec) for i, j, batch in PAIRS]
    return torch.stack(losses).sum()


def test_preferences_are_preferences() -> None:
    torch.testing.assert_close(P + P.T, torch.ones(4, 4, dtype=torch.float64))


def test_offline_ipo_ends_at_its_closed_form() -> None:
    """mu of full support as pairs repeated in proportion to it; soft preferences; plain gradient steps."""
    counts = (MU * 10).round().int().tolist()
    drawn = [k for k, count in enumerate(counts) for _ in range(count)]
    rows = list(itertools.product(drawn, drawn))
    first, second = zip(*rows, strict=True)
    batch = pairs_of(
        [PROMPT] * 100, [RESPONSES[i] for i in first], [RESPONSES[j] for j in second], [P[i, j].item() for i, j in rows]
    )
    policy, reference = table(), table()
    optimiser = torch.optim.LBFGS(
        policy.model.parameters(), lr=0.5, max_iter=100, tolerance_grad=1e-10, tolerance_change=1e-14
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = batch_loss(policy, reference, batch, LossSpec(beta=BETA))
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    torch.testing.assert_close(now(policy), closed_form(MU), atol=1e-5, rtol=1e-4)
    # It is mu's answer, not another's.
    assert (closed_form(MU) - closed_form(SFT)).abs().max() > 0.1
    assert (closed_form(MU) - SFT).abs().max() > 0.1


@pytest.mark.parametrize("beta", [0.4, 0.8])
def test_online_ipo_ends_at_its_fixed_point(beta: float) -> None:
    policy, reference = table(), table()
    optimiser = torch.optim.Adam(policy.model.parameters(), lr=0.05)
    for _ in range(250):
        optimiser.zero_grad()
        expected_loss(policy, reference, now(policy), LossSpec(beta=beta)).backward()
        optimiser.step()
    torch.testing.assert_close(now(policy), fixed_point(beta), atol=2e-3, rtol=1e-2)
    assert (fixed_point(beta) - closed_form(SFT, beta)).abs().max() > 0.01  # one step of best response is not it


def test_no_step_is_taken_at_the_fixed_points() -> None:
    """Where theory says training ends the gradient is nil; elsewhere it is not."""
    for at, mu in ((closed_form(MU), MU), (fixed_point(), fixed_point())):
        gradients = []
        for start in (at, SFT):
            policy = table(start)
            expected_loss(policy, table(), mu, LossSpec(beta=BETA)).backward()
            gradients.append(policy.model.logits.grad.abs().max().item())  # type: ignore[union-attr]
        assert gradients[0] < 1e-6
        assert gradients[1] > 1e-2


SCORES = {tuple(response): score for response, score in zip(RESPONSES, (0.0, 1.0, 1.0, 3.0), strict=True)}


def test_the_real_loop_and_sources_end_there_too() -> None:
    """Sampled and judged, trained by `train`: near the online fixed point. Recorded from mu: near its closed form."""
    decided = torch.tensor(
        [[(1 + (a > b) - (a < b)) / 2 for b in SCORES.values()] for a in SCORES.values()], dtype=torch.float64
    )
    beta, mu = 0.4, torch.tensor([0.1, 0.1, 0.2, 0.6], dtype=torch.float64)

    def answer(against: torch.Tensor) -> torch.Tensor:
        return (SFT.log() + decided @ against / beta).softmax(0)

    optim = OptimSpec(lr=0.05, steps=200, batch=128, warmup_steps=0, schedule="cosine")
    judge = ScriptedJudge(lambda prompt, response: SCORES[response])
    source = SampledSpec().build(Ingredients(0, 128, prompts_of([PROMPT] * 128), judge))
    policy = table()
    train(policy, table(), source, LossSpec(beta=beta), optim, keep=(), save_policy=lambda step, p: None)
    target = SFT
    for _ in range(500):
        target = (target + answer(target)) / 2
    online = now(policy)

    drawn = (
        torch.multinomial(mu, 4000, replacement=True, generator=torch.Generator().manual_seed(0)).view(2, -1).tolist()
    )
    labels = [decided[i, j].item() for i, j in zip(*drawn, strict=True)]
    recorded = pairs_of([PROMPT] * 2000, *([RESPONSES[k] for k in side] for side in drawn), labels)
    policy = table()
    train(
        policy,
        table(),
        Recorded(recorded, uniform("t")),
        LossSpec(beta=beta),
        optim,
        keep=(),
        save_policy=lambda step, p: None,
    )
    offline = now(policy)

    assert (online - target).abs().max() < 0.02
    assert (offline - answer(mu)).abs().max() < 0.02
    assert (target - answer(mu)).abs().max() > 0.03  # the two answers differ by more than the tolerance
    assert (target - SFT).abs().max() > 0.1
