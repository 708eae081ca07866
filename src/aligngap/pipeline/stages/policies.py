"""Policies: the SFT policy and the arms that start from it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

import polars as pl
import torch

from aligngap import ranks
from aligngap.measure.kl import sequence_kl
from aligngap.models.build import check_read_back, load_language_model, parameter_count
from aligngap.models.lora import add_adapters, merge_adapters
from aligngap.models.policy import Policy, WithoutAdapters
from aligngap.models.sharding import save_folder
from aligngap.models.tokenizer import end_tokens, load_tokenizer
from aligngap.pipeline.graph import Context, Stage
from aligngap.pipeline.stages.base import Base, JudgeStage, PairsStage, load_judge
from aligngap.pipeline.stages.pairs import Pairs, Reading, check_fits
from aligngap.seeds import uniforms
from aligngap.sources.base import Ingredients
from aligngap.sources.order import prompt_schedule
from aligngap.sources.recorded import Recorded
from aligngap.sources.recording import Recording
from aligngap.sources.registry import AnySource
from aligngap.store.disk import read_json, write_json
from aligngap.store.identity import file_digest
from aligngap.tasks.pairs import write_pairs
from aligngap.train.checkpoint import Checkpointer
from aligngap.train.loop import LossSpec, reference_log_probs, train
from aligngap.train.passages import Passages
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
        checkpoint = self.base.checkpoint
        parts = [stage.read(context) for stage in self.pairs]
        for stage, part in zip(self.pairs, parts, strict=True):
            check_fits(Reading(checkpoint), stage, part)
        tokenizer = load_tokenizer(checkpoint)
        model = load_language_model(checkpoint, context.device, tokenizer)
        policy = Policy(model, end_tokens(tokenizer), 1)
        pooled = concatenate(parts)
        held_out = concatenate([stage.read(context, "held_out") for stage in self.pairs])
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
        check_read_back(model, checkpoint.at(context.out / "model"))
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
    for part, count in ranks.map_chunks(scored, len(pairs), chunk):
        total += part
        tokens += count
    return total / tokens


class Reference(Stage):
    """Reference log-probabilities of recorded pairs under the SFT policy, computed once for all arms that train on
    these responses, whichever labels those take.

    batch, visits: pairs a step, and in all steps of an arm. An arm of less than one epoch computes them batch by batch
    itself; reference.parquet is empty then. One row a pair, in the pairs' order: first, second (log-probabilities
    summed over tokens, nats).
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
        pairs = self.pairs.read(context)
        values = torch.zeros(0, 2)
        if self.visits >= len(pairs):
            check_fits(Reading(self.sft.base.checkpoint), self.task, pairs)
            reference = load_reference(context, self.sft, self.task)

            def scored(index: torch.Tensor) -> torch.Tensor:
                return reference_log_probs(reference, pairs.take(index).to(reference.device)).float().cpu()

            parts = []
            # In an arm's batches: a recorded stream then gets the bits that the arm which recorded it computed.
            for index in torch.arange(len(pairs)).split(self.batch):
                parts.append(ranks.map_rows(scored, index))
                context.progress(int(index[-1]) + 1, len(pairs), {})
            values = torch.cat(parts)
        if ranks.first():
            columns = {"first": values[:, 0].numpy(), "second": values[:, 1].numpy()}
            pl.DataFrame(columns).write_parquet(context.out / "reference.parquet")

    @staticmethod
    def of(pairs: PairBatch, folder: Path) -> PairBatch:
        """The pairs with the log-probabilities of the artefact in `folder`; as they are where that is empty."""
        values = pl.read_parquet(folder / "reference.parquet").to_torch()
        return replace(pairs, reference=values) if len(values) else pairs


class Arm(PairsStage):
    """A policy trained from the SFT policy by one loss on the pairs of one source. Golden policy, online, offline,
    replay: all are this stage.

    recorded: the pairs of an offline source; reference: their reference log-probabilities, where the source leaves the
    responses as they are. keep: steps whose weights are kept, 0 for those before training; passages: values of KL from
    the SFT policy (nats) around whose first passage they are kept, too, as a probe on training prompts sees it.

    final.safetensors: the weights after the last step; steps/STEP.safetensors: those of `keep` and of passages;
    passages.json: what the probe saw. stream.parquet: the pairs in the order of training, of
    a source that samples or labels them. cost.json, seconds.json, weights.json.
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
    passages: tuple[float, ...] = ()

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

    def weights(self, context: Context, step: int | None = None) -> Path:
        """The file of weights after a step of `keep`; after the last step if none is named."""
        return context.folder(self) / _weights_file(step)

    def run(self, context: Context) -> None:
        start = time.perf_counter()
        ingredients = self._ingredients(context)
        known = ingredients.pairs is not None and ingredients.pairs.reference is not None
        policy = load_start(context, self.sft, self.task, self.seed)
        reference = None if known else load_reference(context, self.sft, self.task, policy)
        source = self.source.build(replace(ingredients, ends=policy.ends))
        recording = Recording(source) if self.source.needs_judge else None
        passages = Passages(self.passages, self._probe(context, policy, reference)) if self.passages else None
        (context.partial / "steps").mkdir(parents=True, exist_ok=True)
        train(
            policy,
            reference,
            recording or source,
            self.loss,
            self.optim,
            keep=self.keep,
            save_policy=lambda step, p: p.save_weights(context.partial / _weights_file(step)),
            passages=passages,
            checkpointer=Checkpointer(context.partial, context.checkpoint_seconds),
            progress=context.progress,
        )
        final = context.out / _weights_file(None)
        policy.save_weights(final)
        if not ranks.first():
            return
        if recording:
            write_pairs(recording.stream(), context.out / self.train_file)
        (context.out / "steps").mkdir()
        wanted = {*self.keep, *(passages.needed if passages else ())}
        for path in (context.partial / "steps").iterdir():
            if int(path.stem) in wanted:
                shutil.copy(path, context.out / "steps" / path.name)
        if passages:
            write_json(context.out / "passages.json", {"path": passages.path})
        write_json(context.out / "cost.json", {**asdict(source.cost), "steps": self.optim.steps})
        write_json(context.out / "weights.json", {"weights_sha256": file_digest(final)})
        write_json(context.out / "seconds.json", {"seconds": time.perf_counter() - start})

    def _probe(self, context: Context, policy: Policy, reference: Policy | None) -> Callable[[Policy], float]:
        """KL of a policy from the SFT policy on the first training prompts, always under the same noise."""
        pairs = self.task.read(context)
        index = torch.arange(min(_PROBED, len(pairs)))
        prompts, start = pairs.prompts.take(index), reference or load_reference(context, self.sft, self.task, policy)
        noise = uniforms(pairs.prompt_numbers[index], 1, policy.max_new_tokens, "probe", self.seed)

        def kl(policy: Policy) -> float:
            responses = sample_in_chunks(policy, prompts, noise)
            return float(sequence_kl(policy, start, prompts, responses).mean())

        return kl

    def probed(self, context: Context) -> list[tuple[int, float]]:
        """KL along training as the probe saw it: steps and nats, from the artefact."""
        return [(int(step), float(kl)) for step, kl in read_json(context.folder(self) / "passages.json")["path"]]

    def _ingredients(self, context: Context) -> Ingredients:
        """What the source is built from; each file of pairs is read once. Raises UserError for pairs that are longer
        than the model's context.
        """
        checkpoint, pairs, recorded = self.sft.base.checkpoint, self.task.read(context), None
        response = self.task.max_new_tokens(context) if self.source.needs_judge else 0
        check_fits(Reading(checkpoint), self.task, pairs, response=response)
        if self.recorded is not None:
            recorded = pairs if self.recorded.identity == self.task.identity else self.recorded.read(context)
            check_fits(Reading(checkpoint), self.task, recorded)
            if self.reference is not None:
                recorded = Reference.of(recorded, context.folder(self.reference))
        judge = load_judge(self.judge, context) if self.judge else None
        return Ingredients(self.seed, self.optim.batch, prompts_of(pairs), judge, recorded)


_PROBED = 64
"""Prompts on which KL is looked at during training."""


def _weights_file(step: int | None) -> str:
    return "final.safetensors" if step is None else f"steps/{step:06d}.safetensors"


def prompts_of(pairs: PairBatch) -> list[Prompt]:
    """The prompts of pairs, one a pair, in their order."""
    rows = zip(pairs.prompt_numbers.tolist(), pairs.prompts.rows(), strict=True)
    return [Prompt(number, tuple(ids)) for number, ids in rows]


def load_policy(context: Context, sft: Sft, task: Pairs, weights: Path | None = None) -> Policy:
    """The SFT policy, or an arm's, whose file of weights is given. task: whose limit of tokens responses keep to."""
    if weights is not None:
        policy = load_start(context, sft, task)
        policy.load_weights(weights)
        return policy
    checkpoint = sft.base.checkpoint.at(context.folder(sft) / "model")
    tokenizer = load_tokenizer(checkpoint)
    model = load_language_model(checkpoint, context.device, tokenizer)
    return Policy(model, end_tokens(tokenizer), task.max_new_tokens(context))


def load_start(context: Context, sft: Sft, task: Pairs, seed: int = 0) -> Policy:
    """The SFT policy as an arm begins with it: with adapters where the study asks for them, whose first weights `seed`
    decides.
    """
    policy, lora = load_policy(context, sft, task), sft.base.checkpoint.lora
    if lora is not None:
        add_adapters(policy.model, lora, seed)
    return policy


def load_arm(context: Context, sft: Sft, task: Pairs, seed: int = 0) -> tuple[Policy, Policy]:
    """A policy to train, or to take over an arm's weights, and its reference: `load_start` and `load_reference`."""
    policy = load_start(context, sft, task, seed)
    return policy, load_reference(context, sft, task, policy)


def load_reference(context: Context, sft: Sft, task: Pairs, policy: Policy | None = None) -> Policy:
    """The SFT policy as the reference of arms. policy: the one in training, with which it shares the model in memory if
    that has adapters.
    """
    if sft.base.checkpoint.lora is not None:
        policy = policy or load_start(context, sft, task)
        return WithoutAdapters(policy.model, policy.ends, policy.max_new_tokens, policy.layout)
    reference = load_policy(context, sft, task)
    reference.model.requires_grad_(False)
    return reference


def sample_in_chunks(policy: Policy, prompts: Tokens, noise: torch.Tensor) -> Tokens:
    """One response a prompt, on the CPU."""
    # A pass takes hardly longer for many rows than for few; long ones need memory for their keys and values.
    chunk = min(128, max(32, 8192 // (prompts.ids.shape[1] + noise.shape[1])))

    def sampled(index: torch.Tensor) -> list[list[int]]:
        return policy.sample(prompts.take(index).to(policy.device), 1, noise[index]).to("cpu").rows()

    return Tokens.collate([row for rows in ranks.map_chunks(sampled, len(prompts.ids), chunk) for row in rows])
