"""Whole studies on models unlike the shipped ones: an encoder-decoder, and a chat model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from aligngap.cli import main
from aligngap.experiments.bench import Bench
from aligngap.experiments.spec import StudySpec
from aligngap.experiments.study import load_study
from aligngap.models.preference import load_preference_model
from aligngap.models.tokenizer import byte_tokenizer
from aligngap.pipeline.rundir import RunDirectory
from aligngap.pipeline.stages import load_policy
from aligngap.results import read
from aligngap.sources.recorded import RecordedSpec
from aligngap.store.store import Store
from checkpoints import saved
from tiny import context_of, make_study

LIMIT = 8
SETTINGS: dict[str, Any] = {
    "extends": "paper",
    "title": "Architectures",
    "description": "a test",
    "datasets": {"walks": {"source": "walks.jsonl", "max_prompt_tokens": 32, "max_response_tokens": LIMIT}},
    "experiments": ["tandem"],
    "sft": {"lr": 1e-2, "steps": 3, "batch": 8},
    "golden": {"model": "pairwise", "optim": {"lr": 1e-3, "steps": 3, "batch": 8}},
    "proxy": {"model": "pairwise", "train_pairs": 32, "optim": {"lr": 1e-3, "steps": 3, "batch": 8}},
    "baseline": {"optim": {"lr": 2e-2, "steps": 6, "batch": 4, "warmup_steps": 1}},
    "sweep": {"lr_factors": [1.0], "betas": [0.1], "online": False},
    "evaluation": {"prompts": 8, "pairs": 8, "checkpoints": 2},
    "analysis": {"replicates": 100},
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def rows(chat: bool) -> list[dict[str, Any]]:
    draw = random.Random(0)
    walks = ["the dog ran home", "a cat sat there", "we went out", "rain fell all day", "she slept"]
    found: list[dict[str, Any]] = []
    for number, (a, b) in enumerate(draw.sample(walks, 2) for _ in range(90)):
        prompt, chosen, rejected = f"Tell me of walk {number}.", f"{a}, and so did I.", b
        if chat:
            say = [{"role": "assistant", "content": text} for text in (chosen, rejected)]
            found.append({"prompt": [{"role": "user", "content": prompt}], "chosen": say[:1], "rejected": say[1:]})
        else:
            found.append({"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"})
    return found


TEXTS = [text for row in rows(chat=False) for text in row.values()]


class Made:
    """A study in a folder, run in this process."""

    def __init__(self, place: Path, *, chat: bool, models: dict[str, Any], **changes: Any) -> None:
        self.place = place
        (place / "walks.jsonl").write_text("\n".join(map(json.dumps, rows(chat))), "utf-8")
        (place / "study.yaml").write_text(yaml.safe_dump(SETTINGS | {"models": models} | changes), "utf-8")
        self.study: StudySpec = load_study(str(place / "study.yaml"))
        with RunDirectory.use(place / "run", self.study.model_dump(mode="json")) as directory:
            make_study(self.study, place / "run")
        self.run, self.store = directory, Store(place / "run/store")
        self.bench = Bench(self.study, "walks")
        self.online = self.bench.online(0).stage

    def made(self, stage: Any) -> Path:
        """A stage's artefact."""
        return self.store.get(stage.identity).path

    def check(self) -> None:
        """Everything came to its end, training moved the policy, responses are what they may be, and replayed token for
        token they make the same policy again.
        """
        results = read(self.place / "run")
        assert {arm.status for arm in results.tasks[0].arms} == {"finished"}
        held_out = results.points.filter(pl.col("split") == "held_out").sort("step")
        for family in ("online", "replay", "golden_policy"):
            kl = held_out.filter(pl.col("family") == family)["kl"]
            assert kl[0] == 0
            assert kl[-1] > 0
        assert (held_out["n_golden_policy_golden"] > 0).all()
        arms = [self.online, self.bench.on_stream(0, "replay", RecordedSpec(order="sequence")).stage]
        online, replay = (load_file(self.made(arm) / "final.safetensors") for arm in arms)
        assert online.keys() == replay.keys()
        assert all(torch.equal(value, replay[name]) for name, value in online.items())
        policy = load_policy(context_of(self.online, self.store, self.place), self.online.sft, self.online.task)
        frame = pl.read_parquet(self.made(self.bench.evaluation(self.bench.online(0))) / "per_prompt.parquet")
        for row in frame["response_ids"].to_list():
            assert len(row) <= LIMIT
            assert not any(token in policy.ends for token in row[:-1])

    def context(self) -> Any:
        """As the online arm had it."""
        return context_of(self.online, self.store, self.place)


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A T5-type policy with adapters, judged by the encoder of another and by a BLOOM-type decoder."""
    place = tmp_path_factory.mktemp("t5")
    tokenizer = byte_tokenizer(TEXTS, 300)
    saved("t5", place / "policy", TEXTS, tokenizer=tokenizer, scale=0.5)
    saved("t5", place / "golden", TEXTS, tokenizer=tokenizer, scale=0.7)
    saved("bloom", place / "proxy", TEXTS, tokenizer=tokenizer)
    policy = {"path": "policy", "lora": {"r": 2}, "gradient_checkpointing": True}
    return Made(place, chat=False, models={"policy": policy, "golden": "golden", "proxy": "proxy"})


def test_a_study_with_an_encoder_decoder(encoder_decoder: Made) -> None:
    encoder_decoder.check()
    made = encoder_decoder
    for path in made.made(made.online).rglob("*.safetensors"):
        assert all(".lora_" in name for name in load_file(path))


def test_its_preference_model_is_an_encoder(encoder_decoder: Made) -> None:
    made = encoder_decoder
    folder = made.made(made.bench.golden)
    model = load_preference_model("pairwise", folder, 3)
    assert type(model.backbone).__name__ == "T5EncoderModel"
    assert not any(name.startswith("decoder") for name in load_file(folder / "backbone/model.safetensors"))


@torch.no_grad()
def test_its_exported_policy_is_the_arms(encoder_decoder: Made, tmp_path: Path) -> None:
    made = encoder_decoder
    assert main(["export", str(made.place / "run"), "online", str(tmp_path / "out")]) == 0
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    context = made.context()
    policy = load_policy(context, made.online.sft, made.online.task, made.made(made.online) / "final.safetensors")
    pairs = made.online.task.read(context, "held_out")
    found = policy.log_probs(pairs.prompts, [pairs.first])[0]
    start = model.config.decoder_start_token_id
    for prompt, row, value in zip(pairs.prompts.rows(), pairs.first.rows(), found, strict=True):
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[start, *row[:-1]]])).logits
        said = logits[0].log_softmax(-1)[torch.arange(len(row)), torch.tensor(row)].sum()
        assert value.item() == pytest.approx(said.item(), abs=1e-3)


@torch.no_grad()
def test_its_adapters_alone_stand_on_the_exported_sft_policy(encoder_decoder: Made, tmp_path: Path) -> None:
    run = str(encoder_decoder.place / "run")
    for name, options in (("sft", []), ("online", []), ("online", ["--adapter"])):
        assert main(["export", run, name, str(tmp_path / "-".join([name, *options])), *options]) == 0
    sft, merged = (AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name).eval() for name in ("sft", "online"))
    given = {"input_ids": torch.tensor([[1, 9, 8, 7]]), "decoder_input_ids": torch.tensor([[0, 5, 6]])}
    before = sft(**given).logits
    both = PeftModel.from_pretrained(sft, tmp_path / "online---adapter").eval()
    torch.testing.assert_close(both(**given).logits, merged(**given).logits, atol=1e-4, rtol=1e-4)
    assert (both(**given).logits - before).abs().max() > 1e-3
    assert not (tmp_path / "online---adapter/model.safetensors").exists()
    assert "adapters of it" in (tmp_path / "online---adapter/README.md").read_text("utf-8")
    assert main(["export", run, "sft", str(tmp_path / "x"), "--adapter"]) == 2
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A Qwen3-type chat model, whose turns do not end with its end token; judged by models with sliding windows."""
    place = tmp_path_factory.mktemp("chat")
    tokenizer = byte_tokenizer(TEXTS, 300)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    saved("qwen3", place / "policy", TEXTS, tokenizer=tokenizer)
    saved("gemma3", place / "golden", TEXTS, tokenizer=tokenizer)
    saved("mamba", place / "proxy", TEXTS, tokenizer=tokenizer)
    policy = {"path": "policy", "lora": {"r": 2}}
    return Made(place, chat=True, models={"policy": policy, "golden": "golden", "proxy": "proxy"})


def test_a_study_with_a_chat_model(chat: Made) -> None:
    chat.check()
    tokenizer = AutoTokenizer.from_pretrained(chat.place / "policy")
    end, other = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<eos>"])
    context = chat.context()
    pairs = chat.online.task.read(context)
    whole = [row for row in [*pairs.first.rows(), *pairs.second.rows()] if len(row) < LIMIT]
    assert whole
    assert {row[-1] for row in whole} == {end}
    assert load_policy(context, chat.online.sft, chat.online.task).ends == (end, other)


def test_its_exported_policy_stops_where_the_arm_does(chat: Made, tmp_path: Path) -> None:
    assert main(["export", str(chat.place / "run"), "replay", str(tmp_path / "out")]) == 0
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert generation.eos_token_id == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<eos>"])
    assert tokenizer.chat_template == CHATML
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Tell me of walk 3."}], add_generation_prompt=True
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model(input_ids=torch.tensor([prompt["input_ids"]])).logits.isfinite().all()
