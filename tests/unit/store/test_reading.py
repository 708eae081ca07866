"""What is read of files that may be anyone's: plain files, or a message that names them; no wait, and no write."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from aligngap.errors import UserError
from aligngap.store import Problem, Store, file_digest, read_json
from aligngap.store.contents import check_within
from aligngap.store.disk import new_folder
from aligngap.store.locks import kept_free
from aligngap.store.reading import check_plain, is_file, is_gone, is_there, parse_json, read_file
from unprivileged import shared_folder, unprivileged

NAME = "arm-0123456789abcdef0123"


@pytest.fixture
def shared() -> Iterator[Path]:
    with shared_folder() as folder:
        yield folder


def make(store: Store, name: str = NAME) -> Path:
    with store.writing(name, {"stage": "arm"}) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "model.safetensors").write_text("weights")
        (folder / "metrics.json").write_text("{}")
    return store.get(name).path


def flip(path: Path) -> None:
    """Other contents of the same size."""
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))


def in_time(call: Callable[[], object]) -> BaseException | None:
    """What the call raises; a call that waits is a failure."""
    raised: list[BaseException | None] = [None]

    def target() -> None:
        try:
            call()
        except BaseException as error:
            raised[0] = error

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits"
    return raised[0]


@pytest.mark.parametrize("read", [read_file, read_json, check_plain, file_digest])
def test_what_is_no_plain_file_is_named_and_not_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    places = [tmp_path / "pipe", tmp_path / "link", Path("/dev/zero")]
    for place in places:
        error = in_time(lambda place=place: read(place))  # type: ignore[misc]
        assert isinstance(error, UserError)
        assert "no plain file" in error.what
        assert error.where == str(place)


def test_a_folder_in_a_files_place_and_a_file_in_a_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place in (tmp_path, tmp_path / "file" / "below", tmp_path / "loop"):
        with pytest.raises(UserError) as caught:
            read_file(place)
        assert caught.value.where == str(place)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "absent")


def test_a_file_without_permission_is_not_called_damaged(shared: Path) -> None:
    (shared / "secret.json").write_text("{")
    (shared / "secret.json").chmod(0)
    (shared / "closed").mkdir(mode=0o700)
    with unprivileged():
        for read in (read_file, read_json, check_plain):
            with pytest.raises(UserError, match="may not be read") as caught:
                read(shared / "secret.json")
            assert "permissions" in str(caught.value.hint)
        with pytest.raises(UserError, match="may not be read"):
            is_file(shared / "closed" / "x")
        assert not is_there(shared / "closed" / "x")
        assert not is_gone(shared / "closed" / "x")
        assert is_gone(shared / "nowhere" / "x")


@pytest.mark.parametrize("text", ["1e999", "-1e999", "NaN", "[" * 200 + "]" * 200, '{"a":' * 200 + "0" + "}" * 200])
def test_what_json_allows_and_nothing_could_use(text: str) -> None:
    with pytest.raises(ValueError, match=r"not JSON|nested"):
        parse_json(text.encode())


def test_much_is_no_depth() -> None:
    text = "[" + ",".join(["[[1]]"] * 500) + "]"
    assert parse_json(text.encode()) == [[[1]]] * 500


def test_a_file_of_an_artefact_is_compared_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    home, artefact, read = make(store), store.get(NAME), []

    def counted(path: Path) -> str:
        read.append(path.relative_to(home).as_posix())
        return file_digest(path)

    monkeypatch.setattr("aligngap.store.contents.file_digest", counted)
    for _ in range(3):
        assert artefact.file("metrics.json") == home / "metrics.json"
        assert artefact.file("model") == home / "model"
        assert artefact.record() == {"stage": "arm"}
    assert sorted(read) == ["metrics.json", "model/model.safetensors", "record.json"]
    flip(home / "model" / "model.safetensors")
    os.utime(home / "model" / "model.safetensors", ns=(1, 1))
    with pytest.raises(UserError, match=r"model\.safetensors: altered") as caught:
        artefact.file("model")
    assert "--set-aside" in str(caught.value.hint)
    assert artefact.file("metrics.json").is_file()


@pytest.mark.parametrize("how", ["flip", "cut", "remove", "link", "pipe", "more", "linked folder", "no manifest"])
def test_no_damaged_file_of_an_artefact_is_handed_out(tmp_path: Path, how: str) -> None:
    store = Store(tmp_path / "store")
    home = make(store)
    weights = home / "model" / "model.safetensors"
    shutil.copytree(home, tmp_path / "copy")
    if how == "flip":
        flip(weights)
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:3])
    elif how == "more":
        (home / "model" / "adapter_model.safetensors").write_text("left over")
    elif how == "no manifest":
        (home / "manifest.json").write_text("{}")
    elif how == "linked folder":
        shutil.rmtree(home / "model")
        (home / "model").symlink_to(tmp_path / "copy" / "model")
    else:
        weights.unlink()
    if how == "link":
        weights.symlink_to(tmp_path / "copy" / "model" / "model.safetensors")
    if how == "pipe":
        os.mkfifo(weights)
    error = in_time(lambda: store.get(NAME).file("model"))
    assert isinstance(error, UserError)
    assert "the artefact is damaged" in error.what
    if how == "more":  # which is nothing to this file
        assert store.get(NAME).file("model/model.safetensors") == weights
        return
    with pytest.raises(UserError, match="the artefact is damaged"):
        store.get(NAME).file("model/model.safetensors")


def test_a_file_that_an_artefact_never_had(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make(store)
    with pytest.raises(UserError, match="missing"):
        store.get(NAME).file("table.parquet")


@pytest.mark.parametrize("target", ["whole", "nowhere"])
def test_an_artefacts_folder_that_is_a_link_is_noticed_and_made_again(tmp_path: Path, target: str) -> None:
    store = Store(tmp_path / "store")
    home = make(store)
    home.rename(tmp_path / "whole")
    home.symlink_to(tmp_path / target)
    assert store.verify([NAME]) == [Problem(NAME, "", "a link, where the store made a folder")]
    away = store.set_aside(NAME)
    assert away is not None
    assert away.is_symlink()
    make(store)
    assert store.verify() == []
    assert (tmp_path / "whole" / "manifest.json").is_file()


def test_a_manifest_that_is_a_pipe(tmp_path: Path) -> None:
    store = Store(tmp_path)
    home = make(store)
    (home / "manifest.json").unlink()
    os.mkfifo(home / "manifest.json")
    error = in_time(lambda: store.verify([NAME]))
    assert isinstance(error, UserError)
    assert error.where == str(home / "manifest.json")


def test_folders_without_permission_are_not_called_empty(shared: Path) -> None:
    store = Store(shared / "store")
    home = make(store)
    for closed in (home / "model", home, store.root):
        closed.chmod(0)
        with unprivileged(), pytest.raises(UserError, match="may not be read"):
            Store(store.root, reading=True).verify([NAME])
        closed.chmod(0o755)
    with unprivileged():
        assert Store(store.root, reading=True).verify() == []


def test_who_may_not_write_reads_all_there_is(shared: Path) -> None:
    store = Store(shared / "store")
    make(store)
    (store.partial("arm-" + "1" * 20) / "state.json").write_text("{}")
    with unprivileged():
        reading = Store(store.root, reading=True)
        assert reading.verify() == []
        assert reading.get(NAME).file("metrics.json").read_text() == "{}"
        assert [found.what for found in reading.free({NAME}, dry_run=True)] == ["step checkpoint"]
        with reading.exclusively(), reading.if_idle(NAME) as idle:
            assert idle


def test_a_lock_is_seen_and_respected_without_writing(shared: Path) -> None:
    path = shared / "x.lock"
    with kept_free(path) as free:
        assert free
    assert not path.exists()
    with FileLock(path):
        path.chmod(0o644)
        with unprivileged(), kept_free(path) as free:
            assert not free
    with kept_free(path) as free:
        assert free
        with pytest.raises(TimeoutError):
            FileLock(path, timeout=0).acquire()
    FileLock(path, timeout=0).acquire().lock.release()


def test_somebodys_folders_are_not_taken_for_a_stores(tmp_path: Path) -> None:
    (tmp_path / ".temporary" / "thesis.old").mkdir(parents=True)
    with pytest.raises(UserError, match="is no store"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".temporary"]
    assert (tmp_path / ".temporary" / "thesis.old").is_dir()


def test_a_new_folder_removes_nothing_of_anyones(tmp_path: Path) -> None:
    (tmp_path / ".out.half").mkdir()
    (tmp_path / ".out.half" / "thesis.tex").write_text("x")
    with new_folder(tmp_path / "out") as folder:
        (folder / "model").touch()
    with pytest.raises(UserError, match="not empty"), new_folder(tmp_path / "out"):
        pass
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    for taken in ("file", "nowhere"):
        with pytest.raises(UserError, match="no folder") as caught, new_folder(tmp_path / taken):
            pass
        assert caught.value.where == str(tmp_path / taken)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.half", "file", "nowhere", "out"]
    assert (tmp_path / ".out.half" / "thesis.tex").read_text() == "x"


def test_whoever_reads_a_part_of_an_artefact_compares_that_part(tmp_path: Path) -> None:
    """One mechanism: by the artefact, or by a path that turns out to lie in one, be it through a link."""
    store = Store(tmp_path / "store")
    with store.writing(NAME, {}) as folder:
        for part in ("model", "other"):
            (folder / part).mkdir()
            (folder / part / "weights").write_bytes(b"0123456789")
    home = store.root / NAME
    (tmp_path / "link").symlink_to(home / "model")
    (home / "other" / "weights").write_bytes(b"0123456780")
    for path in (home / "model", tmp_path / "link"):
        check_within(path)
    for path in (home, home / "other"):
        with pytest.raises(UserError, match="other/weights: altered"):
            check_within(path)
    with pytest.raises(UserError, match="other/weights: altered"):
        store.get(NAME).file("other")
    (home / "model" / "weights").write_bytes(b"0123456781")
    with pytest.raises(UserError, match="model/weights: altered"):
        check_within(tmp_path / "link")


def test_a_folder_of_ones_own_is_no_artefact(tmp_path: Path) -> None:
    """A `manifest.json` beside a model may be anything."""
    (tmp_path / "model").mkdir()
    (tmp_path / "manifest.json").write_text("{}")
    check_within(tmp_path / "model")
    check_within(tmp_path / "nowhere")
