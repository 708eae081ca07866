"""An endpoint's verdicts on disk, so that no question is paid for twice."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from aligngap.errors import UserError


class Verdicts:
    """Verdicts by question, in one file for all processes. Without a folder it forgets."""

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        # Every statement is a transaction of its own: nothing that was paid for is lost when the process is killed.
        self.database = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False)
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS verdicts (question TEXT PRIMARY KEY, verdict INTEGER NOT NULL)"
        )

    @classmethod
    @contextmanager
    def opened(cls, folder: Path | None) -> Iterator[Verdicts]:
        """For a while. Raises UserError when the file cannot be used."""
        path = folder / "endpoint.sqlite" if folder is not None else None
        try:
            cache = cls(path)
            with closing(cache.database):
                yield cache
        except (sqlite3.Error, FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UserError(
                f"the kept answers of judge endpoints cannot be used: {error}",
                where=str(path),
                hint="Check the folder and the disk, or delete the file: questions are then asked again.",
            ) from error

    def get(self, question: str) -> int | None:
        """The verdict that is kept."""
        row = self.database.execute("SELECT verdict FROM verdicts WHERE question = ?", (question,)).fetchone()
        return None if row is None else int(row[0])

    def keep(self, question: str, verdict: int) -> int:
        """Keep a verdict unless there is one; gives the one that is kept."""
        self.database.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", (question, verdict))
        kept = self.get(question)
        assert kept is not None
        return kept
