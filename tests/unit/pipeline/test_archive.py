"""Packing and unpacking: a run arrives whole, and what is not whole or not plain does not arrive at all."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aligngap.errors import UserError
from aligngap.pipeline.archive import pack, unpack
from aligngap.pipeline.rundir import RunDirectory
from aligngap.store import Store
from unit.pipeline.fake_stages import Fake
from unit.pipeline.runs import finished, make

A = Fake(name="a")
B = Fake(name="b", after=(A,))
C = Fake(name="c", after=(A,))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return finished(tmp_path / "runs" / "try", Store(tmp_path / "runs" / "store"), B, C, leave=[C])


def store_of(run: RunDirectory) -> Store:
    return Store(run.store_path())


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["try.tar", "try.tar.gz"])
def test_there_and_ready_to_go_on(run: RunDirectory, tmp_path: Path, name: str) -> None:
    done = pack(run, store_of(run), tmp_path / name)
    assert (done.artefacts, done.partials) == (2, 1)
    (tmp_path / "elsewhere").mkdir()
    arrived = unpack(tmp_path / name, tmp_path / "elsewhere" / "mine")
    assert (arrived.artefacts, arrived.kept, arrived.partials, arrived.size) == (2, 0, 1, done.size)
    there = RunDirectory.open(tmp_path / "elsewhere" / "mine")
    assert there.store_path() == there.folder / "store"
    store = Store(there.store_path())
    assert store.verify() == []
    for identity in (A.identity, B.identity):
        assert files(store.get(identity).path) == files(store_of(run).get(identity).path)
    assert files(store.partials()[C.identity]) == files(store_of(run).partials()[C.identity])
    assert there.study == run.study
    assert (there.folder / "logs" / f"{A.identity}.log").read_text() == "a warning\n"
    assert not (there.folder / "report.html").exists()  # a page runs in a browser; it is made again from the results
    assert [user.folder for user in store.users()] == [there.folder]
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["mine"]


def test_into_a_shared_store_whose_own_artefacts_stay(run: RunDirectory, tmp_path: Path) -> None:
    pack(run, store_of(run), tmp_path / "a.tar.gz")
    shared = Store(tmp_path / "shared")
    with shared.writing(A.identity, {}) as folder:
        (folder / "times.json").write_text("ours")
    done = unpack(tmp_path / "a.tar.gz", tmp_path / "new" / "mine", shared.root)
    assert (done.artefacts, done.kept) == (1, 1)
    assert (shared.get(A.identity).path / "times.json").read_text() == "ours"
    there = RunDirectory.open(tmp_path / "new" / "mine")
    assert there.store_path().resolve() == shared.root
    assert shared.users()[0].folder == there.folder
    assert list((shared.root / ".temporary").iterdir()) == []


def test_the_same_run_gives_the_same_file_without_names_or_times(run: RunDirectory, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        pack(run, store_of(run), tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(item.uid, item.uname, item.mtime) for item in tar.getmembers()} == {(0, "", 0)}
        assert str(tmp_path) not in "".join(tar.getnames())


def test_long_names_travel_and_too_long_ones_are_refused(run: RunDirectory, tmp_path: Path) -> None:
    store = store_of(run)
    part = store.partial(C.identity) / ("d" * 80)
    part.mkdir()
    (part / ("f" * 60)).write_text("x")
    pack(run, store, tmp_path / "a.tar")
    unpack(tmp_path / "a.tar", tmp_path / "new")
    assert (Store(tmp_path / "new" / "store").partials()[C.identity] / ("d" * 80) / ("f" * 60)).read_text() == "x"
    (part / ("f" * 120)).write_text("x")
    with pytest.raises(UserError, match="cannot be packed"):
        pack(run, store, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


def test_checkpoints_that_somebody_writes_are_left_out(run: RunDirectory, tmp_path: Path) -> None:
    with store_of(run).lock(C.identity):
        assert pack(run, store_of(run), tmp_path / "a.tar").partials == 0
    with store_of(run).lock(B.identity):
        assert pack(run, store_of(run), tmp_path / "b.tar").partials == 1


def test_what_is_damaged_is_not_packed(run: RunDirectory, tmp_path: Path) -> None:
    (store_of(run).get(A.identity).path / "times.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        pack(run, store_of(run), tmp_path / "a.tar")
    assert not list(tmp_path.glob("*.tar*"))


def test_code_is_not_packed(run: RunDirectory, tmp_path: Path) -> None:
    """A checkpoint whose code its user trusts brings some into the store; nobody else is to get it from there."""
    store, stage = store_of(run), Fake(name="trusted")
    make(store, stage, "model/modeling.py")
    stages = json.loads((run.folder / "status.json").read_text())
    stages["stages"].append(stages["stages"][0] | {"identity": stage.identity})
    (run.folder / "status.json").write_text(json.dumps(stages))
    with pytest.raises(UserError, match="holds code"):
        pack(run, store, tmp_path / "a.tar")
    assert not list(tmp_path.glob("*.tar*"))


def test_nothing_is_overwritten(run: RunDirectory, tmp_path: Path) -> None:
    pack(run, store_of(run), tmp_path / "a.tar")
    with pytest.raises(UserError, match="already"):
        pack(run, store_of(run), tmp_path / "a.tar")
    for path in (run.folder, tmp_path / "a.tar"):
        with pytest.raises(UserError, match=r"not empty|no folder"):
            unpack(tmp_path / "a.tar", path)
    with pytest.raises(UserError, match="cannot be read"):
        unpack(tmp_path / "none.tar", tmp_path / "new")


# Archives that nobody packed


class Archive:
    """An archive taken apart, to be changed and put together again."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as tar:
            self.members = [(info, self._data(tar, info)) for info in tar.getmembers()]
        self.index: dict[str, Any] = json.loads(self.members[0][1])

    @staticmethod
    def _data(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
        stream = tar.extractfile(info)
        return stream.read() if stream else b""

    def member(self, part: str) -> int:
        return next(k for k, (info, _) in enumerate(self.members) if part in info.name)

    def add(self, name: str, data: bytes = b"x", *, listed: bool = True, **fields: Any) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for field, value in fields.items():
            setattr(info, field, value)
        self.members.append((info, data))
        if listed:
            self.index["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}

    def replace(self, part: str, data: bytes) -> None:
        """Other contents, with size and checksum to match."""
        at = self.member(part)
        info = self.members[at][0]
        info.size = len(data)
        self.members[at] = (info, data)
        self.index["files"][info.name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}

    def write(self, path: Path, index: bytes | None = None, form: int = tarfile.GNU_FORMAT) -> None:
        index = json.dumps(self.index).encode() if index is None else index
        self.members[0][0].size = len(index)
        self.members[0] = (self.members[0][0], index)
        blocks = [info.tobuf(form) + data + bytes(-len(data) % 512) for info, data in self.members]
        path.write_bytes(b"".join(blocks) + bytes(1024))


def poison(archive: Archive, how: str) -> None:
    """Everything that a file from a stranger might hold."""
    artefact, at = f"artefacts/{A.identity}", archive.member("times.json")
    listed = archive.index["files"]
    if how == "extra member":
        archive.add("run/extra.json", listed=False)
    elif how == "missing member":
        del archive.members[at]
    elif how == "other order":
        archive.members[1], archive.members[2] = archive.members[2], archive.members[1]
    elif how == "absolute name":
        archive.add("/tmp/aligngap-poison.json")
    elif how == "upwards":
        archive.add("run/../../poison.json")
    elif how == "upwards in an artefact":
        archive.add(f"{artefact}/../../poison.json")
    elif how == "upwards as an identity":
        archive.add("artefacts/../poison.json")
    elif how == "backslashes":
        archive.add(f"{artefact}/..\\..\\poison.json")
    elif how == "hidden":
        archive.add("run/.lock.json")
    elif how == "top of its own":
        archive.add("poison/x.json")
    elif how in ("symlink", "hard link", "device", "fifo", "folder", "sparse"):
        kinds = {"symlink": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
        kinds |= {"fifo": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE, "sparse": tarfile.GNUTYPE_SPARSE}
        archive.add("run/x.json", b"", type=kinds[how], linkname="/etc/passwd")
    elif how == "link to a folder first":
        archive.add("run/logs", b"", type=tarfile.SYMTYPE, linkname="/tmp", listed=False)
        archive.members.insert(1, archive.members.pop())
    elif how == "twice in the archive":
        archive.members.append(archive.members[at])
    elif how == "twice but for case":
        archive.add("run/STUDY.json")
    elif how == "a file where a folder is":
        archive.add(f"{artefact}/steps")
    elif how == "huge in the index":
        listed["run/study.json"]["size"] = 10**18
    elif how == "huge in the header":
        archive.members[at][0].size = 10**12
    elif how == "negative":
        listed["run/study.json"]["size"] = -1
    elif how == "not a number":
        listed["run/study.json"]["size"] = True
    elif how == "pickle":
        archive.add(f"{artefact}/model.pt")
    elif how == "code":
        archive.add(f"{artefact}/modeling.py")
    elif how == "a page":
        archive.add("run/report.html")
    elif how == "a terminal's command as a name":
        archive.add(f"{artefact}/\x1b[2J.json")
    elif how == "altered with a checksum to match":
        archive.replace("times.json", b'{"name": "other"}')
    elif how == "no manifest":
        part = archive.member(f"{A.identity}/manifest.json")
        del listed[archive.members.pop(part)[0].name]
    elif how == "a manifest that leads outside":
        part = archive.member(f"{A.identity}/manifest.json")
        manifest = json.loads(archive.members[part][1])
        manifest["files"]["../../x.json"] = {"sha256": "0" * 64, "size": 1}
        archive.replace(f"{A.identity}/manifest.json", json.dumps(manifest).encode())
    elif how == "study.json is none":
        archive.replace("study.json", b"[]")
    elif how == "status.json is gone":
        del listed[archive.members.pop(archive.member("status.json"))[0].name]
    elif how == "study.json is deep":
        archive.replace("study.json", b"[" * 200_000)
    else:
        raise AssertionError(how)


POISONS = [
    "extra member", "missing member", "other order", "absolute name", "upwards", "upwards in an artefact",
    "upwards as an identity", "backslashes", "hidden", "top of its own", "symlink", "hard link", "device", "fifo",
    "folder", "sparse", "link to a folder first", "twice in the archive", "twice but for case",
    "a file where a folder is", "huge in the index", "huge in the header", "negative", "not a number", "pickle", "code",
    "a page", "a terminal's command as a name", "altered with a checksum to match", "no manifest",
    "a manifest that leads outside", "study.json is none", "status.json is gone", "study.json is deep",
]  # fmt: skip


def refused(archive: Path, tmp_path: Path) -> str:
    """It is refused with one clear error, and nothing has been put anywhere."""
    shared = Store(tmp_path / "shared")
    before = sorted(path.name for path in tmp_path.iterdir())
    for store in (None, shared.root):
        with pytest.raises(UserError) as caught:
            unpack(archive, tmp_path / "new", store)
        assert caught.value.where == str(archive)
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        assert (shared.identities(), shared.users(), shared.partials()) == ([], [], {})
        assert list((shared.root / ".temporary").iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("how", POISONS)
def test_poisoned_archives_are_refused(run: RunDirectory, tmp_path: Path, how: str) -> None:
    pack(run, store_of(run), tmp_path / "good.tar")
    archive = Archive(tmp_path / "good.tar")
    poison(archive, how)
    archive.write(tmp_path / "bad.tar")
    refused(tmp_path / "bad.tar", tmp_path)
    assert not (tmp_path / "poison.json").exists()
    assert not Path("/tmp/aligngap-poison.json").exists()


def test_one_that_is_put_together_again_unchanged_is_taken(run: RunDirectory, tmp_path: Path) -> None:
    pack(run, store_of(run), tmp_path / "good.tar")
    Archive(tmp_path / "good.tar").write(tmp_path / "same.tar")
    assert unpack(tmp_path / "same.tar", tmp_path / "new").artefacts == 2


@pytest.mark.parametrize(
    "index",
    [b"", b"[]", b"{", b'{"schema": 2, "files": {}}', b'{"schema": 1, "files": []}', b"[" * 200_000, b"\x80"],
    ids=["empty", "list", "cut", "schema", "files", "deep", "bytes"],
)
def test_an_index_that_is_none(run: RunDirectory, tmp_path: Path, index: bytes) -> None:
    pack(run, store_of(run), tmp_path / "good.tar")
    Archive(tmp_path / "good.tar").write(tmp_path / "bad.tar", index)
    assert "refused" in refused(tmp_path / "bad.tar", tmp_path)


def test_an_artefact_under_another_ones_name(run: RunDirectory, tmp_path: Path) -> None:
    """Whole, with a manifest in order: but what its record says it was made from has another name."""
    store = store_of(run)
    record = store.get(A.identity).record() | {"specification": Fake(name="x").specification}
    shutil.rmtree(store.get(A.identity).path)
    with store.writing(A.identity, record) as folder:
        (folder / "times.json").write_text("{}")
    pack(run, store, tmp_path / "bad.tar")
    assert Fake(name="x").identity in refused(tmp_path / "bad.tar", tmp_path)


def test_extended_headers_are_refused_unread(run: RunDirectory, tmp_path: Path) -> None:
    pack(run, store_of(run), tmp_path / "good.tar")
    archive = Archive(tmp_path / "good.tar")
    archive.add("run/x.json", pax_headers={"comment": "y" * 10_000})
    archive.write(tmp_path / "bad.tar", form=tarfile.PAX_FORMAT)
    assert "not a plain file" in refused(tmp_path / "bad.tar", tmp_path)


@pytest.mark.parametrize("form", ["zeros", "index", "text", "nothing", "gzip of nothing"])
def test_what_is_no_archive(tmp_path: Path, form: str) -> None:
    info = tarfile.TarInfo("pack.json")
    info.size = 1 << 40
    bomb = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 24))  # says a terabyte
    contents = {"zeros": bytes(2000), "index": bomb, "text": b"hello" * 500, "nothing": b""}
    (tmp_path / "bad.tar").write_bytes(contents.get(form, gzip.compress(b"")))
    refused(tmp_path / "bad.tar", tmp_path)


@pytest.mark.parametrize("name", ["good.tar", "good.tar.gz"])
def test_no_flipped_byte_and_no_cut_gets_through(run: RunDirectory, tmp_path: Path, name: str) -> None:
    """Either refused, or what arrives is the same: some bytes of a tar (rights, padding) mean nothing here."""
    pack(run, store_of(run), tmp_path / name)
    good, rng = (tmp_path / name).read_bytes(), random.Random(1)
    unpack(tmp_path / name, tmp_path / "expected")
    expected = arrived(tmp_path / "expected")
    changes: list[Callable[[int], bytes]] = [
        lambda at: good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :],
        lambda at: good[:at],
    ]
    outcomes = []
    for k in range(60):
        (tmp_path / "bad").write_bytes(changes[k % 2](rng.randrange(len(good))))
        try:
            unpack(tmp_path / "bad", tmp_path / "new")
        except UserError:
            assert not (tmp_path / "new").exists()
            outcomes.append("refused")
        else:
            assert arrived(tmp_path / "new") == expected
            shutil.rmtree(tmp_path / "new")
            outcomes.append("same")
    assert outcomes.count("refused") > 40


def arrived(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(folder).items() if "/.locks/" not in name}
