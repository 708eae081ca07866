"""An arm along its checkpoints, and the fixed responses it is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import ClassVar

import polars as pl
import torch

from aligngap import ranks
from aligngap.judges.base import Judge, decision
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
from aligngap.pipeline.stages.policies import Arm, Sft, load_arm, load_policy, load_reference, sample_in_chunks
from aligngap.plugins import Registered
from aligngap.seeds import uniforms
from aligngap.store.store import is_checked, write_checked
from aligngap.tasks.pairs import read_pairs, token_column
from aligngap.types import PairBatch, Tokens


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
        return 3.5e-4 * len(SPLITS) * self.prompts + 0.1

    def run(self, context: Context) -> None:
        policy = load_policy(context, self.sft, context.one("arm") / "final.safetensors" if self.arm else None)
        truth = self.task.truth()
        for split, (numbers, prompts) in evaluation_prompts(context.one("task"), self.prompts).items():
            noise = uniforms(numbers, 1, policy.max_new_tokens, "opponent", self.who, self.seed)
            drawn = sample_in_chunks(policy, prompts, noise)
            columns = {
                "prompt_number": numbers.numpy(),
                "response_ids": token_column(drawn),
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


class Examination(Stage):
    """What it takes to measure policies on a task's evaluation prompts: against whose responses, by which judges."""

    together: ClassVar[bool] = True

    sft: Sft
    task: Pairs
    golden: JudgeStage
    proxy: JudgeStage
    golden_pairs: Relabel
    opponents: tuple[Responses, ...]
    prompts: int
    pairs: int

    @property
    def checkpoint_work(self) -> float:
        """Estimated seconds to measure one policy."""
        # Of what it takes to judge a pair a third has been read before (judges keep prompts and opponents).
        judged = 0.65 * self.prompts * (len(self.opponents) * self.golden.seconds + self.proxy.seconds)
        other = (self.prompts * 5e-4 + self.pairs * 2e-4) * self.sft.base.size
        return len(SPLITS) * (judged + other)

    def labelled(self, context: Context) -> dict[str, PairBatch]:
        """The golden-labelled pairs of each split that policies are asked about as classifiers."""
        found = {}
        for split in SPLITS:
            pairs = read_pairs(context.one("golden_pairs") / f"{split}.parquet")
            found[split] = pairs.take(torch.arange(min(self.pairs, len(pairs))))
        return found


class Start(Examination):
    """The policy that all arms of a seed start from, measured as `Evaluate` measures their checkpoints: their step 0,
    once for all of them.

    prompts.parquet: rows of `per_prompt` without a step. pairs.parquet: split, prompt_number, and the policy's
    log-probabilities of first and second response, which are the reference of every checkpoint's.
    """

    kind: ClassVar[str] = "start"

    seed: int

    @property
    def label(self) -> str:
        return f"evaluate {self.task.name}'s starting policy ({self.sft.base.name}), seed {self.seed}"

    @property
    def work(self) -> float:
        return self.checkpoint_work + 0.2

    def run(self, context: Context) -> None:
        policy = load_reference(context, self.sft)
        examiner = Examiner(self, context)
        prompts = [examiner.measured(policy, policy, split, self.seed) for split in SPLITS]
        pairs = []
        for split, labelled in self.labelled(context).items():
            first, second = pair_log_probs(policy, labelled)
            columns = {
                "prompt_number": labelled.prompt_numbers.numpy(),
                "first": first.numpy(),
                "second": second.numpy(),
            }
            pairs.append(pl.DataFrame(columns).with_columns(split=pl.lit(split)))
        if ranks.first():
            pl.concat(prompts).write_parquet(context.out / "prompts.parquet")
            pl.concat(pairs).write_parquet(context.out / "pairs.parquet")
        write_spent(examiner.judges.values(), context.out)


class Evaluate(Examination):
    """An arm along its checkpoints: every measure, per prompt (section 4, appendices D and E).

    Prompts and sampling noise are the same for all arms of a seed; the opponents' responses are the same for all arms.
    """

    kind: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 2

    arm: Arm
    start: Start

    @classmethod
    def of(cls, arm: Arm, start: Start) -> Evaluate:
        """An arm that begins with the policy of `start`, measured as that is."""
        return cls(arm=arm, start=start, **{name: getattr(start, name) for name in Examination.model_fields})

    @property
    def label(self) -> str:
        return f"evaluate {self.arm.label}"

    @property
    def work(self) -> float:
        # Step 0 is the start's, and a fifth of the work has been done for earlier checkpoints.
        return 0.8 * self.checkpoint_work * (len(self.arm.keep) - 1) + 0.3

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
        examiner = Examiner(self, context)
        start = pl.read_parquet(context.one("start") / "prompts.parquet")
        examiner.remember(start)
        fixed = pl.read_parquet(context.one("start") / "pairs.parquet")
        labelled = self.labelled(context)
        for place, step in enumerate(self.arm.keep):
            if step not in steps:
                # What was said of it before the kill is known now, as it would be without one.
                examiner.remember(pl.read_parquet(self.file(context.partial, "prompts", step)))
                continue
            if step:
                policy.load_weights(context.one("arm") / "steps" / f"{step:06d}.safetensors")
            per_prompt, per_pair = [], []
            for split, pairs in labelled.items():
                before = fixed.filter(split=split).select("first", "second").to_torch().T
                if step:
                    rows = examiner.measured(policy, reference, split, self.arm.seed)
                    first, second = pair_log_probs(policy, pairs) - before
                else:
                    rows = start.filter(split=split)
                    first, second = torch.zeros_like(before)
                labels = {"step": pl.lit(step), "split": pl.lit(split)}
                per_prompt.append(rows.with_columns(**labels))
                columns = {
                    "prompt_number": pairs.prompt_numbers.numpy(),
                    "correct": correct(first, second, pairs.preference).numpy(),
                    "drift": winner_drift(first, second, pairs.preference).numpy(),
                }
                per_pair.append(pl.DataFrame(columns).with_columns(**labels))
            # `pairs` last: its file says that the checkpoint is done.
            for kind, frames in (("prompts", per_prompt), ("pairs", per_pair)) if ranks.first() else ():
                write_checked(self.file(context.partial, kind, step), pl.concat(frames).write_parquet)
            context.progress(place + 1, len(self.arm.keep), {})
        write_spent(examiner.judges.values(), context.out)


class Examiner:
    """Measures policies on the evaluation prompts. No judge is asked twice about a response: under common noise, a
    policy that has changed little gives most of its responses again.
    """

    def __init__(self, stage: Examination, context: Context) -> None:
        self.judges: dict[str, Judge] = {
            name: load_judge(judge, context.one(name), context)
            for name, judge in (("golden", stage.golden), ("proxy", stage.proxy))
        }
        self._truth = stage.task.truth()
        self._prompts = evaluation_prompts(context.one("task"), stage.prompts)
        answers = opponents_of(stage.opponents, context)
        self._opponents = list(answers)
        # No measure asks a proxy about the golden policy.
        asked = {name: [who for who in answers if (who, name) != ("golden_policy", "proxy")] for name in self.judges}
        self._asked = {name: who for name, who in asked.items() if who}
        self._against = {
            (name, split): self.judges[name].against(self._prompts[split][1], [answers[one][split] for one in who])
            for name, who in self._asked.items()
            for split in SPLITS
        }
        self._utility = {
            (opponent.who, split): pl.read_parquet(folder / f"{split}.parquet")["utility"].to_torch()
            for opponent, folder in zip(stage.opponents, context.many("opponents"), strict=True)
            for split in (SPLITS if self._truth else ())
        }
        self._said: dict[tuple[str, int, tuple[int, ...]], tuple[float | None, ...]] = {}

    @property
    def _columns(self) -> list[str]:
        """What depends on prompt and response alone."""
        wins = [
            f"win_{who}_{name}"
            for who in self._opponents
            for name in ("golden", "proxy", "true")
            if name == "true" or who in self._asked.get(name, ())
        ]
        return ["utility", *wins, *(f"margin_{name}" for name in self.judges)]

    def remember(self, rows: pl.DataFrame) -> None:
        """What judges have said, from rows of `per_prompt`."""
        for split in SPLITS:
            of_split = rows.filter(split=split).select("response_ids", *self._columns)
            for place, (response, *said) in enumerate(of_split.iter_rows()):
                self._said.setdefault((split, place, tuple(response)), tuple(said))

    def measured(self, policy: Policy, reference: Policy, split: str, seed: int) -> pl.DataFrame:
        """A row of `per_prompt` for each of a split's prompts."""
        numbers, prompts = self._prompts[split]
        noise = uniforms(numbers, 1, policy.max_new_tokens, "evaluation", seed)
        responses = sample_in_chunks(policy, prompts, noise)
        itself = policy is reference
        kl = torch.zeros(len(rows := responses.rows()), dtype=torch.float64)
        if not itself:
            kl = sequence_kl(policy, reference, prompts, responses)
        keys = [(split, place, tuple(row)) for place, row in enumerate(rows)]
        new = torch.tensor([place for place, key in enumerate(keys) if key not in self._said], dtype=torch.int64)
        if len(new):
            said = self._ask(split, new, responses.take(new))
            self._said |= zip([keys[place] for place in new.tolist()], said, strict=True)
        columns = {
            "prompt_number": numbers.numpy(),
            "split": pl.Series([split] * len(rows)),
            "kl": kl.numpy(),
            "tokens": responses.lengths.numpy(),
            "response_ids": token_column(responses),
        }
        judged = zip(*(self._said[key] for key in keys), strict=True)
        judgements = {
            name: pl.Series(values, dtype=pl.Float64) for name, values in zip(self._columns, judged, strict=True)
        }
        return pl.DataFrame(columns | judgements)

    def _ask(self, split: str, index: torch.Tensor, responses: Tokens) -> list[tuple[float | None, ...]]:
        """`_columns` of responses to these of a split's prompts."""
        unknown: list[float | None] = [None] * len(index)
        found = dict.fromkeys(self._columns, unknown)
        for name, asked in self._asked.items():
            margins = self._against[name, split].margins(index, responses).double()
            for who, margin in zip(asked, margins, strict=True):
                found[f"win_{who}_{name}"] = decision(margin).tolist()
                if who == "sft":
                    found[f"margin_{name}"] = margin.tolist()
        if self._truth:
            utility = self._truth.utilities(self._prompts[split][1].take(index), responses)
            found["utility"] = utility.tolist()
            for who in self._opponents:
                found[f"win_{who}_true"] = decision(utility - self._utility[who, split][index]).tolist()
        return list(zip(*found.values(), strict=True))


class Measured(Stage):
    """One more measure of an arm along its checkpoints, on the responses that its evaluation has sampled: neither the
    arm nor its evaluation is made again for it. measure.parquet: step, split, prompt_number, value.
    """

    kind: ClassVar[str] = "measured"
    registered: ClassVar[Registered] = {"measure": MEASURES}

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
