"""Policies: the SFT policy and the arms that start from it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import polars as pl
import torch

from aligngap import ranks
from aligngap.models.build import end_tokens, load_language_model, load_tokenizer, parameter_count
from aligngap.models.lora import add_adapters, merge_adapters
from aligngap.models.policy import Policy, WithoutAdapters
from aligngap.models.sharding import save_folder
from aligngap.pipeline.graph import Context, Stage
from aligngap.pipeline.stages.base import Base, JudgeStage, PairsStage, load_judge
from aligngap.pipeline.stages.pairs import Pairs, check_fits
from aligngap.sources.base import Ingredients
from aligngap.sources.order import prompt_schedule
from aligngap.sources.recorded import Recorded
from aligngap.sources.recording import Recording
from aligngap.sources.registry import AnySource
from aligngap.store.identity import file_digest
from aligngap.store.store import read_json, write_json
from aligngap.tasks.pairs import read_pairs, write_pairs
from aligngap.train.checkpoint import Checkpointer
from aligngap.train.loop import LossSpec, reference_log_probs, train
from aligngap.train.step import OptimSpec
from aligngap.train.supervised import fit, sft_loss
from aligngap.types import PairBatch, Prompt, Tokens, concatenate


class Sft(Stage):
    """The policy every arm starts from: fine-tuned on both responses of every pair, pooled over the tasks; or, without
    `optim`, a base that is an SFT policy already.
    """

    kind: ClassVar[str] = "sft"
    activity: ClassVar[str] = "training"
    version: ClassVar[int] = 3
    together: ClassVar[bool] = True

    pairs: tuple[Pairs, ...]
    base: Base
    optim: OptimSpec | None
    seed: int

    @property
    def label(self) -> str:
        return f"SFT policy ({self.base.name}{'' if self.optim else ', as given'})"

    @property
    def work(self) -> float:
        return 0.023 * self.base.size * (self.optim.steps if self.optim else 0) + 0.5

    def run(self, context: Context) -> None:
        folders, checkpoint = context.many("pairs"), self.base.checkpoint
        parts = [read_pairs(folder / "train.parquet") for folder in folders]
        for stage, part in zip(self.pairs, parts, strict=True):
            check_fits(checkpoint, stage, part)
        tokenizer = load_tokenizer(checkpoint)
        model = load_language_model(checkpoint, context.device)
        policy = Policy(model, end_tokens(tokenizer), 1)
        pooled = concatenate(parts)
        held_out = concatenate([read_pairs(folder / "held_out.parquet") for folder in folders])
        before = nll(policy, held_out)
        if self.optim is not None:
            if checkpoint.lora:
                add_adapters(model, checkpoint.lora, self.seed)
            source = Recorded(pooled, prompt_schedule(self.seed))
            checkpointer = Checkpointer(context.partial, context.checkpoint_seconds)
            fit(model, lambda batch, step: sft_loss(policy, batch), source, self.optim, context.progress, checkpointer)
            merge_adapters(model)
        save_folder(model, context.out / "model")
        tokenizer.save_pretrained(context.out / "model")
        metrics = {
            "parameters": parameter_count(model),
            "held_out_nll_before": before,
            "held_out_nll": nll(policy, held_out),
            # Evenly over the pool, or it would be the first task's alone.
            "train_nll": nll(
                policy, pooled.take(torch.linspace(0, len(pooled) - 1, min(len(pooled), len(held_out))).long())
            ),
        }
        write_json(context.out / "metrics.json", metrics)


@torch.no_grad()
def nll(policy: Policy, pairs: PairBatch, chunk: int = 32) -> float:
    """Negative log-likelihood per token of both responses, nats."""

    def scored(index: torch.Tensor) -> tuple[float, int]:
        part = pairs.take(index).to(policy.device)
        count = int(part.first.lengths.sum() + part.second.lengths.sum())
        return float(sft_loss(policy, part)) * count, count

    total = tokens = 0.0
    for part, count in ranks.chunked(scored, len(pairs), chunk):
        total += part
        tokens += count
    return total / tokens


class Reference(Stage):
    """What the SFT policy gives both responses of recorded pairs, for all arms that are trained on them, whoever's
    labels those take.

    batch, visits: pairs a step and in all steps of an arm. An arm that does not get round the pairs once asks about
    those that it meets itself: reference.parquet is empty then. One row a pair, in the pairs' order: first, second
    (log-probabilities summed over tokens, nats).
    """

    kind: ClassVar[str] = "reference"
    activity: ClassVar[str] = "training"
    together: ClassVar[bool] = True

    sft: Sft
    task: Pairs
    pairs: PairsStage
    batch: int
    visits: int

    @property
    def label(self) -> str:
        which = "" if self.pairs.identity == self.task.identity else f" of {self.pairs.origin}"
        return f"{self.task.name}: reference log-probabilities{which}"

    @property
    def work(self) -> float:
        return 2.2e-4 * self.sft.base.size * min(self.visits, self.task.count) + 0.3

    def run(self, context: Context) -> None:
        pairs = read_pairs(context.one("pairs") / self.pairs.train_file)
        found = torch.zeros(0, 2)
        if self.visits >= len(pairs):
            check_fits(self.sft.base.checkpoint, self.task, pairs)
            reference = load_reference(context, self.sft)

            def asked(index: torch.Tensor) -> torch.Tensor:
                return reference_log_probs(reference, pairs.take(index).to(reference.device)).float().cpu()

            parts = []
            # In batches as an arm's: a recorded stream gets the bits that the arm found which recorded it.
            for index in torch.arange(len(pairs)).split(self.batch):
                parts.append(ranks.spread(asked, index))
                context.progress(int(index[-1]) + 1, len(pairs), {})
            found = torch.cat(parts)
        if ranks.first():
            columns = {name: found[:, place].numpy() for place, name in enumerate(("first", "second"))}
            pl.DataFrame(columns).write_parquet(context.out / "reference.parquet")

    @staticmethod
    def of(pairs: PairBatch, folder: Path) -> PairBatch:
        """The pairs with what this stage's artefact in `folder` says of them, if it says anything."""
        said = pl.read_parquet(folder / "reference.parquet").to_torch()
        return replace(pairs, reference=said) if len(said) else pairs


class Arm(PairsStage):
    """A policy trained from the SFT policy by one loss on the pairs of one source. Golden policy, online, offline,
    replay: all are this stage. reference: what is known of the recorded pairs; for sources that hand them on as they
    are.
    """

    kind: ClassVar[str] = "arm"
    activity: ClassVar[str] = "training"
    version: ClassVar[int] = 2
    together: ClassVar[bool] = True
    train_file: ClassVar[str] = "stream.parquet"

    sft: Sft
    task: Pairs
    source: AnySource
    judge: JudgeStage | None = None
    recorded: PairsStage | None = None
    reference: Reference | None = None
    loss: LossSpec
    optim: OptimSpec
    seed: int
    keep: tuple[int, ...]

    @property
    def origin(self) -> str:
        return "online stream"

    @property
    def label(self) -> str:
        source = self.source.model_dump()
        what = [source["kind"]]
        if self.recorded is not None:
            what.append(self.recorded.origin)
        what += [f"{key}={source[key]}" for key in ("order", "sync_period", "on_policy") if key in source]
        if source.get("order") == "window":
            what[-1] += f" of {source['window']}"
        if self.judge:
            what.append(f"labelled by {self.judge.role}")
        loss = self.loss.name + (f" + {self.loss.sft:g} sft" if self.loss.sft else "")
        how = f"{self.sft.base.name}, {loss}, lr {self.optim.lr:g}, beta {self.loss.beta:g}, {self.optim.steps} steps"
        return f"{self.task.name} arm: {' '.join(what)}, {how}, seed {self.seed}"

    @property
    def work(self) -> float:
        live = 0.023 * self.sft.base.size + 22 * self.judge.seconds if self.judge else 0.0
        return (0.019 * self.sft.base.size + live) * self.optim.steps * self.optim.batch / 32 + 0.5

    def run(self, context: Context) -> None:
        start = time.perf_counter()
        self._check(context)
        given = self._ingredients(context)
        policy: Policy
        reference: Policy | None
        if given.pairs is None or given.pairs.reference is None:
            policy, reference = load_arm(context, self.sft, self.seed)
        else:
            policy, reference = load_start(context, self.sft, self.seed), None
        source = self.source.build(replace(given, ends=policy.ends))
        recording = Recording(source) if self.source.needs_judge else None
        kept = context.partial / "steps"
        kept.mkdir(parents=True, exist_ok=True)
        train(
            policy,
            reference,
            recording or source,
            self.loss,
            self.optim,
            keep=self.keep,
            save_policy=lambda step, p: p.save_weights(kept / f"{step:06d}.safetensors"),
            checkpointer=Checkpointer(context.partial, context.checkpoint_seconds),
            progress=context.progress,
        )
        final = context.out / "final.safetensors"
        policy.save_weights(final)
        if not ranks.first():
            return
        if recording:
            write_pairs(recording.stream(), context.out / "stream.parquet")
        (context.out / "steps").mkdir()
        for path in sorted(kept.iterdir()):
            (context.out / "steps" / path.name).write_bytes(path.read_bytes())
        cost = {
            "tokens_sampled": source.cost.tokens_sampled,
            "judge_calls": source.cost.judge_calls,
            "judge_spent": source.cost.judge_spent,
            "steps": self.optim.steps,
        }
        write_json(context.out / "cost.json", cost)
        write_json(context.out / "weights.json", {"weights_sha256": file_digest(final)})
        write_json(context.out / "seconds.json", {"seconds": time.perf_counter() - start})

    def _check(self, context: Context) -> None:
        check_fits(
            self.sft.base.checkpoint,
            self.task,
            read_pairs(context.one("task") / "train.parquet"),
            response=max_new_tokens(context) if self.source.needs_judge else 0,
        )
        if self.recorded is not None:
            pairs = read_pairs(context.one("recorded") / self.recorded.train_file)
            check_fits(self.sft.base.checkpoint, self.task, pairs)

    def _ingredients(self, context: Context) -> Ingredients:
        train_pairs = read_pairs(context.one("task") / "train.parquet")
        prompts = [
            Prompt(number, tuple(ids))
            for number, ids in zip(train_pairs.prompt_numbers.tolist(), train_pairs.prompts.rows(), strict=True)
        ]
        judge = load_judge(self.judge, context.one("judge"), context) if self.judge else None
        recorded = None
        if self.recorded is not None:
            recorded = read_pairs(context.one("recorded") / self.recorded.train_file)
            if self.reference is not None:
                recorded = Reference.of(recorded, context.one("reference"))
        return Ingredients(seed=self.seed, batch=self.optim.batch, prompts=prompts, judge=judge, pairs=recorded)


def load_policy(context: Context, sft: Sft, weights: Path | None = None) -> Policy:
    """The SFT policy whose artefact is the context's input `sft`; or an arm's, of which `weights` are the file."""
    if weights is None:
        return _sft_policy(context, sft)
    policy = load_start(context, sft)
    policy.load_weights(weights)
    return policy


def load_start(context: Context, sft: Sft, seed: int = 0) -> Policy:
    """The SFT policy as an arm begins with it: with adapters where the study asks for them, whose first weights `seed`
    decides.
    """
    policy, lora = _sft_policy(context, sft), sft.base.checkpoint.lora
    if lora is not None:
        add_adapters(policy.model, lora, seed)
    return policy


def load_arm(context: Context, sft: Sft, seed: int = 0) -> tuple[Policy, Policy]:
    """A policy to train, or to take over an arm's weights, and its reference: `load_start` and `load_reference`."""
    policy = load_start(context, sft, seed)
    return policy, load_reference(context, sft, policy)


def load_reference(context: Context, sft: Sft, policy: Policy | None = None) -> Policy:
    """The SFT policy as the reference of arms: of `policy`, with which it shares the model in memory if that has
    adapters, or of any.
    """
    if sft.base.checkpoint.lora is not None:
        policy = policy or load_start(context, sft)
        return WithoutAdapters(policy.model, policy.ends, policy.max_new_tokens, policy.layout)
    reference = _sft_policy(context, sft)
    reference.model.requires_grad_(False)
    return reference


def _sft_policy(context: Context, sft: Sft) -> Policy:
    checkpoint = sft.base.checkpoint.at(context.one("sft") / "model")
    ends = end_tokens(load_tokenizer(checkpoint))
    return Policy(load_language_model(checkpoint, context.device), ends, max_new_tokens(context))


def max_new_tokens(context: Context) -> int:
    """The limit of responses to the prompts of the context's input `task`."""
    return int(read_json(context.one("task") / "task.json")["max_new_tokens"])


def sample_in_chunks(policy: Policy, prompts: Tokens, noise: torch.Tensor) -> Tokens:
    """One response a prompt, on the CPU."""
    # A pass takes hardly longer for many rows than for few; long ones need memory for their keys and values.
    chunk = min(128, max(32, 8192 // (prompts.ids.shape[1] + noise.shape[1])))

    def drawn(index: torch.Tensor) -> list[list[int]]:
        return policy.sample(prompts.take(index).to(policy.device), 1, noise[index]).to("cpu").rows()

    return Tokens.collate([row for rows in ranks.chunked(drawn, len(prompts.ids), chunk) for row in rows])
