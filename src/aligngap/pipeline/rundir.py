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
from aligngap.pipeline.executors.progress import Ledger, Spent, activities, time_spent
from aligngap.pipeline.executors.run import Interrupted
from aligngap.pipeline.graph import Event
from aligngap.store.store import Store, read_json, write_json

_SCHEMA = 1
_BETWEEN_WRITES = 0.5
_HALF = re.compile(r"\..+\.[0-9a-f]{8}")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # with one slash: what a path makes of two
STORE_VARIABLE = "ALIGNGAP_STORE"


@dataclass
class RunDirectory:
    """A run's folder. Got from `use` (to run a study in it) or `open` (to read what is there)."""

    folder: Path
    study: dict[str, Any]
    _status: dict[str, Any] = field(default_factory=dict)
    _ledger: Ledger | None = None
    _written: float = 0.0
    _recorded: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def use(cls, folder: Path, study: Mapping[str, Any]) -> Iterator[RunDirectory]:
        """Take the folder for this study, creating it if need be, and hold it until the block ends.

        study: plain JSON values. However the block ends, status.json says so afterwards.

        Raises UserError when the folder cannot be written, holds something else or another study, or is in use.
        """
        wanted: dict[str, Any] = json.loads(json.dumps(study))  # tuples become lists, as they will be when read back
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error
        with _locked(folder):
            for left in folder.iterdir():
                if _HALF.fullmatch(left.name):  # of a process that was killed while it wrote
                    left.unlink(missing_ok=True)
            if (folder / "study.json").exists():
                _same_study(folder, _object(folder / "study.json"), wanted)
            elif any(not entry.name.startswith(".") for entry in folder.iterdir()):
                raise UserError(
                    "the folder holds other things and no study", where=str(folder), hint="Give --out another folder."
                )
            else:
                write_json(folder / "study.json", wanted)
            run = cls(folder, wanted)
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
        if not (folder / "study.json").is_file():
            raise UserError(
                "not a run's folder: it has no study.json",
                where=str(folder),
                hint="Give the folder that `aligngap run` wrote, by default runs/STUDY.",
            )
        return cls(folder, _object(folder / "study.json"))

    @property
    def logs(self) -> Path:
        """Where stages' logs go."""
        return self.folder / "logs"

    def store_path(self, chosen: Path | None = None) -> Path:
        """Where this run's artefacts are: as chosen, else where the last run put them, else inside the folder."""
        if chosen is not None:
            return chosen
        with suppress(UserError):
            recorded = self.status().get("store")
            if isinstance(recorded, str):
                return self.folder / recorded
        return self.folder / "store"

    def status(self) -> dict[str, Any]:
        """What status.json holds, with the truth about a run that died without a word. Raises UserError."""
        path = self.folder / "status.json"
        if not path.is_file():
            raise UserError("nothing has been run here yet", where=str(path), hint="Start it with `aligngap run`.")
        status = _object(path)
        if status.get("state") == "running" and not is_in_use(self.folder):
            status["state"] = "interrupted"
            for entry in status.get("stages", []):
                if entry.get("status") == "running":
                    entry["status"] = "interrupted"
        return status

    def spent(self, status: Mapping[str, Any]) -> list[Spent]:
        """Where time went by kind of stage, as far as it is recorded. What an earlier run made counts with what it took
        then. status: what `status` gave.
        """
        store = Store(self.store_path(), reading=True)
        begun = [item for item in status["stages"] if item["status"] not in ("waiting", "blocked")]
        return time_spent((item["kind"], self._seconds(store, item)) for item in begun)

    def activities(self, status: Mapping[str, Any]) -> dict[str, float]:
        """Where time went by activity, `executors.progress.activities`, with the time that cores waited in the latest
        run. status: what `status` gave.
        """
        store = Store(self.store_path(), reading=True)
        begun = [item for item in status["stages"] if item["status"] not in ("waiting", "blocked")]
        made = sum(float(item["seconds"]) for item in begun if item["status"] != "cached")
        said = ((self._record(store, item).get("spent"), self._seconds(store, item)) for item in begun)
        return activities(said, float(status["jobs"]) * float(status["seconds"]), made)

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
        self._status = {"schema": _SCHEMA, "state": "running", "pid": os.getpid(), "started": _now(), "store": where}
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
                "label": entry.label,
                "kind": entry.kind,
                "status": entry.status,
                "done": entry.done,
                "total": entry.total,
                "rate": None if entry.rate is None else round(entry.rate, 3),
                "seconds": round(entry.seconds, 3),
                # JSON has no NaN, and a loss may well be one.
                "metrics": {key: value if math.isfinite(value) else None for key, value in entry.metrics.items()},
                "reason": entry.reason,
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


def _object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path), hint="See to its permissions.") from error
    if not isinstance(value, dict):
        raise UserError("not a JSON object", where=str(path), hint="The file is damaged; give --out another folder.")
    return value


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
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
    with suppress(UserError, OSError):
        status = _object(folder / "status.json")
        if status.get("state") == "running":
            return f" (process {status.get('pid')}, since {status.get('started')})"
    return ""


def is_in_use(folder: Path) -> bool:
    """Whether a process runs in this folder. Writes nothing: who only looks may have no right to, or look for hours."""
    path = folder / ".lock"
    if not path.is_file():
        return False
    try:
        import fcntl
    except ImportError:  # Windows
        try:
            with FileLock(path, timeout=0):
                return False
        except (Timeout, OSError):
            return True
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back as the file is closed
            return False
    except OSError:  # held; or no such locks here, and nothing better is known than what the folder says
        return True


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot be written: {error.strerror or error}",
        where=str(folder),
        hint="Give --out a folder that you can write to.",
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
