"""Options and arguments that several commands take, each defined once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from aligngap.errors import UserError

Version = Annotated[bool, typer.Option("--version", help="Show the version and exit.")]

# A study, and how it is run.
Study = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study, an experiment (`aligngap studies` lists both) or a file.")
]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder.  [default: runs/STUDY]")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the study.")]
Seeds = Annotated[int | None, typer.Option(min=1, metavar="N", help="Number of seeds.  [default: the study's]")]
Jobs = Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes side by side.  [default: one a core]")]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="Shrink the study to a try-out of minutes; its numbers mean nothing.")
]
RunStore = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PATH or URL",
        help="Where artefacts are kept.  [default: $ALIGNGAP_STORE, or runs/store, or DIR/store with --out]; "
        "with --executor ray also a URL, through which nodes without a common disk exchange them",
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="TOOL", help="Send metrics to tensorboard or wandb too; may be given twice."),
]
CheckpointSeconds = Annotated[
    float | None,
    typer.Option(
        "--checkpoint-seconds", min=0, metavar="N", help="How much of its work a kill may cost a stage.  [default: 120]"
    ),
]
ExecutorName = Annotated[
    str, typer.Option("--executor", metavar="NAME", help="local: processes of this machine; ray: a Ray cluster.")
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="With --executor ray: the cluster's head, or auto.  [default: $RAY_ADDRESS, or a cluster of its own here]",
    ),
]

# A run, and its artefacts.
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")]
StorePath = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="PATH",
        help="Where artefacts are kept.  [default: $ALIGNGAP_STORE, or runs/store, or DIR/store with --out]",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# Preference data, and models.
Data = Annotated[str, typer.Argument(metavar="DATA", help="A preference data set: file, folder or hub set.")]
DataFormat = Annotated[
    str | None, typer.Option("--format", metavar="FORMAT", help="The data's format.  [default: found from the data]")
]
Split = Annotated[str | None, typer.Option(metavar="SPLIT", help="The split to read, of data that have several.")]
Config = Annotated[str | None, typer.Option(metavar="NAME", help="Configuration or folder of a hub set.")]
DataRevision = Annotated[str | None, typer.Option(metavar="NAME", help="Revision of a hub set.")]
Columns = Annotated[
    list[str] | None, typer.Option("--column", metavar="NAME=COLUMN", help="What the data call a column.")
]
PolicyName = Annotated[
    str, typer.Option(metavar="MODEL", help="The SFT policy: a base, folder or hub id; or a run's folder.")
]
MaxResponseTokens = Annotated[
    int, typer.Option(min=1, metavar="N", help="Responses are cut, and sampled, to this length.")
]
JudgeName = Annotated[str | None, typer.Option(metavar="JUDGE", help="kind:argument, or a YAML file (docs/judges.md).")]
AnswerStore = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Where a judge keeps paid answers.  [default: $ALIGNGAP_STORE, or runs/store]"),
]


def renamed(columns: Sequence[str] | None) -> dict[str, str]:
    """What `--column` says: our names and the data's. Raises UserError for what names no column."""
    pairs = dict(item.partition("=")[::2] for item in columns or [])
    if wrong := [name for name, theirs in pairs.items() if not name or not theirs]:
        raise UserError(f"'{wrong[0]}' names no column", where="--column", hint="Write --column prompt=question.")
    return pairs
