"""One idea of each kind; docs/own-ideas.md explains them."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch

from aligngap.experiments.base import Analysis, Experiment, Figure, Labelled, TaskData
from aligngap.experiments.bench import ArmEntry, Bench
from aligngap.experiments.registry import EXPERIMENTS
from aligngap.judges.registry import JUDGES
from aligngap.judges.spec import JudgeIngredients, JudgeSpec
from aligngap.judges.text import TextJudge
from aligngap.measure.base import Answers
from aligngap.measure.registry import MEASURES
from aligngap.sources.base import Ingredients, SourceSpec, require
from aligngap.sources.order import in_sequence
from aligngap.sources.recorded import Recorded
from aligngap.sources.registry import SOURCES
from aligngap.stats.verdict import sign_verdict
from aligngap.tasks.worlds import WORLDS
from aligngap.tasks.worlds.base import Appraisal, Written
from aligngap.tasks.worlds.summarisation import Summarisation


# --- a measure
def words(answers: Answers) -> list[int]:
    """How many words each response has."""
    return [len(text.split()) for text in answers.texts]


MEASURES["words"] = words


# --- a judge
class Shorter(TextJudge):
    """Prefers fewer words, by how many there are fewer."""

    def compare_texts(self, prompts: list[str], first: list[str], second: list[str]) -> Sequence[float]:
        return [len(b.split()) - len(a.split()) for a, b in zip(first, second, strict=True)]


class ShorterSpec(JudgeSpec):
    kind: Literal["shorter"] = "shorter"

    def identity(self, search: Path | None = None) -> dict[str, object]:
        return {"kind": self.kind}  # settings that decide its answers would stand here, too

    def build(self, given: JudgeIngredients) -> Shorter:
        return Shorter(given.tokenizer)


JUDGES["shorter"] = ShorterSpec


# --- a world
class Terse(Summarisation):
    """Summaries for a rater in a hurry: as in the built-in world, less a price on every word."""

    name = "terse"

    def appraise(self, prompt: str, response: Written) -> Appraisal:
        found, count = super().appraise(prompt, response), len(response.text.split())
        return Appraisal(found.utility - 0.1 * count, {**found.features, "words": count})


WORLDS["terse"] = Terse


# --- a source
class ContrastFirst(SourceSpec):
    """Recorded pairs, those whose responses differ most in length first."""

    kind: Literal["contrast_first"] = "contrast_first"
    needs_pairs: ClassVar[bool] = True

    def build(self, given: Ingredients) -> Recorded:
        pairs = require(given.pairs, "recorded pairs", self.kind)
        contrast = (pairs.first.lengths - pairs.second.lengths).abs()
        return Recorded(pairs.take(torch.argsort(contrast, descending=True, stable=True)), in_sequence)


SOURCES["contrast_first"] = ContrastFirst

# --- an experiment
RULE = (
    "Peak difference = peak of the win rate of offline on pairs of the largest contrast in length first, minus that of "
    "offline in the usual order, at the baseline configuration, paired by seed. Supported if its 95% interval lies "
    "wholly above 0; contradicted if wholly below 0 or wholly within the margin of no difference; else inconclusive."
)


def arms(bench: Bench) -> list[ArmEntry]:
    own = [bench.recorded(seed, "contrast_first", bench.golden_pairs, ContrastFirst()) for seed in bench.study.seeds]
    return [*(bench.offline(seed) for seed in bench.study.seeds), *own]


def analyse(data: TaskData) -> Analysis:
    own, usual = (data.runs(family, baseline=True) for family in ("contrast_first", "offline"))
    peak = data.gap(own, usual, "contrast_first")["peak_difference"]
    sentence = f"Contrast first is {peak.value:+.3f} [{peak.low:+.3f}, {peak.high:+.3f}] above the usual order."
    figure = Figure("curves", "Two orders of the same pairs", families=("offline", "contrast_first"))
    estimates = {"peak_difference": Labelled("difference of the peaks, contrast first minus usual", peak)}
    return Analysis(sign_verdict(peak, 1, data.settings.margin), sentence, estimates, [figure])


EXPERIMENTS["contrast_first"] = Experiment(
    name="contrast_first",
    title="Pairs of large contrast first",
    question="Does offline gain from seeing the pairs that differ most in length first?",
    finding="Hypothesis of ours: it does.",
    rule=RULE,
    arms=arms,
    analyse=analyse,
)
