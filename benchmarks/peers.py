"""The same work as users of other libraries do it.

Both trainers run in fp32 without gradient checkpointing, logging or saving: their defaults on a CPU (bf16,
checkpointing on) would slow them down and change the numbers. The rest is their default.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import datasets
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from aligngap.models.packing import left_pad
from aligngap.types import Tokens
from benchmarks.clock import now
from benchmarks.setting import BATCH, LEARNING_RATE, Setting

BETA = 0.1


class Stamps(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(now())


def dpo_trainer(
    setting: Setting, stamps: Stamps, reference: PreTrainedModel | None = None, *, known: bool = False
) -> DPOTrainer:
    """trl's offline trainer with the IPO loss, on the setting's pairs as text that it tokenizes into the same ids.

    known: it asks the reference, which is the model itself, about all pairs before it starts.
    """
    rows = {"prompt": [], "chosen": [], "rejected": []}
    pairs = setting.pairs
    for prompt, first, second, preference in zip(
        pairs.prompts.rows(), pairs.first.rows(), pairs.second.rows(), pairs.preference.tolist(), strict=True
    ):
        chosen, rejected = (first, second) if preference > 0.5 else (second, first)
        rows["prompt"].append(setting.text(prompt[1:]) + " ")  # it puts the begin token back
        rows["chosen"].append(setting.text(chosen))
        rows["rejected"].append(setting.text(rejected))
    datasets.disable_progress_bars()
    trainer = DPOTrainer(
        model=setting.make_model(),
        ref_model=None if known else reference if reference is not None else setting.make_model(),
        args=DPOConfig(
            loss_type="ipo", beta=BETA, max_length=None, precompute_ref_log_probs=known, **_arguments(setting)
        ),
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=setting.tokenizer,
        callbacks=[stamps],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def online_dpo_trainer(setting: Setting, stamps: Stamps, reference: PreTrainedModel | None = None) -> OnlineDPOTrainer:
    """trl's online trainer with the IPO loss and a scalar reward model of the policy's size."""
    prompts = [setting.text(row) + " " for row in setting.pairs.prompts.rows()]
    trainer = OnlineDPOTrainer(
        model=setting.make_model(),
        ref_model=reference if reference is not None else setting.make_model(),
        reward_funcs=reward_model(setting),
        reward_processing_classes=setting.tokenizer,
        args=OnlineDPOConfig(
            loss_type="ipo", beta=[BETA], temperature=1.0, max_new_tokens=setting.limit, **_arguments(setting)
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        processing_class=setting.tokenizer,
        callbacks=[stamps],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def reward_model(setting: Setting) -> PreTrainedModel:
    """A Hugging Face sequence classifier with one output on the setting's weights."""
    backbone: Any = setting.make_model()
    config = backbone.config
    config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForSequenceClassification.from_config(config)
    model.model.load_state_dict(backbone.model.state_dict())
    return model.eval().requires_grad_(False)


def generate(setting: Setting, model: PreTrainedModel, prompts: Tokens) -> torch.Tensor:
    """Two samples a prompt with `generate()`, all of the setting's length limit; new tokens only."""
    return _generated(setting, model, prompts, 2, end_token=None)


def sampled(setting: Setting, model: PreTrainedModel, prompts: Tokens) -> Tokens:
    """A response a prompt with `generate()`, up to its end token or the limit."""
    end = setting.end_token
    drawn = _generated(setting, model, prompts, 1, end_token=end)
    ended = (drawn == end).int()
    # All up to the first end token, which counts.
    return Tokens(drawn, (ended.cumsum(1) - ended == 0).sum(1))


def _generated(
    setting: Setting, model: PreTrainedModel, prompts: Tokens, each: int, *, end_token: int | None
) -> torch.Tensor:
    ids, real = left_pad(prompts)
    model.generation_config.eos_token_id = end_token
    config = GenerationConfig(
        do_sample=True,
        num_return_sequences=each,
        max_new_tokens=setting.limit,
        top_k=0,
        pad_token_id=0,
        eos_token_id=end_token,
        use_cache=True,
    )
    drawn = model.generate(input_ids=ids, attention_mask=real.long(), generation_config=config)
    return drawn[:, ids.shape[1] :]


@torch.no_grad()
def padded_kl(model: PreTrainedModel, reference: PreTrainedModel, prompts: Tokens, responses: Tokens) -> torch.Tensor:
    """The exact KL at each position of the responses, summed; prompt (padded on the left) and response (on the right)
    in one row, logits everywhere; [n].
    """
    ids, real = left_pad(prompts)
    row = torch.cat([ids, responses.ids], 1)
    mask = torch.cat([real, responses.mask()], 1).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    log_p, log_q = (
        m(input_ids=row, attention_mask=mask, position_ids=positions)
        .logits[:, ids.shape[1] - 1 : -1]
        .float()
        .log_softmax(-1)
        for m in (model, reference)
    )
    return ((log_p.exp() * (log_p - log_q)).sum(-1) * responses.mask()).sum(-1)


def load(folder: Path, file: Path) -> tuple[PreTrainedModel, datasets.Dataset]:
    """A model, its tokenizer and a preference file as token ids, the file not read before: `datasets` keeps what it
    has read.
    """
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        found = {"prompt_ids": tokenizer(rows["prompt"])["input_ids"]}
        for side in ("chosen", "rejected"):
            encoded = tokenizer(rows[side], add_special_tokens=False)["input_ids"]
            found[f"{side}_ids"] = [[*row, tokenizer.eos_token_id] for row in encoded]
        return found

    with TemporaryDirectory() as cache:
        data = datasets.load_dataset("json", data_files=str(file), cache_dir=cache, split="train")
        return model, data.map(ids, batched=True, keep_in_memory=True)


def _arguments(setting: Setting) -> dict[str, Any]:
    return {
        "output_dir": mkdtemp(prefix="aligngap-benchmark-"),
        "per_device_train_batch_size": BATCH,
        "max_steps": setting.steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "bf16": False,
        "gradient_checkpointing": False,
    }


TRAINERS = {"offline": dpo_trainer, "online": online_dpo_trainer}
