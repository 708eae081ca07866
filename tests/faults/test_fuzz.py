"""The fuzz run in short; the long one is `python -m tests.faults.fuzz --seconds 300`."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.fuzz import READERS, data_files, fuzz


@pytest.mark.parametrize(("reader", "limit"), [("study", 60), ("data", 800)])
def test_mutated_files_are_read_or_refused(reader: str, limit: int, tmp_path: Path) -> None:
    counts, findings = fuzz(reader, 120, seed=7, folder=tmp_path, limit=limit)
    assert findings == []
    assert counts["read"] > 0
    assert counts["refused"] > 0


@pytest.mark.parametrize("reader", READERS)
def test_what_is_not_mutated_is_read(reader: str, tmp_path: Path) -> None:
    """Else nothing would be tried but the first complaint."""
    make, read = READERS[reader]
    files = make()
    (tmp_path / "data.jsonl").write_bytes(data_files()["0.jsonl"])
    chosen = sorted(files) if reader == "data" else ["own.yaml", "quick.yaml"]
    for name in chosen:
        (tmp_path / name).write_bytes(files[name])
        read(tmp_path / name)
