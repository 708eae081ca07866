"""The folder of one study: what was asked, how far it has come, and what came out.

DIR/study.json    the resolved study; a folder belongs to one study for good
DIR/status.json   every stage's state, replaced whole, at most twice a second
DIR/logs/         output and traceback of stages that had something to say
DIR/store/        the artefacts, unless they are kept elsewhere
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from aligngap.errors import UserError
from aligngap.pipeline import RUNS
from aligngap.pipeline.executors.progress import KindTime, Ledger, activities, time_by_kind
from aligngap.pipeline.executors.run import Interrupted
from aligngap.pipeline.graph import Event
from aligngap.pipeline.status import SCHEMA, checked_status, memory_kills, without_a_word, writable
from aligngap.store.disk import read_json, write_json
from aligngap.store.locks import kept_free
from aligngap.store.reading import is_file, is_there, readable
from aligngap.store.store import Store

_BETWEEN_WRITES = 0.5
# What a killed process leaves of a file that was to be put in place whole.
_HALF = re.compile(
    r"(\.((study|status|results)\.json|(points|samples|per_prompt)\.parquet|report\.html)|charts/\.[\w-]+\.(png|svg))"
    r"\.[0-9a-f]{8}"
)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # with one slash: what a path makes of two
STORE_VARIABLE = "ALIGNGAP_STORE"
_ELSEWHERE = "Give --out a folder that you can write to."


@dataclass
class RunDirectory:
    """A run's folder. Got from `use` (to run a study in it) or `open` (to read what is there)."""

    folder: Path
    study: dict[str, Any]
    _status: dict[str, Any] = field(default_factory=dict)
    _ledger: Ledger | None = None
    _written: float = 0.0
    _recorded: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: str = ""
    """What there is to say of the run before this one, where that ended without a word."""

    @classmethod
    @contextmanager
    def use(cls, folder: Path, study: Mapping[str, Any]) -> Iterator[RunDirectory]:
        """Take the folder for this study, creating it if need be, and hold it until the block ends.

        study: plain JSON values. However the block ends, status.json says so afterwards.

        Raises UserError when the folder cannot be written, holds something else or another study, or is in use.
        """
        wanted: dict[str, Any] = json.loads(json.dumps(study))  # tuples become lists, as they will be when read back
        _refuse_others(folder, wanted)  # before anything is created there
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error
        with _locked(folder):
            _refuse_others(folder, wanted)  # another process may have begun meanwhile
            if not (folder / "study.json").exists():
                write_json(folder / "study.json", wanted)
            for left in (*folder.iterdir(), *folder.glob("charts/.*")):
                if _HALF.fullmatch(left.relative_to(folder).as_posix()) and stat.S_ISREG(left.lstat().st_mode):
                    left.unlink(missing_ok=True)
            run = cls(folder, wanted, lost=_lost(folder))
            try:
                yield run
            except BaseException as error:
                with suppress(UserError):  # a full disk must not hide what happened
                    run._close("interrupted" if isinstance(error, KeyboardInterrupt | Interrupted) else "failed")
                raise
            run._close("failed" if run._ledger and run._ledger.count("failed", "blocked") else "finished")

    @classmethod
    def open(cls, folder: Path) -> RunDirectory:
        """The folder of a run that was started before. Raises UserError when it is none."""
        if not is_file(folder / "study.json"):
            raise UserError(
                "not a run's folder: it has no study.json",
                where=str(folder),
                hint="Give the folder that `aligngap run` wrote, by default runs/STUDY.",
            )
        path = folder / "study.json"
        study = _object(path)
        for key in ("name", "title"):
            if not isinstance(study.get(key, ""), str):
                raise UserError(f"{key}: it is no text", where=str(path), hint="The file is damaged.")
        return cls(folder, study)

    @property
    def logs(self) -> Path:
        """Where stages' logs go."""
        return self.folder / "logs"

    def store_path(self, chosen: Path | None = None) -> Path:
        """Where this run's artefacts are: as chosen, else where the last run put them, else inside the folder. Raises
        UserError for a status that cannot be read.
        """
        if chosen is not None:
            return chosen
        if is_file(self.folder / "status.json"):
            return Path(os.path.normpath(self.folder / str(self.status()["store"])))
        return self.folder / "store"

    def status(self) -> dict[str, Any]:
        """What status.json holds, with the truth about a run that died without a word. Raises UserError."""
        path = self.folder / "status.json"
        if not is_file(path):
            raise UserError("nothing has been run here yet", where=str(path), hint="Start it with `aligngap run`.")
        status = checked_status(_object(path), path)
        status["lost"] = ""
        if status["state"] == "running" and not is_in_use(self.folder):
            status["state"] = "interrupted"
            status["lost"] = without_a_word(status, memory_kills())
            for entry in status["stages"]:
                if entry["status"] == "running":
                    entry["status"] = "interrupted"
        return status

    def time_by_kind(self, status: Mapping[str, Any]) -> list[KindTime]:
        """Where time went by kind of stage, as far as it is recorded. What an earlier run made counts with what it took
        then. status: what `status` gave.
        """
        store = Store(self.store_path(), reading=True)
        begun = [item for item in status["stages"] if item["status"] not in ("waiting", "blocked")]
        return time_by_kind((item["kind"], self._seconds(store, item)) for item in begun)

    def activities(self, status: Mapping[str, Any]) -> dict[str, float]:
        """Where time went by activity, `executors.progress.activities`, with the time that cores waited in the latest
        run. status: what `status` gave.
        """
        store = Store(self.store_path(), reading=True)
        begun = [item for item in status["stages"] if item["status"] not in ("waiting", "blocked")]
        made = sum(float(item["seconds"]) for item in begun if item["status"] != "cached")
        recorded = ((self._record(store, item).get("spent"), self._seconds(store, item)) for item in begun)
        return activities(recorded, float(status["jobs"]) * float(status["seconds"]), made)

    def _seconds(self, store: Store, item: Mapping[str, Any]) -> float | None:
        if item["status"] != "cached":
            return float(item["seconds"])
        seconds = self._record(store, item).get("seconds")
        return float(seconds) if isinstance(seconds, int | float) else None

    def _record(self, store: Store, item: Mapping[str, Any]) -> dict[str, Any]:
        """An artefact's record; empty where there is none yet, or none that can be read."""
        identity = str(item["identity"])
        if identity not in self._recorded:
            try:
                self._recorded[identity] = store.get(identity).record()
            except (KeyError, ValueError, OSError, UserError):  # swept away, or damaged, which is for `verify` to tell
                return {}
        return self._recorded[identity]

    def begin(self, ledger: Ledger, store: Path) -> None:
        """Start to keep status.json."""
        self._ledger = ledger
        try:  # relative, so that a folder that is moved or published together with its store stays whole
            where = Path(os.path.relpath(store, self.folder)).as_posix()
        except ValueError:  # another drive
            where = store.as_posix()
        self._status = {"schema": SCHEMA, "state": "running", "pid": os.getpid(), "started": _now(), "store": where}
        self._status["memory_kills"] = memory_kills()
        self._write()

    def note(self, event: Event) -> None:
        """An event has happened (the ledger knows of it already)."""
        if time.monotonic() - self._written >= _BETWEEN_WRITES:
            self._write()

    def _close(self, state: str) -> None:
        if self._ledger is None:
            return
        self._status["state"] = state
        for entry in self._ledger.entries.values():
            if entry.status == "running":
                entry.status = "interrupted"
        self._write()

    def _write(self) -> None:
        assert self._ledger is not None
        stages = [
            {
                "identity": name,
                "label": writable(entry.label),
                "kind": entry.kind,
                "status": entry.status,
                "done": entry.done,
                "total": entry.total,
                "rate": None if entry.rate is None else round(entry.rate, 3),
                "seconds": round(entry.seconds, 3),
                # JSON has no NaN, and a loss may well be one.
                "metrics": {key: value if math.isfinite(value) else None for key, value in entry.metrics.items()},
                "reason": writable(entry.reason),
            }
            for name, entry in self._ledger.entries.items()
        ]
        left = round(self._ledger.left, 1) if self._status["state"] == "running" else None
        now = {"updated": _now(), "seconds": round(self._ledger.elapsed, 1), "left": left, "jobs": self._ledger.jobs}
        now["fraction"] = round(self._ledger.fraction, 4)
        write_json(self.folder / "status.json", self._status | now | {"stages": stages})
        self._written = time.monotonic()


def chosen_store(folder: Path, option: Path | None) -> Path:
    """Where a new run keeps its artefacts: --store, else the environment's choice, else one store for all runs beside
    each other in `runs/`, else inside the run's folder. Raises UserError for an address in place of a folder.
    """
    variable = os.environ.get(STORE_VARIABLE)
    own = folder.parent if folder.parent == RUNS else folder
    chosen = option or (Path(variable) if variable else own / "store")
    if _ADDRESS.match(chosen.as_posix()):
        raise UserError(
            f"it is an address, and no folder: {chosen}",
            where="--store" if option else STORE_VARIABLE,
            hint="Give a folder. `aligngap run --executor ray --store URL` brings artefacts from node to node.",
        )
    return chosen


def differences(old: object, new: object, key: str = "") -> list[str]:
    """`dotted.key: old -> new` for all that differs between two JSON values."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        absent = object()
        return [
            line
            for name in names
            for line in differences(old.get(name, absent), new.get(name, absent), f"{key}.{name}" if key else name)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for index, (one, other) in pairs for line in differences(one, other, f"{key}.{index}")]
    return [] if old == new else [f"{key}: {_short(old)} -> {_short(new)}"]


def _short(value: object) -> str:
    try:
        text = json.dumps(value)
    except TypeError:
        return "(absent)"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _same_study(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changes = differences(old, new)
    if changes:
        shown = changes[:12] + ([f"and {len(changes) - 12} more"] if len(changes) > 12 else [])
        raise UserError(
            "the folder holds another study:\n  " + "\n  ".join(shown),
            where=str(folder),
            hint=f"Give --out another folder; with --store {folder / 'store'} it reuses what both have in common.",
        )


def _refuse_others(folder: Path, wanted: dict[str, Any]) -> None:
    """Raises UserError for what is no folder, and for a folder that holds another study, or none and other things.
    Changes nothing.
    """
    if not os.path.lexists(folder):
        return
    if not is_there(folder) or not folder.is_dir():
        what = "it is a link that leads nowhere" if folder.is_symlink() else "it is no folder"
        raise UserError(what, where=str(folder), hint="Give --out another folder.")
    with readable(folder):
        names = {entry.name for entry in folder.iterdir()}
    if "study.json" in names:
        _same_study(folder, _object(folder / "study.json"), wanted)
    elif any(not name.startswith(".") for name in names) or not _is_lock(folder / ".lock"):
        raise UserError(
            "the folder holds other things and no study", where=str(folder), hint="Give --out another folder."
        )


def _is_lock(path: Path) -> bool:
    """Whether it is what this package locks, or not there: an empty file. Anything else is somebody's."""
    try:
        result = path.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(result.st_mode) and result.st_size == 0


def _lost(folder: Path) -> str:
    """Of the last run in a folder that is held by this process: what there is to say if it ended without a word."""
    path = folder / "status.json"
    with suppress(UserError, FileNotFoundError):
        status = checked_status(_object(path), path)
        if status["state"] == "running":
            return without_a_word(status, memory_kills())
    return ""


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError("not a JSON object", where=str(path), hint="The file is damaged; give --out another folder.")
    return value


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot be written: {error.strerror or error}", where=str(folder), hint=_ELSEWHERE)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if not _is_lock(folder / ".lock"):
        raise UserError("it is not what a run makes", where=str(folder / ".lock"), hint="Move it away.")
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=1.0)  # not 0: who looks holds it for a moment to see whether anyone does
    except Timeout as error:
        raise UserError(
            f"another process is running in this folder{_who(folder)}",
            where=str(folder),
            hint=f"See how far it is with `aligngap status {folder}`, wait for it, or give --out another folder.",
        ) from error
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _who(folder: Path) -> str:
    path = folder / "status.json"
    with suppress(UserError, OSError):
        status = checked_status(_object(path), path)
        if status["state"] == "running":
            return f" (process {status['pid']}, since {status['started']})"
    return ""


def is_in_use(folder: Path) -> bool:
    """Whether a process runs in this folder. Writes nothing: who only looks may have no right to, or look for hours."""
    with kept_free(folder / ".lock") as free:
        return not free


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
