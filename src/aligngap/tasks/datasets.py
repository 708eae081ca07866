"""Reading preference data: hub sets by name, folders and files (`files.py`).

Everything streams, and parts can be read again from the start. What makes a single row useless is counted in the tally,
with the row's number.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from aligngap.errors import UserError, nearest, out_of_memory
from aligngap.store.identity import content_digest
from aligngap.tasks.files import READERS, suffix_of
from aligngap.tasks.formats import Record, Schema, TextPair, convert, detect, schema_named, shape
from aligngap.tasks.messages import Dropped, parsed_messages


class DatasetSpec(BaseModel):
    """A real preference data set as a task, and how much of it to use.

    source: file, folder or hub name (`owner/set`). config: the hub set's configuration or folder (`harmless-base`).
    format: a name of `formats.SCHEMAS`; found from the data when not given. columns: the format's name for a column ->
    the data's. split: what to train on, by default `train` where there are splits. held_out_split: the split to hold
    out; without one, whole prompts are held out of `split`, `held_out_pairs` or `held_out_share` of its pairs.
    train_pairs, held_out_limit: use no more of either. Prompts
    keep their last `max_prompt_tokens`, responses their first `max_response_tokens`, end token included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str
    config: str | None = None
    revision: str | None = None
    format: str | None = None
    columns: dict[str, str] = {}
    split: str | None = None
    held_out_split: str | None = None
    ties: Literal["drop", "keep"] = "drop"
    train_pairs: int | None = Field(None, gt=0)
    held_out_pairs: int | None = Field(None, gt=0)
    held_out_limit: int | None = Field(None, gt=0)
    held_out_share: float = Field(0.1, gt=0, lt=1)
    max_prompt_tokens: int = Field(512, gt=1)
    max_response_tokens: int = Field(128, gt=0)
    seed: int = 0

    @cached_property  # asked for every row
    def name(self) -> str:
        """For people: the last part of the source, without suffixes."""
        path = Path(self.source)
        return path.name.removesuffix(".gz").removesuffix(suffix_of(path)) or path.name


_SHOWN = 5
"""Rows that a reason is shown with."""


@dataclass
class Tally:
    """How many rows were read, kept, dropped for which reason, and changed how; of those, where the first few are.
    unused: rows that hold something in a column that nothing reads, by column.
    """

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    rows: dict[str, list[str]] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Rows that gave a pair."""
        return self.read - self.dropped.total()

    def drop(self, reason: str, where: str) -> None:
        """Count one row dropped."""
        self.dropped[reason] += 1
        self._place(reason, where)

    def note(self, what: str, where: str) -> None:
        """Count one row that is kept, and is not as the data wrote it or not as a reader would expect."""
        self.notes[what] += 1
        self._place(what, where)

    def _place(self, what: str, where: str) -> None:
        if len(places := self.rows.setdefault(what, [])) < _SHOWN:
            places.append(where)

    def add(self, other: Tally) -> None:
        """Count what another reading counted, too."""
        self.read += other.read
        self.dropped += other.dropped
        self.notes += other.notes
        self.unused += other.unused
        for reason, places in other.rows.items():
            self.rows[reason] = [*self.rows.get(reason, []), *places][:_SHOWN]

    def lines(self, counts: Counter[str]) -> Iterator[str]:
        """Of `dropped` or `notes`, a line each with its count and the first rows, the most frequent first."""
        for what, count in counts.most_common():
            places = self.rows.get(what, [])
            more = ["..."] if count > len(places) else []
            yield f"{what}: {count} ({', '.join([*places, *more])})"

    def reasons(self) -> Iterator[str]:
        """The lines of what was dropped."""
        return self.lines(self.dropped)

    def warnings(self) -> list[str]:
        """What nobody should overlook: reasons that cost more than a twentieth of the rows read."""
        return [
            f"{100 * count / self.read:.0f}% of the rows are dropped: {line}"
            for line, (_, count) in zip(self.reasons(), self.dropped.most_common(), strict=True)
            if count > self.read / 20
        ]

    def as_json(self) -> dict[str, Any]:
        """Plain values: rows read and dropped, and by reason, note or column a count and the first rows."""

        def counted(counts: Counter[str]) -> dict[str, object]:
            return {what: {"count": count, "rows": self.rows.get(what, [])} for what, count in counts.most_common()}

        return {
            "read": self.read,
            "dropped": counted(self.dropped),
            "notes": counted(self.notes),
            "unused_columns": dict(self.unused.most_common()),
        }


@dataclass(frozen=True)
class Part:
    """A file or a split. records: reads from the start, and gives (row number from 1, record)."""

    place: str
    split: str | None
    records: Callable[[], Iterator[tuple[int, Any]]]


_MAY_BE_MESSAGES = frozenset({"prompt", "chosen", "rejected", "conversation_a", "conversation_b"})


_NO_SPLIT = "it names no split, as other rows do"


class Reading:
    """The pairs of some parts. Each iteration reads from the start; `schema` and `tally` are the latest one's."""

    schema: Schema | None = None

    def __init__(self, spec: DatasetSpec, parts: Sequence[Part], split: str | None = None) -> None:
        """split: only rows of this split, by their own column `split`. Parts are chosen by `select`."""
        self._spec, self._parts, self._split = spec, parts, split
        self.tally = Tally()

    def __iter__(self) -> Iterator[TextPair]:
        """Raises UserError when the data cannot be read, have no or several formats, or leave no pair at all."""
        self.tally = Tally()
        self.schema = schema_named(self._spec.format) if self._spec.format else None
        self._shape: str | None = None
        for part in self._parts:
            yield from self._pairs(part)
        if not self.tally.kept:
            what = f"none of its {self.tally.read} rows can be used" if self.tally.read else "it holds no rows"
            hint = "; ".join(self.tally.reasons()) or None
            if self._split and not self.tally.read:
                what += f" that name '{self._split}' as their split"
            elif self._split and self.tally.dropped[_NO_SPLIT] == self.tally.read:
                what = f"no row names '{self._split}' as its split"
                hint = "Leave the split out where the data have none, or give one that rows name in the column `split`."
            raise UserError(what, where=self._spec.source, hint=hint)

    def _pairs(self, part: Part) -> Iterator[TextPair]:
        rows = ((number, *self._record(row, number, part)) for number, row in part.records())
        head = list(itertools.islice(rows, 50))
        if head and self.schema is None:
            readable = [record for _, record, problem in head if not problem] or [record for _, record, _ in head]
            self.schema = detect(readable, f"{part.place}, row {head[0][0]}")
        for number, record, problem in itertools.chain(head, rows):
            split = record.get("split") if part.split is None else part.split
            split = split if isinstance(split, str) else None
            if self._split is not None and split not in (self._split, None):
                continue
            self.tally.read += 1
            where = f"{part.place} row {number}" if part.split is not None else f"row {number}"
            try:
                if split is None and self._split is not None:
                    raise Dropped(_NO_SPLIT)
                if problem:
                    raise Dropped(problem)
                self._same_format(record, f"{part.place}, row {number}")
                pair = convert(self.schema, record)  # type: ignore[arg-type]
                if pair.preference == 0.5 and self._spec.ties == "drop":
                    raise Dropped("a tie")
            except Dropped as reason:
                self.tally.drop(str(reason), where)
                continue
            self.tally.unused.update(self.schema.unused(record))  # type: ignore[union-attr]
            for note in pair.notes:
                self.tally.note(note, where)
            yield replace(pair, row=number, split=split, where=where)

    def _record(self, row: object, number: int, part: Part) -> tuple[Record, str]:
        """A row under the format's names for its columns, and what of it cannot be read, empty for nothing."""
        where = f"{part.place}, row {number}"
        if not isinstance(row, Mapping):
            raise UserError(
                f"a row is a {type(row).__name__}, not an object with named columns",
                where=where,
                hint='Write each row as {"prompt": ..., "chosen": ..., "rejected": ...}.',
            )
        renamed = {**row}
        for name, theirs in self._spec.columns.items():
            if theirs in row:
                renamed[name] = row[theirs]
                if theirs not in self._spec.columns:
                    renamed.pop(theirs)
            elif number == 1:
                raise UserError(f"there is no column '{theirs}'", where=where, hint=nearest(theirs, row))
        try:
            return renamed | {name: parsed_messages(renamed[name]) for name in _MAY_BE_MESSAGES & renamed.keys()}, ""
        except Dropped as problem:
            return renamed, str(problem)

    def _same_format(self, record: Record, where: str) -> None:
        kind, schema = shape(record), self.schema
        assert schema is not None
        alien = bool(record) and not any(column in record for column in schema.columns)
        self._shape = self._shape or kind
        if alien or (kind is not None and kind != self._shape):
            what = f"columns {', '.join(record)}" if alien else kind
            raise UserError(
                f"the formats are mixed: this row has {what}, the rows before it {self._shape or schema.name}",
                where=where,
                hint="Put each format into a file of its own, or choose one split.",
            )


def read(spec: DatasetSpec, split: str | None = None) -> Reading:
    """The pairs of a set, or of one split of it. Raises UserError when there is no such set or split."""
    parts, column = select(open_parts(spec), split, spec.source)
    return Reading(spec, parts, column)


def select(parts: Sequence[Part], split: str | None, source: str) -> tuple[Sequence[Part], str | None]:
    """The parts of a split. Where parts have no splits, rows may still name theirs: then the split comes back, to be
    sought in the rows. Raises UserError when no part is of this split.
    """
    names = [part.split for part in parts if part.split is not None]
    if split is None or not names:
        return parts, split
    _check_split(split, names, source)
    return [part for part in parts if part.split == split], None


def _check_split(split: str, names: Iterable[str], source: str) -> None:
    if split not in names:
        raise UserError(f"there is no split '{split}'", where=source, hint=nearest(split, names))


def training_split(names: Iterable[str], asked: str | None, source: str) -> str | None:
    """Which of a set's splits is trained on, by one rule for every command: the one asked for; `train`; the only one
    whose name begins so (`train_prefs`); the only one. None for data without splits.

    Raises UserError where there is no such split, or several may be meant.
    """
    names = sorted(set(names))
    if asked is not None and names:
        _check_split(asked, names, source)
    if asked is not None or not names:
        return asked
    for candidates in (["train"], [name for name in names if name.startswith("train")], names):
        if len(candidates) == 1 and candidates[0] in names:
            return candidates[0]
    raise UserError(
        "there are several splits, and none is plainly the one to train on",
        where=source,
        hint=f"Choose one: {', '.join(names)}.",
    )


def splits_of(spec: DatasetSpec, parts: Sequence[Part]) -> list[str]:
    """The splits of a set: of its parts, or those that its rows name in a column `split`, for which all are read."""
    names = {part.split for part in parts if part.split is not None}
    if names:
        return sorted(names)
    column = spec.columns.get("split", "split")

    def named(rows: Iterable[tuple[int, Any]]) -> set[str]:
        found = (row.get(column) for _, row in rows if isinstance(row, Mapping))
        return {name for name in found if isinstance(name, str)}

    # Rows of one set are alike: the first ones say whether there is such a column.
    if not any(named(itertools.islice(part.records(), 50)) for part in parts):
        return []
    return sorted(set[str]().union(*(named(part.records()) for part in parts)))


def open_parts(spec: DatasetSpec) -> list[Part]:
    """The files or splits of a source. Raises UserError when there is no such file, folder or hub set, or an option
    that means nothing to it.
    """
    path = _local(spec)
    if path is None:
        return _hub_parts(spec)
    if spec.revision:
        raise UserError("only a hub set has revisions", where=spec.source, hint="Leave revision out.")
    if not path.is_file():
        return _folder_parts(path, spec)
    if spec.config:
        raise UserError(
            f"a file has no configurations: '{spec.config}' means nothing here",
            where=spec.source,
            hint="Leave config out, or give the folder that holds the set.",
        )
    return [_file_part(path, str(path), None)]


def _local(spec: DatasetSpec) -> Path | None:
    """The file or folder; None for a hub set's name. Raises UserError for what is neither."""
    path = Path(spec.source).expanduser()
    if path.exists():
        return path
    is_path = path.is_absolute() or spec.source.startswith((".", "~")) or suffix_of(path) in READERS
    if is_path or spec.source.count("/") != 1 or not all(spec.source.split("/")):
        folder = [p.name for p in path.parent.iterdir() if p.exists()] if path.parent.is_dir() else []
        close = nearest(path.name, folder).partition(" Known:")[0] if folder else ""
        hint = close if close.startswith("Did you mean") else ""
        raise UserError(
            "there is no such file or folder",
            where=spec.source,
            hint=f"{hint} Give a file, a folder or a hub name (owner/set).".strip(),
        )
    return None


def source_digest(spec: DatasetSpec) -> str:
    """What names the data's contents, for an artefact's identity: a file's or folder's sha256, or the hub name with
    configuration and revision (the commit, where `revision` gives one). Raises UserError for what is neither.
    """
    path = _local(spec)
    if path is not None:
        return content_digest(path)
    return f"hub:{spec.source}:{spec.config or ''}@{spec.revision or 'main'}"


# The main branch of the first holds a loading script, which `datasets` 4 and later refuse: the hub's own conversion to
# Parquet is read instead.
_HUB: dict[str, dict[str, Any]] = {
    "openai/summarize_from_feedback": {
        "revision": "refs/convert/parquet",
        "data_files": {
            "train": "comparisons/train/*.parquet",
            "validation": "comparisons/validation/*.parquet",
        },
    },
}
_FOLDERS_AS_CONFIGS = frozenset({"Anthropic/hh-rlhf"})


def _hub_parts(spec: DatasetSpec) -> list[Part]:
    datasets = _datasets(spec.source)
    options = dict(_HUB.get(spec.source, {}))
    if spec.revision:
        options["revision"] = spec.revision
    if spec.config and "data_files" in options:
        raise UserError(
            f"this set is read without configurations: '{spec.config}' cannot be honoured",
            where=spec.source,
            hint="Leave config out: its comparisons are read.",
        )
    if spec.config:
        options["data_dir" if spec.source in _FOLDERS_AS_CONFIGS else "name"] = spec.config
    with _library_errors(spec.source, _HINT_HUB):
        return _loaded_parts(spec.source, datasets.load_dataset(spec.source, **options), _HINT_HUB)


def _folder_parts(path: Path, spec: DatasetSpec) -> list[Part]:
    datasets, name = _datasets(str(path)), None
    saved = _is_saved(path)
    with _library_errors(str(path), _HINT_FOLDER):
        if spec.config:
            # The card's configurations come first: a folder of the same name may be anything.
            names = (
                [] if saved else [name for name in datasets.get_dataset_config_names(str(path)) if name != "default"]
            )
            if spec.config in names:
                name = spec.config
            elif (path / spec.config).is_dir():
                path = path / spec.config
                saved = _is_saved(path)
            else:
                raise UserError(
                    f"there is no configuration '{spec.config}'",
                    where=spec.source,
                    hint=nearest(spec.config, names) if names else "This folder has none: leave config out.",
                )
        if saved:
            return _loaded_parts(str(path), datasets.load_from_disk(str(path)), _HINT_FOLDER)
        files = datasets.load_dataset_builder(str(path), name=name).config.data_files
    # The library says which file is of which split; reading them here keeps file, line and byte of what is broken.
    return [
        _file_part(Path(file), os.path.relpath(file, path), str(split))
        for split, of_split in sorted(files.items())
        for file in of_split
    ]


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote it."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _loaded_parts(place: str, loaded: Any, hint: str) -> list[Part]:
    splits = loaded if isinstance(loaded, Mapping) else {getattr(loaded, "split", None): loaded}

    def part(split: object, rows: Iterable[Any]) -> Part:
        name = f"{place} [{split}]" if split else place

        def records() -> Iterator[tuple[int, Any]]:
            with _library_errors(name, hint):
                yield from enumerate(rows, 1)

        return Part(name, str(split) if split else None, records)

    return [part(split, rows) for split, rows in splits.items()]


def _datasets(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "folders and hub sets are read by the library `datasets`, which is not installed",
            where=source,
            hint="Install it: pip install 'aligngap[data]'. Single files need nothing more.",
        ) from error
    return datasets


_HINT_HUB = (
    "Check name, configuration (--config), revision and network; a gated set needs `hf auth login` and its conditions "
    "accepted on the hub."
)
_HINT_FOLDER = "Give a folder that `datasets` takes (files of one kind, as train.jsonl and test.jsonl), or one file."


@contextmanager
def _library_errors(place: str, hint: str) -> Iterator[None]:
    """What the library says, as the user's error. It raises anything: its own, Arrow's, the network's, ValueError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"it cannot be loaded: {text[:500]}",
            where=place,
            hint=hint,
        ) from error


def _file_part(path: Path, place: str, split: str | None) -> Part:
    suffix = suffix_of(path)
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise UserError(
            f"'{suffix or path.name}' is no known kind of file", where=place, hint=f"Known: {known}, and each with .gz."
        )
    return Part(place, split, lambda: READERS[suffix](path, place))
