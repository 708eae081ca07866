"""Judges: trained on pairs, or given; and how far they agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

from aligngap.judges.base import Judge
from aligngap.judges.model import ModelJudge, separator_of
from aligngap.judges.registry import GivenJudge
from aligngap.judges.spec import JudgeIngredients
from aligngap.measure.winrate import win_rate
from aligngap.models.build import check_read_back, parameter_count
from aligngap.models.lora import add_adapters, merge_adapters
from aligngap.models.preference import (
    PREFERENCE_MODELS,
    build_preference_model,
    load_preference_model,
)
from aligngap.models.tokenizer import load_tokenizer
from aligngap.pipeline.graph import Context, Stage, all_stages
from aligngap.pipeline.stages.base import SPLITS, Base, JudgeStage, PairsStage, load_judge, predictions
from aligngap.pipeline.stages.pairs import Pairs, Reading, Relabel, check_fits
from aligngap.plugins import Registered
from aligngap.sources.order import prompt_schedule
from aligngap.sources.recorded import Recorded
from aligngap.store.disk import write_json
from aligngap.tasks.spec import DatasetTask
from aligngap.tasks.worlds import world
from aligngap.tasks.worlds.base import Dials
from aligngap.train.checkpoint import Checkpointer
from aligngap.train.step import OptimSpec
from aligngap.train.supervised import fit, preference_loss
from aligngap.types import PairBatch, concatenate


class Preference(JudgeStage):
    """A preference model: golden on the raters' labels, proxy on golden's (appendix A). `more`: further pairs with
    labels of the same kind, beside those that `train_pairs` counts.
    """

    kind: ClassVar[str] = "preference"
    registered: ClassVar[Registered] = {"model": PREFERENCE_MODELS}
    activity: ClassVar[str] = "training"
    version: ClassVar[int] = 2
    together: ClassVar[bool] = True

    pairs: PairsStage
    base: Base
    model: str
    train_pairs: int | None
    optim: OptimSpec
    more: tuple[PairsStage, ...] = ()

    @property
    def label(self) -> str:
        seed = f", seed {self.seed}" if self.role == "proxy" else ""
        more = "".join(f" + {stage.label}" for stage in self.more)
        return f"{self.role} preference model ({self.model}, {self.base.name}{seed}){more}"

    @property
    def work(self) -> float:
        return 0.018 * self.base.size * self.optim.steps + 0.5

    @property
    def seconds(self) -> float:
        return 3.7e-4 * self.base.size

    @property
    def reading(self) -> Reading:
        """How it reads pairs."""
        return Reading(self.base.checkpoint, backbone=True, both=PREFERENCE_MODELS[self.model].reads_order)

    def judge(self, folder: Path, context: Context) -> Judge:
        separator = separator_of(load_tokenizer(self.base.checkpoint))
        return ModelJudge(load_preference_model(self.model, folder, separator, context.device, self.base.checkpoint))

    def run(self, context: Context) -> None:
        train_pairs, held_out = (self.pairs.read(context, split) for split in SPLITS)
        if self.train_pairs is not None:
            train_pairs = train_pairs.take(torch.arange(min(self.train_pairs, len(train_pairs))))
        if self.more:
            train_pairs = concatenate([train_pairs, *(stage.read(context) for stage in self.more)])
        checkpoint = self.base.checkpoint
        self._check(train_pairs)
        tokenizer = load_tokenizer(checkpoint)
        model = build_preference_model(self.model, checkpoint, separator_of(tokenizer), context.device)
        if checkpoint.lora:
            add_adapters(model.backbone, checkpoint.lora, self.seed)
        source = Recorded(train_pairs, prompt_schedule(self.seed))
        fit(
            model,
            lambda batch, step: preference_loss(model, batch, step, self.seed),
            source,
            self.optim,
            context.progress,
            Checkpointer(context.partial, context.checkpoint_seconds),
        )
        merge_adapters(model.backbone)
        model.save(context.out)
        check_read_back(model.backbone, checkpoint.at(context.out / "backbone"), backbone=True)
        judge = ModelJudge(model.eval().requires_grad_(False))
        metrics: dict[str, Any] = {"parameters": parameter_count(model), "train_pairs": len(train_pairs)}
        for split, pairs in (
            ("train", train_pairs.take(torch.arange(min(len(train_pairs), len(held_out))))),
            ("held_out", held_out),
        ):
            metrics[f"{split}_agreement"] = agreement(predictions(judge, pairs), pairs.preference)
        write_json(context.out / "metrics.json", metrics)

    def _check(self, pairs: PairBatch) -> None:
        task = next(stage for stage in all_stages([self.pairs]) if isinstance(stage, Pairs))
        # It will judge what policies sample, up to the limit; in the built-in worlds few responses come near it.
        limit = task.task.dataset.max_response_tokens if isinstance(task.task, DatasetTask) else None
        check_fits(self.reading, task, pairs, response=limit)


class Given(JudgeStage):
    """A judge that is given instead of trained. The artefact says which; what decides its answers is its identity.

    base: whose tokens the pairs are; world: the built-in world that the prompts come from, if they do, and its
    dials; search: the study's folder.
    """

    kind: ClassVar[str] = "given_judge"
    version: ClassVar[int] = 2

    given: GivenJudge
    base: Base
    world: str | None
    dials: Dials = Dials()
    search: Path | None = Field(None, exclude=True)

    @property
    def label(self) -> str:
        return f"{self.role}: {self.given.spec.kind}"

    @property
    def work(self) -> float:
        return 1.0

    @property
    def seconds(self) -> float:
        return 1e-3  # anybody's guess

    def judge(self, folder: Path, context: Context) -> Judge:
        tokenizer = load_tokenizer(self.base.checkpoint)
        place = world(self.world).at(self.dials) if self.world else None
        return self.given.build(
            JudgeIngredients(tokenizer, context.device, cache=context.cache, search=self.search, world=place)
        )

    def run(self, context: Context) -> None:
        self.judge(context.out, context)  # what cannot be built fails here, before anything rests on it
        write_json(context.out / "metrics.json", {"given": self.given.identity})


def agreement(a: torch.Tensor, b: torch.Tensor) -> dict[str, float | int | None]:
    """Share of pairs on which two judges say the same, over pairs that neither calls a tie; with its standard error
    and count.
    """
    decided = (a != 0.5) & (b != 0.5)
    rate = win_rate(((a == b)[decided]).double().numpy())
    return {"value": rate.rate if rate.n else None, "se": rate.se if rate.n > 1 else None, "n": rate.n}


class Agreement(Stage):
    """How raters, golden, proxy and the true utility agree with each other on held-out pairs."""

    kind: ClassVar[str] = "agreement"
    together: ClassVar[bool] = True

    golden_pairs: Relabel
    proxy: JudgeStage

    @property
    def reads(self) -> Sequence[Stage]:
        return (self.golden_pairs.pairs,)

    @property
    def label(self) -> str:
        return f"{self.golden_pairs.pairs.name}: judges' agreement (seed {self.proxy.seed})"

    @property
    def work(self) -> float:
        return self.proxy.seconds * self.golden_pairs.pairs.count / 8 + 0.2

    def run(self, context: Context) -> None:
        raters, golden = (stage.read(context, "held_out") for stage in (self.golden_pairs.pairs, self.golden_pairs))
        truth = self.golden_pairs.pairs.truth()
        labels = {
            "rater": raters.preference,
            "golden": golden.preference,
            "proxy": predictions(load_judge(self.proxy, context), raters),
        }
        if truth is not None:
            labels["true"] = predictions(truth, raters)
        names = list(labels)
        rates = {f"{a}_{b}": agreement(labels[a], labels[b]) for i, b in enumerate(names) for a in names[i + 1 :]}
        write_json(context.out / "agreement.json", rates)
