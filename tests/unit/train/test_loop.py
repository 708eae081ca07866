"""The one loop: it repeats, resumes, refuses to diverge, and sees nothing of a source but its pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from aligngap.losses import LogProbs, pair_loss
from aligngap.models.policy import Policy
from aligngap.sources.base import Ingredients, PairSource
from aligngap.sources.mixture import MixtureSpec
from aligngap.sources.order import in_sequence, uniform
from aligngap.sources.recorded import Recorded, RecordedSpec
from aligngap.sources.recording import Recording
from aligngap.sources.sampled import SampledSpec
from aligngap.tasks.pairs import read_pairs, write_pairs
from aligngap.train.checkpoint import Checkpointer
from aligngap.train.loop import LossSpec, batch_loss, train
from aligngap.train.step import Diverged, Optimiser, OptimSpec
from aligngap.types import PairBatch, Tokens
from fakes import likes_token, pairs_of, prompts_of, random_pairs, same_weights, tiny_policy, weights_of

VOCABULARY, LIMIT = 8, 4
PAIRS = random_pairs(0, 21, VOCABULARY, LIMIT)
OPTIM = OptimSpec(lr=0.02, steps=7, batch=4, warmup_steps=2, schedule="cosine", weight_decay=0.01)
LOSS = LossSpec(beta=0.1)
METRICS = ("chosen", "rejected", "margins", "accuracies")


def policy_and_reference() -> tuple[Policy, Policy]:
    policy = tiny_policy(VOCABULARY, 0, LIMIT, layers=1)
    return policy, policy.frozen_copy()


def online(seed: int = 0) -> Recording:
    return Recording(SampledSpec().build(Ingredients(seed, 4, prompts_of(PAIRS.prompts.rows()), likes_token(3))))


def go(
    source: PairSource,
    *,
    optim: OptimSpec = OPTIM,
    loss: LossSpec = LOSS,
    keep: tuple[int, ...] = (),
    checkpointer: Checkpointer | None = None,
    stop_at: int | None = None,
) -> tuple[Policy, dict[int, list[torch.Tensor]], list[Mapping[str, float]]]:
    policy, reference = policy_and_reference()
    kept: dict[int, list[torch.Tensor]] = {}
    seen: list[Mapping[str, float]] = []

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        seen.append({"done": done, "total": total, **metrics})
        if done == stop_at:
            raise KeyboardInterrupt

    train(
        policy, reference, source, loss, optim,
        keep=keep, save_policy=lambda step, p: kept.update({step: weights_of(p)}),
        checkpointer=checkpointer, progress=progress,
    )  # fmt: skip
    return policy, kept, seen


def test_steps_and_kept_policies() -> None:
    policy, kept, seen = go(online(), keep=(0, 3, 7))
    assert list(kept) == [0, 3, 7]
    assert same_weights(kept[0], weights_of(policy_and_reference()[0]))
    assert same_weights(kept[7], weights_of(policy))
    assert not same_weights(kept[0], kept[3])
    assert [(m["done"], m["total"]) for m in seen] == [(step, 7) for step in range(1, 8)]
    assert seen[0]["loss"] == pytest.approx(0.25, abs=1e-4)  # policy = reference: IPO is (0 - 1/2)^2, for a tie too
    assert all(m["grad_norm"] > 0 for m in seen)
    # Policy = reference: no response is more rewarded than the other.
    assert seen[0]["rewards/accuracies"] == 0.5
    assert max(abs(seen[0][f"rewards/{name}"]) for name in ("chosen", "rejected", "margins")) < 1e-4


def test_progress_reports_the_metrics_of_the_batch_before_its_step() -> None:
    """Against log-probabilities scored one by one; the second step's, when policy and reference differ."""
    one, two = (OPTIM.model_copy(update={"steps": steps}) for steps in (1, 2))
    policy, _, _ = go(Recorded(PAIRS, in_sequence), optim=one)
    _, _, seen = go(Recorded(PAIRS, in_sequence), optim=two)
    _, reference = policy_and_reference()
    with torch.no_grad():
        batch = PAIRS.take(torch.arange(4, 8))
        rewards = [
            LOSS.beta
            * torch.cat(
                [
                    policy.log_probs(pair.prompts, [getattr(pair, side)])[0]
                    - reference.log_probs(pair.prompts, [getattr(pair, side)])[0]
                    for pair in (batch.take(torch.tensor([row])) for row in range(4))
                ]
            )
            for side in ("first", "second")
        ]
    won = batch.preference
    chosen = [float(won[row] * rewards[0][row] + (1 - won[row]) * rewards[1][row]) for row in range(4)]
    rejected = [float(won[row] * rewards[1][row] + (1 - won[row]) * rewards[0][row]) for row in range(4)]
    assert max(map(abs, chosen)) > 1e-3
    assert seen[1]["rewards/chosen"] == pytest.approx(sum(chosen) / 4, abs=1e-5)
    assert seen[1]["rewards/rejected"] == pytest.approx(sum(rejected) / 4, abs=1e-5)
    assert seen[1]["rewards/margins"] == pytest.approx((sum(chosen) - sum(rejected)) / 4, abs=1e-5)
    assert list(seen[1]) == ["done", "total", "loss", *(f"rewards/{name}" for name in METRICS), "grad_norm"]


class Spied(Recorded):
    """Notes what the loop asks of it, and the weights it is shown."""

    def __init__(self, pairs: PairBatch) -> None:
        super().__init__(pairs, in_sequence)
        self.calls: list[str | int] = []
        self.shown: list[list[torch.Tensor]] = []

    def next_batch(self, n: int) -> PairBatch:
        self.calls.append("batch")
        return super().next_batch(n)

    def observe(self, step: int, policy: Policy) -> None:
        self.calls.append(step)
        self.shown.append(weights_of(policy))


def test_a_source_observes_step_0_and_the_weights_after_every_step() -> None:
    spied = Spied(PAIRS)
    _, kept, _ = go(spied, keep=tuple(range(8)))
    assert spied.calls == [0, *(call for step in range(1, 8) for call in ("batch", step))]
    assert all(same_weights(kept[step], spied.shown[step]) for step in range(8))


def test_first_step_is_one_adamw_step_on_the_batch_loss() -> None:
    policy, reference = policy_and_reference()
    optim = OPTIM.model_copy(update={"steps": 1, "max_grad_norm": 0.5})
    batch = PAIRS.take(torch.arange(4))
    found = weights_of(go(Recorded(PAIRS, in_sequence), optim=optim)[0])
    adam = torch.optim.AdamW(policy.model.parameters(), lr=0.02 / 3, weight_decay=0.01)  # first of two warm-up steps
    batch_loss(policy, reference, batch, LOSS).backward()
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 0.5)
    adam.step()
    for a, b in zip(found, weights_of(policy), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["ipo", "dpo", "hinge", "best_of_2"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_batch_loss_is_the_loss_of_the_scored_pairs(name: str, reduction: str) -> None:
    policy, reference = tiny_policy(VOCABULARY, 0, LIMIT), tiny_policy(VOCABULARY, 1, LIMIT)
    spec = LossSpec.model_validate({"name": name, "beta": 0.3, "reduction": reduction})
    with torch.no_grad():
        sides = [
            LogProbs(*(model.log_probs(PAIRS.prompts, [part])[0] for model in (policy, reference)), part.lengths)
            for part in (PAIRS.first, PAIRS.second)
        ]
        expected = pair_loss(name, *sides, PAIRS.preference, 0.3, reduction)  # type: ignore[arg-type]
        found = batch_loss(policy, reference, PAIRS, spec)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_the_reference_takes_no_gradient_and_stays() -> None:
    policy, reference = tiny_policy(VOCABULARY, 0, LIMIT), tiny_policy(VOCABULARY, 1, LIMIT)
    batch_loss(policy, reference, PAIRS, LOSS).backward()
    assert all(weight.grad is None for weight in reference.model.parameters())
    assert any(weight.grad is not None for weight in policy.model.parameters())


def test_same_seed_repeats_and_seed_changes() -> None:
    one, again, other = (weights_of(go(online(seed))[0]) for seed in (0, 0, 1))
    assert same_weights(one, again)
    assert not same_weights(one, other)


@pytest.mark.parametrize("name", ["ipo", "dpo", "hinge", "best_of_2"])
def test_replay_in_exact_order_is_the_online_run(name: str, tmp_path: Path) -> None:
    """Tandem (appendix F): through the file that replay arms read, bit for bit, at every step."""
    loss = LossSpec.model_validate({"name": name})
    recorded = online()
    live, kept, _ = go(recorded, loss=loss, keep=(1, 4))
    write_pairs(recorded.stream(), tmp_path / "stream.parquet")
    stream = read_pairs(tmp_path / "stream.parquet")
    assert len(stream) == 28
    replayed, kept_again, _ = go(Recorded(stream, in_sequence), loss=loss, keep=(1, 4))
    assert same_weights(weights_of(live), weights_of(replayed))
    assert all(same_weights(kept[step], kept_again[step]) for step in kept)
    assert not same_weights(kept[1], kept[4])


def test_replay_diverges_when_one_token_or_the_order_changes() -> None:
    recorded = online()
    live, kept, _ = go(recorded, keep=(3, 4))
    stream = recorded.stream()
    ids = stream.first.ids.clone()
    at = 4 * 3  # the first pair of the fourth batch
    ids[at, 0] = 3 + (ids[at, 0] - 2) % (VOCABULARY - 3)
    assert ids[at, 0] != stream.first.ids[at, 0]
    changed = dataclasses.replace(stream, first=Tokens(ids, stream.first.lengths))
    replayed, kept_again, _ = go(Recorded(changed, in_sequence), keep=(3, 4))
    assert same_weights(kept[3], kept_again[3])
    assert not same_weights(kept[4], kept_again[4])
    assert not same_weights(weights_of(live), weights_of(replayed))
    assert not same_weights(weights_of(live), weights_of(go(Recorded(stream, uniform("order", 0)))[0]))


def test_provenance_and_prompt_numbers_are_never_read() -> None:
    other = dataclasses.replace(PAIRS, provenance=PAIRS.provenance[::-1], prompt_numbers=PAIRS.prompt_numbers.flip(0))
    assert same_weights(*(weights_of(go(Recorded(pairs, in_sequence))[0]) for pairs in (PAIRS, other)))


def test_both_sides_of_a_pair_are_alike() -> None:
    """Swapping the responses and the label is the same pair, up to rounding."""
    swapped = dataclasses.replace(PAIRS, first=PAIRS.second, second=PAIRS.first, preference=1 - PAIRS.preference)
    optim = OPTIM.model_copy(update={"steps": 2})
    for a, b in zip(*(weights_of(go(Recorded(p, in_sequence), optim=optim)[0]) for p in (PAIRS, swapped)), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)


SOURCES = {
    "online": online,
    "s=3": lambda: Recording(
        SampledSpec(sync_period=3).build(Ingredients(0, 4, prompts_of(PAIRS.prompts.rows()), likes_token(3)))
    ),
    "offline": lambda: Recording(RecordedSpec(order="uniform").build(Ingredients(0, 4, [], pairs=PAIRS))),
    "mixture": lambda: Recording(
        MixtureSpec(sampled=SampledSpec(sync_period=2)).build(
            Ingredients(0, 4, prompts_of(PAIRS.prompts.rows()), likes_token(3), PAIRS)
        )
    ),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("killed_at", [1, 4])
def test_resumed_equals_uninterrupted(name: str, killed_at: int, tmp_path: Path) -> None:
    whole_source = SOURCES[name]()
    whole, kept, seen = go(whole_source, keep=(0, 2, 7))
    with pytest.raises(KeyboardInterrupt):
        go(SOURCES[name](), keep=(0, 2, 7), checkpointer=Checkpointer(tmp_path, 0), stop_at=killed_at)
    resumed_source = SOURCES[name]()
    resumed, kept_later, seen_later = go(resumed_source, keep=(0, 2, 7), checkpointer=Checkpointer(tmp_path, 0))
    assert same_weights(weights_of(whole), weights_of(resumed))
    assert seen_later == seen[killed_at:]
    assert list(kept_later) == [step for step in (0, 2, 7) if step > killed_at]
    assert all(same_weights(kept[step], kept_later[step]) for step in kept_later)
    assert resumed_source.stream().first.rows() == whole_source.stream().first.rows()
    assert resumed_source.cost == whole_source.cost


class Poisoned(Recorded):
    """Its third batch has a preference that is not a number."""

    def next_batch(self, n: int) -> PairBatch:
        batch = super().next_batch(n)
        if self._walk.position == 3 * n:
            return dataclasses.replace(batch, preference=batch.preference * torch.nan)
        return batch


def test_divergence_is_refused_before_the_weights_are_touched() -> None:
    policy, reference = policy_and_reference()
    kept: dict[int, list[torch.Tensor]] = {}
    with pytest.raises(Diverged, match="step 3"):
        train(
            policy, reference, Poisoned(PAIRS, in_sequence), LOSS, OPTIM,
            keep=(2,), save_policy=lambda step, p: kept.update({step: weights_of(p)}),
        )  # fmt: skip
    assert list(kept) == [2]
    assert same_weights(kept[2], weights_of(policy))


def test_a_gradient_that_is_not_finite_is_refused_too() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimiser = Optimiser([weight], OptimSpec(lr=1.0, steps=3))
    with pytest.raises(Diverged, match="gradient"):
        optimiser.step(weight.sqrt().sum())
    assert weight.tolist() == [0, 0]
    assert optimiser.step_count == 0


def rates(optim: OptimSpec) -> list[float]:
    """Learning rates, read off from how far the first, unclipped Adam directions move a weight."""
    weight = torch.nn.Parameter(torch.tensor([0.0], dtype=torch.float64))
    optimiser, found = Optimiser([weight], optim), []
    for _ in range(optim.steps):
        before = weight.item()
        optimiser.step(-weight.sum())  # a constant gradient: Adam moves by the rate itself
        found.append(weight.item() - before)
    return found


def test_schedules_by_hand() -> None:
    constant = rates(OptimSpec(lr=0.1, steps=5, warmup_steps=3))
    assert constant == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1], rel=1e-5)
    cosine = rates(OptimSpec(lr=0.1, steps=4, warmup_steps=0, schedule="cosine"))
    assert cosine == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-4)


def test_schedule_counts_steps_whatever_the_length_of_the_data() -> None:
    """The same pair over and over, as a list of 1, 2 or 50: the source's length is nowhere in the result."""
    one = PAIRS.take(torch.tensor([0]))
    results = [
        weights_of(go(Recorded(one.take(torch.zeros(n, dtype=torch.int64)), in_sequence))[0]) for n in (1, 2, 50)
    ]
    assert same_weights(results[0], results[1])
    assert same_weights(results[0], results[2])


def test_optimiser_continues_bit_for_bit() -> None:
    def step(optimiser: Optimiser, weight: torch.nn.Parameter, k: int) -> None:
        optimiser.step(((weight - k) ** 2 * torch.tensor([1.0, 3.0])).sum())

    spec = OptimSpec(lr=0.1, steps=9, warmup_steps=5, schedule="cosine", weight_decay=0.1)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimiser = Optimiser([weight], spec)
    for k in range(4):
        step(optimiser, weight, k)
    copy = torch.nn.Parameter(weight.detach().clone())
    resumed = Optimiser([copy], spec)
    resumed.load_state_dict({name: value.clone() for name, value in optimiser.state_dict().items()})
    for k in range(4, 9):
        step(optimiser, weight, k)
        step(resumed, copy, k)
        assert torch.equal(weight, copy)


def test_learns_what_the_judge_likes() -> None:
    """The loop's purpose: after some steps the policy says the liked token more often."""
    source = SampledSpec().build(Ingredients(0, 32, prompts_of([[1, 4], [1, 5]]), likes_token(3)))
    policy, reference = policy_and_reference()
    optim = OptimSpec(lr=0.01, steps=40, batch=32, warmup_steps=2)
    train(policy, reference, source, LossSpec(beta=0.05), optim, keep=(), save_policy=lambda step, p: None)
    noise = torch.rand((400, LIMIT), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prompts = Tokens.collate([[1, 4], [1, 5]])
    after, before = (
        sum(row.count(3) for row in model.sample(prompts, 200, noise).rows()) / 400 for model in (policy, reference)
    )
    assert after > before + 0.5


def test_ties_alone_pull_back_to_the_reference() -> None:
    """A tie averages both orientations: IPO then is z^2 + 1/4, which is least where policy and reference agree."""
    tie = pairs_of([[1, 4]], [[3, 2]], [[5, 2]], [0.5])
    policy, reference = policy_and_reference()
    batch_loss(policy, reference, tie, LOSS).backward()
    assert all(weight.grad is None or weight.grad.abs().max() < 1e-6 for weight in policy.model.parameters())
    assert batch_loss(tiny_policy(VOCABULARY, 5, LIMIT, layers=1), reference, tie, LOSS).item() > 0.25
