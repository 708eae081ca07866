"""An arm along its checkpoints, and the fixed responses it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import torch

from aligngap import ranks
from aligngap.judges.base import Judge, decision
from aligngap.judges.true_utility import TrueUtilityJudge
from aligngap.measure.base import Answers, values_of
from aligngap.measure.classify import correct, pair_log_probs, winner_drift
from aligngap.measure.kl import sequence_kl
from aligngap.measure.registry import MEASURES
from aligngap.models.policy import Policy
from aligngap.models.tokenizer import load_tokenizer
from aligngap.pipeline.graph import Context, Stage
from aligngap.pipeline.stages.base import SPLITS, JudgeStage, load_judge, write_judge_cost
from aligngap.pipeline.stages.pairs import Pairs, Relabel
from aligngap.pipeline.stages.policies import Arm, Sft, load_arm, load_policy, load_reference, sample_in_chunks
from aligngap.plugins import Registered
from aligngap.seeds import uniforms
from aligngap.store.disk import is_checked, write_checked
from aligngap.tasks.pairs import token_column
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
        weights = self.arm.weights(context) if self.arm else None
        policy = load_policy(context, self.sft, self.task, weights)
        truth = self.task.truth()
        for split, (numbers, prompts) in evaluation_prompts(self.task, context, self.prompts).items():
            noise = uniforms(numbers, 1, policy.max_new_tokens, "opponent", self.who, self.seed)
            responses = sample_in_chunks(policy, prompts, noise)
            columns = {
                "prompt_number": numbers.numpy(),
                "response_ids": token_column(responses),
                "utility": utilities(truth, prompts, responses),
            }
            pl.DataFrame(columns).write_parquet(context.out / f"{split}.parquet")

    def table(self, context: Context, split: str) -> pl.DataFrame:
        """prompt_number, response_ids and utility of a split, from the artefact."""
        return pl.read_parquet(context.folder(self) / f"{split}.parquet")


def evaluation_prompts(task: Pairs, context: Context, count: int) -> dict[str, tuple[torch.Tensor, Tokens]]:
    """The fixed evaluation prompts of each split: their numbers, int64 [n], and token ids. The same for every arm and
    seed.
    """
    prompts = {}
    for split in SPLITS:
        pairs = task.read(context, split)
        index = torch.arange(min(count, len(pairs)))
        prompts[split] = (pairs.prompt_numbers[index], pairs.prompts.take(index))
    return prompts


class Start(Stage):
    """The policy that all arms of a seed start from, evaluated as `Evaluate` does their checkpoints: their step 0, once
    for all of them. Its fields are what any evaluation of those arms needs: prompts, judges, opponents, pairs.

    prompts, pairs: how many of each split. prompts.parquet: rows of `per_prompt` without a step. pairs.parquet: split,
    prompt_number, and the policy's log-probabilities of first and second response (nats), which are the reference's
    for every checkpoint.
    """

    kind: ClassVar[str] = "start"
    together: ClassVar[bool] = True

    sft: Sft
    task: Pairs
    golden: JudgeStage
    proxy: JudgeStage
    golden_pairs: Relabel
    opponents: tuple[Responses, ...]
    prompts: int
    pairs: int
    seed: int

    @property
    def label(self) -> str:
        return f"evaluate {self.task.name}'s starting policy ({self.sft.base.name}), seed {self.seed}"

    @property
    def checkpoint_work(self) -> float:
        """Estimated seconds to evaluate one policy."""
        # Of what it takes to judge a pair a third has been read before (judges keep prompts and opponents).
        judged = 0.65 * self.prompts * (len(self.opponents) * self.golden.seconds + self.proxy.seconds)
        other = (self.prompts * 5e-4 + self.pairs * 2e-4) * self.sft.base.size
        return len(SPLITS) * (judged + other)

    @property
    def work(self) -> float:
        return self.checkpoint_work + 0.2

    def labelled(self, context: Context) -> dict[str, PairBatch]:
        """The golden-labelled pairs of each split that policies are asked about as classifiers."""
        pairs = {split: self.golden_pairs.read(context, split) for split in SPLITS}
        return {split: part.take(torch.arange(min(self.pairs, len(part)))) for split, part in pairs.items()}

    def responses(self, context: Context) -> dict[str, dict[str, Tokens]]:
        """What each opponent, `sft` and `golden_policy`, responded to the prompts of each split."""
        return {
            opponent.who: {
                split: Tokens.collate(opponent.table(context, split)["response_ids"].to_list()) for split in SPLITS
            }
            for opponent in self.opponents
        }

    def run(self, context: Context) -> None:
        policy = load_reference(context, self.sft, self.task)
        evaluator = Evaluator(self, context)
        prompts = [evaluator.evaluate(policy, policy, split, self.seed) for split in SPLITS]
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
        write_judge_cost(evaluator.judges.values(), context.out)


class Evaluate(Stage):
    """An arm along its checkpoints: KL, win rates, utility, per prompt and pair (section 4, appendices D and E).

    Prompts and sampling noise are the same for all arms of a seed; the opponents' responses are the same for all arms.
    start: step 0, whose judges, prompts and opponents serve all later steps.
    """

    kind: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 2
    together: ClassVar[bool] = True

    arm: Arm
    start: Start

    @property
    def reads(self) -> Sequence[Stage]:
        return self.start.parents

    @property
    def label(self) -> str:
        return f"evaluate {self.arm.label}"

    @property
    def work(self) -> float:
        # Step 0 is the start's, and a fifth of the work has been done for earlier checkpoints.
        return 0.8 * self.start.checkpoint_work * (len(self.arm.keep) - 1) + 0.3

    def run(self, context: Context) -> None:
        # A file a checkpoint: what is evaluated is not evaluated again after a kill, and a live view can read it.
        files = {
            step: [self.file(context.partial, kind, step) for kind in ("prompts", "pairs")] for step in self.arm.keep
        }
        missing = ranks.broadcast([step for step, both in files.items() if not all(map(is_checked, both))])
        if missing:
            self._evaluate(context, missing)
        if not ranks.first():
            return
        for name, parts in zip(("per_prompt", "per_pair"), zip(*files.values(), strict=True), strict=True):
            pl.concat(map(pl.read_parquet, parts)).write_parquet(context.out / f"{name}.parquet")

    @staticmethod
    def file(partial: Path, kind: str, step: int) -> Path:
        """Where a checkpoint's rows of `per_prompt` (kind `prompts`) or `per_pair` (`pairs`) wait for the others'."""
        return partial / f"{kind}-{step:06d}.parquet"

    def _evaluate(self, context: Context, steps: list[int]) -> None:
        policy, reference = load_arm(context, self.start.sft, self.start.task)
        evaluator = Evaluator(self.start, context)
        start, before = (
            pl.read_parquet(context.folder(self.start) / f"{kind}.parquet") for kind in ("prompts", "pairs")
        )
        evaluator.remember(start)
        labelled = self.start.labelled(context)
        for done, step in enumerate(self.arm.keep, start=1):
            if step not in steps:
                # Judged before the kill: remembered now, as it would be without one.
                evaluator.remember(pl.read_parquet(self.file(context.partial, "prompts", step)))
                continue
            if step:
                policy.load_weights(self.arm.weights(context, step))
            per_prompt, per_pair = [], []
            for split, pairs in labelled.items():
                log_probs = before.filter(split=split).select("first", "second").to_torch().T
                if step:
                    rows = evaluator.evaluate(policy, reference, split, self.arm.seed)
                    first, second = pair_log_probs(policy, pairs) - log_probs
                else:
                    rows = start.filter(split=split)
                    first, second = torch.zeros_like(log_probs)
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
            context.progress(done, len(self.arm.keep), {})
        write_judge_cost(evaluator.judges.values(), context.out)


_RESPONSE: dict[str, Any] = {"split": pl.String, "prompt_number": pl.Int64, "response_ids": pl.List(pl.Int32)}
"""What a judgement is of: a response to a prompt, which a prompt's number and split name."""


class Evaluator:
    """Samples a policy's responses to the evaluation prompts, and has them judged. No judge is asked twice about a
    response: under common noise, a policy that has changed little gives most of its responses again.
    """

    def __init__(self, start: Start, context: Context) -> None:
        self.judges = {"golden": load_judge(start.golden, context), "proxy": load_judge(start.proxy, context)}
        self._truth = start.task.truth()
        self._prompts = evaluation_prompts(start.task, context, start.prompts)
        responses = start.responses(context)
        # No figure or table shows what a proxy says of the golden policy.
        self._known = {
            name: [who for who in responses if (who, name) != ("golden_policy", "proxy")] for name in self.judges
        }
        self._against = {
            (name, split): judge.against(self._prompts[split][1], [responses[who][split] for who in self._known[name]])
            for name, judge in self.judges.items()
            for split in SPLITS
        }
        self._utility = {
            (opponent.who, split): opponent.table(context, split)["utility"]
            for opponent in start.opponents
            for split in SPLITS
        }
        self._judged = pl.DataFrame(schema=_RESPONSE)

    def remember(self, rows: pl.DataFrame) -> None:
        """Take over what judges decided about responses, from rows of `per_prompt`."""
        rows = rows.select(*_RESPONSE, pl.exclude(*_RESPONSE, "step", "kl", "tokens"))
        self._judged = pl.concat([self._judged, rows], how="diagonal").unique(
            list(_RESPONSE), keep="first", maintain_order=True
        )

    def evaluate(self, policy: Policy, reference: Policy, split: str, seed: int) -> pl.DataFrame:
        """A row of `per_prompt` for each of a split's prompts. reference: may be the policy itself, whose KL is 0."""
        numbers, prompts = self._prompts[split]
        noise = uniforms(numbers, 1, policy.max_new_tokens, "evaluation", seed)
        responses = sample_in_chunks(policy, prompts, noise)
        kl = torch.zeros(len(numbers), dtype=torch.float64)
        if policy is not reference:
            kl = sequence_kl(policy, reference, prompts, responses)
        rows = pl.DataFrame(
            {
                "prompt_number": numbers.numpy(),
                "split": pl.Series([split] * len(numbers)),
                "kl": kl.numpy(),
                "tokens": responses.lengths.numpy(),
                "response_ids": token_column(responses),
            }
        )
        new = rows.with_row_index("place").join(self._judged, on=list(_RESPONSE), how="anti").sort("place")
        if len(new):
            place = new["place"].cast(pl.Int64).to_torch()
            self.remember(new.select(*_RESPONSE).hstack(self._judge(split, place, responses.take(place))))
        return rows.join(self._judged, on=list(_RESPONSE), how="left", maintain_order="left")

    def _judge(self, split: str, index: torch.Tensor, responses: Tokens) -> pl.DataFrame:
        """utility, win_* and margin_* of responses to these of a split's prompts; null what takes a true utility where
        there is none.
        """
        margins = {
            (who, name): margin
            for name, whose in self._known.items()
            for who, margin in zip(whose, self._against[name, split].margins(index, responses).double(), strict=True)
        }
        utility = utilities(self._truth, self._prompts[split][1].take(index), responses)
        columns: dict[str, Any] = {"utility": utility}
        for who in self._known["golden"]:
            wins: dict[str, Any] = {
                name: decision(margins[who, name]).double().numpy() for name in self.judges if (who, name) in margins
            }
            wins["true"] = ((utility - self._utility[who, split].gather(index.numpy())).sign() + 1) / 2
            columns |= {f"win_{who}_{name}": win for name, win in wins.items()}
        return pl.DataFrame(columns | {f"margin_{name}": margins["sft", name].numpy() for name in self.judges})


class Measured(Stage):
    """One more measure of an arm along its checkpoints, on the responses that its evaluation has sampled: neither the
    arm nor its evaluation is made again for it. measure.parquet: step, split, prompt_number, value.
    """

    kind: ClassVar[str] = "measured"
    registered: ClassVar[Registered] = {"measure": MEASURES}

    measure: str
    evaluation: Evaluate

    @property
    def arm(self) -> Arm:
        """The arm that is measured."""
        return self.evaluation.arm

    @property
    def reads(self) -> Sequence[Stage]:
        start = self.evaluation.start
        return (self.arm, start.sft, start.task, start.golden, start.proxy, *start.opponents)

    @property
    def label(self) -> str:
        return f"{self.measure} of {self.arm.label}"

    @property
    def work(self) -> float:
        start = self.evaluation.start
        return 1e-4 * len(SPLITS) * start.prompts * len(self.arm.keep) * start.sft.base.size + 1

    def run(self, context: Context) -> None:
        start = self.evaluation.start
        table = pl.read_parquet(context.folder(self.evaluation) / "per_prompt.parquet")
        evaluated = evaluation_prompts(start.task, context, start.prompts)
        tokenizer = load_tokenizer(start.sft.base.checkpoint.at(context.folder(start.sft) / "model"))
        opponents = start.responses(context)
        stages = {"golden": start.golden, "proxy": start.proxy}
        judges: dict[str, Judge | None] = {}

        def judge(name: str) -> Judge | None:
            if name not in judges:
                judges[name] = load_judge(stages[name], context) if name in stages else start.task.truth()
            return judges[name]

        pair = cache(lambda: load_arm(context, start.sft, start.task))

        @lru_cache(maxsize=1)  # both splits of a checkpoint ask for it
        def models(step: int) -> tuple[Policy, Policy]:
            policy, reference = pair()
            policy.load_weights(self.arm.weights(context, step))
            return policy, reference

        frames = []
        for done, step in enumerate(self.arm.keep, start=1):
            for split, (numbers, prompts) in evaluated.items():
                rows = table.filter(step=step, split=split)
                assert rows["prompt_number"].to_list() == numbers.tolist()
                answers = Answers(
                    step,
                    split,
                    numbers,
                    prompts,
                    Tokens.collate(rows["response_ids"].to_list()),
                    {who: responses[split] for who, responses in opponents.items()},
                    tokenizer,
                    partial(models, step),
                    judge,
                )
                values = values_of(MEASURES[self.measure], answers, self.measure, MEASURES.place(self.measure))
                frames.append(rows.select("step", "split", "prompt_number").with_columns(value=values.numpy()))
            context.progress(done, len(self.arm.keep), {})
        pl.concat(frames).write_parquet(context.out / "measure.parquet")
        write_judge_cost(judges.values(), context.out)


def utilities(truth: TrueUtilityJudge | None, prompts: Tokens, responses: Tokens) -> pl.Series:
    """True utility of each response as a column; nulls where there is no true utility to be known."""
    if truth is None:
        return pl.Series([None] * len(prompts.ids), dtype=pl.Float64)
    return pl.Series(truth.utilities(prompts, responses).numpy())
