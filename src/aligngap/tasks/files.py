"""A file's rows: JSON Lines, JSON, Parquet, CSV and TSV, each perhaps packed with gzip.

Everything streams: one row, or one small batch of a Parquet file, is in memory at a time. What breaks a file (a cut
gzip stream, bytes that are no UTF-8, a malformed line) is a UserError that names file, line and byte.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from aligngap.errors import UserError
from aligngap.store.contents import is_pointer

Rows = Iterator[tuple[int, Any]]
"""Row number from 1 (of JSON Lines, the line's), and what stands there."""


def suffix_of(path: Path) -> str:
    """What a file is by its name, `.gz` aside."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


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


def _read_json(path: Path, place: str) -> Rows:
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
        following = next(chunks, None)
        text, at, done = text[at:] + (following or ""), 0, following is None

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


def _read_csv(path: Path, place: str) -> Rows:
    """Rows below the header, numbered from 1. Cells that hold messages hold them as JSON."""
    csv.field_size_limit(1 << 30)  # the default refuses a long prompt
    with _opened(path, place) as stream:
        delimiter = "\t" if suffix_of(path) == ".tsv" else ","
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


def _read_parquet(path: Path, place: str) -> Rows:
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


READERS: dict[str, Callable[[Path, str], Rows]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}
"""By suffix: what reads a file, given its path and its name in errors."""
