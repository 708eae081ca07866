"""Files, folders and hub sets: the same pairs from every kind of file, and one clear error for each that is broken."""

from __future__ import annotations

import gzip
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligngap.errors import UserError
from aligngap.tasks import files
from aligngap.tasks.datasets import DatasetSpec, Reading, open_parts, read, source_digest
from unit.tasks import rows
from unit.tasks.rows import Row

TEXTS = [{**rows.TLDR, "prompt": f'Post {i}, "quoted"\nand é:'} for i in range(5)]
REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "hh-harmless-sample.jsonl.gz"


def write(path: Path, data: Sequence[Any]) -> Path:
    """A file of the kind that its name says."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    plain = path.with_name(path.name.removesuffix(".gz"))
    if kind == "jsonl":
        plain.write_text("".join(json.dumps(row) + "\n" for row in data))
    elif kind == "json":
        plain.write_text(json.dumps(data, indent=1, ensure_ascii=False))
    elif kind == "parquet":
        pl.DataFrame(data).write_parquet(plain)
    else:
        pl.DataFrame(data).write_csv(plain, separator="\t" if kind == "tsv" else ",")
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def reading(source: Path | str, split: str | None = None, **options: Any) -> Reading:
    return read(DatasetSpec(source=str(source), **options), split)


def error_of(source: Path | str, split: str | None = None, **options: Any) -> UserError:
    with pytest.raises(UserError) as error:
        list(reading(source, split, **options))
    return error.value


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv", "tsv"])
def test_every_kind_of_file_gives_the_same_pairs(kind: str, packed: str, tmp_path: Path) -> None:
    source = reading(write(tmp_path / f"pairs.{kind}{packed}", TEXTS))
    for _ in range(2):  # a reading starts anew
        pairs = list(source)
        assert [(p.prompt, p.chosen, p.rejected, p.row) for p in pairs] == [
            (*row.values(), number) for number, row in enumerate(TEXTS, 1)
        ]
        assert (source.tally.read, source.tally.kept) == (5, 5)
    assert source.schema is not None
    assert source.schema.name == "preference"


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("summarize_from_feedback", rows.comparison()),
        ("arena", {key: value for key, value in rows.battle().items() if key != "toxic_chat_tag"}),
        ("scored", rows.ULTRAFEEDBACK),
        ("completions", rows.COMPLETIONS),
        ("conversational", rows.IMPLICIT_CONVERSATION),
        ("hh", rows.hh(" Yes", " No")),
    ],
)
def test_nested_formats_from_files(kind: str, name: str, row: Row, tmp_path: Path) -> None:
    source = reading(write(tmp_path / f"pairs.{kind}", [row, row]))
    assert len(list(source)) == 2
    assert source.schema is not None
    assert source.schema.name == name


def test_csv_holds_messages_as_json(tmp_path: Path) -> None:
    row = {name: json.dumps(value) for name, value in rows.CONVERSATION.items()}
    (pair,) = reading(write(tmp_path / "pairs.csv", [row]))
    assert (pair.chosen, pair.rejected) == ("Blue.", "Green.")
    (pair,) = reading(write(tmp_path / "code.csv", [{"prompt": "JSON?", "chosen": '{"a": 1}', "rejected": "[1]"}]))
    assert pair.chosen == '{"a": 1}'  # an answer that is JSON stays text
    answers = [('{"content": "x"}', '{"text": 1}'), ('[{"response": 1}]', '[{"role": "x"}]')]
    data = [{"prompt": "JSON?", "chosen": chosen, "rejected": rejected} for chosen, rejected in answers]
    assert [(p.chosen, p.rejected) for p in reading(write(tmp_path / "answers.csv", data))] == answers
    nested = {name: json.dumps(value) for name, value in rows.comparison().items()}
    (pair,) = reading(write(tmp_path / "comparisons.csv", [nested]))
    assert (pair.first, pair.preference) == (" Cat left.", 0.0)


def test_rows_are_dropped_with_their_numbers(tmp_path: Path) -> None:
    data = [rows.hh(" a", " b"), rows.hh(" ", " b"), rows.hh(" a", " b"), {"chosen": None, "rejected": "x"}]
    data += [rows.hh(" ", " b")] * 6
    source = reading(write(tmp_path / "pairs.jsonl", data))
    assert [pair.row for pair in source] == [1, 3]
    assert (source.tally.read, source.tally.kept) == (10, 2)
    assert list(source.tally.reasons()) == [
        "the answer in chosen is empty: 7 (row 2, row 5, row 6, row 7, row 8, ...)",
        "chosen is missing: 1 (row 4)",
    ]


def test_rows_without_anything_in_them_are_dropped(tmp_path: Path) -> None:
    source = reading(write(tmp_path / "pairs.jsonl", [rows.TLDR, {}, {"prompt": "p"}, rows.TLDR]))
    assert [pair.row for pair in source] == [1, 4]
    assert dict(source.tally.dropped) == {"prompt is missing": 1, "chosen is missing": 1}


def test_ties_are_dropped_unless_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "arena.jsonl", [rows.battle(), rows.battle("tie"), rows.battle(turns=2)])
    source = reading(path)
    assert [pair.preference for pair in source] == [0.0]
    assert dict(source.tally.dropped) == {"a tie": 1, "more than one turn": 1}
    assert [pair.preference for pair in reading(path, ties="keep")] == [0.0, 0.5]


def test_columns_may_be_renamed_and_the_format_forced(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [{"question": "q", "good": "a", "bad": "b"}])
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    (pair,) = reading(path, columns=names)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("q", "a", "b")
    assert "Did you mean 'question'" in str(error_of(path, columns={"prompt": "questions"}).hint)
    transcript = write(tmp_path / "hh.jsonl", [rows.hh(" one two", " one three")])
    (pair,) = reading(transcript, format="implicit")
    assert pair.chosen == " two"
    (pair,) = reading(transcript)
    assert pair.chosen == " one two"


@pytest.mark.parametrize(
    "second",
    [rows.CONVERSATION, rows.IMPLICIT, rows.battle(), {"question": "q", "a": "x", "b": "y"}],
)
def test_mixed_formats_are_one_error_that_names_the_row(second: Row, tmp_path: Path) -> None:
    error = error_of(write(tmp_path / "pairs.jsonl", [rows.TLDR] * 60 + [second]))
    assert "formats are mixed" in error.what
    assert str(error.where).endswith("pairs.jsonl, row 61")


def test_a_hundred_thousand_words(tmp_path: Path) -> None:
    long = {**rows.TLDR, "prompt": "word " * 100_000}
    for kind in ("jsonl", "json", "csv", "parquet"):
        first, second = reading(write(tmp_path / f"pairs.{kind}", [long, rows.TLDR]))
        assert len(first.prompt) == 500_000
        assert second.prompt == rows.TLDR["prompt"]


def test_nothing_usable_is_an_error_that_lists_the_reasons(tmp_path: Path) -> None:
    error = error_of(write(tmp_path / "pairs.jsonl", [rows.hh(" ", " b"), rows.hh(" b", " b")]))
    assert "none of its 2 rows" in error.what
    assert "the answer in chosen is empty: 1 (row 1)" in str(error.hint)
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"")
    assert error_of(empty).what == "it holds no rows"


def test_cut_gzip(tmp_path: Path) -> None:
    for kind in ("jsonl", "json", "csv", "parquet"):
        path = write(tmp_path / f"pairs.{kind}.gz", TEXTS * 50)
        path.write_bytes(path.read_bytes()[:-20])
        error = error_of(path)
        assert "damaged or cut short" in error.what
        assert error.where == str(path)
    path.write_bytes(b"plain")
    assert "no gzip file" in error_of(path).what


def test_invalid_utf8_is_placed(tmp_path: Path) -> None:
    lines = [json.dumps(rows.TLDR).encode() + b"\n"] * 3
    lines[1] = lines[1].replace(b"TITLE", b"TI\xffLE")
    at = b"".join(lines).index(b"\xff")
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"".join(lines))
    assert f"line 2, byte {at} of the file" in error_of(path).what
    path = tmp_path / "pairs.json"
    path.write_bytes(b"[" + b",".join(lines) + b"]")
    at = path.read_bytes().index(b"\xff")
    assert f"byte {at}" in error_of(path).what
    path = tmp_path / "pairs.csv"
    path.write_bytes(b"prompt,chosen,rejected\na,b,c\na,b,\xe9\n")
    assert "line 3, byte 33" in error_of(path).what


def test_malformed_json_is_placed(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(rows.TLDR) + '\n\n{"prompt": "a", "chosen": }\n')
    error = error_of(path)
    assert str(error.where).endswith("pairs.jsonl, line 3")
    assert "column 27" in error.what
    path.write_text('"text"\n')
    assert "a row is a str" in error_of(path).what


@pytest.mark.parametrize(
    ("text", "expected", "line"),
    [
        ('[{"a": 1},\n{"a": }]', "Expecting value", 2),
        ('[{"a": 1}\n{"a": 2}]', "',' expected", 2),
        ('[{"a": 1},\n\n{"a": 2}', "cut short", 3),
        ('[{"a": "x', "Unterminated string", 1),
        ("[] x", "something follows", 1),
        ("[" * 100_000, "nested too deeply", 1),
    ],
)
def test_malformed_lists_are_placed(text: str, expected: str, line: int, tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(text)
    with pytest.raises(UserError) as error, path.open("rb") as stream:
        list(files._json_list(stream, "here"))
    assert expected in error.value.what
    assert error.value.where == f"here, line {line}"


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 18])
def test_a_list_is_the_same_in_chunks_of_any_size(chunk: int, tmp_path: Path) -> None:
    items = [{"é": 'a"\\', "n": -1.5e3}, [], "\u00e9\U0001f600", 12345, None, {"x": [True]}]
    for number, layout in enumerate((None, 2)):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(items, indent=layout, ensure_ascii=bool(number)))
        with path.open("rb") as stream:
            assert list(files._json_list(stream, "here", chunk)) == items


def test_a_list_is_not_read_ahead(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(TEXTS * 2000))
    with path.open("rb") as stream:
        assert list(itertools.islice(files._json_list(stream, "x", 4096), 3)) == TEXTS[:3]
        assert stream.tell() <= 3 * 8192 < path.stat().st_size


def test_broken_csv_and_parquet_are_placed(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected\na,b,c\na,b\n")
    error = error_of(path)
    assert error.what == "2 cells below a header of 3"
    assert "row 2 (line 3)" in str(error.where)
    path.write_text("prompt,chosen,rejected\na,b,c,d\n")
    assert error_of(path).what == "4 cells below a header of 3"
    path.write_text('prompt,chosen,rejected\na,b,"c\n')
    assert "malformed CSV" in error_of(path).what
    path.write_text("prompt;chosen;rejected\na;b;c\n")
    assert "parted by ';'" in error_of(path).what
    assert (
        "one column, 'prompt,chosen,rejected'"
        in error_of(write(tmp_path / "x.csv", TEXTS).rename(tmp_path / "x.tsv")).what
    )
    path = write(tmp_path / "pairs.parquet", TEXTS)
    whole = path.read_bytes()
    for broken in (b"", whole[:-30], b"XXXX" + whole[4:], whole[:-4] + b"XXXX", b"[]" * 50):
        path.write_bytes(broken)
        assert "no readable Parquet" in error_of(path).what
    path.write_bytes(whole[:20] + bytes(255 - byte for byte in whole[20:120]) + whole[120:])
    assert error_of(path).where == str(path)


def test_a_pointer_in_the_datas_place_is_named(tmp_path: Path) -> None:
    for name in ("pairs.jsonl", "pairs.parquet", "pairs.csv", "pairs.json.gz"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        error = error_of(tmp_path / name)
        assert ("Git LFS" in error.what, error.hint) == (True, "git lfs pull")


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", TEXTS)
    assert "Did you mean 'pairs.jsonl'" in str(error_of(tmp_path / "pair.jsonl").hint)
    assert "no such file" in error_of("data/pairs.jsonl").what
    assert "no such file" in error_of("nothing").what
    (tmp_path / "led.jsonl").symlink_to(tmp_path / "nowhere")
    assert "'led.jsonl'" not in str(error_of(tmp_path / "led.jsonl").hint)
    (tmp_path / "pairs.txt").write_text("x")
    assert "no known kind" in error_of(tmp_path / "pairs.txt").what


def test_a_split_in_the_rows(tmp_path: Path) -> None:
    data = [{**rows.TLDR, "split": name} for name in ("train", "valid1", "train")]
    path = write(tmp_path / "pairs.jsonl", data)
    assert [pair.split for pair in reading(path)] == ["train", "valid1", "train"]
    assert [pair.row for pair in reading(path, "train")] == [1, 3]
    assert "'test' as their split" in error_of(path, "test").what


def test_a_folder_of_splits(tmp_path: Path) -> None:
    """As a clone of Anthropic/hh-rlhf: one folder a part, one packed file a split."""
    pytest.importorskip("datasets")
    folder = tmp_path / "hh" / "harmless-base"
    folder.mkdir(parents=True)
    write(folder / "train.jsonl.gz", [rows.hh(" a", " b"), rows.hh("", " b")])
    broken = write(folder / "test.jsonl.gz", [rows.hh(" c", " d")])
    source = reading(tmp_path / "hh", config="harmless-base")
    assert {(pair.split, pair.first) for pair in source} == {("train", " a"), ("test", " c")}
    assert list(source.tally.reasons()) == ["the answer in chosen is empty: 1 (train.jsonl.gz row 2)"]
    assert [pair.first for pair in reading(folder, "train")] == [" a"]
    assert "Did you mean 'train'" in str(error_of(folder, split="trian").hint)
    broken.write_bytes(broken.read_bytes()[:-9])
    assert error_of(folder).where == "test.jsonl.gz"
    (tmp_path / "empty").mkdir()
    error = error_of(tmp_path / "empty")
    assert "any data files" in error.what
    assert "hub" not in str(error.hint)


def test_a_folder_saved_by_the_library(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets")
    saved = library.Dataset.from_list([rows.comparison(), rows.comparison(0)])
    library.DatasetDict({"train": saved, "validation": saved}).save_to_disk(str(tmp_path / "set"))
    assert [pair.preference for pair in reading(tmp_path / "set", "train")] == [0.0, 1.0]
    assert len(list(reading(tmp_path / "set"))) == 4


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The library's loader, which notes how it is called."""
    library = pytest.importorskip("datasets")
    calls: list[tuple[str, dict[str, Any]]] = []

    def load_dataset(name: str, /, **options: Any) -> Any:
        calls.append((name, options))
        data = rows.comparison() if "summarize_from" in name else rows.hh(" a", " b")
        return library.DatasetDict(
            {"train": library.Dataset.from_list([data]), "test": library.Dataset.from_list([data])}
        )

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    return calls


def test_hub_sets_are_asked_for_as_they_need_it(hub: list[tuple[str, dict[str, Any]]]) -> None:
    (pair,) = reading("openai/summarize_from_feedback", "train")
    assert (pair.preference, pair.split, pair.row) == (0.0, "train", 1)
    assert len(list(reading("Anthropic/hh-rlhf", config="harmless-base"))) == 2
    list(reading("someone/set", config="main_config", revision="abc"))
    (_, openai), anthropic, someone = hub
    # The main branch holds a script; the hub's conversion to Parquet does not.
    assert openai["revision"] == "refs/convert/parquet"
    assert openai["data_files"]["train"].startswith("comparisons/train/")
    assert anthropic == ("Anthropic/hh-rlhf", {"data_dir": "harmless-base"})
    assert someone == ("someone/set", {"revision": "abc", "name": "main_config"})


def test_what_the_hub_says_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    error = error_of("trl-lib/tldr-preference")
    assert error.where == "trl-lib/tldr-preference"
    assert "it cannot be loaded" in error.what

    class Breaks:
        split = "train"

        def __iter__(self) -> Iterator[Row]:
            yield rows.TLDR
            raise ValueError("the second shard is broken")

    monkeypatch.setattr(library, "load_dataset", lambda name, **options: Breaks())
    error = error_of("trl-lib/tldr-preference")
    assert (error.where, "second shard" in error.what) == ("trl-lib/tldr-preference [train]", True)


def test_without_the_library_files_are_read_and_hub_sets_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert len(list(reading(write(tmp_path / "pairs.jsonl", TEXTS)))) == 5
    assert "aligngap[data]" in str(error_of("trl-lib/tldr-preference").hint)


def test_text_in_parquet_that_is_no_utf8(tmp_path: Path) -> None:
    names = ("prompt", "chosen", "rejected")
    good, bad = (pa.array([text] * 300, pa.binary()) for text in (b"a", b"\xff"))
    columns = [pa.concat_arrays([good, column]).view(pa.string()) for column in (good, good, bad)]
    pq.write_table(pa.table(columns, names=names), tmp_path / "pairs.parquet")
    error = error_of(tmp_path / "pairs.parquet")
    assert (error.what, "rows 257 to" in str(error.where)) == ("the text is not UTF-8", True)


def test_the_digest_is_of_the_contents(tmp_path: Path) -> None:
    one, same = (write(tmp_path / name, TEXTS) for name in ("a.jsonl", "b.jsonl"))
    other = write(tmp_path / "c.jsonl", TEXTS[:2])
    digests = [source_digest(DatasetSpec(source=str(path))) for path in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]
    assert source_digest(DatasetSpec(source="a/b", revision="c")) == "hub:a/b:@c"
    assert open_parts(DatasetSpec(source=str(one)))[0].split is None


@pytest.mark.skipif(not REAL.is_file(), reason="the real pairs are not here")
def test_real_pairs() -> None:
    source = reading(REAL)
    pairs = list(source)
    assert (source.tally.read, len(pairs)) == (1500, 1495)
    assert dict(source.tally.dropped) == {"the answer in chosen is empty": 4, "the prompts differ": 1}
    for pair in pairs:
        assert isinstance(pair.prompt, str)
        assert pair.prompt.endswith("\n\nAssistant:")
        assert "\n\nAssistant:" not in pair.chosen + pair.rejected


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000])
def test_what_json_allows_and_python_does_not_read_is_placed(kind: str, value: str, tmp_path: Path) -> None:
    row = f'{{"prompt": "p", "chosen": "a", "rejected": "b", "x": {value}'
    (tmp_path / f"x.{kind}").write_text(f"[{row}}}]" if kind == "json" else f"{row}}}\n")
    with pytest.raises(UserError, match=r"too deeply|too many digits") as caught:
        list(read(DatasetSpec(source=str(tmp_path / f"x.{kind}"))))
    assert "line 1" in (caught.value.where or "")
