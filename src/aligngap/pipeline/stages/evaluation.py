"""An arm along its checkpoints, and the fixed responses it is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import torch

from aligngap import ranks
from aligngap.judges.base import Judge
from aligngap.judges.true_utility import TrueUtilityJudge
from aligngap.measure.base import Answers, values_of
from aligngap.measure.classify import correct, pair_log_probs, winner_drift
from aligngap.measure.kl import sequence_kl
from aligngap.measure.registry import MEASURES
from aligngap.models.build import load_tokenizer
from aligngap.models.policy import Policy
from aligngap.pipeline.graph import Context, Stage
from aligngap.pipeline.stages.base import SPLITS, JudgeStage, load_judge, write_spent
from aligngap.pipeline.stages.pairs import Pairs, Relabel
from aligngap.pipeline.stages.policies import Arm, Sft, load_arm, load_policy, sample_in_chunks
from aligngap.seeds import uniforms
from aligngap.store.store import is_checked, write_checked
from aligngap.tasks.pairs import read_pairs
from aligngap.types import Tokens


class Responses(Stage):
    """One response a prompt, train and held-out, of a policy that others are compared with: SFT or golden policy."""

    kind: ClassVar[str] = "responses"
    together: ClassVar[bool] = True

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
        return f"{self.task.name}: responses of {self.who}"

    @property
    def work(self) -> float:
        return 7e-4 * len(SPLITS) * self.prompts + 1

    def run(self, context: Context) -> None:
        policy = load_policy(context, self.sft, context.one("arm") / "final.safetensors" if self.arm else None)
        truth = self.task.truth()
        for split, (numbers, prompts) in evaluation_prompts(context.one("task"), self.prompts).items():
            noise = uniforms(numbers, 1, policy.max_new_tokens, "opponent", self.who, self.seed)
            drawn = sample_in_chunks(policy, prompts, noise)
            columns = {
                "prompt_number": numbers.numpy(),
                "response_ids": pl.Series(drawn.rows(), dtype=pl.List(pl.Int32)),
                "utility": utilities(truth, prompts, drawn),
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


class Evaluate(Stage):
    """An arm along its checkpoints: every measure, per prompt (section 4, appendices D and E).

    Prompts and sampling noise are the same for all arms of a seed; the opponents' responses are the same for all arms.
    """

    kind: ClassVar[str] = "evaluate"
    together: ClassVar[bool] = True

    arm: Arm
    sft: Sft
    task: Pairs
    golden: JudgeStage
    proxy: JudgeStage
    golden_pairs: Relabel
    opponents: tuple[Responses, ...]
    prompts: int
    pairs: int

    @property
    def label(self) -> str:
        return f"evaluate {self.arm.label}"

    @property
    def work(self) -> float:
        judged = self.prompts * (len(self.opponents) * self.golden.seconds + self.proxy.seconds)
        other = (self.prompts * 1.2e-3 + self.pairs * 3e-4) * self.sft.base.size
        return len(SPLITS) * (judged + other) * len(self.arm.keep) + 3

    def run(self, context: Context) -> None:
        # A file a checkpoint: what is measured is not measured again after a kill, and a live view can read it.
        kinds = ("prompts", "pairs")
        missing = ranks.agreed(
            [
                step
                for step in self.arm.keep
                if not all(is_checked(self.file(context.partial, kind, step)) for kind in kinds)
            ]
        )
        if missing:
            self._measure(context, missing)
        if not ranks.first():
            return
        for kind, name in (("prompts", "per_prompt"), ("pairs", "per_pair")):
            parts = [pl.read_parquet(self.file(context.partial, kind, step)) for step in self.arm.keep]
            pl.concat(parts).write_parquet(context.out / f"{name}.parquet")

    @staticmethod
    def file(partial: Path, kind: str, step: int) -> Path:
        """Where a checkpoint's rows of `per_prompt` (kind `prompts`) or `per_pair` (`pairs`) wait for the others'."""
        return partial / f"{kind}-{step:06d}.parquet"

    def _measure(self, context: Context, steps: list[int]) -> None:
        policy, reference = load_arm(context, self.sft)
        truth = self.task.truth()
        judges: dict[str, Judge | None] = {
            "golden": load_judge(self.golden, context.one("golden"), context),
            "proxy": load_judge(self.proxy, context.one("proxy"), context),
            "true": truth,
        }
        splits = evaluation_prompts(context.one("task"), self.prompts)
        against = opponents_of(self.opponents, context)
        labelled, fixed = {}, {}
        for split in SPLITS:
            pairs = read_pairs(context.one("golden_pairs") / f"{split}.parquet")
            labelled[split] = pairs.take(torch.arange(min(self.pairs, len(pairs))))
            fixed[split] = pair_log_probs(reference, labelled[split])
        for step in steps:
            policy.load_weights(context.one("arm") / "steps" / f"{step:06d}.safetensors")
            per_prompt, per_pair = [], []
            for split, (numbers, prompts) in splits.items():
                noise = uniforms(numbers, 1, policy.max_new_tokens, "evaluation", self.arm.seed)
                responses = sample_in_chunks(policy, prompts, noise)
                columns: dict[str, Any] = {
                    "prompt_number": numbers.numpy(),
                    "kl": sequence_kl(policy, reference, prompts, responses).numpy(),
                    "tokens": responses.lengths.numpy(),
                    "utility": utilities(truth, prompts, responses),
                    "response_ids": pl.Series(responses.rows(), dtype=pl.List(pl.Int32)),
                }
                for opponent, drawn in against.items():
                    for name, judge in judges.items():
                        if opponent != "sft" and name == "proxy":
                            continue  # no measure asks a proxy about the golden policy
                        if judge is None:
                            columns[f"win_{opponent}_{name}"] = unknown(len(numbers))
                            continue
                        margin = judge.margin(prompts, responses, drawn[split]).double()
                        columns[f"win_{opponent}_{name}"] = ((margin.sign() + 1) / 2).numpy()
                        if opponent == "sft" and name != "true":
                            columns[f"margin_{name}"] = margin.numpy()
                labels = {"step": pl.lit(step), "split": pl.lit(split)}
                per_prompt.append(pl.DataFrame(columns).with_columns(**labels))
                pairs = labelled[split]
                first, second = pair_log_probs(policy, pairs) - fixed[split]
                frame = pl.DataFrame(
                    {
                        "prompt_number": pairs.prompt_numbers.numpy(),
                        "correct": correct(first, second, pairs.preference).numpy(),
                        "drift": winner_drift(first, second, pairs.preference).numpy(),
                    }
                )
                per_pair.append(frame.with_columns(**labels))
            # `pairs` last: its file says that the checkpoint is done.
            for kind, frames in (("prompts", per_prompt), ("pairs", per_pair)) if ranks.first() else ():
                write_checked(self.file(context.partial, kind, step), pl.concat(frames).write_parquet)
            context.progress(self.arm.keep.index(step) + 1, len(self.arm.keep), {})
        write_spent(judges.values(), context.out)


class Measured(Stage):
    """One more measure of an arm along its checkpoints, on the responses that its evaluation has sampled: neither the
    arm nor its evaluation is made again for it. measure.parquet: step, split, prompt_number, value.
    """

    kind: ClassVar[str] = "measured"

    measure: str
    evaluation: Evaluate
    arm: Arm
    sft: Sft
    task: Pairs
    golden: JudgeStage
    proxy: JudgeStage
    opponents: tuple[Responses, ...]

    @classmethod
    def of(cls, measure: str, evaluation: Evaluate) -> Measured:
        """A measure of what has been evaluated."""
        same = ("arm", "sft", "task", "golden", "proxy", "opponents")
        return cls(measure=measure, evaluation=evaluation, **{name: getattr(evaluation, name) for name in same})

    @property
    def code(self) -> str | None:
        return super().code or MEASURES.code(self.measure)

    @property
    def label(self) -> str:
        return f"{self.measure} of {self.arm.label}"

    @property
    def work(self) -> float:
        return 1e-4 * len(SPLITS) * self.evaluation.prompts * len(self.arm.keep) * self.sft.base.size + 1

    def run(self, context: Context) -> None:
        table = pl.read_parquet(context.one("evaluation") / "per_prompt.parquet")
        prompts = evaluation_prompts(context.one("task"), self.evaluation.prompts)
        tokenizer = load_tokenizer(self.sft.base.checkpoint.at(context.one("sft") / "model"))
        against = opponents_of(self.opponents, context)
        judges: dict[str, Judge | None] = {}
        policies: dict[int, tuple[Policy, Policy]] = {}

        def judge(name: str) -> Judge | None:
            if name not in judges:
                stages = {"golden": self.golden, "proxy": self.proxy}
                judges[name] = (
                    load_judge(stages[name], context.one(name), context) if name in stages else self.task.truth()
                )
            return judges[name]

        def models(step: int) -> tuple[Policy, Policy]:
            if step not in policies:
                policy, reference = next(iter(policies.values()), None) or load_arm(context, self.sft)
                policy.load_weights(context.one("arm") / "steps" / f"{step:06d}.safetensors")
                policies.clear()
                policies[step] = policy, reference
            return policies[step]

        frames = []
        for step in self.arm.keep:
            for split, (numbers, asked) in prompts.items():
                rows = table.filter((pl.col("step") == step) & (pl.col("split") == split))
                assert rows["prompt_number"].to_list() == numbers.tolist()
                answers = Answers(
                    step,
                    split,
                    numbers,
                    asked,
                    Tokens.collate(rows["response_ids"].to_list()),
                    {who: drawn[split] for who, drawn in against.items()},
                    tokenizer,
                    partial(models, step),
                    judge,
                )
                values = values_of(MEASURES[self.measure], answers, self.measure, MEASURES.place(self.measure))
                frames.append(rows.select("step", "split", "prompt_number").with_columns(value=values.numpy()))
            context.progress(self.arm.keep.index(step) + 1, len(self.arm.keep), {})
        pl.concat(frames).write_parquet(context.out / "measure.parquet")
        write_spent(judges.values(), context.out)


def opponents_of(stages: Iterable[Responses], context: Context) -> dict[str, dict[str, Tokens]]:
    """What the opponents that are the context's input `opponents` answered, by name and split."""
    return {
        stage.who: {
            split: Tokens.collate(pl.read_parquet(folder / f"{split}.parquet")["response_ids"].to_list())
            for split in SPLITS
        }
        for stage, folder in zip(stages, context.many("opponents"), strict=True)
    }


def utilities(truth: TrueUtilityJudge | None, prompts: Tokens, responses: Tokens) -> pl.Series:
    """True utility of each response as a column; nulls where there is no true utility to be known."""
    return pl.Series(truth.utilities(prompts, responses).numpy()) if truth else unknown(len(prompts.ids))


def unknown(rows: int) -> pl.Series:
    """A column of nulls."""
    return pl.Series([None] * rows, dtype=pl.Float64)
