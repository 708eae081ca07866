"""Reading preference data: hub sets by name, folders, and files of JSON Lines, JSON, Parquet and CSV.

Everything streams: one row, or one small batch of a Parquet file, is in memory at a time, and parts can be read again
from the start. What breaks a file (a cut gzip stream, bytes that are no UTF-8, a malformed line) is a UserError that
names the place; what makes a single row useless is counted in the tally, with the row's number.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import os
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from aligngap.errors import UserError, nearest, out_of_memory
from aligngap.store.contents import is_pointer
from aligngap.store.identity import content_digest
from aligngap.tasks.formats import (
    Dropped,
    Record,
    Schema,
    TextPair,
    convert,
    detect,
    parsed_messages,
    schema_named,
    shape,
)


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
        return path.name.removesuffix(".gz").removesuffix(_suffix(path)) or path.name


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
    shown: int = 5

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
        if len(places := self.rows.setdefault(what, [])) < self.shown:
            places.append(where)

    def add(self, other: Tally) -> None:
        """Count what another reading counted, too."""
        self.read += other.read
        for counts, others in (
            (self.dropped, other.dropped),
            (self.notes, other.notes),
            (self.unused, other.unused),
        ):
            counts.update(others)
        for reason, places in other.rows.items():
            self.rows[reason] = [*self.rows.get(reason, []), *places][: self.shown]

    def reasons(self) -> Iterator[str]:
        """One line a reason for dropping rows, the most frequent first."""
        return (self.line(reason, count) for reason, count in self.dropped.most_common())

    def line(self, what: str, count: int) -> str:
        """A reason or a note, with its count and the first rows."""
        places = self.rows.get(what, [])
        more = ["..."] if count > len(places) else []
        return f"{what}: {count} ({', '.join([*places, *more])})"

    def warnings(self) -> list[str]:
        """What nobody should overlook: reasons that cost more than a twentieth of the rows read."""
        return [
            f"{100 * count / self.read:.0f}% of the rows are dropped: {self.line(reason, count)}"
            for reason, count in self.dropped.most_common()
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
    """A file or a split. records: starts reading anew, and gives (row number from 1, record)."""

    place: str
    split: str | None
    records: Callable[[], Iterator[tuple[int, Any]]]


_MAY_BE_MESSAGES = frozenset({"prompt", "chosen", "rejected", "conversation_a", "conversation_b"})


class Reading:
    """The pairs of some parts. Each iteration reads anew; `schema` and `tally` are those of the latest one."""

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
            if self._split and not self.tally.read:
                what += f" that name '{self._split}' as their split"
            raise UserError(what, where=self._spec.source, hint="; ".join(self.tally.reasons()) or None)

    def _pairs(self, part: Part) -> Iterator[TextPair]:
        rows = ((number, *self._record(row, number, part)) for number, row in part.records())
        head = list(itertools.islice(rows, 50))
        if head and self.schema is None:
            readable = [record for _, record, problem in head if not problem] or [record for _, record, _ in head]
            self.schema = detect(readable, f"{part.place}, row {head[0][0]}")
        for number, record, problem in itertools.chain(head, rows):
            split = record.get("split") if part.split is None else part.split
            split = split if isinstance(split, str) else None
            if self._split is not None and split != self._split:
                continue
            self.tally.read += 1
            where = f"{part.place} row {number}" if part.split is not None else f"row {number}"
            try:
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
        found, schema = shape(record), self.schema
        assert schema is not None
        alien = bool(record) and not any(column in record for column in schema.columns)
        self._shape = self._shape or found
        if alien or (found is not None and found != self._shape):
            what = f"columns {', '.join(record)}" if alien else found
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
    if split not in names:
        raise UserError(f"there is no split '{split}'", where=source, hint=nearest(split, names))
    return [part for part in parts if part.split == split], None


def training_split(names: Iterable[str], asked: str | None, source: str) -> str | None:
    """Which of a set's splits is trained on, by one rule for every command: the one asked for; `train`; the only one
    whose name begins so (`train_prefs`); the only one. None for data without splits.

    Raises UserError where there is no such split, or several may be meant.
    """
    names = sorted(set(names))
    if asked is not None and names and asked not in names:
        raise UserError(f"there is no split '{asked}'", where=source, hint=nearest(asked, names))
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
    is_path = path.is_absolute() or spec.source.startswith((".", "~")) or _suffix(path) in _READERS
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
    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()  # by `save_to_disk`
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
                saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
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


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _file_part(path: Path, place: str, split: str | None) -> Part:
    suffix = _suffix(path)
    if suffix not in _READERS:
        known = ", ".join(_READERS)
        raise UserError(
            f"'{suffix or path.name}' is no known kind of file", where=place, hint=f"Known: {known}, and each with .gz."
        )
    return Part(place, split, lambda: _READERS[suffix](path, place))


@contextmanager
def _opened(path: Path, place: str) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked. By its first bytes, not by its name, a file is known to be gzip."""
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if is_pointer(path):
                raise UserError("it is a pointer of Git LFS, and not the data", where=place, hint="git lfs pull")
            if not packed and path.name.lower().endswith(".gz") and path.stat().st_size:
                raise UserError("it is no gzip file", where=place, hint="Take .gz off its name, or pack it with gzip.")
            if not packed:
                yield raw
                return
            with gzip.open(raw, "rb") as stream:
                yield stream  # type: ignore[misc]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"the gzip file is damaged or cut short: {error}", where=place, hint="Get the file again."
        ) from error
    except OSError as error:
        what = f"it cannot be read: {error.strerror or error}"
        raise UserError(what, where=place, hint="Check the file, or get it again.") from error


def _not_utf8(place: str, offset: int, line: int | None = None) -> UserError:
    at = f"byte {offset}" if line is None else f"line {line}, byte {offset} of the file"
    return UserError(
        f"the text is not UTF-8: {at}",
        where=place,
        hint="Write the file as UTF-8 (iconv -t UTF-8), or repair the byte.",
    )


def _lines(stream: IO[bytes], place: str) -> Iterator[str]:
    """The lines with their ends, decoded."""
    offset = 0
    for number, line in enumerate(stream, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(place, offset + error.start, number) from None
        offset += len(line)


def _malformed(place: str, what: str) -> UserError:
    return UserError(
        f"malformed JSON: {what}",
        where=place,
        hint="Write one JSON object a line (JSON Lines), or one list of objects.",
    )


def _beyond(error: RecursionError | ValueError) -> str:
    """What JSON allows and Python does not read."""
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _read_json(path: Path, place: str) -> Iterator[tuple[int, Any]]:
    """JSON Lines, where a row's number is that of its line, or one list of objects, whatever the name says."""
    with _opened(path, place) as stream:
        first = stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
        stream.seek(0)
        if first == b"[":
            yield from enumerate(_json_list(stream, place), 1)
            return
        for number, line in enumerate(_lines(stream, place), 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise _malformed(f"{place}, line {number}", f"{error.msg}, column {error.colno}") from None
            except (RecursionError, ValueError) as error:
                raise _malformed(f"{place}, line {number}", _beyond(error)) from None


def _json_list(stream: IO[bytes], place: str, chunk: int = 1 << 18) -> Iterator[Any]:
    """The items of one JSON list, decoded as they come."""
    decoder, text, at, done, line = json.JSONDecoder(), "", 0, False, 1
    chunks = _chunks(stream, place, chunk)
    expect = "["

    def more() -> None:
        nonlocal text, at, done, line
        line += text.count("\n", 0, at)
        found = next(chunks, None)
        text, at, done = text[at:] + (found or ""), 0, found is None

    def broken(what: str, position: int) -> UserError:
        return _malformed(f"{place}, line {line + text.count(chr(10), 0, position)}", what)

    while True:
        while at < len(text) and text[at] in " \t\r\n\ufeff":
            at += 1
        if at == len(text):
            if done:
                if expect:
                    raise broken("the list is cut short", at)
                return
            more()
        elif not expect:
            raise broken("something follows the list", at)
        elif expect in (",", "first") and text[at] == "]":
            at, expect = at + 1, ""
        elif expect in ("[", ","):
            if text[at] != expect:
                raise broken(f"'{expect}' expected", at)
            at, expect = at + 1, "first" if expect == "[" else "item"
        else:
            try:
                item, end = decoder.raw_decode(text, at)
            except json.JSONDecodeError as error:
                # An item that the end of the chunk cuts fails there, or in a string that has no end yet.
                cut = error.msg.startswith("Unterminated") or error.pos >= len(text) - 16
                if done or not cut:
                    raise broken(error.msg, error.pos) from None
                more()
                continue
            except (RecursionError, ValueError) as error:
                raise broken(_beyond(error), at) from None
            if end == len(text) and not done:  # a number may go on
                more()
                continue
            at, expect = end, ","
            yield item


def _chunks(stream: IO[bytes], place: str, size: int) -> Iterator[str]:
    """The stream in pieces of text; a character is never cut."""
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    while data := stream.read(size):
        waiting = len(decoder.getstate()[0])
        try:
            yield decoder.decode(data)
        except UnicodeDecodeError as error:
            raise _not_utf8(place, offset - waiting + error.start) from None
        offset += len(data)
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise _not_utf8(place, offset) from None


def _read_csv(path: Path, place: str) -> Iterator[tuple[int, Any]]:
    """Rows below the header, numbered from 1. Cells that hold messages hold them as JSON."""
    csv.field_size_limit(1 << 30)  # the default refuses a long prompt
    with _opened(path, place) as stream:
        delimiter = "\t" if _suffix(path) == ".tsv" else ","
        reader = csv.DictReader(_lines(stream, place), delimiter=delimiter, strict=True)
        number = 0
        try:
            header = reader.fieldnames or ()
            if len(header) == 1 and (mark := next((mark for mark in ";\t|," if mark in header[0]), None)):
                raise UserError(
                    f"the header is one column, '{header[0]}': the cells seem to be parted by {mark!r}",
                    where=f"{place}, line 1",
                    hint="Part them by commas; in a file that ends in .tsv, by tabs.",
                )
            for number, row in enumerate(reader, 1):
                if None in row or None in row.values():
                    have = sum(v is not None for k, v in row.items() if k is not None) + len(row.get(None) or ())
                    raise UserError(
                        f"{have} cells below a header of {len(header)}",
                        where=f"{place}, row {number} (line {reader.line_num})",
                        hint="Put cells with commas, quotes or line ends into double quotes.",
                    )
                yield number, {column: _cell(column, value) for column, value in row.items()}
        except csv.Error as error:
            raise UserError(
                f"malformed CSV: {error}",
                where=f"{place}, row {number + 1} (line {reader.line_num})",
                hint="Close every double quote; write a quote within a cell twice.",
            ) from None


def _cell(column: str, value: str) -> object:
    """A cell; an empty one is missing. What the nested formats hold in these columns is JSON."""
    if value == "":
        return None
    if value.lstrip()[:1] in ("[", "{") and column in ("info", "summaries", "completions"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _read_parquet(path: Path, place: str) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with _opened(path, place) as stream, tempfile.TemporaryFile() as unpacked:
            source: Any = stream
            if not isinstance(source, io.BufferedReader):  # gzip, and Parquet is read from its end
                shutil.copyfileobj(stream, unpacked)
                source = unpacked
                source.seek(0)
            if source.read(4) not in (b"PAR1", b""):  # Arrow looks at the end alone
                raise pa.ArrowInvalid("it does not begin as one")
            for batch in pq.ParquetFile(source).iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except UnicodeDecodeError:
        raise UserError(
            "the text is not UTF-8", where=f"{place}, in rows {number + 1} to {number + 256}", hint="Write it as UTF-8."
        ) from None
    except pa.ArrowException as error:
        raise UserError(
            f"it is no readable Parquet file: {' '.join(str(error).split())[:300]}",
            where=place,
            hint="Get the file again.",
        ) from error


_READERS: dict[str, Callable[[Path, str], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}
