from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aligngap
from aligngap.store import canonical, file_digest, folder_digest, identity

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
specs = st.dictionaries(st.text(), values, max_size=4)


def test_canonical_text() -> None:
    value = {"b": [1, 2.0, 1e-5, True, None], "a": {"z": "é", "y": ()}}
    assert canonical(value) == '{"a":{"y":[],"z":"\\u00e9"},"b":[1,2.0,1e-05,true,null]}'


@given(values)
def test_canonical_keeps_the_value(value: object) -> None:
    assert json.loads(canonical(value)) == value


@given(specs)
def test_order_of_keys_does_not_count(spec: dict[str, object]) -> None:
    assert canonical(spec) == canonical(dict(reversed(spec.items())))


def test_subclasses_count_as_their_plain_value() -> None:
    class Side(StrEnum):
        LEFT = "left"

    assert canonical([Side.LEFT, np.float64(0.1)]) == '["left",0.1]'


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_canonical_refuses_what_is_no_number(bad: float) -> None:
    with pytest.raises(ValueError, match=re.escape("$.a[1]")):
        canonical({"a": [0.0, bad]})


@pytest.mark.parametrize("bad", [Path("x"), {1, 2}, b"x", object(), np.int64(1), np.zeros(2), {1: "x"}, 1j])
def test_canonical_refuses_unknown_types(bad: object) -> None:
    with pytest.raises(TypeError, match=re.escape("$.a")):
        canonical({"a": bad})


def test_identity_form() -> None:
    assert re.fullmatch(r"sft-[0-9a-f]{20}", identity("sft", 1, {"steps": 3}, {}))


def test_identity_never_changes_from_release_to_release() -> None:
    # A literal on purpose: when this fails, every result that a user has made is lost to the new version.
    name = identity("arm", 2, {"beta": 0.1, "loss": "ipo"}, {"policy": "sft-00", "judges": ["a", "b"]})
    assert name == "arm-59e9238e38088e824b64"


parts = st.tuples(
    st.sampled_from(["sft", "arm", "golden-pairs"]),
    st.integers(0, 5),
    specs,
    st.dictionaries(
        st.text(min_size=1),
        st.sampled_from(["sft-00", "sft-01"]) | st.lists(st.sampled_from(["a-0", "b-1"]), max_size=2),
        max_size=2,
    ),
)


@given(parts, parts)
def test_identity_is_sensitive_to_each_part(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    # Compared part by part with all the others equal, so that each is seen to count.
    for index, part in enumerate(other):
        changed = (*one[:index], part, *one[index + 1 :])
        same = all(canonical(a) == canonical(b) for a, b in zip(one, changed, strict=True))
        assert (identity(*one) == identity(*changed)) is same


def test_order_of_inputs_in_a_list_counts() -> None:
    assert identity("x", 1, {}, {"a": ["p", "q"]}) != identity("x", 1, {}, {"a": ["q", "p"]})
    assert identity("x", 1, {}, {"a": "p"}) != identity("x", 1, {}, {"a": ["p"]})


@pytest.mark.parametrize("bad", ["/tmp/pairs.parquet", "a/b", "..", "", ".hidden", 3, None, ["ok", "a b"]])
def test_inputs_are_identities_never_paths(bad: object) -> None:
    with pytest.raises(ValueError, match="input 'pairs'"):
        identity("arm", 1, {}, {"pairs": bad})


@pytest.mark.parametrize(("kind", "version"), [("", 1), ("A", 1), ("a/b", 1), ("../a", 1), ("a", -1), ("a", True)])
def test_malformed_kind_or_version(kind: str, version: int) -> None:
    with pytest.raises(ValueError, match=r"kind|version"):
        identity(kind, version, {}, {})


def test_identity_is_the_same_in_another_process() -> None:
    call = "identity('arm', 1, {'b': 0.1, 'a': {'y': [1, 2], 'x': 'é'}}, {'p': 'q-1'})"
    here = eval(call, {"identity": identity})
    for hash_seed in ("0", "7"):
        there = subprocess.run(
            [sys.executable, "-c", f"from aligngap.store.identity import identity; print({call})"],
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(aligngap.__file__).parents[1])},
            check=True,
            capture_output=True,
            text=True,
        )
        assert there.stdout.strip() == here


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(FileNotFoundError):
        file_digest(tmp_path / "b")


def fill(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_folder_digest_follows_names_and_contents_only(tmp_path: Path) -> None:
    files = {"config.json": "{}", "sub/a.txt": "1", "sub/b.txt": "2"}
    first = folder_digest(fill(tmp_path / "one", files))
    assert first == folder_digest(fill(tmp_path / "two", dict(reversed(files.items()))))
    assert first != folder_digest(fill(tmp_path / "three", files | {"sub/b.txt": "3"}))
    assert first != folder_digest(fill(tmp_path / "four", {"config.json": "{}", "sub/a.txt": "1", "sub/c.txt": "2"}))
    # Moved bytes between name and contents must not cancel.
    assert folder_digest(fill(tmp_path / "five", {"a": "bc"})) != folder_digest(fill(tmp_path / "six", {"ab": "c"}))


def test_folder_digest_ignores_hidden_files_and_follows_file_links(tmp_path: Path) -> None:
    plain = fill(tmp_path / "plain", {"a": "1"})
    hidden = fill(tmp_path / "hidden", {"a": "1", ".cache/when": "today", ".mark": "x"})
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "a").symlink_to(plain / "a")
    assert folder_digest(plain) == folder_digest(hidden) == folder_digest(linked)
    (linked / "more").symlink_to(plain, target_is_directory=True)
    with pytest.raises(ValueError, match="link to a folder"):
        folder_digest(linked)
