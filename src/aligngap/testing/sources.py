"""What every source of pairs must do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from aligngap.models.policy import Policy
from aligngap.sources.base import Ingredients, PairSource, SourceSpec
from aligngap.testing.contract import must, run
from aligngap.testing.fakes import END, likes_token, prompts_of, random_pairs, same_pairs, same_weights, tiny_policy
from aligngap.testing.fakes import weights_of as _weights
from aligngap.train.checkpoint import Checkpointer
from aligngap.train.step import Optimiser, OptimSpec
from aligngap.types import PairBatch

VOCABULARY, LIMIT, BATCH = 8, 4, 6
PAIRS = random_pairs(0, 25, VOCABULARY, LIMIT)
PROMPTS = prompts_of(PAIRS.prompts.rows())

Build = Callable[[int], PairSource]
"""A new source of a seed, as a study would build it."""


def check_source(source: SourceSpec | Build) -> None:
    """Raises Broken, which says how, for a source that the trainer cannot use as it uses ours. source: its spec, or
    what builds it for a seed.
    """
    run(SOURCE_CHECKS, (lambda seed: source.build(ingredients(seed))) if isinstance(source, SourceSpec) else source)


def ingredients(seed: int) -> Ingredients:
    """What a study hands to a source, of random tokens: 25 pairs and their prompts, and a judge who likes token 3."""
    return Ingredients(seed, BATCH, PROMPTS, likes_token(3), PAIRS, (END,))


def fresh_policy() -> Policy:
    """A tiny real policy whose tokens are those of `ingredients`."""
    return tiny_policy(VOCABULARY, 0, LIMIT, layers=1)


def nudge(policy: Policy, step: int) -> None:
    """Stands for an optimiser step: deterministic, and large enough to change what is sampled."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.3)


def drive(source: PairSource, policy: Policy, steps: range, n: int = BATCH) -> list[PairBatch]:
    """As the loop does: batch, step, observe; step 0 is observed first."""
    if steps.start == 0:
        source.observe(0, policy)
    batches = []
    for step in steps:
        batches.append(source.next_batch(n))
        nudge(policy, step + 1)
        source.observe(step + 1, policy)
    return batches


def alike(a: list[PairBatch], b: list[PairBatch]) -> bool:
    """Token for token."""
    return len(a) == len(b) and all(same_pairs(x, y) for x, y in zip(a, b, strict=True))


def has_what_a_source_has(build: Build) -> None:
    """The attributes of `PairSource`."""
    must(isinstance(build(0), PairSource), "it lacks something of PairSource (sources/base.py)")


def gives_as_many_pairs_as_asked_for(build: Build) -> None:
    """Also more than there are prompts; each of them a pair that can be trained on, on a prompt of the task."""
    source, policy = build(0), fresh_policy()
    source.observe(0, policy)
    known = {prompt.number: list(prompt.ids) for prompt in PROMPTS}
    for n in (1, BATCH, 30):
        batch = source.next_batch(n)
        sizes = (
            len(batch),
            len(batch.provenance),
            len(batch.preference),
            *(len(side.ids) for side in (batch.prompts, batch.first, batch.second)),
        )
        must(set(sizes) == {n}, f"a batch of {n} has {sizes} pairs")
        must(batch.preference.dtype == torch.float32, f"preferences are {batch.preference.dtype}, not float32")
        fair = (batch.preference >= 0) & (batch.preference <= 1)
        must(bool(fair.all()), "a preference is no probability")
        for number, row in zip(batch.prompt_numbers.tolist(), batch.prompts.rows(), strict=True):
            must(known.get(number) == row, f"prompt number {number} is not the task's prompt of that number")
        for side in (batch.first, batch.second):
            must(side.ids.dtype == torch.int64, f"token ids are {side.ids.dtype}, not int64")
            for row in side.rows():
                must(bool(row), "a response is empty: it cannot be scored")
                must(all(0 <= token < VOCABULARY for token in row), "a response has a token that the policy has not")
                must(END not in row[:-1], "a response goes on after its end token")


def repeats_with_its_seed(build: Build) -> None:
    """Random numbers come from named streams: the same seed gives the same pairs and costs the same."""
    one, two = build(0), build(0)
    same = alike(drive(one, fresh_policy(), range(6)), drive(two, fresh_policy(), range(6)))
    must(same, "two sources of one seed give different pairs: draw random numbers from named streams (seeds.py) only")
    must(one.cost == two.cost, "two sources of one seed cost different amounts")


def goes_on_from_a_checkpoint(build: Build) -> None:
    """Through the trainer's own checkpoint, from the start and from the midst, bit for bit: another process builds the
    source again, observes, loads and goes on.
    """
    for at in (0, 4):
        source, policy = build(0), fresh_policy()
        saved = _optimiser(policy)
        if at:
            drive(source, policy, range(at))
        else:
            source.observe(0, policy)
        cost_then = (source.cost.tokens_sampled, source.cost.judge_calls)
        resumed, other = build(0), fresh_policy()
        with tempfile.TemporaryDirectory() as folder:
            checkpointer = Checkpointer(Path(folder), 0)
            checkpointer.save(policy=policy.model, optimiser=saved, source=source)
            resumed.observe(0, other)
            state = _optimiser(other)
            must(
                checkpointer.restore(policy=other.model, optimiser=state, source=resumed),
                "its state cannot be written and read",
            )
        must(same_weights(_weights(policy), _weights(other)), "loading its state changes the policy")
        cost_now = (resumed.cost.tokens_sampled, resumed.cost.judge_calls)
        must(cost_now == cost_then, "what it has cost is not part of its state")
        steps = range(at, at + 4) if at else range(1, 5)
        same = alike(drive(source, policy, steps), drive(resumed, other, steps))
        must(same, f"resumed after {at} steps, it gives other pairs than if it had not stopped")
        must(resumed.cost == source.cost, f"resumed after {at} steps, it costs another amount in the end")


def _optimiser(policy: Policy) -> Optimiser:
    made = Optimiser(policy.model.parameters(), OptimSpec(lr=0.1, steps=10))
    made.step(torch.stack([(weight**2).sum() for weight in policy.model.parameters()]).sum())
    return made


def saves_a_snapshot(build: Build) -> None:
    """Going on after `state_dict` does not change what it returned."""
    source, policy = build(0), fresh_policy()
    drive(source, policy, range(2))
    state = source.state_dict()
    before = {key: value.clone() for key, value in state.items()}
    drive(source, policy, range(2, 5))
    must(all(torch.equal(before[key], state[key]) for key in before), "a saved state changes afterwards: copy it")


def leaves_the_policy_alone(build: Build) -> None:
    """Observing and sampling change no weight, and keep none from being trained."""
    source, policy = build(0), fresh_policy()
    before = _weights(policy)
    source.observe(0, policy)
    source.next_batch(BATCH)
    source.observe(3, policy)
    must(same_weights(before, _weights(policy)), "it changes the policy's weights")
    must(all(weight.requires_grad for weight in policy.model.parameters()), "it keeps weights from being trained")


SOURCE_CHECKS: tuple[Callable[[Build], None], ...] = (
    has_what_a_source_has,
    gives_as_many_pairs_as_asked_for,
    repeats_with_its_seed,
    goes_on_from_a_checkpoint,
    saves_a_snapshot,
    leaves_the_policy_alone,
)
