"""The peers of the benchmarks do the same work: a ratio of times says nothing otherwise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")

import torch
from benchmarks import entries, memory, peers
from benchmarks.__main__ import line, markdown_line, measure
from benchmarks.clock import forward_flops, matrix_peak, median_interval
from benchmarks.setting import BATCH, Setting, medium, small

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
    return small(pairs=2 * BATCH)


def moved(setting: Setting) -> Policy:
    """A policy that has left its reference, so that a margin is not zero."""
    policy = setting.policy()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return policy


def test_offline_peer_reads_the_same_tokens_and_computes_the_same_loss(setting: Setting) -> None:
    trainer = peers.dpo_trainer(setting, peers.Stamps())
    rows, pairs = trainer.train_dataset, setting.pairs
    winners = [
        first if preference > 0.5 else second
        for first, second, preference in zip(
            pairs.first.rows(), pairs.second.rows(), pairs.preference.tolist(), strict=True
        )
    ]
    assert list(rows["prompt_ids"]) == pairs.prompts.rows()
    assert list(rows["chosen_ids"]) == winners

    policy = moved(setting)
    trainer.model.load_state_dict(policy.model.state_dict())
    inputs = trainer.data_collator([rows[index] for index in range(BATCH)])
    theirs = trainer.compute_loss(trainer.model, inputs)
    ours = batch_loss(policy, setting.reference(), setting.batch(), LossSpec(reduction="mean"))
    # Ours is (beta D - 1/2)^2, theirs (D - 1/(2 beta))^2, both with D averaged over a response's tokens.
    assert float(ours) / peers.BETA**2 == pytest.approx(float(theirs), rel=1e-4)
    assert float(ours) != pytest.approx(0.25, rel=1e-3)


def test_offline_peer_that_has_asked_the_reference_before_computes_the_same_loss(setting: Setting) -> None:
    trainer = peers.dpo_trainer(setting, peers.Stamps(), known=True)
    assert trainer.ref_model is None
    policy = moved(setting)
    trainer.model.load_state_dict(policy.model.state_dict())
    inputs = trainer.data_collator([trainer.train_dataset[index] for index in range(BATCH)])
    theirs = trainer.compute_loss(trainer.model, inputs)
    ours = batch_loss(policy, setting.reference(), setting.batch(), LossSpec(reduction="mean"))
    assert float(ours.detach()) / peers.BETA**2 == pytest.approx(float(theirs.detach()), rel=1e-4)


def test_online_peer_samples_as_much_and_computes_the_same_loss(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = peers.online_dpo_trainer(setting, peers.Stamps())
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
    texts = [setting.text(row) + " " for row in prompts.rows()]
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
    assert float(ours) / peers.BETA**2 == pytest.approx(float(theirs), rel=1e-4)

    drawn = policy.sample(prompts, 2, uniforms(setting.batch().prompt_numbers, 2, setting.limit, "test"))
    assert float(drawn.lengths.double().mean()) == pytest.approx(float(lengths.double().mean()), rel=0.25)


@pytest.mark.parametrize("make", [small, medium])
def test_generate_draws_as_many_tokens_as_we_do(make: type[Setting]) -> None:
    setting = make(pairs=2 * BATCH)
    batch = setting.batch()
    ours = setting.policy(ends=False).sample(batch.prompts, 2, uniforms(batch.prompt_numbers, 2, setting.limit, "test"))
    theirs = peers.generate(setting, setting.make_model(), batch.prompts)
    assert ours.ids.shape == theirs.shape == (2 * BATCH, setting.limit)
    assert int(ours.lengths.min()) == setting.limit


def test_one_pass_judges_as_two_and_one_row_scores_as_two(setting: Setting) -> None:
    model, batch = setting.preference_model(), setting.batch()
    packed = ModelJudge(model).compare(batch.prompts, batch.first, batch.second)
    torch.testing.assert_close(packed, entries.two_passes(model, batch), atol=1e-4, rtol=0)
    assert float(packed.abs().max()) > 0.01
    policy = setting.policy()
    together = torch.cat(policy.log_probs(batch.prompts, [batch.first, batch.second]))
    prompts, both = entries.unpacked(batch)
    torch.testing.assert_close(together, policy.log_probs(prompts, [both])[0], atol=1e-4, rtol=1e-4)


def test_the_evaluations_peer_measures_the_same_kl_and_ends_where_responses_end(setting: Setting) -> None:
    policy, prompts = moved(setting), setting.batch().prompts
    responses = peers.sampled(setting, policy.model, prompts)
    assert len(responses.ids) == BATCH
    assert int(responses.lengths.max()) <= setting.limit
    for row, drawn in zip(responses.rows(), responses.ids.tolist(), strict=True):
        assert setting.end_token not in row[:-1]
        assert row[-1] == setting.end_token or len(row) == len(drawn) == setting.limit
    theirs = peers.padded_kl(policy.model, setting.make_model(), prompts, responses)
    ours = sequence_kl(policy, setting.reference(), prompts, responses)
    torch.testing.assert_close(theirs.double(), ours.double(), atol=1e-4, rtol=1e-3)
    assert float(ours.min()) > 0.01


def test_loading_gives_both_the_same_token_ids(setting: Setting, tmp_path: Path) -> None:
    setting.make_model().save_pretrained(tmp_path / "model")
    setting.tokenizer.save_pretrained(tmp_path / "model")
    file = entries.write_preferences(setting, tmp_path / "pairs.jsonl")
    model, rows = peers.load(tmp_path / "model", file)
    data = make_dataset_pairs(entries.preferences(file), load_tokenizer(str(tmp_path / "model"))).data
    read = {tuple(row["prompt_ids"]): (row["chosen_ids"], row["rejected_ids"]) for row in rows}
    assert len(rows) == len(setting.pairs)
    assert list(read) == [tuple(ids) for ids in setting.pairs.prompts.rows()]
    kept = 0
    for pairs in (data.train, data.held_out):
        kept += len(pairs)
        sides = zip(pairs.first.rows(), pairs.second.rows(), pairs.preference.tolist(), strict=True)
        for prompt, (first, second, preference) in zip(pairs.prompts.rows(), sides, strict=True):
            assert read[tuple(prompt)] == ((first, second) if preference > 0.5 else (second, first))
    # All but pairs whose answers are the same, which say nothing.
    assert kept == sum(chosen != rejected for chosen, rejected in read.values()) > BATCH
    assert torch.equal(model.lm_head.weight, setting.make_model().lm_head.weight)


@pytest.mark.slow
def test_memory_is_measured_in_processes_that_do_not_know_of_each_other(setting: Setting, tmp_path: Path) -> None:
    plan = memory.write_plan(setting, tmp_path)
    code = (
        "import sys; from pathlib import Path; from benchmarks.memory import peer; peer('offline', Path(sys.argv[1]));"
        "print([name for name in sys.modules if name.startswith('aligngap')])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(plan)], cwd=memory.ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr[-2000:]


def test_a_row_of_memory(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"ours": 300.0, "peer": 450.0}
    monkeypatch.setattr(memory, "_measured", lambda side, arm, what: {"peak": peaks[side], "imports": 200.0})
    row = {"name": "offline_memory", "shape": "small", **memory.compare(setting, "offline", 3)}
    assert (row["ratio"], row["low"], row["high"], row["peak_share"]) == (1.5, 1.5, 1.5, None)
    assert "300 MB, imports 200" in line(row)
    assert markdown_line(row).endswith("| 450 MB, imports 200; trl DPOTrainer |")


def test_a_round_of_every_kind_of_entry_gives_a_row(setting: Setting) -> None:
    peak = matrix_peak(seconds=0.05, size=256)
    for name in ("judging", "offline_step", "loading"):
        row = measure(entries.ENTRIES[name](setting), 1, peak)
        assert row["low"] == row["ratio"] == row["high"] > 0
        assert row["peak_share"] is None if name == "loading" else 0 < row["peak_share"] < 1
        shown = markdown_line({"name": name, "shape": "small", "peak_gflops": peak / 1e9, **row})
        assert shown.startswith(f"| small | `{name}` | {row['ratio']:.2f} (")


def test_useful_operations_and_step_times_by_hand(setting: Setting) -> None:
    model = setting.make_model()
    hidden, inner, layers, words = 64, 128, 2, model.config.vocab_size
    body = layers * (4 * hidden**2 + 3 * hidden * inner + 2 * hidden) + hidden
    assert forward_flops(model, 10, 3) == 2 * (10 * body + 3 * hidden * words)
    assert median_interval([0.0, 5.0, 6.0, 7.0, 9.0]) == 1.0
