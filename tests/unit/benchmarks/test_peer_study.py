"""The study written with trl's trainers does the work of ours: the same ids, steps, batches, checkpoints, losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

import torch
from benchmarks import peer_trl
from benchmarks.peer_study import TASK, Taken, arms, compare, prepare, rows_of
from benchmarks.setting import ranked
from transformers import TrainerCallback

from aligngap.experiments.spec import StudySpec, log_steps
from aligngap.models.build import base_path, load_language_model
from aligngap.models.policy import Policy
from aligngap.models.tokenizer import load_tokenizer
from aligngap.tasks.encode import make_dataset_pairs
from aligngap.train.supervised import sft_loss

TINY = (
    "models.golden=small",
    "sft.steps=2",
    "golden.optim.steps=2",
    "proxy.optim.steps=2",
    "proxy.train_pairs=40",
    "baseline.optim.steps=3",
    "baseline.optim.batch=8",
    "baseline.optim.warmup_steps=0",
    "evaluation.prompts=8",
    "evaluation.checkpoints=2",
    "datasets.written.held_out_pairs=16",
)
PAIRS = 120


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudySpec, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("study")
    study, plan = prepare(folder / "work", TINY, PAIRS)
    return study, {**plan, "out": str(folder)}


def captured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The trainers that are made from here on, none of which trains."""
    found: list[Any] = []

    def keep(trainer: Any) -> Any:
        found.append(trainer)
        return trainer.model

    monkeypatch.setattr(peer_trl, "_trained", keep)
    return found


def test_both_read_the_same_token_ids(
    prepared: tuple[StudySpec, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, plan = prepared
    data = make_dataset_pairs(study.datasets[TASK], load_tokenizer(base_path("small"))).data
    trainers, theirs = captured(monkeypatch), peer_trl.Study(plan)
    policy = theirs.sft(theirs.train, plan["models"]["policy"], plan["sft"])
    golden = theirs.reward(theirs.train, plan["models"]["golden"], plan["golden"])
    watch = TrainerCallback()
    offline = theirs.offline(policy, theirs.train, plan["arm"], 0.1, watch)
    online = theirs.online(policy, golden, plan["arm"], 0.1, watch)
    sft, reward = trainers

    assert len(theirs.train) == len(data.train) > 80
    assert len(theirs.held_out) == len(data.held_out) == 16
    prompts, better, worse = (list(column) for column in zip(*ranked(data.train), strict=True))
    both = [response for pair in zip(better, worse, strict=True) for response in pair]
    whole = [[*prompt, *response] for prompt, response in zip([p for p in prompts for _ in "ab"], both, strict=True)]
    assert list(sft.train_dataset["input_ids"]) == whole
    assert list(reward.train_dataset["chosen_ids"]) == whole[::2]
    assert list(reward.train_dataset["rejected_ids"]) == whole[1::2]
    rows = offline.train_dataset
    assert (list(rows["prompt_ids"]), list(rows["chosen_ids"]), list(rows["rejected_ids"])) == (prompts, better, worse)
    # As it tokenizes them when it samples.
    inputs = online.processing_class(list(online.train_dataset["prompt"]), add_special_tokens=False)
    assert inputs["input_ids"] == prompts


def test_steps_batches_rates_and_checkpoints_are_the_studys(
    prepared: tuple[StudySpec, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, plan = prepared
    trainers, theirs = captured(monkeypatch), peer_trl.Study(plan)
    policy = theirs.sft(theirs.train, plan["models"]["policy"], plan["sft"])
    judge = theirs.reward(theirs.train, plan["models"]["proxy"], plan["proxy"])
    watch = TrainerCallback()
    trainers.append(theirs.offline(policy, theirs.train, plan["arm"], 0.1, watch))
    trainers.append(theirs.online(policy, judge, plan["arm"], 0.1, watch))
    assert study.sft is not None
    asked = (study.sft, study.proxy.optim, study.baseline.optim, study.baseline.optim)
    for trainer, optim, sequences in zip(trainers, asked, (2, 1, 1, 1), strict=True):
        args = trainer.args
        assert (args.max_steps, args.learning_rate, args.warmup_steps) == (optim.steps, optim.lr, optim.warmup_steps)
        assert args.per_device_train_batch_size == sequences * optim.batch
        assert args.lr_scheduler_type == ("cosine" if optim.schedule == "cosine" else "constant_with_warmup")
        assert (args.weight_decay, args.max_grad_norm) == (optim.weight_decay, optim.max_grad_norm)
        assert not args.bf16
        assert not args.gradient_checkpointing
    assert trainers[3].args.max_new_tokens == study.datasets[TASK].max_response_tokens
    assert plan["keep"] == list(log_steps(study.baseline.optim.steps, study.evaluation.checkpoints))
    named = {entry.name: entry.stage for entry in arms(study)}
    assert [(arm["name"], arm["online"], arm["judge"]) for arm in plan["arms"]] == [
        ("golden policy", True, "golden"),
        ("online", True, "proxy"),
        ("offline, proxy's labels", False, "proxy"),
        ("offline lr=0.0005 beta=0.1", False, "golden"),
        ("offline lr=0.0005 beta=0.03", False, "golden"),
    ]
    assert {arm["name"]: arm["beta"] for arm in plan["arms"]} == {name: arm.loss.beta for name, arm in named.items()}
    assert {arm.optim for arm in named.values()} == {study.baseline.optim}


def test_sft_has_the_same_loss(prepared: tuple[StudySpec, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    study, plan = prepared
    trainers, theirs = captured(monkeypatch), peer_trl.Study(plan)
    theirs.sft(theirs.train, plan["models"]["policy"], plan["sft"])
    (trainer,) = trainers
    inputs = trainer.data_collator([trainer.train_dataset[index] for index in range(16)])
    found = trainer.compute_loss(trainer.model, inputs)
    tokenizer = load_tokenizer(base_path("small"))
    data = make_dataset_pairs(study.datasets[TASK], tokenizer).data
    policy = Policy(load_language_model(base_path("small")), int(tokenizer.eos_token_id), 15)
    assert float(found) == pytest.approx(float(sft_loss(policy, data.train.take(torch.arange(8)))), rel=1e-4)


def test_the_peers_study_goes_from_sft_to_curves(prepared: tuple[StudySpec, dict[str, Any]]) -> None:
    study, plan = prepared
    curves = peer_trl.run(plan)
    assert set(curves) == {entry.name for entry in arms(study)}
    for points in curves.values():
        assert [(point["step"], point["split"]) for point in points] == [
            (step, split) for step in plan["keep"] for split in ("train", "held_out")
        ]
        for point in points:
            assert point["responses"] == study.evaluation.prompts
            assert all(0 <= point[f"win_{who}"] <= 1 for who in ("golden_policy", "sft"))
            # What trained is what is measured: no arm stands still, and none has moved before it starts.
            assert (point["kl"] > 1e-4) == (point["step"] == max(plan["keep"])) or point["step"] in plan["keep"][1:-1]
    json.dumps(curves)


def test_rows_hold_the_rounds_ratios() -> None:
    ours = [Taken(10.0, 15.0), Taken(12.0, 15.0), Taken(11.0, 15.0)]
    whole, core = rows_of(ours, [Taken(40.0, 45.0), Taken(36.0, 30.0), Taken(44.0, 60.0)])
    assert (whole["name"], whole["ratio"]) == ("whole study, by the clock: peer's over ours", (4.0, 3.5, 4.0))
    assert (whole["ours"], whole["peer"]) == (11.0, 40.0)
    assert core["ratio"] == (3.0, 2.5, 3.5)


@pytest.mark.slow
def test_both_studies_as_commands(tmp_path: Path) -> None:
    (whole, core), ends = compare(tmp_path / "work", TINY, rounds=1, cores=2, pairs=PAIRS)
    assert len(ends) == 5
    assert all(row["ratio"].middle > 0 for row in (whole, core))
    # What the stages' processes took is counted, which are nobody's children when the command has ended.
    assert core["ours"] > 0.3 * whole["ours"] / 4
