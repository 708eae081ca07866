"""The closed form against brute force, what training reaches of it, the stage, and the rule on made-up tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from aligngap.experiments import theory
from aligngap.experiments.base import Analysis, TaskData
from aligngap.experiments.spec import AnalysisSpec
from aligngap.experiments.theory.measure import (
    ClosedForm,
    Enumerated,
    closed_form,
    measured,
    tabular,
    wide_and_narrow,
)
from aligngap.losses import LogProbs, ipo, pair_loss
from aligngap.sources.order import in_sequence
from aligngap.sources.recorded import Recorded
from aligngap.train.loop import LossSpec, batch_loss, train
from aligngap.train.step import OptimSpec
from aligngap.types import Tokens
from fakes import TablePolicy, likes_token, prompts_of, tiny_policy
from tiny import STEPS, Tiny

K = 5


def problem(seed: int, size: int = K) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log pi_sft, P with ties and cycles, and a mu of full support."""
    g = torch.Generator().manual_seed(seed)
    log_sft = torch.randn(size, generator=g, dtype=torch.float64).log_softmax(-1)
    upper = torch.randint(0, 3, (size, size), generator=g).double().triu(1) / 2
    wins = upper + (1 - upper).T.tril(-1) + 0.5 * torch.eye(size, dtype=torch.float64)
    mu = torch.randn(size, generator=g, dtype=torch.float64).softmax(-1)
    return log_sft, wins, mu


def every_pair(size: int = K) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return first.flatten(), second.flatten()


def one_sided(log_policy: torch.Tensor, log_sft: torch.Tensor, index: torch.Tensor) -> LogProbs:
    return LogProbs(log_policy[index], log_sft[index], torch.ones(len(index)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_closed_form_is_the_minimiser_of_the_population_loss(seed: int, beta: float) -> None:
    log_sft, wins, mu = problem(seed)
    first, second = every_pair()
    weight, label = mu[first] * mu[second], wins[first, second]

    def population(logits: torch.Tensor) -> torch.Tensor:
        log_policy = logits.log_softmax(-1)
        a, b = (one_sided(log_policy, log_sft, index) for index in (first, second))
        return (weight * (label * ipo(a, b, beta) + (1 - label) * ipo(b, a, beta))).sum()

    logits = log_sft.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [logits], max_iter=1000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        search.zero_grad()
        loss = population(logits)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    found = closed_form(log_sft, wins @ mu, beta)
    torch.testing.assert_close(found, logits.detach().log_softmax(-1), atol=1e-5, rtol=0)
    at_rest = found.clone().requires_grad_()
    population(at_rest).backward()  # type: ignore[no-untyped-call]
    assert at_rest.grad is not None
    assert float(at_rest.grad.abs().max()) < 1e-12


def test_theory_predicts_an_improvement_over_the_sft_policy_as_mu() -> None:
    for seed in range(20):
        log_sft, wins, _ = problem(seed)
        mu = log_sft.exp()
        assert measured(closed_form(log_sft, wins @ mu, 0.1), log_sft, wins, mu)["over_mu"] >= -1e-12


def test_a_table_that_sees_every_pair_once_is_the_closed_form_of_uniform_mu() -> None:
    log_sft, wins, _ = problem(1)
    first, second = every_pair()
    mu = torch.full((K,), 1 / K, dtype=torch.float64)
    found = tabular(log_sft, first, second, wins[first, second], 0.1)
    torch.testing.assert_close(found, closed_form(log_sft, wins @ mu, 0.1), atol=1e-9, rtol=0)


def test_a_table_converges_to_the_closed_form_with_the_number_of_pairs() -> None:
    log_sft, wins, mu = problem(2)
    target = closed_form(log_sft, wins @ mu, 0.2).exp()
    rng = np.random.default_rng(0)

    def error(count: int) -> float:
        first, second = (torch.from_numpy(rng.choice(K, size=count, p=mu.numpy())) for _ in range(2))
        return float((tabular(log_sft, first, second, wins[first, second], 0.2).exp() - target).abs().max())

    assert error(20_000) < 0.02
    assert np.mean([error(20_000) for _ in range(5)]) < np.mean([error(50) for _ in range(5)]) / 3


@pytest.mark.parametrize("support", [[0, 1, 2, 3, 4], [1, 3]])
def test_a_table_is_where_gradient_descent_ends(support: list[int]) -> None:
    log_sft, wins, _ = problem(3)
    first, second = (torch.tensor(support)[index] for index in every_pair(len(support)))
    label = wins[first, second]
    logits = log_sft.clone().requires_grad_()
    descent = torch.optim.SGD([logits], lr=0.8)
    for _ in range(600):
        descent.zero_grad()
        log_policy = logits.log_softmax(-1)
        sides = (one_sided(log_policy, log_sft, index) for index in (first, second))
        pair_loss("ipo", *sides, label, 0.5).backward()  # type: ignore[no-untyped-call]
        descent.step()
    found = tabular(log_sft, first, second, label, 0.5)
    torch.testing.assert_close(found, logits.detach().log_softmax(-1), atol=1e-6, rtol=0)
    ratio = found - log_sft
    rest = [k for k in range(K) if k not in support]
    assert torch.allclose(ratio[rest], ratio[rest[:1]].expand(len(rest)))  # what mu never says keeps its proportions


def test_no_pairs_leave_the_table_as_it_was() -> None:
    log_sft, wins, _ = problem(4)
    none = torch.empty(0, dtype=torch.int64)
    torch.testing.assert_close(tabular(log_sft, none, none, wins[none, none], 0.1), log_sft)


def test_wide_is_uniform_and_narrow_keeps_the_likeliest() -> None:
    mus = wide_and_narrow(torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64).log(), 2)
    assert mus["wide"].tolist() == [0.25] * 4
    torch.testing.assert_close(mus["narrow"], torch.tensor([0.0, 4 / 7, 3 / 7, 0.0], dtype=torch.float64))
    assert len(wide_and_narrow(torch.zeros(2).log_softmax(-1), 3)["narrow"]) == 2


def test_measures_of_a_policy_by_hand() -> None:
    wins = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64)
    log_policy, log_sft = torch.tensor([[0.8, 0.2], [0.5, 0.5]], dtype=torch.float64).log()
    mu = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = measured(log_policy, log_sft, wins, mu)
    assert found["over_mu"] == pytest.approx(0.8 * 1.0 + 0.2 * 0.5 - 0.5)
    assert found["over_sft"] == pytest.approx(0.8 * 0.75 + 0.2 * 0.25 - 0.5)
    assert found["kl"] == pytest.approx(0.8 * np.log(1.6) + 0.2 * np.log(0.4))


PROMPTS, RESPONSES = [[1, 3], [1, 4], [1, 5]], [[3, 2], [4, 4, 2], [4, 2], [5, 2], [3, 4, 4, 4]]


def enumerated(drop: int = 0) -> Enumerated:
    """Three prompts; the last has `drop` responses fewer."""
    prompts = prompts_of(PROMPTS)
    rows = [RESPONSES, RESPONSES, RESPONSES[: K - drop]]
    numbers = torch.tensor([prompt.number for prompt in prompts])
    return Enumerated.of(numbers, Tokens.collate(PROMPTS), rows)


def test_golden_is_asked_once_for_each_pair() -> None:
    judge = likes_token(4)
    tables = enumerated(drop=2).wins(judge)
    assert [table.shape[0] for table in tables] == [5, 5, 3]
    assert judge.calls == 10 + 10 + 3
    counts = torch.tensor([row.count(4) for row in RESPONSES]).double()
    for table in tables:
        size = len(table)
        truth = ((counts[:size, None] - counts[None, :size]).sign() + 1) / 2
        assert torch.equal(table, truth)


def test_pairs_are_drawn_from_mu_and_labelled_by_the_table() -> None:
    place = enumerated(drop=2)
    wins = place.wins(likes_token(4))
    mus = [torch.tensor(mu, dtype=torch.float64) for mu in ([0.2] * 5, [0.0, 0.5, 0.0, 0.5, 0.0], [0.1, 0.2, 0.7])]
    owner = torch.arange(3).repeat(4000)
    pairs, preference = place.drawn(mus, wins, owner, np.random.default_rng(0))
    batch = place.batch(owner, pairs, preference, "test")
    for number, mu in enumerate(mus):
        here = owner == number
        for side in pairs:
            share = torch.bincount(side[here], minlength=len(mu)) / here.sum()
            assert torch.allclose(share.double(), mu, atol=0.03)
    asked = likes_token(4).prefer(batch.prompts, batch.first, batch.second)
    assert torch.equal(batch.preference, asked)
    assert [tuple(row) for row in batch.prompts.rows()[:3]] == [tuple(row) for row in PROMPTS]


def test_ipo_on_enumerated_pairs_is_ipo_on_the_restriction() -> None:
    """A real language model: the normaliser of the restriction cancels in the loss."""
    place = enumerated()
    policy, reference = tiny_policy(8, seed=0), tiny_policy(8, seed=1)
    owner = torch.arange(3).repeat(10)
    mus = [torch.full((K,), 0.2, dtype=torch.float64)] * 3
    pairs, preference = place.drawn(mus, place.wins(likes_token(4)), owner, np.random.default_rng(0))
    batch = place.batch(owner, pairs, preference, "test")
    whole = batch_loss(policy, reference, batch, LossSpec(beta=0.1))
    live, fixed = (torch.stack([row.log_softmax(-1) for row in place.log_probs(p)]) for p in (policy, reference))
    sides = (LogProbs(live[owner, side], fixed[owner, side], torch.ones(len(owner))) for side in pairs)
    restricted = pair_loss("ipo", *sides, preference, 0.1)
    assert float(whole.detach()) == pytest.approx(float(restricted), rel=1e-4)


def test_training_on_wide_pairs_comes_to_the_closed_form() -> None:
    """The project's own loop on a policy that is a table."""
    place = enumerated()
    logits = torch.randn(3, K, generator=torch.Generator().manual_seed(0))
    policy, reference = (TablePolicy(PROMPTS, RESPONSES, logits) for _ in range(2))
    wins, mu = place.wins(likes_token(4)), torch.full((K,), 1 / K, dtype=torch.float64)
    owner = torch.arange(3).repeat(2000)
    pairs, preference = place.drawn([mu] * 3, wins, owner, np.random.default_rng(0))
    source = Recorded(place.batch(owner, pairs, preference, "test"), in_sequence)
    optim = OptimSpec(lr=0.05, steps=60, batch=100, warmup_steps=0)
    train(policy, reference, source, LossSpec(beta=0.5), optim, keep=(), save_policy=lambda step, p: None)
    for number, after in enumerate(place.log_probs(policy)):
        target = closed_form(logits[number].double().log_softmax(-1), wins[number] @ mu, 0.5)
        assert torch.allclose(after.exp(), target.exp(), atol=0.03)
        assert not torch.allclose(target.exp(), logits[number].double().softmax(-1), atol=0.06)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """The stage and all it stands on, real but tiny."""
    tiny = Tiny(tmp_path_factory.mktemp("theory"))
    (entry,) = theory.EXPERIMENT.measures(tiny.bench)
    assert (entry.name, entry.seed) == ("theory", 0)
    stage = ClosedForm(**{**dict(entry.stage), "prompts": 3, "responses": 6, "support": 2})
    for parent in stage.parents:
        tiny.made(parent)
    seen: list[tuple[int, int]] = []
    with tiny.store.writing(stage.identity, {"kind": stage.kind}) as out:
        stage.run(replace(tiny.context(stage, out), progress=lambda done, total, _: seen.append((done, total))))
    assert seen == [(step, 2 * STEPS) for step in range(1, 2 * STEPS + 1)]
    return pl.read_parquet(tiny.store.get(stage.identity).path / "table.parquet")


def test_stage_measures_every_policy_on_every_prompt(table: pl.DataFrame) -> None:
    assert len(table) == 3 * 2 * 4
    assert table["prompt_number"].n_unique() == 3
    assert (table["kl"] > -1e-9).all()
    assert table["over_mu"].is_between(-0.5, 0.5).all()
    on_whole = table.filter(pl.col("method").is_in(["sft", "trained"]))
    assert on_whole["mass"].is_between(0, 1).all()
    assert table["mass"].null_count() == len(table) - len(on_whole)


def test_stage_starts_at_sft_and_trains_on_either_mu(table: pl.DataFrame) -> None:
    sft, trained = (table.filter(pl.col("method") == method) for method in ("sft", "trained"))
    assert sft["kl"].abs().max() < 1e-12  # type: ignore[operator]
    assert sft["over_sft"].abs().max() < 1e-12  # type: ignore[operator]
    assert (trained.group_by("mu").agg(pl.col("kl").max())["kl"] > 1e-3).all()
    # The same responses and SFT policy under either mu; other pairs, hence another policy.
    wide, narrow = (trained.filter(pl.col("mu") == mu) for mu in ("wide", "narrow"))
    assert wide["prompt_number"].to_list() == narrow["prompt_number"].to_list()
    assert wide["kl"].to_list() != narrow["kl"].to_list()
    assert sft["mass"].to_list()[:3] == sft["mass"].to_list()[3:]


def analysed(means: dict[tuple[str, str], float], seeds: int = 5, prompts: int = 40) -> Analysis:
    """From tables in which every policy's improvement over mu is as given, up to the prompts' own luck."""
    tables = {}
    for seed in range(seeds):
        luck = 0.05 * np.random.default_rng(seed).standard_normal(prompts)
        parts = [
            pl.DataFrame(
                {
                    "prompt_number": np.arange(prompts),
                    "mu": mu,
                    "method": method,
                    "over_mu": mean + luck,
                    "over_sft": mean + luck,
                    "kl": 1.0,
                    "mass": 0.5 if method in ("sft", "trained") else None,
                },
                schema_overrides={"mass": pl.Float64},
            )
            for (mu, method), mean in means.items()
        ]
        tables["theory", seed] = pl.concat(parts)
    return theory.EXPERIMENT.analyse(TaskData("summarisation", AnalysisSpec(replicates=200), [], tables))


def improvements(narrow: tuple[float, float], wide: tuple[float, float]) -> dict[tuple[str, str], float]:
    """(closed form, trained) for either mu."""
    found = {}
    for mu, (theory_says, reached) in (("narrow", narrow), ("wide", wide)):
        found |= {
            (mu, "sft"): 0.0,
            (mu, "closed_form"): theory_says,
            (mu, "tabular"): reached,
            (mu, "trained"): reached,
        }
    return found


@pytest.mark.parametrize(
    ("narrow", "wide", "verdict"),
    [
        ((0.4, 0.0), (0.4, 0.38), "supported"),
        ((0.4, -0.2), (0.4, 0.38), "supported"),
        ((0.4, 0.35), (0.4, 0.38), "contradicted"),
        ((0.4, 0.35), (0.4, 0.0), "contradicted"),  # the control is for a shortfall, and there is none
        ((0.4, 0.0), (0.4, 0.1), "inconclusive"),  # training fell short with support, too
        ((0.4, 0.2), (0.4, 0.38), "inconclusive"),  # just half
        ((-0.1, -0.3), (0.4, 0.38), "inconclusive"),  # theory promises nothing to be missed
    ],
)
def test_rule(narrow: tuple[float, float], wide: tuple[float, float], verdict: str) -> None:
    found = analysed(improvements(narrow, wide))
    assert found.verdict == verdict
    assert next(iter(found.estimates)) == "excess_narrow"
    assert found.estimates["excess_narrow"].estimate.value == pytest.approx(narrow[1] - narrow[0] / 2, abs=0.03)


def test_nothing_is_concluded_from_no_table() -> None:
    found = theory.EXPERIMENT.analyse(TaskData("summarisation", AnalysisSpec(replicates=200), []))
    assert found.verdict == "inconclusive"
    assert np.isnan(found.estimates["excess_narrow"].estimate.value)
    assert found.estimates["excess_narrow"].estimate.n_prompts == 0
    assert all(not figure.points for figure in found.figures)


def test_a_table_without_training_concludes_nothing() -> None:
    whole = improvements((0.4, 0.0), (0.4, 0.38))
    found = analysed({key: value for key, value in whole.items() if key[1] != "trained"})
    assert found.verdict == "inconclusive"
    assert found.estimates["over_mu_narrow_closed_form"].estimate.value == pytest.approx(0.4, abs=0.03)


def test_one_seed_says_what_its_interval_covers() -> None:
    found = analysed(improvements((0.4, 0.0), (0.4, 0.38)), seeds=1)
    assert "covers the 40 prompts only" in found.sentence
    assert "1 seed" in found.estimates["excess_narrow"].estimate.note


def test_figures_show_every_policy_for_either_mu() -> None:
    figures = {figure.name: figure for figure in analysed(improvements((0.4, 0.0), (0.4, 0.38))).figures}
    assert len(figures["over_mu"].points) == 8
    assert len(figures["mass"].points) == 4
    assert {point.series for point in figures["over_mu"].points} == {"narrow mu", "wide mu"}
