"""The peers of the benchmarks do the same work: a ratio of times says nothing otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("trl")

import torch
from benchmarks import entries, memory
from benchmarks.__main__ import cells, measure
from benchmarks.clock import forward_flops, matrix_peak, median_interval
from benchmarks.entries import BETA, peer_evaluated, trained_by_peer
from benchmarks.setting import BATCH, Setting, medium, ranked, small, write_preferences

from aligngap.judges.model import ModelJudge
from aligngap.measure.kl import sequence_kl
from aligngap.models.policy import Policy
from aligngap.models.tokenizer import load_tokenizer
from aligngap.seeds import uniforms
from aligngap.tasks.encode import make_dataset_pairs
from aligngap.train.loop import LossSpec, batch_loss
from aligngap.types import PairBatch, Tokens


@pytest.fixture(scope="module")
def setting() -> Setting:
    return small(pairs=4 * BATCH)


def moved(setting: Setting) -> Policy:
    """A policy that has left its reference, so that a margin is not zero."""
    policy = setting.policy()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return policy


def test_offline_peer_reads_the_same_tokens_and_computes_the_same_loss(setting: Setting) -> None:
    trainer, _ = trained_by_peer(setting, "offline")
    assert trainer.ref_model is None  # it has asked the reference before
    rows = trainer.train_dataset
    read = zip(rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], strict=True)
    assert list(read) == ranked(setting.pairs)

    policy = moved(setting)
    trainer.model.load_state_dict(policy.model.state_dict())
    inputs = trainer.data_collator([trainer.train_dataset[index] for index in range(BATCH)])
    theirs = float(trainer.compute_loss(trainer.model, inputs).detach())
    ours = float(batch_loss(policy, setting.reference(), setting.batch(), LossSpec(reduction="mean")).detach())
    # Ours is (beta D - 1/2)^2, theirs (D - 1/(2 beta))^2, both with D averaged over a response's tokens.
    assert ours / BETA**2 == pytest.approx(theirs, rel=1e-4)
    assert ours != pytest.approx(0.25, rel=1e-3)


def test_online_peer_samples_as_much_and_computes_the_same_loss(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = trained_by_peer(setting, "online")
    policy = moved(setting)
    trainer.model.load_state_dict(policy.model.state_dict())
    generated, judged = [], []
    generate, judge = trainer._generate, trainer.reward_funcs[0].forward

    def watch_generate(*args: object, **kwargs: object) -> object:
        generated.append(generate(*args, **kwargs))
        return generated[-1]

    def watch_judge(*args: object, **kwargs: object) -> object:
        judged.append((kwargs["attention_mask"], judge(*args, **kwargs)))
        return judged[-1][1]

    monkeypatch.setattr(trainer, "_generate", watch_generate)
    monkeypatch.setattr(trainer.reward_funcs[0], "forward", watch_judge)
    prompts = setting.batch().prompts
    texts = list(trainer.train_dataset["prompt"][:BATCH])
    trainer.create_optimizer()
    theirs = trainer.training_step(trainer.model, {"prompt": texts})

    (prompt_ids, prompt_mask, ids, mask, _), (read, scores) = generated[0], judged[0]
    lengths = mask.sum(1)
    assert int(lengths.max()) == setting.limit
    assert [row[real.bool()].tolist() for row, real in zip(prompt_ids, prompt_mask, strict=True)] == 2 * prompts.rows()
    # The reward model reads prompt and response, but for the end token.
    assert torch.equal(read.sum(1), prompt_mask.sum(1) + lengths - (ids * mask == setting.end_token).sum(1))

    first, second = (Tokens(i, n) for i, n in zip(ids.chunk(2), lengths.chunk(2), strict=True))
    better = (scores.logits[:BATCH, 0] >= scores.logits[BATCH:, 0]).float()
    batch = PairBatch(torch.arange(BATCH), prompts, first, second, better, ("peer",) * BATCH)
    ours = batch_loss(policy, setting.reference(), batch, LossSpec())
    assert float(ours) / BETA**2 == pytest.approx(float(theirs), rel=1e-4)

    drawn = policy.sample(prompts, 2, uniforms(setting.batch().prompt_numbers, 2, setting.limit, "test"))
    assert float(drawn.lengths.double().mean()) == pytest.approx(float(lengths.double().mean()), rel=0.25)


@pytest.mark.parametrize("make", [small, medium])
def test_generate_draws_as_many_tokens_as_we_do(make: type[Setting]) -> None:
    setting = make(pairs=2 * BATCH)
    batch = setting.batch()
    noise = uniforms(batch.prompt_numbers, 2, setting.limit, "test")
    ours = replace(setting, ends=False).policy().sample(batch.prompts, 2, noise)
    theirs = entries.generated(setting, setting.make_model(), batch.prompts, None, 2)
    assert ours.ids.shape == theirs.shape == (2 * BATCH, setting.limit)
    assert int(ours.lengths.min()) == setting.limit


def test_one_pass_judges_as_two(setting: Setting) -> None:
    model, batch = setting.preference_model(), setting.batch()
    packed = ModelJudge(model).compare(batch.prompts, batch.first, batch.second)
    torch.testing.assert_close(packed, entries.two_passes(model, batch), atol=1e-4, rtol=0)
    assert float(packed.abs().max()) > 0.01


def test_the_evaluations_peer_measures_the_same_kl_and_ends_where_responses_end(setting: Setting) -> None:
    policy, prompts = moved(setting), setting.batch().prompts
    responses, theirs = peer_evaluated(setting, policy.model, setting.make_model(), prompts)
    assert len(responses.ids) == BATCH
    assert int(responses.lengths.max()) <= setting.limit
    for row, drawn in zip(responses.rows(), responses.ids.tolist(), strict=True):
        assert setting.end_token not in row[:-1]
        assert row[-1] == setting.end_token or len(row) == len(drawn) == setting.limit
    ours = sequence_kl(policy, setting.reference(), prompts, responses)
    torch.testing.assert_close(theirs.double(), ours.double(), atol=1e-4, rtol=1e-3)
    assert float(ours.min()) > 0.01


def test_loading_gives_both_the_same_token_ids(setting: Setting, tmp_path: Path) -> None:
    setting.make_model().save_pretrained(tmp_path / "model")
    setting.tokenizer.save_pretrained(tmp_path / "model")
    file = write_preferences(setting.pairs, setting.tokenizer, tmp_path / "pairs.jsonl")
    model, rows = entries.loaded_by_peer(tmp_path / "model", file)
    data = make_dataset_pairs(entries.preferences(file), load_tokenizer(str(tmp_path / "model"))).data
    read = {tuple(row["prompt_ids"]): (row["chosen_ids"], row["rejected_ids"]) for row in rows}
    assert len(rows) == len(setting.pairs)
    assert list(read) == [tuple(ids) for ids in setting.pairs.prompts.rows()]
    kept = 0
    for pairs in (data.train, data.held_out):
        kept += len(pairs)
        for prompt, chosen, rejected in ranked(pairs):
            assert read[tuple(prompt)] == (chosen, rejected)
    assert kept == len(read) == 4 * BATCH
    assert torch.equal(model.lm_head.weight, setting.make_model().lm_head.weight)


@pytest.mark.slow
def test_memory_is_measured_in_processes_that_do_not_know_of_each_other(setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(entries.plan_of(setting, tmp_path)))
    code = (
        "import sys; from benchmarks.memory import peer; peer('offline', sys.argv[1]);"
        "print([name for name in sys.modules if name.startswith('aligngap')])"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "plan.json")]
    done = subprocess.run(words, cwd=memory.ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr[-2000:]


def test_a_row_of_memory(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"ours": 300.0, "peer": 450.0}
    monkeypatch.setattr(memory, "measured", lambda side, arm, what: peaks[side])
    row = {"name": "offline_memory", "shape": "small"} | measure(entries.ENTRIES["offline_memory"](setting), 3, 1.0)
    assert (row["ratio"], row["peak_share"]) == ((1.5, 1.5, 1.5), None)
    assert cells(row)[3:] == ("300 MB", "", "", "450 MB; trl")


def test_a_round_of_every_kind_of_entry_gives_a_row(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "EVALUATION_PROMPTS", 2 * BATCH)
    peak = matrix_peak(seconds=0.05, size=256)
    for name in ("sampling", "offline_step", "loading", "evaluation"):
        row = {"name": name, "shape": "small"} | measure(entries.ENTRIES[name](setting), 1, peak)
        shape, entry, ratio, ours, _, share, peer = cells(row)
        assert (shape, entry) == ("small", f"`{name}`")
        assert ours == f"{1e3 * row['ours']:.1f} ms"
        assert str(ratio).startswith(f"{row['ratio'].middle:.2f} (")
        assert peer.startswith(f"{1e3 * row['peer']:.1f} ms; ")
        assert (share == "") == (name == "loading")
        if share:
            assert row["peak_share"] > 0


@pytest.mark.parametrize("arm", ["offline", "online"])
def test_the_peers_rounds_take_time(setting: Setting, arm: str) -> None:
    _, work = trained_by_peer(replace(setting, steps=4), arm)
    assert work() > 0


def test_useful_operations_and_step_times_by_hand(setting: Setting) -> None:
    model = setting.make_model()
    hidden, inner, layers, words = 64, 128, 2, model.config.vocab_size
    body = layers * (4 * hidden**2 + 3 * hidden * inner + 2 * hidden) + hidden
    assert forward_flops(model, 10, 3) == 2 * (10 * body + 3 * hidden * words)
    assert median_interval([0.0, 5.0, 6.0, 7.0, 9.0]) == 1.0
