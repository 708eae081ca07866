"""Commands that write a study, a policy or a base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from aligngap.cli import show
from aligngap.cli.options import Config, Data, Format, Jobs, Run, Set, Smoke, Split, StorePath
from aligngap.cli.stop import stoppable


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The study to write.")],
    data: Annotated[str, typer.Option(metavar="DATA", help="A preference data set: file, folder or hub set.")],
    policy: Annotated[str, typer.Option(metavar="MODEL", help="The policy's base: a folder or hub id.")],
    golden: Annotated[str | None, typer.Option(metavar="MODEL", help="Golden's base.  [default: the policy's]")] = None,
    proxy: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The proxy's base.  [default: the policy's]")
    ] = None,
    format: Format = None,
    split: Split = None,
    config: Config = None,
) -> None:
    """Write a study of your own data and models, with every setting in it, to be changed and run."""
    from aligngap.experiments.starter import write_starter
    from aligngap.tasks.datasets import DatasetSpec

    spec = DatasetSpec(source=data, format=format, split=split, config=config)
    for note in write_starter(file, spec, policy, golden, proxy):
        show.say(note)
    show.say(f"{file}\nNext: aligngap plan {file}; aligngap run {file} --smoke")


def export(
    directory: Run,
    arm: Annotated[str, typer.Argument(metavar="ARM", help="The arm's name in the report, or `sft`.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The folder to write; it must be new or empty.")],
    step: Annotated[int | None, typer.Option(metavar="N", help="The step.  [default: the last kept]")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The seed.  [default: the first]")] = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="The task.  [default: the first]")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapters alone, as `peft` loads them.")] = False,
    store: StorePath = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that came with the policy's checkpoint.")
    ] = False,
) -> None:
    """Write an arm's policy as a Hugging Face folder, with its tokenizer; adapters are merged."""
    from aligngap.pipeline.export import export as write

    result = write(
        show.opened(directory),
        arm,
        path,
        task=task,
        seed=seed,
        step=step,
        store=store,
        trust_remote_code=trust_remote_code,
        adapter=adapter,
    )
    show.say(f"{result}: {path}")


def scratch(
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; it must be new or empty.")],
    hidden: Annotated[int, typer.Option(min=2, metavar="N", help="Width.")] = 128,
    layers: Annotated[int, typer.Option(min=1, metavar="N", help="Layers.")] = 4,
    heads: Annotated[int, typer.Option(min=1, metavar="N", help="Attention heads.")] = 4,
    vocabulary: Annotated[int, typer.Option(min=264, metavar="N", help="Tokens, at most.")] = 2048,
    context: Annotated[int, typer.Option(min=8, metavar="N", help="Context, in tokens.")] = 1024,
    steps: Annotated[int, typer.Option(min=0, metavar="N", help="Steps of language modelling on the texts.")] = 0,
    format: Format = None,
    split: Split = None,
    config: Config = None,
) -> None:
    """Make a small base for your data where there is none: a tokenizer of its texts, and a decoder from scratch."""
    from aligngap.models.build import Architecture
    from aligngap.pipeline.scratch import scratch as make
    from aligngap.tasks.datasets import DatasetSpec
    from aligngap.train.step import OptimSpec

    console = show.console()
    shape = Architecture(hidden=hidden, layers=layers, heads=heads, intermediate=2 * hidden, context=context)
    optim = OptimSpec(lr=3e-3, steps=steps, batch=16, schedule="cosine") if steps else None

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done % 100 == 0 or done == total:
            show.say(f"{done}/{total}  loss {metrics['loss']:.3f}", console)

    result = make(
        DatasetSpec(source=data, format=format, split=split, config=config),
        shape,
        vocabulary,
        optim,
        out,
        progress,
    )
    show.say(f"{out}: " + ", ".join(f"{name} {value:g}" for name, value in result.items()), console)


def pretrain(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Each base is written to DIR/BASE.")],
    bases: Annotated[list[str] | None, typer.Argument(metavar="[BASE]...", help="Bases.  [default: all]")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Steps a cycle, for a try-out.  [default: the recipe's]")
    ] = None,
) -> None:
    """Train the shipped bases again, by their recipe. The same command resumes it."""
    from aligngap.train.pretrain import pretrain_bases

    console = show.console()
    with stoppable():
        pretrain_bases(bases, out, steps, lambda line: show.say(line, console))


def gates(
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="[TASK]...", help="Worlds, or data sets.  [default: the study's]")
    ] = None,
    study: Annotated[str, typer.Option(metavar="STUDY", help="The study whose settings are examined.")] = "paper",
    settings: Set = None,
    smoke: Smoke = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="For logs.  [default: runs/gates]")] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Add the results to a record, in place of the shipped one.")
    ] = None,
    dials: Annotated[
        bool, typer.Option("--dials", help="Examine the worlds' dials, too: goldens are made for it.")
    ] = False,
    jobs: Jobs = None,
    store: StorePath = None,
) -> None:
    """Examine what a study stands on: data, bases, SFT policy and golden. Results on record are not made again."""
    from aligngap.experiments.gating import run_gates
    from aligngap.experiments.study import load_study
    from aligngap.gates import Record
    from aligngap.pipeline import RUNS

    asked = load_study(study, settings or [], None, smoke)
    known = Record.read(record) if record else Record.shipped()
    with stoppable():
        results = run_gates(
            asked,
            tasks or asked.tasks,
            out or RUNS / "gates",
            known=known,
            console=show.console(),
            say=show.say,
            jobs=jobs,
            store=store,
            dials=dials,
        )
    for result in results:
        known = known.with_result(result)
        show.say(f"{'PASSED' if result.passed else 'FAILED'}  {result.gate.replace('_', ' ')}: {result.subject}")
        for score in result.scores:
            show.say(f"    {'' if score.passed else 'not within its bounds: '}{score}")
    if record:
        known.write(record)
    if not all(result.passed for result in results):
        raise typer.Exit(1)
