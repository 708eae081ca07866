"""Commands on preference data, before any training."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from aligngap.cli import show
from aligngap.cli.options import (
    AnswerStore,
    AsJson,
    Columns,
    Config,
    Data,
    DataFormat,
    DataRevision,
    JudgeName,
    MaxResponseTokens,
    PolicyName,
    Split,
    renamed,
)


def check(
    data: Data,
    format: DataFormat = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="PATH", help="Count tokens of this base, folder or hub id, not words.")
    ] = None,
    split: Split = None,
    config: Config = None,
    revision: DataRevision = None,
    columns: Columns = None,
    keep_ties: Annotated[bool, typer.Option("--keep-ties", help="Keep ties, with preference 1/2.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a preference data set holds, before any training: format, rows dropped, lengths, duplicates, leaks."""
    from aligngap.tasks.check import describe
    from aligngap.tasks.datasets import DatasetSpec

    spec = DatasetSpec(
        source=data,
        format=format,
        config=config,
        revision=revision,
        columns=renamed(columns),
        ties="keep" if keep_ties else "drop",
    )
    counter = None
    if tokenizer:
        from aligngap.models.build import SHIPPED, base_path
        from aligngap.models.tokenizer import load_tokenizer

        counter = load_tokenizer(base_path(tokenizer) if tokenizer in SHIPPED else tokenizer)
    result = describe(spec, counter, split)
    if as_json:
        print(json.dumps(result.as_json(), indent=2))
        return
    console = show.console()
    show.say(f"{data}", console)
    for heading, lines in result.sections():
        show.say("\n".join([f"\n{heading}", *(f"  {line}" for line in lines)]), console)


def diagnose(
    policy: PolicyName,
    data: Annotated[str, typer.Option(metavar="DATA", help="A built-in world, file, folder or hub set (owner/name).")],
    judge: JudgeName = None,
    prompts: Annotated[int, typer.Option(min=1, metavar="N", help="How many prompts to look at, at most.")] = 512,
    format: DataFormat = None,
    split: Split = None,
    config: Config = None,
    revision: DataRevision = None,
    columns: Columns = None,
    max_response_tokens: MaxResponseTokens = 128,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the sampling and of the choice of prompts.")] = 0,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda or mps.")] = "cpu",
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page, too.")] = None,
    store: AnswerStore = None,
) -> None:
    """Say, before any training, what preference data are to an SFT policy: on-policy, contrast, quality, coverage."""
    from rich.status import Status

    from aligngap.diagnosis.page import page_path, write_page
    from aligngap.diagnosis.report import diagnose_named
    from aligngap.diagnosis.terminal import lines
    from aligngap.pipeline import RUNS
    from aligngap.pipeline.rundir import chosen_store
    from aligngap.tasks.datasets import DatasetSpec

    page = page_path(out) if out is not None else None
    spec = DatasetSpec(
        source=data,
        format=format,
        split=split,
        config=config,
        revision=revision,
        columns=renamed(columns),
        max_response_tokens=max_response_tokens,
        seed=seed,
    )
    # What a judge of the user's own prints is not what is asked for here, and least of all JSON.
    with Status("", console=show.console(stderr=True)) as status, redirect_stdout(sys.stderr):
        result = diagnose_named(
            policy,
            spec,
            judge,
            prompts=prompts,
            seed=seed,
            device=device,
            cache=chosen_store(RUNS / "diagnose", store),
            progress=lambda what, done, total: status.update(f"{what} {done}/{total}"),
        )
    if page is not None:
        write_page(result, page)
    if as_json:
        print(json.dumps(result.as_json(), indent=2, allow_nan=False))
        return
    for line in lines(result.about, result.findings, result.regime):
        show.say(line)
    if page is not None:
        show.say(f"\nPage: {page}")
