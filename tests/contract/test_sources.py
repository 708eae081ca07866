"""One contract for every pair source: a new source joins by one line in SOURCES."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from aligngap.sources import registry
from aligngap.sources.base import Ingredients, PairSource, SourceSpec
from aligngap.sources.mixture import Mixture, MixtureSpec
from aligngap.sources.recorded import RecordedSpec, without_end
from aligngap.sources.recording import Recording
from aligngap.sources.sampled import Sampled, SampledSpec
from aligngap.testing.sources import (
    BATCH,
    LIMIT,
    PAIRS,
    PROMPTS,
    SOURCE_CHECKS,
    VOCABULARY,
    Build,
    alike,
    drive,
    fresh_policy,
    ingredients,
)
from aligngap.types import PairBatch, Tokens, concatenate
from fakes import END, TablePolicy, likes_token, prompts_of, same_pairs, tiny_policy

FROZEN = (tiny_policy(VOCABULARY, 11, LIMIT, layers=1), tiny_policy(VOCABULARY, 12, LIMIT, layers=1))

SPECS: dict[str, SourceSpec] = {
    **{
        f"recorded {order}": RecordedSpec(order=order, window=2)
        for order in ("schedule", "sequence", "window", "uniform")
    },
    "recorded ends dropped": RecordedSpec(ends="dropped"),
    "sampled s=1": SampledSpec(),
    "sampled s=3": SampledSpec(sync_period=3),
    "sampled s=inf": SampledSpec(sync_period=None),
    "sampled s=1, soft": SampledSpec(labels="probability"),
    "mixture": MixtureSpec(on_policy=0.4),
    "mixture s=2, sequence": MixtureSpec(sampled=SampledSpec(sync_period=2), recorded=RecordedSpec(order="sequence")),
}
NAMES = [*SPECS, "frozen"]
"""`frozen` stands in no study: stages build it of checkpoints."""
SOURCES = [*NAMES, *(f"recording {name}" for name in NAMES)]
LIVE = [name for name in SOURCES if "sampled" in name or "mixture" in name]
FOLLOWS = [name for name in LIVE if "inf" not in name]


def build(name: str, seed: int = 0) -> PairSource:
    of = name.removeprefix("recording ")
    frozen = of == "frozen"
    source = Sampled(PROMPTS, likes_token(3), seed, frozen=FROZEN) if frozen else SPECS[of].build(ingredients(seed))
    return Recording(source) if name.startswith("recording") else source


def test_every_kind_of_source_is_under_contract() -> None:
    assert {spec.kind for spec in SPECS.values()} == set(registry.SOURCES)


@pytest.mark.parametrize("check", SOURCE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SOURCES)
def test_contract(name: str, check: Callable[[Build], None]) -> None:
    check(partial(build, name))


@pytest.mark.parametrize("name", SOURCES)
def test_responses_end_or_run_into_the_limit(name: str) -> None:
    source = build(name)
    source.observe(0, fresh_policy())
    batch = source.next_batch(30)
    assert set(batch.preference.tolist()) <= {0.0, 0.5, 1.0}
    for row in (*batch.first.rows(), *batch.second.rows()):
        assert len(row) <= LIMIT
        if "dropped" in name:
            assert row[-1] != END or row == [END]
        else:
            assert row[-1] == END or len(row) == LIMIT


@pytest.mark.parametrize("name", SOURCES)
def test_seed_changes_pairs(name: str) -> None:
    a, b = (drive(build(name, seed), fresh_policy(), range(3)) for seed in (0, 1))
    # The recorded sequence is the one order that no seed may change.
    assert alike(a, b) == name.endswith("recorded sequence")


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("recording")])
def test_a_resumed_recording_holds_all_that_was_supplied(name: str) -> None:
    source, policy = build(name), fresh_policy()
    head = drive(source, policy, range(4))
    resumed, other = build(name), fresh_policy()
    other.load_from(policy)
    resumed.observe(0, other)
    resumed.load_state_dict(source.state_dict())
    rest = drive(source, policy, range(4, 8))
    assert alike(rest, drive(resumed, other, range(4, 8)))
    assert isinstance(source, Recording)
    assert isinstance(resumed, Recording)
    assert same_pairs(source.stream(), concatenate([*head, *rest]))
    assert same_pairs(resumed.stream(), source.stream())


@pytest.mark.parametrize("name", SOURCES)
def test_follows_the_policy_if_and_only_if_live(name: str) -> None:
    a, b = (build(name), build(name))
    moved, still = fresh_policy(), fresh_policy()
    with_moves = drive(a, moved, range(4))
    b.observe(0, still)
    without = []
    for step in range(4):
        without.append(b.next_batch(BATCH))
        b.observe(step + 1, still)
    assert alike(with_moves, without) == (name not in FOLLOWS)
    assert same_pairs(with_moves[0], without[0])


@pytest.mark.parametrize("name", LIVE)
def test_a_live_source_must_observe_first(name: str) -> None:
    with pytest.raises(RuntimeError, match="observe"):
        build(name).next_batch(BATCH)


@pytest.mark.parametrize("name", SOURCES)
def test_cost_counts_sampled_tokens_and_judged_pairs(name: str) -> None:
    source = build(name)
    batches = drive(source, fresh_policy(), range(3))
    tokens = [
        int(size)
        for batch in batches
        for size, origin in zip(batch.first.lengths + batch.second.lengths, batch.provenance, strict=True)
        if origin.startswith(("policy", "frozen"))
    ]
    assert (source.cost.judge_calls, source.cost.tokens_sampled) == (len(tokens), sum(tokens))
    assert bool(tokens) == ("recorded" not in name)


def synced(policy_steps: list[PairBatch]) -> list[int]:
    return [int(batch.provenance[0].removeprefix("policy at step ")) for batch in policy_steps]


@pytest.mark.parametrize(
    ("period", "expected"), [(1, [0, 1, 2, 3, 4, 5, 6, 7, 8]), (4, [0, 0, 0, 0, 4, 4, 4, 4, 8]), (None, [0] * 9)]
)
def test_sync_period(period: int | None, expected: list[int]) -> None:
    """Which weights a batch is sampled from, told by weights that always sample response `step`."""
    responses = [[3 + step, END] for step in range(10)]
    policy = TablePolicy([[1]], responses, torch.zeros(1, 10))
    given = Ingredients(0, 2, prompts_of([[1]]), likes_token(3))
    source = SampledSpec(sync_period=period).build(given)

    def be(step: int) -> None:
        with torch.no_grad():
            policy.model.logits.fill_(-1e4)[0, step] = 0.0  # type: ignore[union-attr,operator]

    be(0)
    source.observe(0, policy)
    batches = []
    for step in range(9):
        batches.append(source.next_batch(2))
        be(step + 1)
        source.observe(step + 1, policy)
    for batch, step in zip(batches, expected, strict=True):
        assert batch.first.rows() == batch.second.rows() == [[3 + step, END]] * 2
        assert batch.preference.tolist() == [0.5, 0.5]
    assert synced(batches) == expected
    assert all(0 <= step - at <= (period or 10) - 1 for step, at in enumerate(expected))


def test_sampled_pairs_are_labelled_by_the_judge_in_order() -> None:
    given = Ingredients(0, BATCH, PROMPTS, likes_token(3))
    source = SampledSpec().build(given)
    batch = drive(source, fresh_policy(), range(1), n=25)[0]
    for first, second, preference in zip(
        batch.first.rows(), batch.second.rows(), batch.preference.tolist(), strict=True
    ):
        assert preference == (1 + (first.count(3) > second.count(3)) - (first.count(3) < second.count(3))) / 2
    assert sum(first != second for first, second in zip(batch.first.rows(), batch.second.rows(), strict=True)) > 10
    assert {0.0, 0.5, 1.0} == set(batch.preference.tolist())


@pytest.mark.parametrize("name", ["sampled s=1", "frozen"])
def test_a_prompt_is_answered_anew_each_time_it_comes_round(name: str) -> None:
    """Also when the policy has not moved: noise belongs to the place in the walk, not to the prompt alone."""
    source = build(name)
    source.observe(0, fresh_policy())
    epochs = [source.next_batch(25) for _ in range(2)]
    answers = [
        dict(zip(batch.prompt_numbers.tolist(), zip(batch.first.rows(), batch.second.rows(), strict=True), strict=True))
        for batch in epochs
    ]
    assert set(answers[0]) == set(answers[1]) == set(range(25))
    assert sum(answers[0][number] != answers[1][number] for number in range(25)) > 15


def test_responses_do_not_depend_on_how_the_walk_is_cut_into_batches() -> None:
    """A batch that crosses an epoch may hold a prompt twice; each time it is answered as in other batches."""
    drawn = []
    for sizes in ([40, 10], [10] * 5):
        source = build("sampled s=1")
        source.observe(0, fresh_policy())
        batches = [source.next_batch(size) for size in sizes]
        drawn.append([row for batch in batches for row in zip(batch.first.rows(), batch.second.rows(), strict=True)])
    assert drawn[0] == drawn[1]
    assert len({str(pair) for pair in drawn[0]}) > 25


def test_frozen_takes_the_first_response_from_the_first_policy() -> None:
    one, two = (TablePolicy([[1]], [[3, END], [4, END]], torch.tensor([row])) for row in ([0.0, -1e4], [-1e4, 0.0]))
    source = Sampled(prompts_of([[1]]), likes_token(4), 0, frozen=(one, two))
    batch = source.next_batch(3)
    assert batch.first.rows() == [[3, END]] * 3
    assert batch.second.rows() == [[4, END]] * 3
    assert batch.preference.tolist() == [0, 0, 0]


def test_schedule_is_shared_by_recorded_and_sampled_arms_of_a_seed() -> None:
    recorded, sampled = (drive(build(name), fresh_policy(), range(6)) for name in ("recorded schedule", "sampled s=1"))
    for a, b in zip(recorded, sampled, strict=True):
        assert torch.equal(a.prompt_numbers, b.prompt_numbers)
    first_epoch = torch.cat([batch.prompt_numbers for batch in recorded])[:25]
    assert sorted(first_epoch.tolist()) == list(range(25))


def test_sequence_is_the_recording_and_window_and_uniform_are_its_shuffles() -> None:
    def numbers(name: str) -> list[int]:
        return torch.cat([batch.prompt_numbers for batch in drive(build(name), fresh_policy(), range(5), n=5)]).tolist()  # type: ignore[no-any-return]

    assert numbers("recorded sequence") == list(range(25))
    window, uniform = numbers("recorded window"), numbers("recorded uniform")
    assert sorted(window) == sorted(uniform) == list(range(25))
    assert [k // 12 for k in window] == [k // 12 for k in range(25)]  # two batches of six
    assert window != list(range(25))
    assert [k // 12 for k in uniform] != [k // 12 for k in range(25)]


def test_responses_lose_their_end_token_and_nothing_else() -> None:
    """The row below a lone end token is what a policy that says nothing leaves: an empty response cannot be scored."""
    rows = [[3, 4, END], [END], [3, END, 4], [5, 4, 3, 3]]
    assert without_end(Tokens.collate(rows), END).rows() == [[3, 4], [END], [3, END, 4], [5, 4, 3, 3]]
    whole, dropped = (build(name).next_batch(25) for name in ("recorded schedule", "recorded ends dropped"))
    for a, b in ((whole.first, dropped.first), (whole.second, dropped.second)):
        assert [row[:-1] if row[-1] == END and len(row) > 1 else row for row in a.rows()] == b.rows()
        assert a.rows() != b.rows()
    assert whole.prompts.rows() == dropped.prompts.rows()
    assert torch.equal(whole.preference, dropped.preference)
    assert whole.provenance == dropped.provenance


def test_dropped_ends_go_with_any_order_and_need_the_end_token() -> None:
    """A slight mismatch of the replayed stream (appendix F): the very pairs, in the very order, but for the ends."""
    given = Ingredients(0, BATCH, PROMPTS, pairs=PAIRS, ends=(END,))
    exact, mismatch = (RecordedSpec(order="sequence", ends=ends).build(given) for ends in ("kept", "dropped"))
    a, b = exact.next_batch(25), mismatch.next_batch(25)
    assert a.prompt_numbers.tolist() == b.prompt_numbers.tolist() == list(range(25))
    assert a.first.rows() != b.first.rows()
    assert PAIRS.first.rows() == a.first.rows()  # the recording itself is left as it was
    with pytest.raises(ValueError, match="end token"):
        RecordedSpec(ends="dropped").build(Ingredients(0, BATCH, PROMPTS, pairs=PAIRS))


def test_frozen_pairs_have_noise_of_their_own_purpose() -> None:
    """Pairs made for a data set are not those that an online arm of the seed saw."""
    one, two, again = (
        Sampled(PROMPTS, likes_token(3), 0, frozen=FROZEN, purpose=purpose).next_batch(25)
        for purpose in ("generate", "sampling", "generate")
    )
    assert torch.equal(one.prompt_numbers, two.prompt_numbers)
    assert one.first.rows() != two.first.rows()
    assert same_pairs(one, again)


def test_mixture_shares_and_places() -> None:
    tables = [TablePolicy([[1]], [[3, END], [4, END]], torch.tensor([row])) for row in ([0.0, -1e4], [-1e4, 0.0])]

    def part(policy: TablePolicy) -> PairSource:
        return Sampled(prompts_of([[1]]), likes_token(3), 0, frozen=(policy, policy))

    mixture = Mixture([part(policy) for policy in tables], [0.3, 0.7], seed=0)
    from_first = torch.tensor(
        [[row[0] == 3 for row in mixture.next_batch(50).first.rows()] for _ in range(40)]
    ).double()
    assert 0.25 < from_first.mean() < 0.35
    assert 0.2 < from_first[:, :10].mean() < 0.4  # not all of one source first
    assert 0.2 < from_first[:, -10:].mean() < 0.4


@pytest.mark.parametrize("shares", [[0.5, 0.6], [1.0], [1.5, -0.5]])
def test_mixture_shares_must_sum_to_one(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        Mixture([build("recorded sequence"), build("recorded uniform")], shares, 0)


@pytest.mark.parametrize(
    ("spec", "missing"),
    [
        (SampledSpec(), "judge"),
        (RecordedSpec(), "recorded pairs"),
        (MixtureSpec(), "judge"),
    ],
)
def test_a_missing_ingredient_is_named(spec: SourceSpec, missing: str) -> None:
    build_it: Callable[[Ingredients], PairSource] = spec.build
    with pytest.raises(ValueError, match=missing):
        build_it(Ingredients(0, BATCH, PROMPTS))


def test_nothing_recorded_yet() -> None:
    with pytest.raises(ValueError, match="nothing"):
        Recording(build("recorded sequence")).stream()
