from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import aligngap
from aligngap.errors import UserError
from aligngap.store import Problem, Store, read_json, write_bytes_atomic, write_json
from aligngap.store.contents import all_but_weights
from aligngap.store.disk import is_checked, write_checked
from faults.moments import moments

NAME = "arm-0123456789abcdef0123"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make(store: Store, name: str = NAME, text: str = "weights") -> Path:
    with store.writing(name, {"stage": "arm"}) as folder:
        (folder / "sub").mkdir()
        (folder / "model.safetensors").write_text(text)
        (folder / "sub" / "metrics.json").write_text("{}")
    return store.get(name).path


def everything(store: Store) -> list[str]:
    """All files of the store but its lock files."""
    paths = (path.relative_to(store.root) for path in store.root.rglob("*") if not path.is_dir())
    return sorted(path.as_posix() for path in paths if path.parts[0] != ".locks")


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(Path(aligngap.__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.01)


# Finished artefacts


def test_a_written_artefact_is_found_whole(store: Store) -> None:
    assert not store.has(NAME)
    assert store.identities() == []
    path = make(store)
    assert store.has(NAME)
    assert store.identities() == [NAME]
    assert (path / "model.safetensors").read_text() == "weights"
    assert store.get(NAME).record() == {"stage": "arm"}
    assert store.verify() == []
    manifest = read_json(path / "manifest.json")
    assert isinstance(manifest, dict)
    assert manifest["schema"] == 1
    assert manifest["identity"] == NAME
    assert sorted(manifest["files"]) == ["model.safetensors", "record.json", "sub/metrics.json"]
    assert manifest["files"]["model.safetensors"]["size"] == 7


def test_get_says_what_is_absent(store: Store) -> None:
    with pytest.raises(KeyError, match=NAME):
        store.get(NAME)


@pytest.mark.parametrize("bad", ["../x", "a/b", "", ".partial", "a\\b", "a b"])
def test_a_name_cannot_lead_out_of_the_store(store: Store, bad: str) -> None:
    with pytest.raises(ValueError, match="not an identity"):
        store.has(bad)
    with pytest.raises(ValueError, match="not an identity"):
        store.partial(bad)


def test_the_store_stays_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("here")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    make(store)
    assert (tmp_path / "here" / NAME / "manifest.json").is_file()


# All or nothing


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, FileNotFoundError, ConnectionError])
def test_an_exception_leaves_nothing_and_passes_unchanged(store: Store, kind: type[BaseException]) -> None:
    def broken() -> None:
        with store.writing(NAME, {}) as folder:
            (folder / "a.json").write_text("{}")
            raise kind("mid-write")

    with pytest.raises(kind, match="mid-write"):
        broken()
    assert everything(store) == []
    assert list((store.root / ".temporary").iterdir()) == []
    make(store)


def test_never_overwritten(store: Store) -> None:
    path = make(store, text="first")
    make(store, text="second")
    assert (path / "model.safetensors").read_text() == "first"
    assert store.verify() == []
    assert list((store.root / ".temporary").iterdir()) == []


def test_the_artefact_that_appears_meanwhile_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a network disk whose locks do not reach the other machine: seen only by the rename.
    path = make(store, text="theirs")
    answers = iter([False])
    real = Store.has
    monkeypatch.setattr(Store, "has", lambda self, name: next(answers, None) is not False and real(self, name))
    make(store, text="ours")
    assert (path / "model.safetensors").read_text() == "theirs"
    assert store.verify() == []


def test_something_without_a_manifest_in_the_way_is_not_overwritten(store: Store) -> None:
    (store.root / NAME).mkdir()
    (store.root / NAME / "precious").write_text("x")
    with pytest.raises(UserError, match="never overwritten"):
        make(store)
    assert everything(store) == [f"{NAME}/precious"]
    assert [problem.file for problem in store.verify()] == ["manifest.json"]


KILLED = """
import sys, time
from pathlib import Path
from aligngap.store.store import Store
store, name = Store(sys.argv[1]), sys.argv[2]
(store.partial(name) / "step.json").write_text("{}")
with store.writing(name, {}) as folder:
    (folder / "half.safetensors").write_bytes(b"x" * 1000)
    Path(sys.argv[3]).touch()
    time.sleep(600)
"""


def test_a_killed_process_leaves_nothing_visible_and_sweep_cleans(store: Store, tmp_path: Path) -> None:
    mark = tmp_path / "writing"
    process = python(KILLED, store.root, NAME, mark)
    try:
        wait_for(mark)
        (temporary,) = (store.root / ".temporary").iterdir()
        store.sweep()
        assert (temporary / "half.safetensors").is_file(), "swept under a living writer"
        with pytest.raises(UserError, match="another process"), store.lock(NAME, timeout=0.1):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not store.has(NAME)
    assert store.identities() == []
    assert store.verify() == []
    assert temporary.is_dir()
    store.sweep()
    # What the dead arm had reached is kept: it resumes from there.
    assert everything(store) == [f".partial/{NAME}/step.json"]
    make(store)
    assert not (store.root / ".partial" / NAME).exists()


def test_sweep_leaves_what_this_very_thread_writes(store: Store) -> None:
    with store.writing(NAME, {}) as folder:
        store.sweep()
        (folder / "a.json").write_text("{}")
    assert store.has(NAME)


def test_partial_outlives_a_failure_and_goes_with_success(store: Store) -> None:
    checkpoint = store.partial(NAME) / "step-3.json"
    checkpoint.write_text("{}")
    with pytest.raises(RuntimeError), store.writing(NAME, {}):
        raise RuntimeError
    store.sweep()
    assert checkpoint.exists()
    assert store.partial(NAME) == checkpoint.parent
    make(store)
    assert not checkpoint.parent.exists()
    # Killed between the rename and the removal.
    (store.partial(NAME) / "late.json").write_text("{}")
    store.sweep()
    assert not checkpoint.parent.exists()


# Several at once

WORKER = """
import os, sys, time
from pathlib import Path
from aligngap.store.store import Store
store, name, log = Store(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
(log / f"ready-{os.getpid()}").touch()
while len(list(log.glob("ready-*"))) < 2:
    time.sleep(0.005)
with store.lock(name):
    if not store.has(name):
        (log / f"worked-{os.getpid()}").touch()
        with store.writing(name, {}) as folder:
            time.sleep(0.3)
            (folder / "who.json").write_text(str(os.getpid()))
print(store.get(name).path.joinpath("who.json").read_text())
"""


def test_two_processes_do_the_work_once(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    pair = [python(WORKER, store.root, NAME, log) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].strip() for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    (worked,) = log.glob("worked-*")
    assert said == [worked.name.removeprefix("worked-")] * 2
    assert store.verify() == []
    assert list((store.root / ".temporary").iterdir()) == []


def test_two_threads_take_turns(store: Store) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with Store(store.root).writing(NAME, {}) as folder:
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.05)
            (folder / "a.json").write_text("{}")
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
    assert store.verify() == []


# Damage


def test_verify_finds_a_flipped_byte_in_every_file(store: Store) -> None:
    path = make(store)
    for file in ("model.safetensors", "sub/metrics.json", "record.json"):
        good = (path / file).read_bytes()
        (path / file).write_bytes(bytes([good[0] ^ 1]) + good[1:])
        assert store.verify() == [Problem(NAME, file, "altered")]
        (path / file).write_bytes(good)
    assert store.verify() == []


def test_verify_finds_truncation_absence_and_strangers(store: Store) -> None:
    path = make(store)
    (path / "model.safetensors").write_text("weig")
    (path / "sub" / "metrics.json").unlink()
    (path / "stranger").write_text("")
    (path / "link").symlink_to("/")
    assert [(problem.file, problem.what) for problem in store.verify([NAME])] == [
        ("model.safetensors", "truncated: 4 of 7 bytes"),
        ("sub/metrics.json", "missing"),
        ("stranger", "unexpected file"),
        ("link", "not a plain file"),
    ]
    assert str(store.verify([NAME])[1]) == f"{NAME}/sub/metrics.json: missing"


def test_verify_of_an_absent_artefact(store: Store) -> None:
    assert store.verify(["sft-00"]) == [Problem("sft-00", "", "missing")]


def test_verify_of_a_file_replaced_by_a_link_to_the_same_contents(store: Store, tmp_path: Path) -> None:
    path = make(store)
    (tmp_path / "copy").write_text("weights")
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to(tmp_path / "copy")
    assert store.verify() == [Problem(NAME, "model.safetensors", "not a plain file")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"schema": 2, "files": {}}',
        '{"schema": 1, "identity": "other", "files": {}}',
        json.dumps({"schema": 1, "identity": NAME, "files": []}),
        json.dumps({"schema": 1, "identity": NAME, "files": {"a": {"size": 1}}}),
        json.dumps({"schema": 1, "identity": NAME, "files": {"a": 3}}),
        "\x80",
        "[" * 200_000,
    ],
)
def test_verify_of_an_unreadable_manifest(store: Store, text: str) -> None:
    path = make(store)
    (path / "manifest.json").write_text(text, encoding="latin-1")
    (problem,) = store.verify()
    assert problem.file == "manifest.json"
    assert "unreadable" in problem.what


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/../../secret", "sub\\..\\secret", "C:x", ".", "./a"])
def test_verify_never_follows_a_name_out_of_the_artefact(store: Store, name: str) -> None:
    path = make(store)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "size": 1}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert store.verify() == [Problem(NAME, name, "name leads outside the artefact")]


def test_what_may_not_be_read_is_not_called_damaged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store)

    def denied(path: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("aligngap.store.contents.file_digest", denied)
    for look in (store.verify, lambda: store.set_aside(NAME)):
        with pytest.raises(UserError, match="may not be read"):
            look()
    assert store.has(NAME)


def test_sizes_alone_of_what_is_left_out_of_the_checksums(store: Store) -> None:
    path = make(store)
    (path / "model.safetensors").write_text("WEIGHTS"[:7])
    assert store.verify([NAME], all_but_weights) == []
    assert store.verify([NAME]) == [Problem(NAME, "model.safetensors", "altered")]
    (path / "sub" / "metrics.json").write_text("[]")
    assert [problem.file for problem in store.verify([NAME], all_but_weights)] == ["sub/metrics.json"]
    (path / "model.safetensors").write_text("weigh")
    assert len(store.verify([NAME], all_but_weights)) == 2


def test_what_is_damaged_is_set_aside_and_what_is_whole_stays(store: Store) -> None:
    assert store.set_aside(NAME) is None
    path = make(store)
    assert store.set_aside(NAME) is None
    assert store.has(NAME)
    (path / "model.safetensors").write_text("altered")
    aside = store.set_aside(NAME)
    assert aside is not None
    assert (aside / "model.safetensors").read_text() == "altered"
    assert not path.exists()
    assert (store.identities(), store.verify()) == ([], [])
    make(store)
    (path / "manifest.json").unlink()
    assert store.set_aside(NAME) != aside  # without a manifest it counts as damaged, and nothing of it is lost
    assert len(list((store.root / ".aside").iterdir())) == 2


# Who uses it, and what nobody uses


def test_users_are_remembered_by_folder(store: Store, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    store.register(run, ["arm-1", "sft-1"])
    store.register(run, ["arm-2"])  # the study has changed
    store.register(tmp_path / "removed", ["arm-3"])
    store.register(tmp_path / "unmounted" / "run", ["arm-4"])
    users = {user.folder: user for user in store.users()}
    assert users[run].identities == {"arm-2"}
    assert [users[tmp_path / name].gone for name in ("run", "removed", "unmounted/run")] == [False, True, False]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in (store.root, run):
        path.rename(moved / path.name)
    assert moved / "run" in {user.folder for user in Store(moved / "store").users()}


def test_what_another_machine_registered_may_only_seem_to_be_gone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("platform.node", lambda: "node-7")
        store.register(tmp_path / "there", ["arm-1"])
    (user,) = store.users()
    assert not user.gone
    assert "node-7" not in user.entry.read_text()


def test_an_unreadable_entry_is_named_and_nothing_is_taken_for_free(store: Store, tmp_path: Path) -> None:
    (store.root / ".users" / "x.json").write_text("{}")
    with pytest.raises(UserError, match="which run"):
        store.users()
    (store.root / ".users" / "x.json").write_text("{")
    with pytest.raises(UserError, match="JSON"):
        store.users()


def test_free_takes_what_is_not_kept_and_not_being_made(store: Store) -> None:
    kept, free, made, begun = "sft-1", "sft-2", "sft-3", "sft-4"
    for name in (kept, free, made):
        make(store, name)
    (store.partial(begun) / "state").write_bytes(bytes(100))
    (store.partial(kept) / "late").write_bytes(bytes(10))
    (store.root / "notes").mkdir()  # somebody's own, without a manifest
    (store.root / "notes" / "x.txt").write_text("x")
    path = make(store, "arm-5")
    (path / "model.safetensors").write_text("altered")
    store.set_aside("arm-5")
    before = everything(store)
    with store.exclusively(), store.lock(made):
        planned = store.free({kept}, dry_run=True)
        assert everything(store) == before
        assert [(item.identity, item.what, item.held) for item in planned] == [
            (free, "artefact", False),
            (made, "artefact", True),
            (begun, "step checkpoint", False),
            ("arm-5", "set aside", False),
        ]
        assert planned[2].size == 100
        assert store.free({kept}) == planned
    assert store.identities() == [kept, made]
    assert (store.root / "notes" / "x.txt").exists()
    assert not (store.root / ".partial" / begun).exists()
    assert (store.root / ".partial" / kept / "late").exists()
    assert list((store.root / ".aside").iterdir()) == []
    assert list((store.root / ".temporary").iterdir()) == []


def test_registering_waits_for_who_tidies(store: Store, tmp_path: Path) -> None:
    done: list[str] = []
    with store.exclusively():
        thread = threading.Thread(target=lambda: (Store(store.root).register(tmp_path, ["a-1"]), done.append("x")))
        thread.start()
        thread.join(0.3)
        assert done == []
        assert store.users() == []
    thread.join()
    assert len(store.users()) == 1


# From elsewhere


def test_adopted_beside_what_is_there(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    for name in ("sft-1", "sft-2"):
        make(other, name, text="theirs")
    make(store, "sft-2", text="ours")
    with store.incoming() as folder:
        for name in ("sft-1", "sft-2"):
            shutil.copytree(other.get(name).path, folder / name)
        (folder / "arm-3").mkdir()
        (folder / "arm-3" / "state").write_text("x")
        store.sweep()  # of another process: it leaves what has an owner
        assert [store.adopt(folder / name, name) for name in ("sft-1", "sft-2")] == [True, False]
        assert store.adopt(folder / "arm-3", "arm-3", finished=False)
    assert list((store.root / ".temporary").iterdir()) == []
    assert [(store.get(name).path / "model.safetensors").read_text() for name in ("sft-1", "sft-2")] == [
        "theirs",
        "ours",
    ]
    assert list(store.partials()) == ["arm-3"]
    assert store.verify() == []


# Killed at every moment


def test_a_kill_at_any_moment_of_writing_leaves_all_or_nothing(tmp_path: Path) -> None:
    def work() -> None:
        store = Store(tmp_path / "store")
        (store.partial(NAME) / "step.json").write_text("{}")
        make(store)

    for _ in moments(work):
        store = Store(tmp_path / "store")
        assert store.verify() == []
        store.sweep()
        assert not list((store.root / ".temporary").iterdir())
        if not store.has(NAME):
            assert everything(store) in ([], [f".partial/{NAME}/step.json"])
            make(store)
        assert store.verify() == []
        assert [*store.identities(), *store.partials()] == [NAME]
        shutil.rmtree(store.root)


def test_a_kill_at_any_moment_of_setting_aside_and_freeing_loses_nothing_that_is_kept(tmp_path: Path) -> None:
    start = Store(tmp_path / "start")
    for name in ("sft-1", "sft-2", "sft-3"):
        make(start, name)
    (start.get("sft-3").path / "model.safetensors").write_text("altered")

    def work() -> None:
        store = Store(tmp_path / "store")
        store.set_aside("sft-3")
        with store.exclusively():
            store.free({"sft-1"})

    shutil.copytree(start.root, tmp_path / "store")
    for _ in moments(work):
        store = Store(tmp_path / "store")
        store.sweep()
        assert store.verify([name for name in store.identities() if name != "sft-3"]) == []
        assert "sft-1" in store.identities()
        with store.exclusively():
            store.set_aside("sft-3")
            store.free({"sft-1"})
        assert [name for name in everything(store) if not name.startswith("sft-1/")] == []
        shutil.rmtree(store.root)
        shutil.copytree(start.root, tmp_path / "store")


# What is refused


@pytest.mark.parametrize("file", ["a.pt", "a.PTH", "pytorch_model.bin", "sub/a.pkl", "a.pickle"])
def test_no_pickle(store: Store, file: str) -> None:
    def broken() -> None:
        with store.writing(NAME, {}) as folder:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text("")

    with pytest.raises(ValueError, match="pickle"):
        broken()
    assert everything(store) == []


def test_a_pickle_that_a_manifest_lists_is_a_problem(store: Store) -> None:
    path = make(store)
    (path / "manifest.json").unlink()
    files = {"model.pt": {"sha256": hashlib.sha256(b"").hexdigest(), "size": 0}}
    write_json(path / "manifest.json", {"schema": 1, "identity": NAME, "files": files})
    (path / "model.pt").write_text("")
    assert "model.pt: a pickle format, which no artefact holds" in [str(p).partition("/")[2] for p in store.verify()]


@pytest.mark.parametrize("file", ["manifest.json", "record.json"])
def test_the_stores_own_names(store: Store, file: str) -> None:
    with pytest.raises(ValueError, match="the store's own"), store.writing(NAME, {}) as folder:
        (folder / file).write_text("{}")
    assert everything(store) == []


def test_no_links(store: Store) -> None:
    with pytest.raises(ValueError, match="link"), store.writing(NAME, {}) as folder:
        (folder / "a.json").symlink_to("/etc/hostname")
    assert everything(store) == []


def test_a_record_is_json_without_nan(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON"), store.writing(NAME, {"loss": float("nan")}):
        pass
    assert everything(store) == []


# The disk


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    # Below a plain file, because permissions do not stop root.
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        Store(tmp_path / "file" / "store")
    assert caught.value.where == str(tmp_path / "file" / "store")
    assert caught.value.hint
    assert "run the same command again" in caught.value.hint


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        sqlite3.OperationalError("database or disk is full"),
    ],
)
def test_a_full_disk_in_a_stages_own_writing(store: Store, error: Exception) -> None:
    with pytest.raises(UserError, match="no room left") as caught, store.writing(NAME, {}):
        raise error
    assert caught.value.where == str(store.root)
    assert caught.value.__cause__ is error
    assert everything(store) == []


def test_a_denied_file_is_the_stores_only_inside_it(store: Store) -> None:
    with pytest.raises(PermissionError), store.writing(NAME, {}):
        raise PermissionError(errno.EACCES, "denied", "/data/pairs.parquet")
    with pytest.raises(UserError, match="cannot be written"), store.writing(NAME, {}) as folder:
        raise PermissionError(errno.EACCES, "denied", str(folder / "a.json"))


def test_a_full_disk_in_the_stores_writing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no room left"):
        make(store)
    assert everything(store) == []


LIMITED = """
import resource, sys
import torch
from safetensors.torch import save_file
from aligngap.errors import UserError
from aligngap.store.store import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with Store(sys.argv[1]).writing(sys.argv[2], {}) as folder:
        save_file({"w": torch.zeros(100_000)}, folder / "model.safetensors")
except UserError as error:
    print(error.what)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_safetensors_out_of_room(store: Store) -> None:
    # The real library with a real limit of the system: its errors are not OSError.
    process = python(LIMITED, store.root, NAME)
    assert process.communicate(timeout=120)[0].strip() == "no room left to write"
    assert everything(store) == []


# Pieces of unfinished work


def test_a_piece_is_trusted_only_as_it_was_written(tmp_path: Path) -> None:
    piece = tmp_path / "a.parquet"
    assert not is_checked(piece)
    write_checked(piece, lambda path: path.write_bytes(b"rows"))
    assert is_checked(piece)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "a.parquet.sha256"]
    for damage in (b"rowz", b"row", b""):
        piece.write_bytes(damage)
        assert not is_checked(piece)
    write_checked(piece, lambda path: path.write_bytes(b"other rows"))
    assert is_checked(piece)
    (tmp_path / "a.parquet.sha256").unlink()
    assert not is_checked(piece)


def test_a_kill_at_any_moment_of_a_pieces_writing(tmp_path: Path) -> None:
    piece = tmp_path / "a"
    for _ in moments(lambda: write_checked(piece, lambda path: path.write_bytes(b"rows"))):
        assert not is_checked(piece) or piece.read_bytes() == b"rows"


# Plain files


def test_json_there_and_back(tmp_path: Path) -> None:
    value = {"b": 1, "a": [None, 0.1, "é", "\ud800"]}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", float("nan"))
    assert read_json(tmp_path / "x.json") == 1
    (tmp_path / "x.json").write_text('{"a": NaN}')
    with pytest.raises(UserError, match="NaN"):
        read_json(tmp_path / "x.json")


def test_a_damaged_or_absent_json_file(tmp_path: Path) -> None:
    for text in ("{", "[" * 200_000):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError) as caught:
            read_json(tmp_path / "x.json")
        assert caught.value.where == str(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "y.json")


def test_a_failed_replacement_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes_atomic(tmp_path / "x", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="no room left"):
        write_bytes_atomic(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_who_only_reads_creates_nothing(tmp_path: Path) -> None:
    nowhere = Store(tmp_path / "nowhere", reading=True)
    name = "arm-" + "0" * 20
    assert not nowhere.has(name)
    assert not nowhere.unfinished(name).exists()
    assert list(tmp_path.iterdir()) == []
    kept = Store(tmp_path / "store")
    kept.partial(name)
    assert Store(kept.root, reading=True).unfinished(name) == kept.partial(name)
