"""The stages of the protocol (Tang et al. 2024, section 4, figure 2): each reads artefacts, does one thing, writes one
artefact.

Seconds of work are measured rates on one core of the reference machine (docs/benchmarks.md); they feed `aligngap plan`
and the executor's order, nothing else.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, Field

from aligngap.judges.base import Judge
from aligngap.judges.model import ModelJudge
from aligngap.judges.true_utility import TrueUtilityJudge
from aligngap.measure.classify import correct, pair_log_probs, winner_drift
from aligngap.measure.kl import sequence_kl
from aligngap.measure.winrate import win_rate
from aligngap.models.build import base_path, load_causal_model, load_tokenizer, parameter_count
from aligngap.models.policy import Policy
from aligngap.models.preference import build_preference_model, load_preference_model
from aligngap.pipeline.graph import Context, Stage
from aligngap.seeds import uniforms
from aligngap.sources.base import Ingredients
from aligngap.sources.order import prompt_schedule
from aligngap.sources.recorded import Recorded
from aligngap.sources.recording import Recording
from aligngap.sources.registry import AnySource
from aligngap.sources.sampled import Sampled
from aligngap.store.identity import file_digest, folder_digest
from aligngap.store.store import read_json, write_json
from aligngap.tasks.pairs import read_pairs, write_pairs
from aligngap.tasks.spec import TaskSpec, make_pairs
from aligngap.tasks.worlds import world
from aligngap.train.loop import Checkpointer, LossSpec, train
from aligngap.train.step import OptimSpec
from aligngap.train.supervised import fit, preference_loss, sft_loss
from aligngap.types import PairBatch, Prompt, Tokens, concatenate

SPLITS = ("train", "held_out")


class Base(BaseModel):
    """A pretrained model and its tokenizer. The digest of their files is part of every identity built on them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(exclude=True)  # may be a path, which no identity may depend on
    digest: str

    @classmethod
    def named(cls, name: str) -> Base:
        """A shipped size, a folder or a hub id. Raises UserError when there is none."""
        path = base_path(name)
        return cls(name=name, digest=folder_digest(Path(path)) if Path(path).is_dir() else f"hub:{path}")

    @property
    def path(self) -> str:
        """Folder or hub id."""
        return base_path(self.name)

    @property
    def size(self) -> float:
        """Cost of a training step relative to the small base, measured."""
        return {"small": 1.0, "medium": 2.3, "large": 7.0}.get(self.name, 1.0)


class Pairs(Stage):
    """`D_initial`: prompts, two responses each, a rater's preference."""

    kind: ClassVar[str] = "pairs"

    task: TaskSpec
    base: Base

    @property
    def label(self) -> str:
        return f"{self.task.world}: raters' pairs"

    @property
    def work(self) -> float:
        return 3.6e-4 * (self.task.train_pairs + self.task.held_out_pairs) + 1

    def run(self, context: Context) -> None:
        data = make_pairs(self.task, load_tokenizer(self.base.path))
        for split in SPLITS:
            write_pairs(getattr(data, split), context.out / f"{split}.parquet")
        write_json(context.out / "task.json", {"max_new_tokens": data.max_new_tokens})


class Sft(Stage):
    """The policy every arm starts from: fine-tuned on both responses of every pair, pooled over the tasks."""

    kind: ClassVar[str] = "sft"

    pairs: tuple[Pairs, ...]
    base: Base
    optim: OptimSpec
    seed: int

    @property
    def label(self) -> str:
        return f"SFT policy ({self.base.name})"

    @property
    def work(self) -> float:
        return 0.03 * self.base.size * self.optim.steps + 2

    def run(self, context: Context) -> None:
        folders = context.many("pairs")
        tokenizer = load_tokenizer(self.base.path)
        model = load_causal_model(self.base.path, context.device)
        policy = Policy(model, int(tokenizer.eos_token_id), 1)
        pooled = concatenate([read_pairs(folder / "train.parquet") for folder in folders])
        held_out = concatenate([read_pairs(folder / "held_out.parquet") for folder in folders])
        before = held_out_nll(policy, held_out)
        source = Recorded(pooled, prompt_schedule(self.seed))
        fit(model, lambda batch, step: sft_loss(policy, batch), source, self.optim, context.progress)
        model.save_pretrained(context.out / "model")
        tokenizer.save_pretrained(context.out / "model")
        metrics = {
            "parameters": parameter_count(model),
            "held_out_nll_before": before,
            "held_out_nll": held_out_nll(policy, held_out),
            "train_nll": held_out_nll(policy, pooled.take(torch.arange(min(len(pooled), len(held_out))))),
        }
        write_json(context.out / "metrics.json", metrics)


@torch.no_grad()
def held_out_nll(policy: Policy, pairs: PairBatch, chunk: int = 32) -> float:
    """Negative log-likelihood per token of both responses, nats."""
    total = tokens = 0.0
    for index in torch.arange(len(pairs)).split(chunk):
        part = pairs.take(index).to(policy.device)
        count = int(part.first.lengths.sum() + part.second.lengths.sum())
        total += float(sft_loss(policy, part)) * count
        tokens += count
    return total / tokens


class Preference(Stage):
    """A preference model: golden on the raters' labels, proxy on golden's (appendix A). `more`: further pairs with
    labels of the same kind, beside those that `train_pairs` counts.
    """

    kind: ClassVar[str] = "preference"

    pairs: Stage
    base: Base
    role: str
    model: str
    train_pairs: int | None
    optim: OptimSpec
    seed: int
    more: tuple[Stage, ...] = ()

    @property
    def label(self) -> str:
        seed = f", seed {self.seed}" if self.role == "proxy" else ""
        more = "".join(f" + {stage.label}" for stage in self.more)
        return f"{self.role} preference model ({self.model}, {self.base.name}{seed}){more}"

    @property
    def work(self) -> float:
        return 0.03 * self.base.size * self.optim.steps + 3

    def run(self, context: Context) -> None:
        folder = context.one("pairs")
        train_pairs, held_out = (read_pairs(folder / f"{split}.parquet") for split in SPLITS)
        if self.train_pairs is not None:
            train_pairs = train_pairs.take(torch.arange(min(self.train_pairs, len(train_pairs))))
        if self.more:
            train_pairs = concatenate(
                [train_pairs, *(read_pairs(part / "train.parquet") for part in context.many("more"))]
            )
        tokenizer = load_tokenizer(self.base.path)
        model = build_preference_model(self.model, self.base.path, separator_of(tokenizer), context.device)
        source = Recorded(train_pairs, prompt_schedule(self.seed))
        fit(
            model,
            lambda batch, step: preference_loss(model, batch, step, self.seed),
            source,
            self.optim,
            context.progress,
        )
        model.save(context.out)
        judge = ModelJudge(model.eval().requires_grad_(False))
        metrics: dict[str, Any] = {"parameters": parameter_count(model), "train_pairs": len(train_pairs)}
        for split, pairs in (
            ("train", train_pairs.take(torch.arange(min(len(train_pairs), len(held_out))))),
            ("held_out", held_out),
        ):
            metrics[f"{split}_agreement"] = agreement(predictions(judge, pairs), pairs.preference)
        write_json(context.out / "metrics.json", metrics)


def separator_of(tokenizer: Any) -> int:
    """The token between two responses: the tokenizer's separator, or its end token where it has none."""
    return int(tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id)


def load_judge(stage: Preference, folder: Path, context: Context) -> ModelJudge:
    """A trained preference model as a judge."""
    tokenizer = load_tokenizer(stage.base.path)
    return ModelJudge(load_preference_model(stage.model, folder, separator_of(tokenizer), context.device))


def predictions(judge: Judge, pairs: PairBatch) -> torch.Tensor:
    """A judge's labels of pairs, float32 [n]."""
    return judge.prefer(pairs.prompts, pairs.first, pairs.second)


def agreement(a: torch.Tensor, b: torch.Tensor) -> dict[str, float | int | None]:
    """Share of pairs on which two judges say the same, over pairs that neither calls a tie; with its standard error
    and count.
    """
    decided = (a != 0.5) & (b != 0.5)
    rate = win_rate(((a == b)[decided]).double().numpy())
    return {"value": rate.rate if rate.n else None, "se": rate.se if rate.n > 1 else None, "n": rate.n}


class Relabel(Stage):
    """The same pairs with a preference model's labels in place of the rater's; golden's make `D_golden`."""

    kind: ClassVar[str] = "relabel"

    pairs: Pairs
    judge: Preference

    @property
    def label(self) -> str:
        seed = f" (seed {self.judge.seed})" if self.judge.role == "proxy" else ""
        return f"{self.pairs.task.world}: {self.judge.role} labels{seed}"

    @property
    def work(self) -> float:
        return 5e-4 * self.judge.base.size * (self.pairs.task.train_pairs + self.pairs.task.held_out_pairs) + 2

    def run(self, context: Context) -> None:
        judge = load_judge(self.judge, context.one("judge"), context)
        for split in SPLITS:
            pairs = read_pairs(context.one("pairs") / f"{split}.parquet")
            write_pairs(replace(pairs, preference=predictions(judge, pairs)), context.out / f"{split}.parquet")


class Agreement(Stage):
    """How raters, golden, proxy and the true utility agree with each other on held-out pairs."""

    kind: ClassVar[str] = "agreement"

    pairs: Pairs
    golden_pairs: Relabel
    proxy: Preference

    @property
    def label(self) -> str:
        return f"{self.pairs.task.world}: judges' agreement (seed {self.proxy.seed})"

    @property
    def work(self) -> float:
        return 5e-4 * self.pairs.task.held_out_pairs + 2

    def run(self, context: Context) -> None:
        raters, golden = (read_pairs(context.one(name) / "held_out.parquet") for name in ("pairs", "golden_pairs"))
        true = TrueUtilityJudge(world(self.pairs.task.world), load_tokenizer(self.pairs.base.path))
        labels = {
            "rater": raters.preference,
            "golden": golden.preference,
            "proxy": predictions(load_judge(self.proxy, context.one("proxy"), context), raters),
            "true": predictions(true, raters),
        }
        names = list(labels)
        found = {f"{a}_{b}": agreement(labels[a], labels[b]) for i, b in enumerate(names) for a in names[i + 1 :]}
        write_json(context.out / "agreement.json", found)


class Arm(Stage):
    """A policy trained from the SFT policy by one loss on the pairs of one source. Golden policy, online, offline,
    replay: all are this stage.
    """

    kind: ClassVar[str] = "arm"

    sft: Sft
    task: Pairs
    source: AnySource
    judge: Preference | None = None
    recorded: Stage | None = None
    loss: LossSpec
    optim: OptimSpec
    seed: int
    keep: tuple[int, ...]

    @property
    def label(self) -> str:
        source = self.source.model_dump()
        what = [source["kind"]]
        if isinstance(self.recorded, Relabel):
            what.append(f"{self.recorded.judge.role} labels")
        elif isinstance(self.recorded, Generate):
            what.append(self.recorded.origin)
        elif self.recorded is not None:
            what.append("online stream")
        what += [f"{key}={source[key]}" for key in ("order", "sync_period", "on_policy") if key in source]
        if source.get("order") == "window":
            what[-1] += f" of {source['window']}"
        if self.judge:
            what.append(f"labelled by {self.judge.role}")
        loss = self.loss.name + (f" + {self.loss.sft:g} sft" if self.loss.sft else "")
        how = f"{self.sft.base.name}, {loss}, lr {self.optim.lr:g}, beta {self.loss.beta:g}, {self.optim.steps} steps"
        return f"{self.task.task.world} arm: {' '.join(what)}, {how}, seed {self.seed}"

    @property
    def work(self) -> float:
        live = 0.025 * self.sft.base.size + 0.02 * self.judge.base.size if self.judge else 0.0
        return (0.035 * self.sft.base.size + live) * self.optim.steps * self.optim.batch / 32 + 3

    def run(self, context: Context) -> None:
        start = time.perf_counter()
        policy, reference = (load_policy(context, context.one("sft")) for _ in range(2))
        reference.model.requires_grad_(False)
        source = self.source.build(self._ingredients(context))
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
        if recording:
            write_pairs(recording.stream(), context.out / "stream.parquet")
        (context.out / "steps").mkdir()
        for path in sorted(kept.iterdir()):
            (context.out / "steps" / path.name).write_bytes(path.read_bytes())
        cost = {
            "tokens_sampled": source.cost.tokens_sampled,
            "judge_calls": source.cost.judge_calls,
            "steps": self.optim.steps,
        }
        write_json(context.out / "cost.json", cost)
        write_json(context.out / "weights.json", {"weights_sha256": file_digest(final)})
        write_json(context.out / "seconds.json", {"seconds": time.perf_counter() - start})

    def _ingredients(self, context: Context) -> Ingredients:
        train_pairs = read_pairs(context.one("task") / "train.parquet")
        prompts = [
            Prompt(number, tuple(ids))
            for number, ids in zip(train_pairs.prompt_numbers.tolist(), train_pairs.prompts.rows(), strict=True)
        ]
        judge = load_judge(self.judge, context.one("judge"), context) if self.judge else None
        recorded = None
        if self.recorded is not None:
            name = "stream.parquet" if isinstance(self.recorded, Arm) else "train.parquet"
            recorded = read_pairs(context.one("recorded") / name)
        end = int(load_tokenizer(str(context.one("sft") / "model")).eos_token_id)
        return Ingredients(
            seed=self.seed, batch=self.optim.batch, prompts=prompts, judge=judge, pairs=recorded, end_token=end
        )


def load_policy(context: Context, sft: Path, weights: Path | None = None) -> Policy:
    """The SFT policy, or an arm's weights in its shape."""
    tokenizer = load_tokenizer(str(sft / "model"))
    limit = int(read_json(context.one("task") / "task.json")["max_new_tokens"])
    policy = Policy(load_causal_model(str(sft / "model"), context.device), int(tokenizer.eos_token_id), limit)
    if weights is not None:
        policy.load_weights(weights)
    return policy


class Generate(Stage):
    """New pairs on the task's prompts, one a prompt: a response each from two fixed policies, and a label.

    first, second: arms whose checkpoints (`first_step`, `second_step`) respond; None is the SFT policy. judge: labels
    the pairs; None asks the world's raters.
    """

    kind: ClassVar[str] = "generate"

    sft: Sft
    task: Pairs
    first: Arm | None = None
    first_step: int | None = None
    second: Arm | None = None
    second_step: int | None = None
    judge: Preference | None = None
    prompts: int | None = None
    seed: int

    @property
    def origin(self) -> str:
        """Whose responses, against whose."""
        sides = ((self.first, self.first_step), (self.second, self.second_step))
        names = ["sft" if arm is None else f"step {step} of seed {arm.seed}" for arm, step in sides]
        return f"{names[0]} vs {names[1]}"

    @property
    def label(self) -> str:
        who = f"{self.judge.role} labels" if self.judge else "raters' labels"
        return f"{self.task.task.world}: pairs of {self.origin}, {who}"

    @property
    def work(self) -> float:
        judged = 5e-4 * self.judge.base.size if self.judge else 1e-4
        return (1.6e-3 * self.sft.base.size + judged) * (self.prompts or self.task.task.train_pairs) + 3

    def run(self, context: Context) -> None:
        policies = []
        for name, step in (("first", self.first_step), ("second", self.second_step)):
            weights = context.one(name) / f"steps/{step:06d}.safetensors" if getattr(self, name) else None
            policies.append(load_policy(context, context.one("sft"), weights))
        true = TrueUtilityJudge(world(self.task.task.world), load_tokenizer(self.task.base.path))
        judge = load_judge(self.judge, context.one("judge"), context) if self.judge else true
        for split in SPLITS:
            given = read_pairs(context.one("task") / f"{split}.parquet")
            given = given.take(torch.arange(min(self.prompts or len(given), len(given))))
            rows = zip(given.prompt_numbers.tolist(), given.prompts.rows(), strict=True)
            prompts = [Prompt(number, tuple(ids)) for number, ids in rows]
            frozen = (policies[0], policies[1])
            source = Sampled(prompts, judge, self.seed, frozen=frozen, purpose="generate")
            parts = []
            for index in torch.arange(len(prompts)).split(32):
                parts.append(source.next_batch(len(index)))
                if split == "train":
                    context.progress(int(index[-1]) + 1, len(prompts), {})
            pairs = concatenate(parts)
            # In the order of the prompts, as every other set of pairs on them, so that arms keep one schedule.
            pairs = pairs.take(torch.argsort(pairs.prompt_numbers))
            if self.judge is None:
                labels = true.rated(pairs.prompts, pairs.first, pairs.second, self.seed)
                pairs = replace(pairs, preference=labels)
            write_pairs(pairs, context.out / f"{split}.parquet")


class Responses(Stage):
    """One response a prompt, train and held-out, of a policy that others are compared with: SFT or golden policy."""

    kind: ClassVar[str] = "responses"

    sft: Sft
    task: Pairs
    arm: Arm | None
    prompts: int
    seed: int

    @property
    def who(self) -> str:
        """Whose responses: `sft` or `golden_policy`."""
        return "sft" if self.arm is None else "golden_policy"

    @property
    def label(self) -> str:
        return f"{self.task.task.world}: responses of {self.who}"

    @property
    def work(self) -> float:
        return 7e-4 * len(SPLITS) * self.prompts + 1

    def run(self, context: Context) -> None:
        policy = load_policy(
            context, context.one("sft"), context.one("arm") / "final.safetensors" if self.arm else None
        )
        true = TrueUtilityJudge(world(self.task.task.world), load_tokenizer(self.task.base.path))
        for split, (numbers, prompts) in evaluation_prompts(context.one("task"), self.prompts).items():
            noise = uniforms(numbers, 1, policy.max_new_tokens, "opponent", self.who, self.seed)
            drawn = sample_in_chunks(policy, prompts, noise)
            columns = {
                "prompt_number": numbers.numpy(),
                "response_ids": pl.Series(drawn.rows(), dtype=pl.List(pl.Int32)),
                "utility": true.utilities(prompts, drawn).numpy(),
            }
            pl.DataFrame(columns).write_parquet(context.out / f"{split}.parquet")


def evaluation_prompts(task: Path, count: int) -> dict[str, tuple[torch.Tensor, Tokens]]:
    """The fixed evaluation prompts of each split: their numbers and token ids. The same for every arm and seed."""
    found = {}
    for split in SPLITS:
        pairs = read_pairs(task / f"{split}.parquet")
        index = torch.arange(min(count, len(pairs)))
        found[split] = (pairs.prompt_numbers[index], pairs.prompts.take(index))
    return found


def sample_in_chunks(policy: Policy, prompts: Tokens, noise: torch.Tensor, chunk: int = 32) -> Tokens:
    """One response a prompt, on the CPU."""
    rows: list[list[int]] = []
    for index in torch.arange(len(prompts.ids)).split(chunk):
        rows += policy.sample(prompts.take(index).to(policy.device), 1, noise[index]).to("cpu").rows()
    return Tokens.collate(rows)


class Evaluate(Stage):
    """An arm along its checkpoints: every measure, per prompt (section 4, appendices D and E).

    Prompts and sampling noise are the same for all arms of a seed; the opponents' responses are the same for all arms.
    """

    kind: ClassVar[str] = "evaluate"

    arm: Arm
    sft: Sft
    task: Pairs
    golden: Preference
    proxy: Preference
    golden_pairs: Relabel
    opponents: tuple[Responses, ...]
    prompts: int
    pairs: int

    @property
    def label(self) -> str:
        return f"evaluate {self.arm.label}"

    @property
    def work(self) -> float:
        judged = self.prompts * 5e-4 * (len(self.opponents) * self.golden.base.size + self.proxy.base.size)
        other = (self.prompts * 1.2e-3 + self.pairs * 3e-4) * self.sft.base.size
        return len(SPLITS) * (judged + other) * len(self.arm.keep) + 3

    def run(self, context: Context) -> None:
        reference = load_policy(context, context.one("sft"))
        policy = load_policy(context, context.one("sft"))
        golden = load_judge(self.golden, context.one("golden"), context)
        proxy = load_judge(self.proxy, context.one("proxy"), context)
        true = TrueUtilityJudge(world(self.task.task.world), load_tokenizer(self.task.base.path))
        splits = evaluation_prompts(context.one("task"), self.prompts)
        against = {
            stage.who: {
                split: Tokens.collate(pl.read_parquet(folder / f"{split}.parquet")["response_ids"].to_list())
                for split in SPLITS
            }
            for stage, folder in zip(self.opponents, context.many("opponents"), strict=True)
        }
        labelled, fixed = {}, {}
        for split in SPLITS:
            pairs = read_pairs(context.one("golden_pairs") / f"{split}.parquet")
            labelled[split] = pairs.take(torch.arange(min(self.pairs, len(pairs))))
            fixed[split] = pair_log_probs(reference, labelled[split])
        judges: dict[str, Judge] = {"golden": golden, "proxy": proxy, "true": true}
        per_prompt, per_pair = [], []
        for done, step in enumerate(self.arm.keep, start=1):
            policy.load_weights(context.one("arm") / "steps" / f"{step:06d}.safetensors")
            for split, (numbers, prompts) in splits.items():
                noise = uniforms(numbers, 1, policy.max_new_tokens, "evaluation", self.arm.seed)
                responses = sample_in_chunks(policy, prompts, noise)
                columns: dict[str, Any] = {
                    "prompt_number": numbers.numpy(),
                    "kl": sequence_kl(policy, reference, prompts, responses).numpy(),
                    "tokens": responses.lengths.numpy(),
                    "utility": true.utilities(prompts, responses).numpy(),
                    "response_ids": pl.Series(responses.rows(), dtype=pl.List(pl.Int32)),
                }
                for opponent, drawn in against.items():
                    for name, judge in judges.items():
                        if opponent != "sft" and judge is proxy:
                            continue  # no measure asks a proxy about the golden policy
                        margin = judge.margin(prompts, responses, drawn[split]).double()
                        columns[f"win_{opponent}_{name}"] = ((margin.sign() + 1) / 2).numpy()
                        if opponent == "sft" and judge is not true:
                            columns[f"margin_{name}"] = margin.numpy()
                per_prompt.append(pl.DataFrame(columns).with_columns(step=pl.lit(step), split=pl.lit(split)))
                pairs = labelled[split]
                first, second = pair_log_probs(policy, pairs) - fixed[split]
                frame = pl.DataFrame(
                    {
                        "prompt_number": pairs.prompt_numbers.numpy(),
                        "correct": correct(first, second, pairs.preference).numpy(),
                        "drift": winner_drift(first, second, pairs.preference).numpy(),
                    }
                )
                per_pair.append(frame.with_columns(step=pl.lit(step), split=pl.lit(split)))
            context.progress(done, len(self.arm.keep), {})
        pl.concat(per_prompt).write_parquet(context.out / "per_prompt.parquet")
        pl.concat(per_pair).write_parquet(context.out / "per_pair.parquet")
