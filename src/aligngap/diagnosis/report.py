"""A diagnosis from beginning to end: open, measure, decide; and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from aligngap.diagnosis.findings import Findings, Progress, measure, silent
from aligngap.diagnosis.regime import Regime, decide
from aligngap.diagnosis.subject import Subject, load, sft_checkpoint
from aligngap.judges.base import Judge
from aligngap.judges.named import named_judge
from aligngap.judges.spec import JudgeIngredients
from aligngap.plugins import installed, load_plugins
from aligngap.tasks.datasets import DatasetSpec
from aligngap.tasks.worlds import WORLDS

SCHEMA = 1


@dataclass(frozen=True)
class Diagnosis:
    """What came out. about: what was looked at, as plain JSON values."""

    about: Mapping[str, Any]
    findings: Findings
    regime: Regime

    @property
    def numbers(self) -> pl.DataFrame:
        """A row a number: section, quantity, column, label, unit, value, low, high, n. What is not known is null."""
        rows = [
            (section.key, row.key, column, row.label, row.unit, *result.as_json().values())
            for section in self.findings.sections
            for row in section.rows
            for column, result in row.numbers.items()
        ]
        texts = dict.fromkeys(("section", "quantity", "column", "label", "unit"), pl.String)
        values = dict.fromkeys(("value", "low", "high"), pl.Float64)
        return pl.DataFrame(rows, texts | values | {"n": pl.Int64}, orient="row")

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values; what is not known is null."""
        return {
            "schema": SCHEMA,
            "about": dict(self.about),
            "counts": dict(self.findings.counts),
            **{
                section.key: {
                    row.key: {"label": row.label, "unit": row.unit}
                    | {column: result.as_json() for column, result in row.numbers.items()}
                    for row in section.rows
                }
                for section in self.findings.sections
            },
            "regime": self.regime.as_json(),
        }


def diagnose(
    subject: Subject,
    judge: Judge | None = None,
    *,
    judge_name: str | None = None,
    seed: int = 0,
    replicates: int = 1000,
    progress: Progress = silent,
) -> Diagnosis:
    """Measure a subject and say which regime it resembles. judge_name: for people. Raises UserError when the judge
    fails.
    """
    findings = measure(subject, judge, seed=seed, replicates=replicates, progress=progress)
    about = {**subject.about, "seed": seed, "judge": judge_name}
    return Diagnosis(about, findings, decide(findings.signs()))


def diagnose_named(
    policy: str,
    data: DatasetSpec,
    judge: str | None = None,
    *,
    prompts: int,
    seed: int = 0,
    device: str = "cpu",
    cache: Path | None = None,
    progress: Progress = silent,
) -> Diagnosis:
    """As the command line names things. policy: as `sft_checkpoint` takes it; data: a data set, or a built-in world as
    its source; judge: as `named_judge` takes it. cache: where a judge keeps answers that cost something. Plugins of
    installed packages count.

    Raises UserError for whatever is not there, cannot be read, or fails.
    """
    load_plugins(installed(), None)
    checkpoint = sft_checkpoint(policy)
    named = named_judge(judge, {"base": checkpoint.path}) if judge is not None else None
    subject = load(checkpoint, data, prompts, device=device)
    asked = None
    if named is not None:
        spec, search = named
        world = data.source if data.source in WORLDS else None
        asked = spec.build(JudgeIngredients(subject.tokenizer, device, cache, search, world))
    return diagnose(subject, asked, judge_name=judge, seed=seed, progress=progress)
