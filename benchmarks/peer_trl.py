"""A whole study as a user of trl writes it: SFT, golden and proxy reward models, relabelling, arms, curves.

    python -m benchmarks.peer_trl PLAN.json

Imports nothing of aligngap. The plan (`benchmarks/peer_study.py` writes it) says what to do: files of pairs, folders of
models, steps, batches, learning rates, checkpoints. One process, one stage after the other, torch on all the cores it
finds, as such scripts are. fp32, no gradient checkpointing, no logging (bf16 and checkpointing, their defaults, would
slow them down on a CPU); the trainers' defaults else. The entries of `python -m benchmarks` time the same trainers.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

Pair = dict[str, str]
"""prompt, chosen, rejected; texts that the tokenizer joins into the tokens of prompt and response."""

CHUNK = 32
"""Prompts that are sampled, scored or judged at a time."""


class Keep(TrainerCallback):
    """Keeps the weights at some steps, as log-spaced checkpoints need; step 0 is what training starts from."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps, self.weights = set(steps), dict[int, Any]()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step_end(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            self.weights[state.global_step] = copy.deepcopy(model.state_dict())


class Study:
    """What the stages share."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(plan["models"]["policy"])
        self.tokenizer.padding_side = "left"
        data = datasets.load_dataset("json", data_files=plan["data"], cache_dir=str(Path(plan["out"]) / "cache"))
        self.train: list[Pair] = list(data["train"])
        self.held_out: list[Pair] = list(data["held_out"])

    def arguments(self, optim: dict[str, Any], per_pair: int = 1) -> dict[str, Any]:
        """The trainers' arguments for an optimiser's settings; per_pair: sequences that a pair is to the trainer."""
        return {
            "output_dir": str(Path(self.plan["out"]) / "trainer"),
            "per_device_train_batch_size": optim["batch"] * per_pair,
            "max_steps": optim["steps"],
            "learning_rate": optim["lr"],
            "lr_scheduler_type": {"constant": "constant_with_warmup", "cosine": "cosine"}[optim["schedule"]],
            "warmup_steps": optim["warmup_steps"],
            "weight_decay": optim["weight_decay"],
            "max_grad_norm": optim["max_grad_norm"],
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "bf16": False,
            "gradient_checkpointing": False,
        }

    def sft(self, pairs: Sequence[Pair], base: str, optim: dict[str, Any]) -> str:
        """Fine-tuned on both responses of every pair; the folder of the policy."""
        rows = [
            {"prompt": pair["prompt"], "completion": pair[side]} for pair in pairs for side in ("chosen", "rejected")
        ]
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(base),
            args=SFTConfig(max_length=None, **self.arguments(optim, per_pair=2)),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=self.tokenizer,
        )
        # By way of the disk: a trainer leaves wrappers on its model that a copy would share.
        folder = str(Path(self.plan["out"]) / "sft")
        _trained(trainer).save_pretrained(folder)
        return folder

    def reward(self, pairs: Sequence[Pair], base: str, optim: dict[str, Any]) -> PreTrainedModel:
        """A reward model on labelled pairs."""
        trainer = RewardTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(base, num_labels=1),
            args=RewardConfig(max_length=None, **self.arguments(optim)),
            train_dataset=datasets.Dataset.from_list(list(pairs)),
            processing_class=self.tokenizer,
        )
        return _trained(trainer).eval().requires_grad_(False)

    def offline(
        self, start: str, pairs: Sequence[Pair], optim: dict[str, Any], beta: float, watch: TrainerCallback
    ) -> DPOTrainer:
        """IPO on fixed pairs. start: folder of the policy to start from."""
        trainer = DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(start),
            # Its log-probabilities once a pair, not once a step, as who has several epochs before him would ask for.
            args=DPOConfig(
                loss_type="ipo", beta=beta, max_length=None, precompute_ref_log_probs=True, **self.arguments(optim)
            ),
            train_dataset=datasets.Dataset.from_list(list(pairs)),
            processing_class=self.tokenizer,
            callbacks=[watch],
        )
        return _silent(trainer)

    def online(
        self, start: str, judge: PreTrainedModel, optim: dict[str, Any], beta: float, watch: TrainerCallback
    ) -> OnlineDPOTrainer:
        """IPO on two samples a prompt that a reward model ranks. start: folder of the policy to start from."""
        # This trainer tokenizes without special tokens.
        prompts = [f"{self.tokenizer.bos_token} {pair['prompt']}" for pair in self.train]
        trainer = OnlineDPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(start),
            ref_model=AutoModelForCausalLM.from_pretrained(start),
            reward_funcs=judge,
            reward_processing_classes=self.tokenizer,
            args=OnlineDPOConfig(
                loss_type="ipo",
                beta=[beta],
                temperature=1.0,
                max_new_tokens=self.plan["max_new_tokens"],
                **self.arguments(optim),
            ),
            train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
            processing_class=self.tokenizer,
            callbacks=[watch],
        )
        return _silent(trainer)

    @torch.no_grad()
    def rewards(self, judge: PreTrainedModel, prompts: Sequence[str], responses: Sequence[str]) -> torch.Tensor:
        """A reward model's score of each response, its end token included; [n]."""
        scores = []
        for at in range(0, len(prompts), CHUNK):
            rows = zip(prompts[at : at + CHUNK], responses[at : at + CHUNK], strict=True)
            texts = [prompt + response + self.tokenizer.eos_token for prompt, response in rows]
            inputs = self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
            scores.append(judge(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0])
        return torch.cat(scores)

    def relabelled(self, judge: PreTrainedModel, pairs: Sequence[Pair]) -> list[Pair]:
        """The same pairs with a reward model's labels."""
        prompts = [pair["prompt"] for pair in pairs]
        better, worse = (self.rewards(judge, prompts, [p[side] for p in pairs]) for side in ("chosen", "rejected"))
        swapped = (worse > better).tolist()
        return [
            {"prompt": p["prompt"], "chosen": p["rejected"], "rejected": p["chosen"]} if swap else p
            for p, swap in zip(pairs, swapped, strict=True)
        ]

    @torch.no_grad()
    def sampled(
        self, model: PreTrainedModel, prompts: Sequence[str], reference: PreTrainedModel | None = None
    ) -> tuple[list[str], list[float]]:
        """A response a prompt, as text, and its KL from the reference: exact at each position, summed."""
        end, texts, values = self.tokenizer.eos_token_id, [], []
        for at in range(0, len(prompts), CHUNK):
            inputs = self.tokenizer(list(prompts[at : at + CHUNK]), padding=True, return_tensors="pt")
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            drawn = generated(model, ids, mask, self.plan["max_new_tokens"], end)
            real = up_to_end(drawn, end)
            texts += [
                self.tokenizer.decode([token for token in row[: int(n)].tolist() if token != end])
                for row, n in zip(drawn, real.sum(1), strict=True)
            ]
            if reference is not None:
                values += padded_kl(model, reference, (ids, mask), (drawn, real)).tolist()
        return texts, values


def generated(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, limit: int, end: int | None, each: int = 1
) -> torch.Tensor:
    """The new tokens of `each` samples a prompt (padded on the left), up to the end token or, without one, all of the
    limit; [n * each, at most limit].
    """
    model.generation_config.eos_token_id = end
    config = GenerationConfig(
        do_sample=True, num_return_sequences=each, max_new_tokens=limit, top_k=0, pad_token_id=0, eos_token_id=end
    )
    return model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]


def up_to_end(drawn: torch.Tensor, end: int) -> torch.Tensor:
    """1 for a token up to the first end token, which counts, else 0; as `drawn`."""
    ended = (drawn == end).int()
    return (ended.cumsum(1) - ended == 0).int()


Padded = tuple[torch.Tensor, torch.Tensor]
"""Token ids, and 1 where they are no padding."""


@torch.no_grad()
def padded_kl(model: PreTrainedModel, reference: PreTrainedModel, prompts: Padded, responses: Padded) -> torch.Tensor:
    """The exact KL at each position of the responses, summed; prompt (padded on the left) and response (on the right)
    in one row, logits everywhere; [n].
    """
    row, mask = (torch.cat(parts, 1) for parts in zip(prompts, responses, strict=True))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    log_p, log_q = (
        m(input_ids=row, attention_mask=mask, position_ids=positions)
        .logits[:, prompts[0].shape[1] - 1 : -1]
        .log_softmax(-1)
        for m in (model, reference)
    )
    return ((log_p.exp() * (log_p - log_q)).sum(-1) * responses[1]).sum(-1)


def arm_alone(plan: dict[str, Any], arm: str, watch: TrainerCallback) -> Any:
    """The trainer of one arm from the plan's policy, without a study around it: `offline` on its train pairs, or
    `online` with an untrained reward model of the policy's size.
    """
    study, folder = Study(plan), plan["models"]["policy"]
    if arm == "offline":
        return study.offline(folder, study.train, plan["arm"], plan["beta"], watch)
    judge = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    return study.online(folder, judge.eval().requires_grad_(False), plan["arm"], plan["beta"], watch)


def _silent(trainer: Any) -> Any:
    trainer.remove_callback(PrinterCallback)
    return trainer


def _trained(trainer: Any) -> PreTrainedModel:
    _silent(trainer).train()
    return trainer.model


def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Do the study; returns each arm's curve: step, split, KL, win rate against the golden policy's and SFT's
    responses by golden.
    """
    study = Study(plan)
    models, keep = plan["models"], plan["keep"]
    start = study.sft(study.train, models["policy"], plan["sft"])
    golden = study.reward(study.train, models["golden"], plan["golden"])
    labelled = {"golden": study.relabelled(golden, study.train)}
    proxy = study.reward(labelled["golden"][: plan["proxy_pairs"]], models["proxy"], plan["proxy"])
    labelled["proxy"] = study.relabelled(proxy, study.train)
    judges = {"golden": golden, "proxy": proxy}

    def trained(arm: dict[str, Any]) -> dict[int, Any]:
        kept, who = Keep(keep), arm["judge"]
        if arm["online"]:
            _trained(study.online(start, judges[who], plan["arm"], arm["beta"], kept))
        else:
            _trained(study.offline(start, labelled[who], plan["arm"], arm["beta"], kept))
        return kept.weights

    weights = {arm["name"]: trained(arm) for arm in plan["arms"]}

    model, reference = (AutoModelForCausalLM.from_pretrained(start).eval() for _ in range(2))
    last = max(keep)
    splits = {"train": study.train, "held_out": study.held_out}
    prompts = {
        split: [pair["prompt"] for pair in pairs[: plan["evaluation_prompts"]]] for split, pairs in splits.items()
    }

    def against(split: str) -> dict[str, torch.Tensor]:
        model.load_state_dict(weights["golden policy"][last])
        drawn = {
            "golden_policy": study.sampled(model, prompts[split])[0],
            "sft": study.sampled(reference, prompts[split])[0],
        }
        return {who: study.rewards(golden, prompts[split], texts) for who, texts in drawn.items()}

    opponents = {split: against(split) for split in splits}
    curves: dict[str, Any] = {}
    for name, kept in weights.items():
        for step in keep:
            model.load_state_dict(kept[step])
            for split in splits:
                texts, kl = study.sampled(model, prompts[split], reference)
                scores = study.rewards(golden, prompts[split], texts)
                study.rewards(proxy, prompts[split], texts)
                wins = {
                    f"win_{who}": float(((scores - other).sign() + 1).mean() / 2)
                    for who, other in opponents[split].items()
                }
                point = {"step": step, "split": split, "kl": sum(kl) / len(kl), "responses": len(texts), **wins}
                curves.setdefault(name, []).append(point)
    return curves


def main() -> None:
    """Read the plan, run, write `curves.json`."""
    datasets.disable_progress_bars()
    plan = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    curves = run(plan)
    (Path(plan["out"]) / "curves.json").write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()
